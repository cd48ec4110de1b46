"""How the base backups of a server stand in the two buckets of the plan file, for alarms, status and doctor. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from actions.backup.physical import PhysicalEntry, Uncopied
from actions.contract import Finding, Verdict
from actions.ports import Ports
from actions.site import Frozen, PhysicalPolicy
from actions.steps.phrases import counted, moment, names

COPY_GRACE = timedelta(hours=1)
"""How long after its end a base backup may lack in a bucket; as long again as it took is added."""


class CopyTrouble(Frozen):
    """`kind` begins the key of its alarm."""

    kind: str
    text: str
    hint: str


def copy_trouble(
    policy: PhysicalPolicy, entries: Sequence[PhysicalEntry], left: Uncopied, now: datetime
) -> list[CopyTrouble]:
    """What would be lacking if one of the buckets were lost now, and which copies must not be used."""
    found = []
    server = policy.server
    if left.silent:
        found.append(
            CopyTrouble(
                kind="late-copy",
                text=f"{names(left.silent)} cannot be looked at, so nobody knows which base backups of `{server}` are "
                f"there, and none is copied: {' '.join(left.silent.values())}",
                hint="Look at the store and at the bucket's keys. Restores use the other bucket meanwhile.",
            )
        )
    elif late := _late(entries, left, now):
        newest, buckets = late[0].manifest, {bucket for entry in late for bucket in left.backups[entry.manifest.id]}
        found.append(
            CopyTrouble(
                kind="late-copy",
                text=f"{counted(len(late), 'base backup')} of `{server}`, or a pin, should be in "
                f"{names(sorted(buckets))} as well and is not; the newest is `{newest.id}`, which ended "
                f"{moment(newest.finished_at)}. A loss of the other bucket would take them.",
                hint="Look with `/dr status` why the copy of its run has failed. The next one tries again: "
                f"`/dr-backup base {server} incremental`.",
            )
        )
    for backup, copies in list(left.spoiled.items())[:1]:
        more = f" So must copies of {counted(len(left.spoiled) - 1, 'other')}." if len(left.spoiled) > 1 else ""
        said = " ".join(f"Bucket `{bucket}`: {why}" for bucket, why in copies.items())
        found.append(
            CopyTrouble(
                kind="spoiled-copy",
                text=f"A copy of base backup `{backup}` of `{server}` must not be used. {said}{more}",
                hint="Find out who has changed the bucket, and remove that object there: the next base backup copies "
                "it anew from the other bucket.",
            )
        )
    return found


def copy_words(policy: PhysicalPolicy, entries: Sequence[PhysicalEntry], left: Uncopied) -> str:
    """One line for the status; empty where there is one bucket alone."""
    if not policy.copy_bucket:
        return ""
    parts = []
    for bucket in policy.base_buckets:
        here = [entry.manifest for entry in entries if bucket in entry.whole_in and entry.problem is None]
        newest = max((manifest.finished_at for manifest in here), default=None)
        lacking = sum(bucket in buckets for buckets in left.backups.values())
        if bucket in left.silent:
            parts.append(f"`{bucket}` cannot be looked at")
        elif newest is None:
            parts.append(f"`{bucket}` has none")
        else:
            more = f", {lacking} not yet there" if lacking else ""
            parts.append(f"`{bucket}` has {len(here)}, the newest of {moment(newest)}{more}")
    return f"Base backups: {'; '.join(parts)}."


async def base_copy_findings(ports: Ports) -> list[Finding]:
    """For the doctor: one for each server whose base backups are to be in two buckets."""
    found = []
    for server, policy in sorted(ports.site.physical.items()):
        if not policy.copy_bucket:
            continue
        entries, left = await ports.physical.catalogue(server), await ports.physical.uncopied(server)
        check = f"base backups of {server}"
        trouble = copy_trouble(policy, entries, left, ports.clock.now())
        found += [Finding(check=check, verdict=Verdict.WARN, detail=each.text, hint=each.hint) for each in trouble]
        if not trouble:
            found.append(Finding(check=check, verdict=Verdict.OK, detail=copy_words(policy, entries, left)))
    return found


def _late(entries: Sequence[PhysicalEntry], left: Uncopied, now: datetime) -> list[PhysicalEntry]:
    """Newest first."""
    lacking = [entry for entry in entries if entry.manifest.id in left.backups]
    late = [entry for entry in lacking if now > _due(entry)]
    return sorted(late, key=lambda entry: entry.manifest.finished_at, reverse=True)


def _due(entry: PhysicalEntry) -> datetime:
    found = entry.manifest
    return found.finished_at + (found.finished_at - found.started_at) + COPY_GRACE
