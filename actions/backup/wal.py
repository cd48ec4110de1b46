"""The archive of WAL in the buckets: written by `drbot wal`, read by every physical restore.

<prefix>wal/<server>/<segment name>.sealed           a closed segment, in every `wal_bucket`
<prefix>wal/<server>/<timeline id>.history.sealed    how a timeline came about
<prefix>open/<server>/<segment name>/<from>-<to>.sealed   bytes of the segment that is being written, in `open_bucket`
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise

from actions.backup.physical import SEGMENT, Gap, Lsn
from actions.backup.sealed import LONGEST_HEADER, SealedHeader, SealedKind, header_of
from actions.backup.segments import Segment, Timelines, history_name, history_of
from actions.errors import DrError, TemporaryError, UserError, VerificationError
from actions.ports import ObjectFacts, ObjectStore
from actions.site import PhysicalPolicy

log = logging.getLogger(__name__)

SEALED = ".sealed"
FORGED = 16
"""So many segments at the end are looked at, a small read each, until one is found that was really archived. Of more,
such as a server leaves that was made anew since, the end is found by halves."""

GAPS_DATED = 16
"""So many gaps, the newest, are dated by what the segments beside them say: two small reads for each."""
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_RANGE = re.compile(r"([0-9A-F]{24})/(\d{10})-(\d{10})\.sealed")


@dataclass(frozen=True)
class OpenRange:
    """Bytes `first` up to `last` of a segment that was open when they were stored."""

    segment: str
    first: int
    last: int
    key: str
    stored_at: datetime


@dataclass(frozen=True)
class WalListing:
    """What one bucket holds of a server's WAL, by a listing alone: nothing of it is checked yet."""

    bucket: str
    segments: Mapping[str, ObjectFacts] = field(default_factory=dict)  # by name
    histories: Mapping[int, ObjectFacts] = field(default_factory=dict)  # by timeline id
    # Of segments beside a gap, by name: when the archiver had them, None where they do not say it as they should.
    closed_at: Mapping[str, datetime | None] = field(default_factory=dict)

    def __contains__(self, segment: Segment) -> bool:
        return str(segment) in self.segments

    def closed(self, size: int) -> Mapping[Segment, ObjectFacts]:
        """Its segments of this size. What has the name of none is passed over: of a server that was made anew with
        another size under the same prefix, or put there by somebody."""
        found: dict[Segment, ObjectFacts] = {}
        for name, facts in self.segments.items():
            with contextlib.suppress(ValueError):
                found[Segment.parse(name, size)] = facts
        return found

    @property
    def bytes(self) -> int:
        """As stored."""
        return sum(facts.bytes for facts in self.segments.values())


@dataclass(frozen=True)
class WalStart:
    """Where a replay begins: the place and server of a base backup."""

    system_id: str
    timeline_id: int
    lsn: Lsn
    segment_bytes: int = SEGMENT

    @property
    def segment(self) -> Segment:
        return Segment.holding(self.lsn, self.timeline_id, self.segment_bytes)


def wal_folder(policy: PhysicalPolicy) -> str:
    """What comes before the name of every closed segment of a server, in each bucket."""
    return f"{policy.prefix}wal/{policy.server}/"


