"""Which base backup leads to a target, what it costs, and how long it takes. Pure: facts in, a choice and words out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from actions.backup.physical import (
    Lsn,
    Moment,
    Phase,
    PhysicalEntry,
    Place,
    Proof,
    RecoveryTarget,
    RecoveryWindow,
    ScratchFacts,
    ScratchRestored,
)
from actions.errors import UserError
from actions.site import Frozen
from actions.steps.forecasts import counting
from actions.steps.moments import clock, exact
from actions.steps.phrases import counted, span

FETCH_RATE = 100_000_000
"""Bytes of base backup per second that are fetched, checked and unpacked, until a restore has measured it here."""

REPLAY_RATE = 50_000_000
"""Bytes of WAL per second: it is replayed by one process (reports speak of 50 to 64 MB/s)."""

MUCH_WAL = 256 << 20
"""Bytes from which on a replay tells a rate."""

PAGES_RATE = 200_000_000
"""Bytes per second of pages whose checksums are read, until a restore has measured it here."""

START = timedelta(seconds=10)
"""Claiming room, starting, stopping."""

LARGEST_SEGMENT = 1 << 30
"""Bytes of the largest segment that PostgreSQL has: so much WAL may be archived after the newest commit."""


class Aim(Frozen):
    """A target, with what is known of where it lies. `at` is its moment, as far as known."""

    target: RecoveryTarget
    at: datetime | None = None
    lsn: str | None = None
    moment: Moment | None = None
    table: str = ""
    place: Place | None = None  # where it lies in the WAL, where that was looked through
    unseen: str = ""  # why that was not done, or found nothing
    absent: bool = False  # it was done, and found nothing
    point: str = ""  # the name of the restore point that the target is the place of

    @property
    def words(self) -> str:
        """`just before the DROP of `public.orders` (transaction 812, committed 2026-11-23 10:29:58.4 UTC)`."""
        if self.point:
            return f"restore point `{self.point}` ({self.target})"
        if self.moment is None:
            return f"{exact(self.target.time)}" if self.target.time is not None else str(self.target)
        return (
            f"just before the {self.moment.change.upper()} of `{self.table}` (transaction {self.moment.xid}, committed "
            f"{exact(self.moment.committed_at)})"
        )

    @property
    def ends(self) -> str | None:
        """The LSN that the replay ends at, where that is known."""
        return self.lsn or (None if self.place is None else self.place.lsn)

    @property
    def stop(self) -> RecoveryTarget | None:
        """The target as a time, an LSN or the end: what tells whether a replay is beyond it. None where none does."""
        if self.moment is not None and self.target.lsn is None:
            return RecoveryTarget(lsn=self.moment.commit_lsn, inclusive=False, timeline_id=self.moment.timeline_id)
        return None if self.target.xid is not None or self.target.name is not None else self.target


def aim_before(moment: Moment, table: str) -> Aim:
    return Aim(
        target=moment.target,
        at=moment.before_at or moment.committed_at,
        lsn=moment.lock_lsn or moment.commit_lsn,
        moment=moment,
        table=table,
    )


def base_for(
    server: str, entries: Sequence[PhysicalEntry], aim: Aim, *, backup: str | None, dead: Collection[str] = ()
) -> PhysicalEntry:
    """The newest usable base backup that ends before the target, or the one asked for. One of `dead`, whose branch the
    server has left, only where the target is of that branch or no other fits. Raises UserError."""
    usable = sorted(
        (entry for entry in entries if entry.problem is None),
        key=lambda entry: (_leads(entry, aim, dead), entry.manifest.finished_at),
        reverse=True,
    )
    if not usable:
        raise UserError(
            f"Server `{server}` has no usable base backup, so no moment of it can be reached. Restore the newest dump "
            "with `/dr-restore`, and take a base backup."
        )
    if backup is not None:
        return _named(server, entries, usable, aim, backup)
    if aim.target.latest:
        return usable[0]
    if aim.at is None and aim.lsn is None:
        if len(usable) == 1:
            return usable[0]
        newest = ", ".join(f"`{entry.manifest.id}` ({exact(entry.manifest.finished_at)})" for entry in usable[:3])
        raise UserError(
            f"Nobody can tell from {aim.target} when it was. {aim.unseen}".rstrip()
            + f" Name the backup to start from, one from before it, with `--from`. The newest: {newest}."
        )
    fit = [entry for entry in usable if _ends_before(entry, aim)]
    if fit:
        return fit[0]
    oldest = exact(min(entry.manifest.finished_at for entry in usable))
    raise UserError(f"No base backup of `{server}` ends before {aim.words}. The oldest moment in reach is {oldest}.")


def _named(
    server: str, entries: Sequence[PhysicalEntry], usable: Sequence[PhysicalEntry], aim: Aim, backup: str
) -> PhysicalEntry:
    found = next((entry for entry in entries if entry.manifest.id == backup), None)
    newest = ", ".join(f"`{entry.manifest.id}`" for entry in usable[:3])
    if found is None:
        raise UserError(f"Server `{server}` has no base backup `{backup}`. The newest usable ones: {newest}.")
    if found.problem is not None:
        raise UserError(f"Base backup `{backup}` must not be used: {found.problem} The newest usable ones: {newest}.")
    if not aim.target.latest and (aim.at is not None or aim.lsn is not None) and not _ends_before(found, aim):
        ends = exact(found.manifest.finished_at)
        raise UserError(
            f"Base backup `{backup}` ends at {ends}, after {aim.words}. Leave `--from` out, or take another."
        )
    return found


def _leads(entry: PhysicalEntry, aim: Aim, dead: Collection[str]) -> bool:
    return entry.manifest.id not in dead or aim.target.timeline_id == entry.manifest.timeline_id


def _ends_before(entry: PhysicalEntry, aim: Aim) -> bool:
    if aim.lsn is not None:
        return Lsn.parse(entry.manifest.stop_lsn) <= Lsn.parse(aim.lsn)
    return aim.at is not None and entry.manifest.finished_at <= aim.at


def unreachable(server: str, windows: Sequence[RecoveryWindow], base: PhysicalEntry, aim: Aim) -> str | None:
    """Why no bucket leads from the base to the target; None when one does, or nobody can tell."""
    if aim.target.timeline_id is None and windows and all(window.problem for window in windows):
        return windows[0].problem  # which timeline to replay is found out as the windows are
    if (beyond := _beyond(windows, aim)) is not None:
        return beyond
    if aim.at is None or aim.target.latest:
        return None
    newest = max((window.newest for window in windows if window.newest is not None), default=None)
    if aim.target.time is not None and (newest is None or aim.at > newest):
        # Replay ends at a commit: a time is reached only by one that comes after it.
        end = "nothing is archived yet" if newest is None else f"the newest moment known there is {exact(newest)}"
        return (
            f"No commit after {exact(aim.at)} is archived, {end}. Take an earlier moment or `--latest`, or wait for "
            "the archive."
        )
    blocked = [_gap_between(window, base.manifest.finished_at, aim.at) for window in windows]
    if blocked and all(blocked):
        return (
            f"WAL of `{server}` is missing between `{base.manifest.id}` and {aim.words}: segment `{blocked[0]}` in "
            "every bucket. Take a moment before the gap, or one after the next base backup."
        )
    return None


def _beyond(windows: Sequence[RecoveryWindow], aim: Aim) -> str | None:
    """That a place cannot be archived yet. What is near the end, or of a branch that was left, the replay tells."""
    if aim.target.lsn is None or not windows or any(not each.newest_lsn or each.dead_ends for each in windows):
        return None
    end = max(Lsn.parse(each.newest_lsn) for each in windows)
    if Lsn.parse(aim.target.lsn) <= end + LARGEST_SEGMENT:
        return None
    return (
        f"LSN {aim.target.lsn} is not archived: the newest commit in the archive is at {end}. See that it is written "
        "right; take an earlier one or `--latest`, or wait for the archive."
    )


def _gap_between(window: RecoveryWindow, base: datetime, at: datetime) -> str:
    """The first missing segment in the way; empty when there is none. A timeline without a history, which has no dates,
    is no part of the way that the window shows."""
    for gap in window.gaps:
        if gap.after is None and gap.before is None:
            continue
        if (gap.after is None or gap.after < at) and (gap.before is None or gap.before > base):
            return gap.first
    return ""


def loss_words(aim: Aim, now: datetime) -> str:
    """`10:29:58.4, loses 41 s and 17 transactions`: what giving back the whole server, or database, would lose."""
    if aim.moment is not None:
        lost = counted(aim.moment.lost, "transaction")
        return f"{clock(aim.moment.committed_at)}, loses {span(now - aim.moment.committed_at)} and {lost}"
    if aim.at is not None and aim.place is not None:
        lost = counted(aim.place.lost, "transaction")
        return f"{clock(aim.at)}, loses {span(now - aim.at)} and {lost}"
    if aim.at is None:
        return "how much it loses is known once it is restored"
    return f"{clock(aim.at)}, loses {span(now - aim.at)}"


class Forecast(Frozen):
    """How long it will take to have the instance, started and checked."""

    total: timedelta
    measured: bool
    counting: timedelta = timedelta(0)  # that part of it in which rows are counted
    phases: tuple[tuple[str, timedelta], ...] = ()  # in the order they come

    def words(self, rto: timedelta) -> str:
        """`27 min at measured rates, RTO 30 min`."""
        rates = "measured rates" if self.measured else "assumed rates, nothing was measured here yet"
        counted = f"; {span(self.counting)} of it to count rows, at an assumed rate" if self.counting else ""
        return f"{span(self.total)} at {rates}, RTO {span(rto)}{counted}"


class Measured(Frozen):
    """What one restore of the server took."""

    at: datetime
    plain_bytes: int
    wal_bytes: int
    seconds: Mapping[str, float]

    @property
    def fixed(self) -> float:
        """Seconds of all that is done to the files of the backup."""
        return sum(self.seconds.get(phase, 0.0) for phase in (Phase.FETCH, Phase.COMBINE, Phase.CHECK))

    @property
    def shares(self) -> dict[Phase, float]:
        """Of `fixed`."""
        return {phase: self.seconds.get(phase, 0.0) / self.fixed for phase in (Phase.FETCH, Phase.COMBINE, Phase.CHECK)}

    @property
    def replay_rate(self) -> float | None:
        """Bytes of WAL per second; None where so little was replayed that the start of the server outweighs it."""
        seconds = self.seconds.get(Phase.REPLAY, 0.0)
        return self.wal_bytes / seconds if self.wal_bytes >= MUCH_WAL and seconds > 0 else None


def pages_rate(restores: Sequence[Measured]) -> float:
    """Bytes of pages per second that are checked, by the last restore that tells one."""
    told = ((each.plain_bytes, each.seconds.get(Phase.CHECK, 0.0)) for each in restores)
    return next((size / seconds for size, seconds in told if seconds > 0), PAGES_RATE)


def measured(server: str, instances: Sequence[ScratchFacts], proofs: Sequence[Proof]) -> list[Measured]:
    """The restores of the server that tell rates, newest first: instances that are there, and tests, which are kept."""
    found: list[tuple[datetime, ScratchRestored | Proof]] = []
    found += [(facts.made_at, facts.restored) for facts in instances if facts.restored and facts.server == server]
    found += [(proof.proven_at, proof) for proof in proofs if proof.server == server]
    restores = [
        Measured(at=at, plain_bytes=each.plain_bytes, wal_bytes=each.wal_bytes, seconds=each.seconds)
        for at, each in found
    ]
    told = [each for each in restores if each.plain_bytes > 0 and each.fixed > 0]
    return sorted(told, key=lambda each: each.at, reverse=True)


def forecast(
    entries: Sequence[PhysicalEntry],
    base: PhysicalEntry,
    aim: Aim,
    windows: Sequence[RecoveryWindow],
    restores: Sequence[Measured],
    *,
    counted: int = 0,
) -> Forecast:
    """From the plain bytes that are fetched and replayed, at the rates of this server's last restore where there is
    one; of replay, at those of the last one that replayed much. `counted`: bytes of the database that is looked through
    afterwards."""
    fetched = sum(entry.manifest.plain_bytes for entry in _chain(entries, base))
    replayed = _replayed(base, aim, windows)
    replay_rate = next((rate for each in restores if (rate := each.replay_rate) is not None), REPLAY_RATE)
    rate = restores[0].plain_bytes / restores[0].fixed if restores else FETCH_RATE
    count = counting(counted)
    replay = timedelta(seconds=replayed / replay_rate)
    shares = restores[0].shares if restores else {Phase.FETCH: 1.0}
    files = {phase: timedelta(seconds=fetched / rate * share) for phase, share in shares.items()}
    return Forecast(
        total=_seconds(fetched / rate + replayed / replay_rate) + count,
        measured=bool(restores),
        counting=count,
        phases=(
            (Phase.FETCH, files.get(Phase.FETCH, timedelta(0))),
            (Phase.COMBINE, files.get(Phase.COMBINE, timedelta(0))),
            (Phase.REPLAY, replay),
            (Phase.CHECK, files.get(Phase.CHECK, timedelta(0))),
            ("count", count),
        ),
    )


def _seconds(seconds: float) -> timedelta:
    return START + timedelta(seconds=round(seconds))


def _chain(entries: Sequence[PhysicalEntry], base: PhysicalEntry) -> list[PhysicalEntry]:
    """The base and what it rests on."""
    known, chain = {entry.manifest.id: entry for entry in entries}, [base]
    while (parent := chain[-1].manifest.parent) is not None and parent in known and known[parent] not in chain:
        chain.append(known[parent])
    return chain


def _replayed(base: PhysicalEntry, aim: Aim, windows: Sequence[RecoveryWindow]) -> int:
    """Bytes of WAL from the base to the target; where only the moment is known, as if they had come evenly."""
    begin = Lsn.parse(base.manifest.start_lsn)
    if aim.ends is not None:
        return max(0, Lsn.parse(aim.ends) - begin)
    ends = [(window.newest, window.newest_lsn) for window in windows if window.newest is not None and window.newest_lsn]
    if not ends:
        return 0
    newest, lsn = max(ends)
    whole = max(0, Lsn.parse(lsn) - begin)
    long = newest - base.manifest.finished_at
    if aim.target.latest or aim.at is None or long <= timedelta(0):
        return whole
    return int(whole * min(1.0, max(0.0, (aim.at - base.manifest.finished_at) / long)))
