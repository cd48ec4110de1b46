"""A bucket that the store itself replicates, looked at on both sides: settings say that it is on, not that it works.

Everything the bot needs is listed here and there. What is missing there, or is not the same, is asked for by HEAD on
both sides: the store's own word for it (`x-amz-replication-status`), its version, and where neither version nor ETag
can tell, its bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from actions.contract import Finding, Verdict
from actions.errors import DrError
from actions.ports import ObjectFacts, Ports
from actions.site import Site
from actions.steps.phrases import counted, names, span

LOOKED = 60
"""Objects that are asked for by HEAD on both sides, the newest of each kind first."""

READ = 8
READ_BYTES = 64 * 1024 * 1024
"""How many are read on both sides, and how large one of those may be."""

AT_ONCE = 8
FAILED = "FAILED"


@dataclass(frozen=True)
class Replica:
    """One bucket against the one it is replicated into. `problem` says why that could not be looked at."""

    bucket: str
    to: str
    at: datetime
    objects: int = 0
    newest_here: datetime | None = None  # when it was stored here
    newest_there: datetime | None = None  # when the newest that is there as well was stored here
    missing: Sequence[ObjectFacts] = ()  # oldest first
    differing: Sequence[ObjectFacts] = ()
    failed: Sequence[str] = ()  # the store gave up
    untold: int = 0  # neither version nor ETag tells, and they were not read
    markers_here: int | None = None  # None: nobody looked
    markers_there: int = 0  # of those
    problem: str = ""

    @property
    def lag(self) -> timedelta:
        """For how long something has not been there as it is here."""
        waiting = [facts.modified_at for facts in (*self.missing, *self.differing)]
        return max(timedelta(0), self.at - min(waiting)) if waiting else timedelta(0)


def replicated(site: Site) -> Sequence[str]:
    """Every bucket whose other side the plan file knows, by name."""
    return sorted(name for name, bucket in site.buckets.items() if bucket.posture.replicates_to in site.buckets)


def rpo_of(site: Site, bucket: str) -> timedelta:
    """The shortest of the databases whose backups are in it."""
    servers = {policy.server for policy in site.physical.values() if bucket in (policy.bucket, *policy.wal_buckets)}
    keys = {key for key, policy in site.backups.items() if policy.bucket == bucket}
    found = [one.rpo for key, one in site.databases.items() if key in keys or one.server in servers]
    return min(found, default=timedelta(minutes=15))


async def replicas(ports: Ports, *, markers: bool) -> Sequence[Replica]:
    return await asyncio.gather(*(replica(ports, name, markers=markers) for name in replicated(ports.site)))


async def replica(ports: Ports, bucket: str, *, markers: bool) -> Replica:
    """Look at both sides. `markers`: also at what was deleted, which is a listing of every version."""
    to, now = ports.site.buckets[bucket].posture.replicates_to, ports.clock.now()
    try:
        return await _looked(ports, Replica(bucket, to, now), markers=markers)
    except DrError as error:
        return Replica(bucket, to, now, problem=str(error))


async def _looked(ports: Ports, found: Replica, *, markers: bool) -> Replica:
    used = ports.site.buckets[found.bucket].posture.used or ("",)
    here = await _listed(ports, found.bucket, used)  # first: what goes meanwhile is then missing on neither side
    there = {facts.key: facts for facts in await _listed(ports, found.to, used)}
    alike = [facts for facts in here if _alike(facts, there.get(facts.key))]
    same = {facts.key for facts in alike}
    doubtful = sorted((facts for facts in here if facts.key not in same), key=lambda facts: facts.modified_at)
    picked = chosen(doubtful)
    seen = await _asked(ports, found, picked)
    missing = [facts for facts, verdict in seen if verdict == "missing"]
    differing = [facts for facts, verdict in seen if verdict == "differs"]
    beyond = {facts.key for facts in doubtful} - {facts.key for facts in picked}
    missing += [facts for facts in doubtful if facts.key in beyond and facts.key not in there]
    good = [*alike, *(facts for facts, verdict in seen if verdict == "same")]
    marked = await _markers(ports, found, used) if markers else (None, 0)
    return Replica(
        found.bucket,
        found.to,
        found.at,
        objects=len(here),
        newest_here=max((facts.modified_at for facts in here), default=None),
        newest_there=max((facts.modified_at for facts in good), default=None),
        missing=sorted(missing, key=lambda facts: facts.modified_at),
        differing=differing,
        # Somebody may have copied by hand what the store gave up.
        failed=sorted(facts.key for facts, verdict in seen if verdict != "same" and facts.replication == FAILED),
        untold=sum(verdict == "untold" for _, verdict in seen) + sum(key in there for key in beyond),
        markers_here=marked[0],
        markers_there=marked[1],
    )


async def _listed(ports: Ports, bucket: str, prefixes: Sequence[str]) -> list[ObjectFacts]:
    found = await asyncio.gather(*(ports.objects.list(bucket, prefix) for prefix in prefixes))
    return list({facts.key: facts for each in found for facts in each}.values())


def _alike(here: ObjectFacts, there: ObjectFacts | None) -> bool:
    """By a listing alone."""
    return there is not None and here.bytes == there.bytes and here.etag == there.etag and bool(here.etag)


def chosen(objects: Sequence[ObjectFacts]) -> list[ObjectFacts]:
    """The newest: half of them segments of WAL, then members of base backups, then what else there is."""
    newest = sorted(objects, key=lambda facts: facts.modified_at, reverse=True)
    wal = [facts for facts in newest if "/wal/" in f"/{facts.key}"]
    bases = [facts for facts in newest if "/base/" in f"/{facts.key}"]
    first = [*wal[: LOOKED // 2], *bases[: LOOKED // 4]]
    known = {facts.key for facts in first}
    return [*first, *(facts for facts in newest if facts.key not in known)][:LOOKED]


async def _asked(ports: Ports, found: Replica, objects: Sequence[ObjectFacts]) -> list[tuple[ObjectFacts, str]]:
    """Each with what came of it: same, missing, differs, untold. What is gone here by now is left out."""
    room, reads = asyncio.Semaphore(AT_ONCE), iter(range(READ))

    async def one(facts: ObjectFacts) -> tuple[ObjectFacts, str] | None:
        async with room:
            here = await ports.objects.head(found.bucket, facts.key)
            there = await ports.objects.head(found.to, facts.key)
            if here is None:
                return None
            if there is None:
                return here, "missing"
            if here.bytes != there.bytes:
                return here, "differs"
            if here.etag == there.etag or (here.version == there.version and here.version not in (None, "null")):
                return here, "same"
            if here.bytes > READ_BYTES or next(reads, None) is None:
                return here, "untold"
            sides = [await ports.objects.get(bucket, facts.key) for bucket in (found.bucket, found.to)]
            return here, "same" if len({hashlib.sha256(side).digest() for side in sides}) == 1 else "differs"

    return [each for each in await asyncio.gather(*map(one, objects)) if each is not None]


async def _markers(ports: Ports, found: Replica, prefixes: Sequence[str]) -> tuple[int, int]:
    """How much is deleted here, and of that how much is deleted there as well."""

    async def deleted(bucket: str) -> set[str]:
        listed = await asyncio.gather(*(ports.buckets.versions(bucket, prefix) for prefix in prefixes))
        return {item.key for each in listed for item in each if item.marker and item.latest}

    here, there = await asyncio.gather(deleted(found.bucket), deleted(found.to))
    return len(here), len(here & there)


# ---------------------------------------------------------------- words


def replica_findings(site: Site, found: Replica) -> list[Finding]:
    """Worst first; what is on its way for less than the RPO is fine."""
    check = f"replica of {found.bucket}"
    if found.problem:
        hint = f"Give the bot keys that list and read `{found.to}`, or look at the store."
        detail = f"Nobody can tell whether `{found.to}` has what `{found.bucket}` has: {found.problem}"
        return [Finding(check=check, verdict=Verdict.WARN, detail=detail, hint=hint)]
    wrong = [Finding(check=check, verdict=Verdict.STOP, detail=text, hint=HINT) for text in replica_faults(site, found)]
    if found.untold:
        detail = (
            f"{counted(found.untold, 'object')} of `{found.bucket}` and `{found.to}` cannot be compared by version or "
            "ETag, and were not read."
        )
        wrong.append(Finding(check=check, verdict=Verdict.WARN, detail=detail, hint="Compare their hashes by hand."))
    if found.markers_here is not None and found.markers_there < found.markers_here:
        left = counted(found.markers_here - found.markers_there, "deleted object")
        detail = f"{left} of `{found.bucket}` stand in `{found.to}` as if they were not deleted."
        hint = f"Replicate delete markers, or let a lifecycle rule of `{found.to}` clean up."
        wrong.append(Finding(check=check, verdict=Verdict.WARN, detail=detail, hint=hint))
    return wrong or [Finding(check=check, verdict=Verdict.OK, detail=replica_words(found))]


HINT = (
    "Look at the status of the replication in the store's console. What was there before it was set up, and what it "
    "gave up, needs a batch job or a copy by hand."
)


def replica_words(found: Replica) -> str:
    """How it stands."""
    waiting = len(found.missing) + len(found.differing)
    lag = f"{waiting} on the way, for {span(found.lag)} at most" if waiting else "nothing is missing there"
    newest = "" if found.newest_here is None else f", newest here {_time(found.newest_here)}"
    there = "" if found.newest_there is None else f", newest of them there {_time(found.newest_there)}"
    return f"{counted(found.objects, 'object')} of `{found.bucket}` compared with `{found.to}`: {lag}{newest}{there}"


def replica_faults(site: Site, found: Replica) -> list[str]:
    """What must not stay so: given up by the store, other bytes, or missing for longer than the RPO."""
    rpo, faults = rpo_of(site, found.bucket), []
    if found.failed:
        faults.append(
            f"The store gave up to replicate {counted(len(found.failed), 'object')} of `{found.bucket}` to "
            f"`{found.to}`: {_some(found.failed)}."
        )
    late = [facts.key for facts in found.missing if found.at - facts.modified_at > rpo]
    if late:
        at = found.newest_there
        newest = "" if at is None else f"; the newest that is there was stored here at {_time(at)}"
        faults.append(
            f"`{found.to}` lacks {counted(len(late), 'object')} of `{found.bucket}` that are older than the RPO of "
            f"{span(rpo)}, the oldest for {span(found.lag)}: {_some(late)}{newest}."
        )
    other = [facts.key for facts in found.differing if found.at - facts.modified_at > rpo]
    if other:
        faults.append(
            f"`{found.to}` has other bytes than `{found.bucket}` of {counted(len(other), 'object')}: {_some(other)}."
        )
    return faults


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{names(keys[:3])}{more}"