class WalArchive:
    """The WAL of the server that the policy is about."""

    def __init__(self, objects: ObjectStore, policy: PhysicalPolicy) -> None:
        self._objects, self.policy = objects, policy

    # ------------------------------------------------------------ where things are

    @property
    def folder(self) -> str:
        """Before the name of every closed segment."""
        return wal_folder(self.policy)

    @property
    def open_folder(self) -> str:
        return f"{self.policy.prefix}open/{self.policy.server}/"

    def key(self, name: str) -> str:
        """Of a closed segment or a history, by its name in pg_wal."""
        return f"{self.folder}{name}{SEALED}"

    def range_key(self, segment: str, first: int, last: int) -> str:
        return f"{self.open_folder}{segment}/{first:010d}-{last:010d}{SEALED}"

    # ------------------------------------------------------------ writing

    async def put(self, bucket: str, header: SealedHeader, body: bytes) -> None:
        """Store a closed segment or a history. What is there already with the same plain bytes is left as it is.

        Raises VerificationError, and overwrites nothing, when the bucket holds other bytes under this name that a
        trusted key has signed: two servers then write one archive.
        """
        key = self.key(header.name)
        try:
            await self._objects.put(bucket, key, body, only_if_absent=True)
            return
        except UserError:
            if await self._objects.head(bucket, key) is None:
                raise  # another refusal than "it is there"
        try:
            there = header_of(await self._objects.get(bucket, key), key, self.policy.trusted_signers)
        except VerificationError as error:
            # It never counted. Left there it would keep the true one out for ever.
            log.warning("foreign_object_replaced: %s in %s: %s", key, bucket, error)
            await self._objects.put(bucket, key, body)
            return
        if (there.system_id, there.plain_sha256) != (header.system_id, header.plain_sha256):
            raise VerificationError(
                f"Bucket `{bucket}` holds other bytes under `{key}`, signed by a trusted key. Two servers write the "
                "same archive: look which one is the primary, and give the other one a prefix of its own."
            )

    async def put_range(self, header: SealedHeader, body: bytes) -> OpenRange:
        """Store bytes of the open segment."""
        last = header.first + header.plain_bytes
        key = self.range_key(header.name, header.first, last)
        await self._objects.put(self.policy.open_bucket, key, body)
        return OpenRange(header.name, header.first, last, key, header.closed_at)

    async def drop_ranges(self, ranges: Sequence[OpenRange]) -> None:
        """Remove what a closed segment, or a longer range, has made useless."""
        for each in ranges:
            await self._objects.delete(self.policy.open_bucket, each.key)

    # ------------------------------------------------------------ listing

    async def listing(self, bucket: str) -> WalListing:
        segments, histories = {}, {}
        for facts in await self._objects.list(bucket, self.folder):
            name = facts.key.removeprefix(self.folder).removesuffix(SEALED)
            if not facts.key.endswith(SEALED):
                continue
            if _SEGMENT.fullmatch(name):
                segments[name] = facts
            elif (timeline_id := history_of(name)) is not None:
                histories[timeline_id] = facts
        return WalListing(bucket, segments, histories)

    async def asked(self) -> Mapping[str, WalListing | DrError]:
        """Every bucket's listing in the policy's order, or why it gives none."""
        buckets = self.policy.wal_buckets
        found: dict[str, WalListing | DrError] = {}
        said = await asyncio.gather(*map(self.listing, buckets), return_exceptions=True)
        for bucket, each in zip(buckets, said, strict=True):
            if isinstance(each, BaseException) and not isinstance(each, DrError):
                raise each
            found[bucket] = each
        return found

    async def listings(self) -> Sequence[WalListing]:
        """Of every bucket that answers, in the policy's order. Raises the first one's error when none does."""
        found = (await self.asked()).values()
        good = [each for each in found if isinstance(each, WalListing)]
        for error in (each for each in found if isinstance(each, DrError)):
            if not good:
                raise error
            log.warning("wal_bucket_not_listed: %s", error)
        return good

    async def open_ranges(self) -> Mapping[str, Sequence[OpenRange]]:
        """Of every segment that is not closed in the archive, by its name; in order."""
        if not self.policy.open_bucket:
            return {}
        found: dict[str, list[OpenRange]] = {}
        for facts in await self._objects.list(self.policy.open_bucket, self.open_folder):
            if match := _RANGE.fullmatch(facts.key.removeprefix(self.open_folder)):
                each = OpenRange(match[1], int(match[2]), int(match[3]), facts.key, facts.modified_at)
                found.setdefault(each.segment, []).append(each)
        return {name: sorted(ranges, key=lambda each: (each.first, -each.last)) for name, ranges in found.items()}

    # ------------------------------------------------------------ checking

    def checked(
        self, body: bytes, key: str, name: str, kind: SealedKind, system_id: str, *, size: int | None = None
    ) -> SealedHeader:
        """The header of a stored object, when it is what its name promises; of one of this `size` where `body` is its
        beginning alone. Raises VerificationError naming `key`."""
        header = header_of(body, key, self.policy.trusted_signers, size=size)
        if (header.kind, header.name) != (kind, name):
            raise VerificationError(f"`{key}` holds the {header.kind} `{header.name}`: it was moved or renamed.")
        if header.system_id != system_id:
            raise VerificationError(
                f"`{key}` is of another server: its system id is {header.system_id}, the base backup's is {system_id}."
            )
        return header

    async def read(self, bucket: str, name: str) -> bytes:
        """A closed segment or a history as it is stored, sealed and unchecked."""
        return await self._objects.get(bucket, self.key(name))

    async def read_first(self, bucket: str, name: str) -> bytes:
        """So much of it that `checked` finds its header."""
        return await self._objects.get_first(bucket, self.key(name), LONGEST_HEADER)

    # ------------------------------------------------------------ timelines

    async def timelines(self, start: WalStart, wanted: int | None, listings: Sequence[WalListing]) -> Timelines:
        """The way from `start` to the timeline `wanted`; None: the newest that `start` is part of.

        Raises VerificationError when a history is missing or damaged in every bucket, UserError when `start` is no
        part of that way.
        """
        known = {timeline_id for listing in listings for timeline_id in listing.histories}
        if wanted is not None:
            if wanted == start.timeline_id and wanted not in known:
                return Timelines.alone(wanted)
            way = await self.history(wanted, start, listings)
            if not way.reaches(start.timeline_id, start.lsn):
                raise UserError(
                    f"Timeline id {wanted} of `{self.policy.server}` does not come from timeline id "
                    f"{start.timeline_id} at {start.lsn}, where the base backup begins. Take a base backup of that way."
                )
            return way
        for timeline_id in sorted((each for each in known if each >= start.timeline_id), reverse=True):
            way = await self.history(timeline_id, start, listings)
            if way.reaches(start.timeline_id, start.lsn):
                return way
        return Timelines.alone(start.timeline_id)

    async def history(self, timeline_id: int, start: WalStart, listings: Sequence[WalListing]) -> Timelines:
        """The way to this timeline. Raises VerificationError when no bucket has its history as it was stored, or it is
        of another server than `start`."""
        name = history_name(timeline_id)
        problems: list[str] = []
        for listing in listings:
            if timeline_id not in listing.histories:
                continue
            try:
                body = await self._objects.get(listing.bucket, self.key(name))
                header = self.checked(body, self.key(name), name, SealedKind.HISTORY, start.system_id)
                return Timelines.parse(timeline_id, header.history)
            except TemporaryError:
                if listing is listings[-1]:
                    raise
            except (VerificationError, UserError) as error:
                problems.append(str(error))
        said = " ".join(problems) or f"No bucket has `{self.key(name)}`."
        raise VerificationError(f"The history of timeline id {timeline_id} cannot be read. {said}")

    # ------------------------------------------------------------ gaps

    async def gaps(self, start: WalStart, listing: WalListing) -> Sequence[Gap]:
        """What is missing in this bucket between `start` and the newest closed segment, along the newest timeline.

        Segments on timelines without a history are gaps as well: nothing leads there.
        """
        way = await self.timelines(start, None, [listing])
        return find_gaps(start, way, await self.dated(start, way, listing))

    async def genuine(self, start: WalStart, way: Timelines, listing: WalListing) -> WalListing:
        """The same without what lies behind the last segment on this way that was really archived: damaged, or put
        there by whoever can write the bucket, it makes no gap and is not the newest."""
        size = start.segment_bytes
        numbers = sorted(set(way.numbers(list(listing.segments), size)), reverse=True)
        last: Segment | None = None
        passed = 0  # so many numbers at the end are not the archive's
        for number in numbers[:FORGED]:
            if (last := await self._archived(start, way, listing, number)) is not None:
                break
            passed += 1
        begin = sum(number >= start.segment.number for number in numbers) - 1
        if last is None and begin >= passed:
            last = await self._archived(start, way, listing, numbers[begin])
            good, bad = begin, passed - 1
            while last is not None and good - bad > 1:
                middle = (good + bad) // 2
                if (found := await self._archived(start, way, listing, numbers[middle])) is not None:
                    last, good = found, middle
                else:
                    bad = middle
            passed = passed if last is None else good
        gone = {str(each) for number in numbers[:passed] for each in way.choices(number, size)}
        if last is not None:
            better = way.choices(last.number, size)
            gone |= {str(each) for each in better[: better.index(last)]}
        return replace(listing, segments={name: at for name, at in listing.segments.items() if name not in gone})

    async def _archived(self, start: WalStart, way: Timelines, listing: WalListing, number: int) -> Segment | None:
        """The first one of this number on this way that was really archived."""
        for segment in way.choices(number, start.segment_bytes):
            name, key = str(segment), self.key(str(segment))
            if name not in listing.segments:
                continue
            try:
                first, length = await self.read_first(listing.bucket, name), listing.segments[name].bytes
                self.checked(first, key, name, SealedKind.SEGMENT, start.system_id, size=length)
            except VerificationError as error:
                log.warning("wal_at_the_end_not_usable: %s in %s: %s", key, listing.bucket, error)
            else:
                return segment
        return None

    async def dated(self, start: WalStart, way: Timelines, listing: WalListing) -> WalListing:
        """The same listing, which knows when the archiver had the segments beside the gaps: when they were stored tells
        nothing in a bucket that was filled later. Their beginnings alone are read."""
        beside = [_beside(missing, way, listing) for missing in _missing(start, way, listing)]
        names = {name: None for pair in beside for name in pair if name is not None}
        read = sorted({name for pair in beside[-GAPS_DATED:] for name in pair if name is not None})
        said = await asyncio.gather(*(self._closed_at(listing, name, start.system_id) for name in read))
        return replace(listing, closed_at={**names, **dict(zip(read, said, strict=True))})

    async def _closed_at(self, listing: WalListing, name: str, system_id: str) -> datetime | None:
        key = self.key(name)
        try:
            begin = await self.read_first(listing.bucket, name)
            size = listing.segments[name].bytes
            return self.checked(begin, key, name, SealedKind.SEGMENT, system_id, size=size).closed_at
        except (TemporaryError, VerificationError, UserError) as error:
            log.warning("wal_segment_beside_a_gap_not_read: %s: %s", key, error)
            return None


