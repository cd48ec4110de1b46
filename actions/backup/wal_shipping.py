"""WAL on its way from the archiver's disk into the buckets: closed segments into every one, the open one as ranges.

Each bucket goes at its own pace, so that one which does not answer holds up neither the other nor the stream. What is
sealed is shared between buckets that keep pace; memory is bounded by the few segments under way.
"""

from __future__ import annotations

import asyncio
import io
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from actions.backup.physical import Lsn
from actions.backup.sealed import SealedHeader, SealedKind, Sealer, What
from actions.backup.segments import Segment, history_name
from actions.backup.wal import OpenRange, WalArchive
from actions.backup.wal_files import read_written
from actions.backup.wal_spool import WalSpool
from actions.errors import DrError, TemporaryError, VerificationError
from actions.ports import Clock

log = structlog.get_logger(__name__)

PUTS_AT_ONCE = 2  # for each bucket
BEHIND = 2 * PUTS_AT_ONCE  # segments
SEALED_KEPT = 3  # segments
LOOK_EVERY = timedelta(seconds=0.2)
BACK_OFF = (timedelta(seconds=1), timedelta(seconds=15))
LONGEST_RANGE = 4 << 20
RANGES_KEPT = 32
"""So many ranges of one open segment are put together into one, so that a restore need not fetch thousands."""


@dataclass
class Lane:
    """One bucket's state."""

    bucket: str
    stored: set[str] = field(default_factory=set)  # names on our disk that it has already
    problem: str = ""
    conflict: str = ""  # other bytes under a name of ours
    failures: int = 0
    since: datetime | None = None  # of the problem

    def failed(self, error: DrError, now: datetime) -> timedelta:
        """How long to wait."""
        self.failures += 1
        self.problem, self.since = str(error), self.since or now
        if isinstance(error, VerificationError):
            self.conflict = str(error)
        shortest, longest = BACK_OFF
        return min(longest, timedelta(seconds=shortest.total_seconds() * 2.0 ** min(10, self.failures - 1)))

    def succeeded(self) -> None:
        self.failures, self.problem, self.conflict, self.since = 0, "", "", None


