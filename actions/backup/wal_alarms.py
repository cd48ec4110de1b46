"""What is wrong with an archiver, decided from what was seen. Pure: the rules of `drbot wal`, each with its sentence.

The order of harm is: the primary stops (its disk is full, or a synchronous commit waits for ever), WAL is lost (the
slot is invalidated, a segment is gone), WAL is late (a bucket is away).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from actions.backup.physical import Lsn
from actions.backup.wal_source import AlarmKind, SourceFacts
from actions.backup.wal_status import BaseWanted, DiskLost
from actions.site import PhysicalPolicy

SHOWN = 5
KEEP_AT_LEAST = 1 << 30
"""Of max_slot_wal_keep_size. At 50 MB/s it is 20 s; a restart of the archiver must not lose its slot."""
LAG_LIMIT = 4 << 30
"""However much `max_slot_wal_keep_size` allows: the primary's disk may be smaller than that."""
LOSS_TOLD = timedelta(hours=24)
DISK_FLOOR = 1 << 30
DISK_SHARE = 0.1
DISK_TIME = timedelta(minutes=60)
BUCKET_PATIENCE = timedelta(seconds=30)
BACKLOG_SEGMENTS = 16


@dataclass(frozen=True, kw_only=True)
class BucketSeen:
    """One bucket, closed segments or the open one."""

    name: str
    problem: str
    since: datetime | None
    lacking: int = 0
    conflict: str = ""
    open: bool = False
    owed: bool = False  # it lacks WAL that another bucket has, nobody knows how much


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Everything the rules look at."""

    now: datetime
    policy: PhysicalPolicy
    facts: SourceFacts | None  # as the server answered last
    problem: tuple[AlarmKind, str] | None  # why nothing is received, when nothing is
    free_bytes: int
    total_bytes: int
    rate: float  # bytes of WAL a second, of the last minute
    buckets: tuple[BucketSeen, ...]
    base_wanted: BaseWanted | None = None
    disk_lost: DiskLost | None = None
    received_lsn: Lsn | None = None  # the end of the newest closed segment
    standbys: Mapping[str, str] = field(default_factory=dict)  # by name, what is wrong with the slot there


def alarms(seen: Seen) -> Iterator[tuple[AlarmKind, str]]:
    """Each kind once, with a sentence for people."""
    if seen.problem is not None:
        yield seen.problem
    yield from _slot(seen)
    yield from _disk(seen)
    yield from _disk_lost(seen)
    yield from _synchronous(seen)
    if seen.standbys:
        yield AlarmKind.STANDBY_SLOT, " ".join(text for _, text in sorted(seen.standbys.items()))
    yield from _buckets(seen)
    if seen.base_wanted is not None:
        yield (
            AlarmKind.GAP,
            (
                f"WAL of `{seen.policy.server}` before {seen.base_wanted.after_lsn} was lost at "
                f"{seen.base_wanted.since:%Y-%m-%d %H:%M:%S} UTC ({seen.base_wanted.reason}). Nothing after it can be "
                f"reached until there is a new full base backup: `/dr-backup base {seen.policy.server}`."
            ),
        )


def _slot(seen: Seen) -> Iterator[tuple[AlarmKind, str]]:
    facts, policy = seen.facts, seen.policy
    if facts is None:
        return
    if facts.keep_bytes is None:
        yield (
            AlarmKind.KEEP_SIZE,
            (
                f"`max_slot_wal_keep_size` is not set on `{policy.server}`: an archiver that is away for "
                "long fills the primary's disk and stops it. Set it to what that disk can spare."
            ),
        )
    elif facts.keep_bytes < KEEP_AT_LEAST:
        yield (
            AlarmKind.KEEP_SIZE,
            (
                f"`max_slot_wal_keep_size` is {_size(facts.keep_bytes)} on `{policy.server}`: an archiver that "
                f"is away for a moment loses its slot, and WAL with it. Set at least {_size(KEEP_AT_LEAST)}."
            ),
        )
    slot = facts.slot
    if slot is None:
        return
    if slot.lost:
        yield (
            AlarmKind.SLOT_LOST,
            (
                f"Slot `{policy.slot}` of `{policy.server}` is lost: the primary has removed WAL that was not "
                "archived. It is made anew."
            ),
        )
    elif slot.restart_lsn is not None:
        lag = max(0, Lsn.parse(facts.flush_lsn) - Lsn.parse(slot.restart_lsn))
        half = LAG_LIMIT if facts.keep_bytes is None else facts.keep_bytes // 2
        limit = max(min(half, LAG_LIMIT), 2 * facts.segment_bytes)
        if lag > limit or slot.wal_status == "unreserved":
            left = "" if slot.safe_bytes is None else f" {_size(max(0, slot.safe_bytes))} more and the slot is lost."
            yield (
                AlarmKind.SLOT_BEHIND,
                (
                    f"Slot `{policy.slot}` holds {_size(lag)} of WAL on the primary `{policy.server}`.{left} Look "
                    "why the archiver does not follow: its disk, its network, its CPU."
                ),
            )


def _disk(seen: Seen) -> Iterator[tuple[AlarmKind, str]]:
    left = timedelta(seconds=seen.free_bytes / seen.rate) if seen.rate > 1 else None
    backlog = any(bucket.lacking >= BACKLOG_SEGMENTS for bucket in seen.buckets)
    if seen.problem is not None and seen.problem[0] is AlarmKind.DISK_FULL:
        return  # that says more
    soon = backlog and left is not None and left < DISK_TIME
    if soon or seen.free_bytes < max(DISK_FLOOR, DISK_SHARE * seen.total_bytes):
        when = f", full in {left.total_seconds() / 60:.0f} min at the present rate" if left and backlog else ""
        then = (
            "Commits wait once it is full"
            if seen.policy.synchronous
            else "The primary keeps the WAL once it is full, up to `max_slot_wal_keep_size`"
        )
        yield (
            AlarmKind.DISK_LOW,
            (
                f"The archiver's disk has {_size(seen.free_bytes)} free{when}. {then}. Make the volume larger, or "
                "bring back the bucket it waits for."
            ),
        )


def _synchronous(seen: Seen) -> Iterator[tuple[AlarmKind, str]]:
    facts, policy = seen.facts, seen.policy
    if not policy.synchronous or facts is None or facts.in_recovery:
        return
    wrong = _commit(facts.synchronous_commit) or _not_awaited(facts, policy.slot) or _set_apart(facts.not_waiting)
    if wrong:
        yield AlarmKind.NOT_SYNCHRONOUS, f"The plan wants no commit lost, but on `{policy.server}` {wrong}"


def _commit(setting: str) -> str:
    """What is wrong with `synchronous_commit`, empty when nothing is."""
    then = "Run `ALTER SYSTEM SET synchronous_commit = 'on'` and reload."
    if setting == "on":
        return ""
    if setting == "remote_apply":  # pg_receivewal never applies anything
        return f"`synchronous_commit` is `remote_apply`: the archiver applies nothing, commits wait for ever. {then}"
    return f"`synchronous_commit` is `{setting}`: commits do not wait for the archiver's disk. {then}"


def _set_apart(whose: Sequence[str]) -> str:
    """Who has a value of their own, which goes before the server's; empty when nobody has."""
    if not whose:
        return ""
    also = f" and {len(whose) - SHOWN} more" if len(whose) > SHOWN else ""
    return (
        f"`synchronous_commit` is set for {', '.join(whose[:SHOWN])}{also}: their commits do not wait as others do. "
        "Run `ALTER ROLE ... RESET synchronous_commit` (`ALTER DATABASE`, or `ALTER ROLE ... IN DATABASE`); sessions "
        "that are open keep it."
    )