def find_gaps(start: WalStart, way: Timelines, listing: WalListing) -> Sequence[Gap]:
    """The gaps of one bucket along one way."""
    found = [_gap(missing, way, listing) for missing in _missing(start, way, listing)]
    unknown = {int(name[:8], 16) for name in listing.segments} - set(listing.histories) - set(way.ids)
    lost = [timeline_id for timeline_id in sorted(unknown) if timeline_id > start.timeline_id]
    return [*found, *(_without_history(timeline_id, listing) for timeline_id in lost)]


def _missing(start: WalStart, way: Timelines, listing: WalListing) -> Iterator[tuple[Segment, Segment]]:
    """First and last segment of each gap, in order. What is stored is looked at alone: whoever can write the bucket can
    put something there that is as far ahead as he likes."""
    size, first = start.segment_bytes, start.lsn // start.segment_bytes
    stored = sorted({number for number in way.numbers(list(listing.segments), size) if number >= first})
    # Where a timeline branches off, the older file alone is not enough, unless it is the end of all.
    there = [number for number in stored if way.choices(number, size)[0] in listing or number == stored[-1]]
    for before, after in pairwise([first - 1, *there]):
        if after > before + 1:
            yield way.choices(before + 1, size)[0], way.choices(after - 1, size)[0]