class WalShipping:
    """Sends what the spool holds, until it is cancelled."""

    def __init__(self, archive: WalArchive, spool: WalSpool, sealer: Sealer, clock: Clock) -> None:
        self._archive, self._spool, self._sealer, self._clock = archive, spool, sealer, clock
        self.lanes = [Lane(bucket) for bucket in archive.policy.wal_buckets]
        self._sealed: OrderedDict[str, asyncio.Task[tuple[SealedHeader, bytes]]] = OrderedDict()
        self._histories: set[tuple[str, int]] = set()

    async def run(self) -> None:
        await asyncio.gather(*map(self._serve, self.lanes))

    async def _serve(self, lane: Lane) -> None:
        while True:
            try:
                busy = await self._round(lane)
            except DrError as error:
                log.warning("wal_not_stored", bucket=lane.bucket, error=str(error), failures=lane.failures + 1)
                await self._clock.sleep(lane.failed(error, self._clock.now()))
                continue
            if lane.failures:
                log.info("wal_stored_again", bucket=lane.bucket, failures=lane.failures)
            lane.succeeded()
            if not busy:
                await self._clock.sleep(LOOK_EVERY)

    async def _round(self, lane: Lane) -> bool:
        """Store the next segments; False when there was nothing to do. Raises the first error."""
        if self._spool.state is None:
            return False  # whose WAL lies there is not known yet
        for timeline_id, text in await asyncio.to_thread(self._spool.histories):
            await self._store_history(lane, timeline_id, text)
        waiting = await asyncio.to_thread(self._spool.waiting)
        for name in waiting:
            await self._let_go(name)  # what the disk did not let go when it was stored
        names = [name for name in waiting if name not in lane.stored]
        if not names:
            return False
        # A bucket that has just failed is tried with one: each attempt may hang until its time is over.
        these = names[: 1 if lane.failures else PUTS_AT_ONCE]
        ends = await asyncio.gather(*(self._store(lane, name) for name in these), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end
        return True

    async def _store(self, lane: Lane, name: str) -> None:
        try:
            header, body = await self._seal(name)
        except FileNotFoundError:
            return  # every bucket has it: the other lane let it go after the list was read
        await self._archive.put(lane.bucket, header, body)
        lane.stored.add(name)
        log.info("wal_segment_stored", bucket=lane.bucket, segment=name, bytes=len(body))
        await self._let_go(name)

    async def _let_go(self, name: str) -> None:
        """Remove a segment from the disk once every bucket has it."""
        if not all(name in each.stored for each in self.lanes):
            return
        try:
            await asyncio.to_thread(self._spool.done, name)
        except OSError as error:  # it stays until the disk is writable again, which is an alarm of its own
            log.warning("wal_segment_stays", segment=name, error=str(error))
            return
        self._sealed.pop(name, None)
        for each in self.lanes:
            each.stored.discard(name)

    def durable(self, lane: Lane) -> Lsn:
        """The bucket lacks nothing that was closed before this place. Blocking."""
        state = self._spool.state
        if state is None or not state.newest or lane.bucket in state.unlisted:
            return Lsn(0)
        lacking = [name for name in self._spool.waiting() if name not in lane.stored]
        first = Segment.parse(lacking[0] if lacking else state.newest, state.segment_bytes)
        return first.start if lacking else first.end

    def lacking(self, lane: Lane) -> int:
        """Closed segments that the bucket does not have. Blocking."""
        return sum(name not in lane.stored for name in self._spool.waiting())

    def behind(self) -> bool:
        """Every bucket lacks more than what is just being stored. Blocking."""
        return min(map(self.lacking, self.lanes)) > BEHIND

    async def _seal(self, name: str) -> tuple[SealedHeader, bytes]:
        if name not in self._sealed:
            self._sealed[name] = asyncio.ensure_future(asyncio.to_thread(self._seal_now, name))
            while len(self._sealed) > SEALED_KEPT:
                self._sealed.popitem(last=False)
        try:
            return await asyncio.shield(self._sealed[name])
        except FileNotFoundError:
            self._sealed.pop(name, None)
            raise
        except OSError as error:
            self._sealed.pop(name, None)
            raise TemporaryError(f"`{self._spool.path(name)}` cannot be read: {error.strerror}.") from error

    def _seal_now(self, name: str) -> tuple[SealedHeader, bytes]:
        state = self._spool.state
        size = state.segment_bytes if state else 0
        what = What(
            kind=SealedKind.SEGMENT,
            name=name,
            system_id=state.system_id if state else "",
            timeline_id=Segment.parse(name, size).timeline_id,
            segment_bytes=size,
        )
        with self._spool.path(name).open("rb") as plain:
            return self._sealer.seal(what, plain, self._spool.closed_at(name))

    async def _store_history(self, lane: Lane, timeline_id: int, text: str) -> None:
        if (lane.bucket, timeline_id) in self._histories:
            return
        state = self._spool.state
        what = What(
            kind=SealedKind.HISTORY,
            name=history_name(timeline_id),
            system_id=state.system_id if state else "",
            timeline_id=timeline_id,
            history=text,
        )
        sealed = await asyncio.to_thread(self._sealer.seal, what, io.BytesIO(text.encode()), self._clock.now())
        await self._archive.put(lane.bucket, *sealed)
        self._histories.add((lane.bucket, timeline_id))
        log.info("wal_history_stored", bucket=lane.bucket, timeline_id=timeline_id)


class OpenShipping:
    """Sends what is written of the open segment, every `every`, until it is cancelled."""

    def __init__(
        self,
        archive: WalArchive,
        spool: WalSpool,
        sealer: Sealer,
        clock: Clock,
        *,
        every: timedelta,
        written: Callable[[], Lsn],
        behind: Callable[[], bool],
    ) -> None:
        self._archive, self._spool, self._sealer, self._clock, self._every = archive, spool, sealer, clock, every
        self._written, self._behind = written, behind  # all before it is in our files; every bucket lacks much
        self.lane = Lane(archive.policy.open_bucket)
        self.begins = self.lsn = Lsn(0)  # the bucket has the open segment from here to there
        self._ranges: dict[str, list[OpenRange]] = {}  # that we have stored
        # What was in the bucket before, once it was listed. By its name alone nobody knows whether it is ours, so what
        # it says it holds is sent again.
        self._before: dict[str, list[OpenRange]] | None = None

    async def run(self) -> None:
        while True:
            begun = self._clock.now()
            try:
                await self._round()
            except DrError as error:
                log.warning("open_segment_not_stored", bucket=self.lane.bucket, error=str(error))
                await self._clock.sleep(self.lane.failed(error, self._clock.now()))
                continue
            self.lane.succeeded()
            await self._clock.sleep(max(timedelta(seconds=0.05), self._every - (self._clock.now() - begun)))

    async def _round(self) -> None:
        if self._spool.state is None:
            return  # nothing was received yet
        if self._before is None:
            found = await self._archive.open_ranges()
            self._before = {name: list(ranges) for name, ranges in found.items()}
        opened = await asyncio.to_thread(self._spool.opened)
        # Where every bucket lacks what comes before, the end of it helps nobody and costs time.
        if opened is not None and not self._behind():
            while await self._send(opened.segment):
                pass
        await self._tidy()

    async def _send(self, segment: Segment) -> bool:
        """True when there is more than one range takes."""
        ranges = self._ranges.setdefault(str(segment), [])
        sent = _contiguous(ranges)
        first = 0 if len(ranges) >= RANGES_KEPT else sent
        path = self._spool.receive / f"{segment}.partial"
        most = sent - first + LONGEST_RANGE
        # Asked first: a record may end in zeros, which cannot be told from what is not written.
        written = min(self._written(), segment.end)
        try:
            piece = await asyncio.to_thread(read_written, path, segment, first, most=most)
            at = self._clock.now()
        except FileNotFoundError:
            return False  # it was closed this moment
        if first + len(piece) <= sent:
            self._sent(segment, sent, written)
            return False
        state = self._spool.state
        what = What(
            kind=SealedKind.RANGE,
            name=str(segment),
            system_id=state.system_id if state else "",
            timeline_id=segment.timeline_id,
            first=first,
            segment_bytes=segment.size,
        )
        sealed = await asyncio.to_thread(self._sealer.seal, what, io.BytesIO(piece), at)
        facts = await self._archive.put_range(*sealed)
        if first == 0:
            for known in (ranges, (self._before or {}).get(str(segment), [])):
                old = [each for each in known if each.last <= len(piece) and each.key != facts.key]
                await self._archive.drop_ranges(old)
                known[:] = [each for each in known if each not in old]
        ranges.append(facts)
        whole = len(piece) < most
        self._sent(segment, first + len(piece), written if whole else Lsn(0))
        return not whole

    def _sent(self, segment: Segment, until: int, written: Lsn) -> None:
        self.begins, self.lsn = segment.start, max(Lsn(segment.start + until), written)

    async def _tidy(self) -> None:
        """Remove the ranges of segments that were closed and are in every bucket.

        What an old timeline left open nobody ever closes: it may hold the last commits of a primary that is gone, so
        it stays as long as WAL does.
        """
        newest = await asyncio.to_thread(self._spool.newest)
        waiting = set(await asyncio.to_thread(self._spool.waiting))
        oldest = self._clock.now() - self._archive.policy.wal_retention
        before = self._before or {}
        for name in [*self._ranges.keys() | before.keys()]:
            ranges = [*self._ranges.get(name, ()), *before.get(name, ())]
            if newest is None or name in waiting:
                continue
            closed = name[:8] == str(newest)[:8] and name <= str(newest)
            ended = name[:8] < str(newest)[:8] and all(each.stored_at < oldest for each in ranges)
            if closed or ended:
                await self._archive.drop_ranges(ranges)
                self._ranges.pop(name, None)
                before.pop(name, None)


def _contiguous(ranges: Sequence[OpenRange]) -> int:
    """How far they reach from the beginning without a hole."""
    have = 0
    for each in sorted(ranges, key=lambda one: one.first):
        if each.first <= have:
            have = max(have, each.last)
    return have