def _not_awaited(facts: SourceFacts, slot: str) -> str:
    """Why commits do not wait for the archiver, empty when they do. Before it streams only the names can be judged."""
    state = facts.slot.sync_state if facts.slot is not None else None
    then = f"Run `ALTER SYSTEM SET synchronous_standby_names = '{slot}'` and reload."
    if state in {"sync", "quorum"}:
        return ""
    if state is not None:
        return (
            f"the archiver `{slot}` is `{state}` by `synchronous_standby_names = {facts.synchronous_names!r}`: commits "
            f"do not wait for it. {then}"
        )
    if slot in facts.synchronous_names or "*" in facts.synchronous_names:
        return ""
    return f"`synchronous_standby_names` does not name `{slot}`: commits do not wait for the archiver. {then}"


def _disk_lost(seen: Seen) -> Iterator[tuple[AlarmKind, str]]:
    lost, wanted = seen.disk_lost, seen.base_wanted
    if lost is None or (wanted is None and seen.now - lost.since >= LOSS_TOLD):
        return
    text = (
        f"The archiver of `{seen.policy.server}` began on an empty disk at {lost.since:%Y-%m-%d %H:%M:%S} UTC; what "
        "waited on the one before was lost."
    )
    if wanted is not None and wanted.since >= lost.since:
        text += (
            f" The primary no longer had all of it: WAL before {wanted.after_lsn} is missing, and a new full base "
            f"backup is asked for: `/dr-backup base {seen.policy.server}`."
        )
    elif seen.received_lsn is not None and seen.received_lsn > Lsn.parse(lost.from_lsn):
        text += f" WAL from {lost.from_lsn} to {seen.received_lsn} was made good from the primary; no base is needed."
    else:
        text += f" The primary is asked for WAL from {lost.from_lsn} on."
    yield AlarmKind.DISK_LOST, f"{text} Look why the volume was not kept."


def _buckets(seen: Seen) -> Iterator[tuple[AlarmKind, str]]:
    bad = [
        each
        for each in seen.buckets
        if each.problem and each.since is not None and seen.now - each.since >= BUCKET_PATIENCE
    ]
    closed = [each for each in bad if not each.open and not each.conflict]
    if closed and (seen.problem is None or seen.problem[0] is not AlarmKind.BUCKET_AWAY):
        names = ", ".join(f"`{each.name}` lacks {_lack(each)}" for each in closed)
        yield (AlarmKind.BUCKET_AWAY, f"WAL waits on the archiver's disk: {names}. {closed[0].problem}")
    for each in bad:
        if each.open:
            yield (AlarmKind.OPEN_AWAY, f"The open segment is not sent to `{each.name}`. {each.problem}")
    conflicts = [each for each in seen.buckets if each.conflict]
    if conflicts:
        yield (AlarmKind.CONFLICT, conflicts[0].conflict)
    late = [each for each in seen.buckets if each.lacking >= BACKLOG_SEGMENTS and each not in bad]
    if late:
        names = ", ".join(f"`{each.name}` lacks {each.lacking} segments" for each in late)
        yield (AlarmKind.BACKLOG, f"WAL is written faster than it is stored: {names}. Look at network and CPU.")


def _lack(bucket: BucketSeen) -> str:
    owed = " and what another bucket alone has" if bucket.owed else ""
    return f"{bucket.lacking} segment(s){owed}"


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