def _beside(missing: tuple[Segment, Segment], way: Timelines, listing: WalListing) -> tuple[str | None, str | None]:
    """The stored segments before and after a gap."""
    size = missing[0].size

    def stored(number: int) -> str | None:
        """Of whichever timeline: at a fork the one before it is of another."""
        names = map(str, way.choices(number, size) if number >= 0 else ())
        return next((name for name in names if name in listing.segments), None)

    return stored(missing[0].number - 1), stored(missing[1].number + 1)


def _gap(missing: tuple[Segment, Segment], way: Timelines, listing: WalListing) -> Gap:
    before, after = beside = _beside(missing, way, listing)
    return Gap(
        timeline_id=missing[0].timeline_id,
        first=str(missing[0]),
        last=str(missing[1]),
        after=_date(before, listing),
        before=_date(after, listing),
        loose=any(name in listing.closed_at and listing.closed_at[name] is None for name in beside if name is not None),
        seen_at=None if after is None else listing.segments[after].modified_at,
    )


def _date(name: str | None, listing: WalListing) -> datetime | None:
    """When there were commits in this segment, as far as known."""
    if name is None:
        return None
    return listing.closed_at.get(name) or listing.segments[name].modified_at


def _without_history(timeline_id: int, listing: WalListing) -> Gap:
    """Nothing leads to what was archived of this timeline. Nobody knows when it began."""
    last = max(name for name in listing.segments if int(name[:8], 16) == timeline_id)
    return Gap(timeline_id=timeline_id, first=history_name(timeline_id), last=last)
