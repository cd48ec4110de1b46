"""WAL out of the archive, as files that `restore_command = cp` finds: every one checked before it has its name."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

from actions.backup.crypto import Identity
from actions.backup.patience import patiently
from actions.backup.physical import Lsn, RecoveryTarget
from actions.backup.sealed import SealedHeader, SealedKind, unseal
from actions.backup.segments import Segment, Timelines, history_name
from actions.backup.stages import private
from actions.backup.together import finished
from actions.backup.wal import OpenRange, WalArchive, WalListing, WalStart
from actions.errors import DrError, TemporaryError, UserError, VerificationError
from actions.ports import ObjectStore, Progress, ProgressReport, Secrets
from actions.site import Frozen, PhysicalPolicy

log = logging.getLogger(__name__)

AT_ONCE = 4
CLOCKS_APART = timedelta(seconds=30)
"""The archiver's clock dates segments, the server's clock dates commits."""


class FetchedWal(Frozen):
    """What lies in the directory now."""

    timeline_id: int
    newest_timeline_id: int  # that the archive knows a history of, or `timeline_id`
    segments: int
    first: str
    last: str  # "" when there is no WAL after the start
    closed: str = ""  # the last one that was closed
    end_lsn: str  # WAL ends here: of a closed segment its end, of the open one the last byte that was stored; never
    # beyond the place where the way branches off in it
    newest_at: datetime | None  # when the archiver had the last of it
    open_segment: str = ""  # assembled from byte ranges and padded
    reaches: bool  # by the archive's own dates it holds the target; False: replay will end before it
    bytes: int  # as stored
    problems: tuple[str, ...] = ()  # what was passed over: an object of one bucket that another one had, a bad range


@dataclass
class _Found:
    """One segment on disk."""

    segment: Segment
    closed_at: datetime
    end: Lsn
    bytes: int
    open: bool = False
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Shelf:
    """What there is, by a listing of every bucket, along one way."""

    way: Timelines
    listings: Sequence[WalListing]
    ranges: Mapping[str, Sequence[OpenRange]]
    size: int
    problems: Sequence[str] = ()

    @cached_property
    def newest(self) -> int:
        """The highest number there is anything of; -1 when there is nothing."""
        names = [*self.ranges, *(name for listing in self.listings for name in listing.segments)]
        return max(self.way.numbers(names, self.size), default=-1)

    def after(self, number: int) -> Sequence[int]:
        """The higher numbers that closed segments are stored of."""
        names = [name for listing in self.listings for name in listing.segments]
        return sorted({each for each in self.way.numbers(names, self.size) if each > number})

    def choices(self, number: int) -> Sequence[Segment]:
        return self.way.choices(number, self.size)

    def holding(self, segment: Segment) -> Sequence[str]:
        """The buckets that list it."""
        return [listing.bucket for listing in self.listings if segment in listing]


class _ClosedMeanwhileError(Exception):
    """The archiver has removed a range since it was listed: the segment was closed, or ranges were put together."""


class WalFetch:
    """Reads the archive of one server. `patience`: how long a segment waits for buckets none of which answers."""

    def __init__(
        self, objects: ObjectStore, secrets: Secrets, policy: PhysicalPolicy, *, patience: timedelta = timedelta()
    ) -> None:
        self._objects, self._secrets, self._policy, self._patience = objects, secrets, policy, patience
        self._archive = WalArchive(objects, policy)

    async def fetch(
        self, start: WalStart, target: RecoveryTarget, into: Path, progress: Progress, *, at_once: int = AT_ONCE
    ) -> FetchedWal:
        """Everything from the segment of `start` on that a replay to `target` needs, into the directory `into`.

        A segment was closed no earlier than the commits in it. So for a time all segments are fetched up to the first
        that was closed later, and one more; for an LSN up to the one that holds it, and one more; else all there are.

        Raises VerificationError naming the segment when one that is needed is missing or damaged in every bucket;
        TemporaryError when no bucket answers.
        """
        identity = Identity(await self._secrets.resolve(self._policy.identity), self._policy.identity)
        shelf = await self._shelf(start, target)
        way, listings = shelf.way, shelf.listings
        await asyncio.to_thread(into.mkdir, mode=0o700, parents=True, exist_ok=True)
        await self._write_histories(way, listings, start, into)
        found: list[_Found] = []
        held = False
        async with aclosing(self._in_order(shelf, start, target, identity, into, at_once)) as segments:
            while not held and (each := await anext(segments, None)) is not None:
                found.append(each)
                progress(ProgressReport(done=sum(one.bytes for one in found), phase="fetch"))
                held = _holds(each, target)
            if held:
                found += await _spare(segments)
        known = {timeline_id for listing in listings for timeline_id in listing.histories}
        newest = max(known | {way.timeline_id})
        return _summary(way, start, found, target, shelf.problems).model_copy(update={"newest_timeline_id": newest})

    async def _shelf(self, start: WalStart, target: RecoveryTarget) -> _Shelf:
        # The open segment first: one that is closed meanwhile is then found in the other listing.
        ranges, problems = await self._ranges()
        listings = await self._archive.listings()
        way = await self._archive.timelines(start, target.timeline_id, listings)
        return _Shelf(way, listings, ranges, start.segment_bytes, problems)

    async def _ranges(self) -> tuple[Mapping[str, Sequence[OpenRange]], Sequence[str]]:
        """Without the open segment a replay loses seconds; without a replay everything."""
        try:
            return await self._archive.open_ranges(), ()
        except (TemporaryError, UserError) as error:
            log.warning("open_ranges_not_listed: %s", error)
            return {}, (f"The open segment was left out: {error}",)

    async def _write_histories(
        self, way: Timelines, listings: Sequence[WalListing], start: WalStart, into: Path
    ) -> None:
        # PostgreSQL reads the history of the target alone; its ancestors' stand in it.
        for listing in listings:
            if way.timeline_id not in listing.histories:
                continue
            name = history_name(way.timeline_id)
            try:
                body = await self._objects.get(listing.bucket, self._archive.key(name))
                header = self._archive.checked(body, self._archive.key(name), name, SealedKind.HISTORY, start.system_id)
            except (TemporaryError, VerificationError, UserError):
                continue  # `timelines` has found a good one
            await asyncio.to_thread((into / name).write_text, header.history)
            return

    async def _in_order(
        self,
        shelf: _Shelf,
        start: WalStart,
        target: RecoveryTarget,
        identity: Identity,
        into: Path,
        at_once: int,
    ) -> AsyncGenerator[_Found, None]:
        """Segment after segment, several on their way at a time. What fails is raised when it is its turn."""
        waiting: list[asyncio.Task[_Found | None]] = []
        number = start.segment.number
        try:
            while waiting or number <= shelf.newest:
                while len(waiting) < at_once and number <= shelf.newest:
                    waiting.append(asyncio.ensure_future(self._one(shelf, number, start, identity, into)))
                    number += 1
                try:
                    found = await waiting.pop(0)
                except _ClosedMeanwhileError:
                    shelf, number = await self._shelf(start, target), number - 1  # it was the last one
                    continue
                if found is None:
                    return
                yield found
                if found.end < found.segment.end:
                    return  # what is stored of later ones does not follow on it
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _one(self, shelf: _Shelf, number: int, start: WalStart, identity: Identity, into: Path) -> _Found | None:
        """None: the archive ends before it."""
        return await patiently(lambda: self._tried(shelf, number, start, identity, into), self._patience)

    async def _tried(
        self, shelf: _Shelf, number: int, start: WalStart, identity: Identity, into: Path
    ) -> _Found | None:
        choices = shelf.choices(number)
        # Where a timeline branches off, the older file holds only what was before; more is needed if there is more.
        if not shelf.holding(choices[0]) and await self._anything_genuine(shelf, number, start):
            raise VerificationError(
                f"WAL segment `{choices[0]}` of `{self._policy.server}` is missing in every bucket, and later ones are "
                f"there: nothing after {choices[0].start} can be reached from this base backup. Choose an earlier "
                "target or a later base backup."
            )
        for segment in choices:
            found = None
            if shelf.holding(segment):
                found = await self._closed(segment, shelf, start, identity, into)
            elif str(segment) in shelf.ranges:
                found = await self._opened(segment, shelf.ranges[str(segment)], start, identity, into)
            if found is not None:
                found.end = min(found.end, shelf.way.end_of(segment))
                await finished(_cut, into / str(segment), segment, found.end)
                return found
        return None

    async def _anything_genuine(self, shelf: _Shelf, number: int, start: WalStart) -> bool:
        """Whether something after it was really archived: a forged object must not make a hole of the archive's end."""
        for later in shelf.after(number):
            for segment in shelf.choices(later)[:1]:
                for bucket in shelf.holding(segment):
                    name, key = str(segment), self._archive.key(str(segment))
                    size = next(each.segments[name].bytes for each in shelf.listings if each.bucket == bucket)
                    try:
                        begin = await self._archive.read_first(bucket, name)  # it may be one of very many
                        self._archive.checked(begin, key, name, SealedKind.SEGMENT, start.system_id, size=size)
                    except VerificationError as error:
                        log.warning("forged_wal_passed_over: %s", error)
                    else:
                        return True
        return False

    async def _closed(self, segment: Segment, shelf: _Shelf, start: WalStart, identity: Identity, into: Path) -> _Found:
        name, key = str(segment), self._archive.key(str(segment))
        failures: list[DrError] = [
            VerificationError(f"Bucket `{listing.bucket}` has no `{key}`.")
            for listing in shelf.listings
            if segment not in listing
        ]
        for bucket in shelf.holding(segment):
            try:
                body = await self._objects.get(bucket, key)
                header = self._archive.checked(body, key, name, SealedKind.SEGMENT, start.system_id)
                if header.plain_bytes != segment.size:
                    raise VerificationError(f"`{key}` holds {header.plain_bytes} bytes and is no whole segment.")
            except (TemporaryError, VerificationError, UserError) as error:
                failures.append(type(error)(f"{error} (bucket `{bucket}`)"))
                continue
            try:
                # A full disk or another identity would be no better with another bucket's copy.
                await finished(_write, body, header, key, identity, into / name)
            except VerificationError as error:
                failures.append(type(error)(f"{error} (bucket `{bucket}`)"))
                continue
            problems = [str(error) for error in failures]
            for problem in problems:
                log.warning("wal_segment_from_another_bucket: %s: %s", name, problem)
            return _Found(segment, header.closed_at, segment.end, len(body), problems=problems)
        said = " ".join(str(error) for error in failures)
        if all(isinstance(error, TemporaryError) for error in failures):
            raise TemporaryError(f"WAL segment `{name}` cannot be read now. {said}")
        raise VerificationError(f"WAL segment `{name}` is in no bucket as it was stored. {said}")

    async def _opened(
        self, segment: Segment, ranges: Sequence[OpenRange], start: WalStart, identity: Identity, into: Path
    ) -> _Found | None:
        """The open segment as far as its ranges follow each other from its beginning; the rest is zeros, as on disk.
        None when there is no beginning."""
        plain, have = bytearray(segment.size), 0
        problems: list[str] = []
        closed_at, stored = ranges[0].stored_at, 0
        room = asyncio.Semaphore(2 * AT_ONCE)

        async def read(each: OpenRange) -> tuple[SealedHeader, bytes, int]:
            async with room:
                body = await self._range(each)
                header = self._archive.checked(body, each.key, each.segment, SealedKind.RANGE, start.system_id)
                if (header.first, header.first + header.plain_bytes) != (each.first, each.last):
                    raise VerificationError(f"`{each.key}` holds other bytes than its name says.")
                out = io.BytesIO()
                await asyncio.to_thread(unseal, body, header, each.key, identity, out)
                return header, out.getvalue(), len(body)

        for each, got in zip(ranges, await asyncio.gather(*map(read, ranges), return_exceptions=True), strict=True):
            if isinstance(got, TemporaryError | _ClosedMeanwhileError):
                raise got
            if isinstance(got, DrError):
                problems.append(str(got))
            elif isinstance(got, BaseException):
                raise got
            elif each.first <= have < each.last:
                header, piece, size = got
                plain[each.first : each.last] = piece
                have, closed_at, stored = each.last, header.closed_at, stored + size
        for problem in problems:
            log.warning("open_range_passed_over: %s", problem)
        if not have:
            return None
        await finished(_write_plain, bytes(plain), into / str(segment))
        end = Lsn(segment.start + have)
        return _Found(segment, closed_at, end, stored, open=True, problems=problems)

    async def _range(self, each: OpenRange) -> bytes:
        try:
            return await self._objects.get(self._policy.open_bucket, each.key)
        except UserError as error:
            if await self._objects.head(self._policy.open_bucket, each.key) is None:
                raise _ClosedMeanwhileError from error
            raise


