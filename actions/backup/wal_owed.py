"""WAL that a bucket lacks because it did not answer when the archiver began anew on a fresh disk.

What it lacked before lay on the disk that was lost. The stream goes on from what the other buckets have; this brings
the silent one what they have of it, once it answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog

from actions.backup.sealed import SealedKind
from actions.backup.segments import Segment, history_name
from actions.backup.wal import WalArchive, WalListing
from actions.backup.wal_receiving import CHECKED_BACK, place, whole_until
from actions.backup.wal_spool import SpoolState, WalSpool
from actions.errors import DrError, VerificationError
from actions.ports import Clock

log = structlog.get_logger(__name__)

LOOK_EVERY = timedelta(seconds=5)


class OwedWal:
    """Brings it from bucket to bucket, until it is cancelled. Nothing is decrypted."""

    def __init__(self, archive: WalArchive, spool: WalSpool, clock: Clock, *, every: timedelta = LOOK_EVERY) -> None:
        self._archive, self._spool, self._clock, self._every = archive, spool, clock, every
        self.problems: dict[str, tuple[str, datetime]] = {}  # by bucket: why it has not got it, and since when

    async def run(self) -> None:
        while True:
            state = self._spool.state
            if state is None:
                await self._clock.sleep(self._every)
                continue
            for bucket in state.unlisted:
                try:
                    await self._bring(state, bucket)
                except (DrError, OSError) as error:
                    _, since = self.problems.get(bucket, ("", self._clock.now()))
                    self.problems[bucket] = str(error), since
                    log.warning("wal_still_owed", bucket=bucket, error=str(error))
                else:
                    self.problems.pop(bucket, None)
            await self._clock.sleep(self._every)

    async def _bring(self, state: SpoolState, bucket: str) -> None:
        """Raises the first error of a bucket."""
        if bucket not in self._archive.policy.wal_buckets:
            await asyncio.to_thread(self._settle, bucket)
            return
        listing = await self._archive.listing(bucket)
        for other in self._archive.policy.wal_buckets:
            if other != bucket:
                there = await self._archive.listing(other)
                for timeline_id in sorted(there.histories.keys() - listing.histories.keys()):
                    await self._copy(state, other, bucket, history_name(timeline_id), SealedKind.HISTORY)
                for name in _lacking(listing, there, state.segment_bytes):
                    await self._copy(state, other, bucket, name, SealedKind.SEGMENT)
        await asyncio.to_thread(self._settle, bucket)
        log.info("wal_owed_no_more", bucket=bucket)

    def _settle(self, bucket: str) -> None:
        state = self._spool.state
        if state is not None:
            self._spool.change(unlisted=tuple(each for each in state.unlisted if each != bucket))

    async def _copy(self, state: SpoolState, source: str, bucket: str, name: str, kind: SealedKind) -> None:
        body = await self._archive.read(source, name)
        try:
            header = self._archive.checked(body, self._archive.key(name), name, kind, state.system_id)
        except VerificationError as error:
            log.warning("wal_damaged_not_brought", source=source, bucket=bucket, segment=name, error=str(error))
            return  # whoever reads the archive finds the same damage, and tells it
        await self._archive.put(bucket, header, body)
        log.info("wal_segment_brought", source=source, bucket=bucket, segment=name)


def _lacking(listing: WalListing, there: WalListing, size: int) -> Sequence[str]:
    """What a bucket lacks of another one, behind the place up to which it is whole; of an empty one the newest."""
    names = sorted(there.segments, key=place)
    whole = whole_until(listing, size)
    if whole is None:
        return names[-CHECKED_BACK:]
    return [name for name in names if name not in listing.segments and Segment.parse(name, size).number > whole.number]
