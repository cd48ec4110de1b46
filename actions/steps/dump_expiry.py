"""Which dumps may go. Pure: catalogue, policy and a moment in; what goes, and what stays for which reason, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from actions.ports import CatalogueEntry, Ports
from actions.site import BackupPolicy
from actions.steps.choice import usable_entries
from actions.steps.expiry import Old
from actions.steps.point_holds import dumps_held

LAST_GOOD = 2
"""So many of the newest usable dumps stay, however old they are."""


class OldDumps(Old):
    """Of one database."""

    database: str
    bytes: int = 0


def old_dumps(
    stored: Sequence[CatalogueEntry],
    copies: Sequence[CatalogueEntry],
    policy: BackupPolicy,
    now: datetime,
    held: Mapping[str, str] | None = None,
) -> OldDumps:
    """A dump goes, from the bucket and from the local copy, once it is older than the policy says, unless it is pinned,
    `held` (dump -> why) or one of the last good ones of the bucket. What must not be used stays: whoever can write into
    the bucket could have made it look old, so people decide."""
    here = {entry.manifest.id for entry in stored}
    known = [*stored, *(copy for copy in copies if copy.manifest.id not in here)]
    last = {entry.manifest.id for entry in usable_entries(stored, before=None)[:LAST_GOOD]}
    kept: dict[str, str] = {}
    gone: list[CatalogueEntry] = []
    for entry in sorted(known, key=lambda entry: entry.manifest.finished_at):
        if entry.manifest.finished_at >= now - policy.retention:
            continue
        if why := entry.pinned or (held or {}).get(entry.manifest.id):
            kept[entry.manifest.id] = f"pinned: {why}"
        elif entry.problem is not None:
            kept[entry.manifest.id] = "it must not be used, so nobody knows how old it is"
        elif entry.manifest.id in last:
            kept[entry.manifest.id] = f"one of the {LAST_GOOD} newest that can be restored"
        elif len(last) < LAST_GOOD:
            kept[entry.manifest.id] = f"the bucket has not {LAST_GOOD} that can be restored"
        else:
            gone.append(entry)
    return OldDumps(
        database=policy.database,
        gone=tuple(entry.manifest.id for entry in gone),
        bytes=sum(entry.manifest.stored.bytes for entry in gone),
        kept=kept,
    )


async def dumps_due(ports: Ports, database: str) -> OldDumps:
    """What would go now."""
    stored, copies = await ports.backups.catalogue(database), await ports.backups.copies(database)
    held = await dumps_held(ports, database)
    return old_dumps(stored, copies, ports.site.backup(database), ports.clock.now(), held)


def why_dump_stays(stored: Sequence[CatalogueEntry], backup: str, held: Mapping[str, str]) -> str:
    """Why not even people may delete it by name, as a sentence with the next thing to do; empty when they may."""
    entry = next((each for each in stored if each.manifest.id == backup), None)
    if entry is None:
        return ""
    if entry.pinned:
        return f"Dump `{backup}` is pinned: {entry.pinned}. Take the pin off first, with `unpin`."
    if why := held.get(backup):
        return f"Dump `{backup}` is kept by a pin: {why}. Take the pin off that recovery point first."
    usable = [each.manifest.id for each in usable_entries(stored, before=None)]
    if backup in usable and len(usable) <= LAST_GOOD:
        database = entry.manifest.database
        return (
            f"`{database}` has {len(usable)} dumps that can be restored, and {LAST_GOOD} always stay. Make another "
            f"first: `/dr-backup run {database}`."
        )
    return ""
