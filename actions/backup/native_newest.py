"""How far the WAL of one bucket leads: its last closed segment, and the open one beside it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from actions.backup.physical import Lsn
from actions.backup.sealed import SealedHeader, SealedKind
from actions.backup.segments import Segment, Timelines
from actions.backup.wal import OpenRange, WalArchive, WalListing
from actions.errors import TemporaryError, UserError, VerificationError
from actions.ports import ObjectStore

log = logging.getLogger(__name__)


class Newest(NamedTuple):
    """When the archiver had the last of the WAL, and where that ends; None while nobody knows."""

    at: datetime | None = None
    end: Lsn | None = None


async def newest_closed(
    archive: WalArchive, listing: WalListing, way: Timelines, size: int, system_id: str
) -> tuple[Segment | None, Newest]:
    """The last closed segment of this bucket along the way, whose signed beginning alone is read."""
    number = max(way.numbers(list(listing.segments), size), default=None)
    if number is None:
        return None, Newest()
    closed = next(each for each in way.choices(number, size) if each in listing)
    name, key = str(closed), archive.key(str(closed))
    try:
        begin = await archive.read_first(listing.bucket, name)
        header = archive.checked(begin, key, name, SealedKind.SEGMENT, system_id, size=listing.segments[name].bytes)
    except VerificationError as error:
        log.warning("newest_wal_segment_not_ours: %s", error)
        return closed, Newest()
    return closed, Newest(header.closed_at, way.end_of(closed))


class OpenEnd:
    """What the ranges of the open segment add, on the terms on which a restore reads them (`WalFetch`)."""

    def __init__(self, objects: ObjectStore, archive: WalArchive, way: Timelines, system_id: str) -> None:
        self._objects, self._archive, self._way, self._system_id = objects, archive, way, system_id

    async def after(self, closed: Segment, known: Newest) -> Newest:
        """Where the way goes on behind the last closed segment: in that number on a newer timeline, which begins with a
        copy of it, else in the next number, and so on while each is whole."""
        try:
            found = await self._archive.open_ranges()
        except (TemporaryError, UserError) as error:  # what would be left without it is told, and that is less
            log.warning("open_ranges_not_listed: %s", error)
            return known
        same = self._way.choices(closed.number, closed.size)
        number, choices = closed.number, same[: same.index(closed)]
        while True:
            if choices:
                reached = await self._first(choices, found)
                if reached is None:
                    return known
                known, whole = reached
                if not whole:
                    return known
            number += 1
            choices = self._way.choices(number, closed.size)

    async def _first(
        self, choices: Sequence[Segment], found: Mapping[str, Sequence[OpenRange]]
    ) -> tuple[Newest, bool] | None:
        """Of these segments, the newest timeline first, the first of which a beginning is stored: how far, and whether
        that is all of it."""
        for segment in choices:
            header = await self._last(segment, found.get(str(segment), ()))
            if header is not None:
                have = Lsn(segment.start + header.first + header.plain_bytes)
                end = min(have, self._way.end_of(segment))
                return Newest(header.closed_at, end), end == segment.end
        return None

    async def _last(self, segment: Segment, ranges: Sequence[OpenRange]) -> SealedHeader | None:
        """Of the ranges that follow each other from its beginning, the last one; one that cannot be read is left out,
        as a restore does."""
        left = list(ranges)
        while following := _following(left):
            last = following[-1]
            try:
                body = await self._objects.get(self._archive.policy.open_bucket, last.key)
                header = self._archive.checked(body, last.key, str(segment), SealedKind.RANGE, self._system_id)
                if (header.first, header.first + header.plain_bytes) == (last.first, last.last):
                    return header
                log.warning("open_range_of_other_bytes: %s", last.key)
            except (VerificationError, UserError) as error:  # a range may be gone once its segment is closed
                log.warning("open_range_not_read: %s", error)
            left.remove(last)
        return None


def _following(ranges: Sequence[OpenRange]) -> Sequence[OpenRange]:
    """Those that lead on from the beginning, each further than the one before; `ranges` in order."""
    have, found = 0, list[OpenRange]()
    for each in ranges:
        if each.first <= have < each.last:
            have, found = each.last, [*found, each]
    return found
