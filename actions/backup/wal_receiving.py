"""Receiving WAL: `pg_receivewal`, started again and again at the right place, whatever ended it.

Where to go on is found from the archiver's disk, and from the buckets when the disk was lost; the primary may still
have what lies between. What it has no longer is a gap: told, and answered with the wish for a new base backup.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from actions.backup.physical import Lsn
from actions.backup.segments import Segment, Timelines
from actions.backup.wal import WalArchive, WalListing
from actions.backup.wal_disk import disk_problem
from actions.backup.wal_source import AlarmKind, DiskFullError, SourceFacts, WalGoneError, WalSource
from actions.backup.wal_spool import SpoolState, WalSpool
from actions.backup.wal_status import BaseWanted, DiskLost
from actions.errors import DrError, TemporaryError, UserError
from actions.ports import Clock

log = structlog.get_logger(__name__)

BACK_OFF = (0.5, 10.0)  # seconds, shortest and longest, between two attempts to receive
STEADY = timedelta(seconds=30)
CHECKED_BACK = 256  # segments of each bucket that are looked through for holes after the disk was lost
OTHER_TIMELINE_LOOKS = 4  # so often the server may show another timeline than the stream's before it is taken up anew
LOOKS_KEPT = 1800


class _NotPrimaryError(TemporaryError):
    """The server is a standby now."""


class _BucketsAwayError(TemporaryError):
    """Nobody can tell where to go on."""


class _OtherServerError(UserError):
    """Not the server whose WAL is archived."""


class WalReceiving:
    """The stream of one server into the spool."""

    def __init__(self, source: WalSource, archive: WalArchive, spool: WalSpool, clock: Clock) -> None:
        self._source, self._archive, self._spool, self._clock = source, archive, spool, clock
        self._policy = archive.policy
        self.facts: SourceFacts | None = None  # as the server answered last
        self.problem: tuple[AlarmKind, str] | None = None  # why nothing is received, when nothing is
        self.looks: deque[tuple[datetime, Lsn]] = deque(maxlen=LOOKS_KEPT)  # the server's clock and place
        self._stream: asyncio.Task[None] | None = None
        self._attempt = 0  # places to go on at that the server no longer had
        self._other_timeline = 0

    async def run(self) -> None:
        """Until it is cancelled."""
        shortest, longest = BACK_OFF
        pause = shortest
        while True:
            begun = self._clock.now()
            try:
                await self._once_or_gone()
            except (DrError, OSError) as error:
                self.problem = self._told(error)
                log.warning("wal_not_received", server=self._policy.server, error=str(error))
            pause = shortest if self._clock.now() - begun > STEADY else min(longest, pause * 2)
            await self._clock.sleep(timedelta(seconds=pause))

    async def _once_or_gone(self) -> None:
        try:
            await self._once()
        except WalGoneError as error:
            await self._gone(error)

    async def _once(self) -> None:
        facts = await self.look()
        if facts.in_recovery:
            raise _NotPrimaryError(
                f"`{self._policy.server}` is a standby now. Promote it, or let its `admin_dsn` lead to the primary."
            )
        if facts.slot is None or facts.slot.lost or facts.slot.restart_lsn is None:
            log.warning(
                "wal_slot_made", server=self._policy.server, slot=self._policy.slot, lost=facts.slot is not None
            )
            await self._source.make_slot()
        at = await self._where(facts)
        await asyncio.to_thread(self._spool.go_on_at, at)
        await asyncio.to_thread(self._make_sure_of_room, at)
        log.info("wal_receiving", server=self._policy.server, timeline_id=facts.timeline_id, at=str(at or "slot"))
        self._stream = asyncio.ensure_future(
            self._source.receive(self._spool.receive, synchronous=self._policy.synchronous)
        )
        self.problem, self._other_timeline = None, 0
        try:
            await self._stream
        except DiskFullError:
            await asyncio.to_thread(self._spool.drop_unfinished)  # what it takes is what our own files need
            raise
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise TemporaryError(f"The stream of `{self._policy.server}` is taken up anew.") from None
        finally:
            self._stream.cancel()
            await asyncio.gather(self._stream, return_exceptions=True)
            self._stream = None

    def _make_sure_of_room(self, at: Segment | None) -> None:
        """Raise DiskFullError where the file of the next segment cannot be made: whoever tries takes the last bytes,
        and those are what our own files need. Blocking."""
        if not self._spool.has_room(at):
            free, needed = self._spool.free_bytes(), self._spool.segment_bytes
            raise DiskFullError(f"{free >> 20} MiB are free, and a segment takes {needed >> 20} MiB.")

    def _told(self, error: DrError | OSError) -> tuple[AlarmKind, str]:
        if isinstance(error, OSError | DiskFullError):
            return disk_problem(error, self._policy, self._spool.directory)
        return _kind(error), str(error)

    async def _where(self, facts: SourceFacts) -> Segment | None:
        """The segment to go on with; None: where the slot begins."""
        state = self._spool.state
        if state is None:
            state = SpoolState(system_id=facts.system_id, segment_bytes=facts.segment_bytes)
            self._spool.remember(state)
        if state.system_id != facts.system_id:
            raise _OtherServerError(
                f"`{self._policy.server}` has system id {facts.system_id}, and `{self._spool.directory}` holds WAL of "
                f"{state.system_id}. If the server was made anew, move that directory away and give the archive a new "
                "prefix; else correct the connection string."
            )
        await asyncio.to_thread(self._spool.absorb)
        newest = self._spool.newest()
        if newest is None and not state.begun:
            newest = await self._from_buckets(facts)
        opened = self._spool.opened()
        at = newest.next() if newest is not None else None
        if opened is not None and (at is None or opened.segment.number >= at.number):
            at = opened.segment
        if at is None or at.timeline_id == facts.timeline_id:
            return at
        return self._after_switch(at, facts, await self._source.history(facts.timeline_id))

    def _after_switch(self, at: Segment, facts: SourceFacts, history: str) -> Segment:
        # A switch that lies ahead `pg_receivewal` follows by itself.
        goes_on = Timelines.parse(facts.timeline_id, history).go_on(at)
        if goes_on is None:
            raise _OtherServerError(
                f"`{self._policy.server}` is on timeline id {facts.timeline_id}, which does not come from timeline id "
                f"{at.timeline_id} that is archived. Look which server is the primary."
            )
        if goes_on.number < at.number:
            log.warning("wal_ahead_of_new_timeline", archived=str(at), goes_on=str(goes_on))
        return goes_on

    async def _from_buckets(self, facts: SourceFacts) -> Segment | None:
        """After the loss of the disk: the newest segment before which no bucket lacks anything, as far as the primary
        may still have it; then the newest of all. A bucket that does not answer holds up nothing: it is remembered,
        and what it lacks is brought later."""
        try:
            listings = await self._archive.listings()
        except DrError as error:
            raise _BucketsAwayError(
                f"No WAL of `{self._policy.server}` is received: the archiver's disk is fresh, and none of the buckets "
                f"says where to go on. Bring one back. {error}"
            ) from error
        answered = {listing.bucket for listing in listings}
        state = self._spool.state
        silent = [each for each in self._policy.wal_buckets if each not in answered]
        if silent:
            log.warning("wal_bucket_silent_at_start", server=self._policy.server, buckets=silent)
            await asyncio.to_thread(self._spool.owe, silent)
        # What is ahead of the server somebody else has put there: asked for it, the server would never answer.
        listings = [_until(Lsn.parse(facts.flush_lsn), facts.segment_bytes, listing) for listing in listings]
        ends = [end for listing in listings if (end := whole_until(listing, facts.segment_bytes)) is not None]
        if not ends:
            return None
        log.warning("wal_disk_was_lost", server=self._policy.server, attempt=self._attempt)
        closed = [segment for listing in listings for segment in listing.closed(facts.segment_bytes)]
        newest = max(closed, key=lambda each: (each.number, each.timeline_id))
        end = min(ends, key=lambda each: each.number) if self._attempt == 0 else newest
        if state is not None:
            since = state.disk_lost.since if state.disk_lost else self._clock.now()
            lost = DiskLost(since=since, from_lsn=str(end.end))
            await asyncio.to_thread(self._spool.change, disk_lost=lost)
        return end

    async def _gone(self, error: WalGoneError) -> None:
        """WAL that was not archived is lost, unless there is another place to try."""
        state, self._attempt = self._spool.state, self._attempt + 1
        if state is None or (not state.begun and self._attempt == 1):
            return
        facts = await self.look()
        wanted = BaseWanted(
            after_lsn=facts.flush_lsn, since=self._clock.now(), reason=str(error), timeline_id=facts.timeline_id
        )
        log.error("wal_gap", server=self._policy.server, after_lsn=wanted.after_lsn, reason=wanted.reason)
        await asyncio.to_thread(self._spool.go_on_at, None)
        passed = await asyncio.to_thread(self._spool.newest_name) or state.passed
        # Asking for WAL that is gone has moved the slot back to it: from there it would be asked for again for ever.
        await self._source.make_slot(anew=True)
        self._spool.change(newest="", begun=True, base_wanted=wanted, passed=passed)
        self._attempt = 0

    async def look(self) -> SourceFacts:
        """Ask the server where it is. Raises what the source raises."""
        facts = await self._source.facts()
        self.facts = facts
        if not facts.in_recovery:
            self.looks.append((facts.at, Lsn.parse(facts.flush_lsn)))
            self._check_stream(facts)
        return facts

    def written(self) -> Lsn:
        """The server knows that everything before this place is in our files."""
        slot = self.facts.slot if self.facts is not None else None
        return Lsn.parse(slot.written_lsn) if slot is not None and slot.written_lsn else Lsn(0)

    def durable_at(self, lsn: Lsn) -> datetime | None:
        """The newest moment, by the server's clock, whose commits all lie before this place."""
        return next((at for at, place in reversed(self.looks) if place <= lsn), None)

    def rate(self) -> float:
        """Bytes of WAL a second, over the last looks."""
        last = list(self.looks)[-30:]
        seconds = (last[-1][0] - last[0][0]).total_seconds() if last else 0.0
        return (last[-1][1] - last[0][1]) / seconds if seconds > 0 else 0.0

    def _check_stream(self, facts: SourceFacts) -> None:
        """After a failover the connection string leads elsewhere; the stream may still hang on the old primary."""
        at: Segment | None = None
        if self._spool.state is not None:
            opened = self._spool.opened()
            at = opened.segment if opened is not None else self._spool.newest()
        here = facts.slot is not None and facts.slot.active  # then it only catches up, on the way to this timeline
        other = at is not None and at.timeline_id != facts.timeline_id and not here
        self._other_timeline = self._other_timeline + 1 if other else 0
        if self._stream is not None and self._other_timeline >= OTHER_TIMELINE_LOOKS:
            log.warning("wal_stream_of_another_timeline", server=self._policy.server, timeline_id=facts.timeline_id)
            self._stream.cancel()


def _until(lsn: Lsn, size: int, listing: WalListing) -> WalListing:
    """Without segments that begin behind this place."""
    there = {str(segment): facts for segment, facts in listing.closed(size).items() if segment.start <= lsn}
    return replace(listing, segments=there)


def whole_until(listing: WalListing, size: int) -> Segment | None:
    """The newest segment of a bucket before which, as far as one looks back, nothing is missing."""
    newest_of = {each.number: each for each in sorted(listing.closed(size), key=lambda each: each.timeline_id)}
    numbers = sorted(newest_of)[-CHECKED_BACK:]
    if not numbers:
        return None
    last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            break
        last = number
    return newest_of[last]


def _kind(error: DrError) -> AlarmKind:
    if isinstance(error, _BucketsAwayError):
        return AlarmKind.BUCKET_AWAY
    if isinstance(error, _NotPrimaryError):
        return AlarmKind.NO_PRIMARY
    return AlarmKind.OTHER_SERVER if isinstance(error, _OtherServerError) else AlarmKind.SERVER_AWAY