async def _spare(segments: AsyncGenerator[_Found, None]) -> Sequence[_Found]:
    """One more, if there is one: the first commit after a time may lie there."""
    try:
        return [await anext(segments)]
    except StopAsyncIteration:
        return []
    except VerificationError as error:
        log.warning("wal_after_the_target_not_usable: %s", error)
        return []


def _holds(found: _Found, target: RecoveryTarget) -> bool:
    if target.time is not None:
        return found.closed_at > target.time + CLOCKS_APART
    return target.lsn is not None and Lsn.parse(target.lsn) < found.end


def _reaches(last: _Found | None, target: RecoveryTarget) -> bool:
    if target.time is not None:
        return last is not None and last.closed_at > target.time
    return target.lsn is None or (last is not None and Lsn.parse(target.lsn) <= last.end)


def _summary(
    way: Timelines, start: WalStart, found: Sequence[_Found], target: RecoveryTarget, problems: Sequence[str]
) -> FetchedWal:
    last = found[-1] if found else None
    return FetchedWal(
        timeline_id=way.timeline_id,
        newest_timeline_id=way.timeline_id,
        segments=len(found),
        first=str(found[0].segment) if found else "",
        last=str(last.segment) if last else "",
        closed=next((str(each.segment) for each in reversed(found) if not each.open), ""),
        end_lsn=str(last.end if last else start.lsn),
        newest_at=last.closed_at if last else None,
        open_segment=str(last.segment) if last and last.open else "",
        reaches=_reaches(last, target),
        bytes=sum(each.bytes for each in found),
        problems=(*problems, *(problem for each in found for problem in each.problems)),
    )


def _write(body: bytes, header: SealedHeader, key: str, identity: Identity, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    try:
        with private(part) as stream:
            unseal(body, header, key, identity, stream)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_plain(plain: bytes, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    with private(part) as stream:
        stream.write(plain)
    part.replace(path)


def _cut(path: Path, segment: Segment, end: Lsn) -> None:
    """Zeros from `end` on: what an old primary wrote after others went on without it must not be replayed."""
    if end < segment.end:
        with path.open("r+b") as stream:
            stream.truncate(max(0, end - segment.start))
            stream.truncate(segment.size)
