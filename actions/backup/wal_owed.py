"""WAL that one bucket lacks and another one has, brought from bucket to bucket.

What a bucket lacks lay on an archiver's disk that was lost while it did not answer, or was behind; or the plan file has
named it later than the other; or somebody deleted it there. What is on this disk is brought by `wal_shipping`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import structlog

from actions.backup.sealed import SealedKind, check_stored
from actions.backup.segments import history_name
from actions.backup.wal import WalArchive
from actions.backup.wal_spool import SpoolState, WalSpool
from actions.errors import DrError, UserError, VerificationError
from actions.ports import Clock

log = structlog.get_logger(__name__)

HISTORY = ".history"
LOOK_EVERY = timedelta(seconds=5)
"""At a bucket that was silent when the archiver began anew."""

COMPARE_EVERY = timedelta(hours=1)
DOUBTS = 64
"""Objects of two sizes, the newest, that are looked at in one comparison: a small read each."""

COMPARE_AGAIN = timedelta(minutes=1)
"""After a comparison that failed. Each lists two buckets whole."""


class OwedWal:
    """Compares the buckets and brings each what it lacks, until it is cancelled. Nothing is decrypted."""

    def __init__(self, archive: WalArchive, spool: WalSpool, clock: Clock, *, every: timedelta = LOOK_EVERY) -> None:
        self._archive, self._spool, self._clock, self._every = archive, spool, clock, every
        self._due: dict[str, datetime] = {}  # by bucket, when it is compared with the others next
        self.problems: dict[str, tuple[str, datetime]] = {}  # by bucket: why it has not got it, and since when

    async def run(self) -> None:
        while True:
            state = self._spool.state
            if state is not None:
                for bucket in await self._wanted(state):
                    await self._even_out(state, bucket)
            await self._clock.sleep(self._every)

    async def _wanted(self, state: SpoolState) -> Sequence[str]:
        """Those that are owed, and those whose hour has come: not before it is known where the stream goes on, since
        until then the primary is asked for what the bucket that is behind lacks."""
        buckets = self._archive.policy.wal_buckets
        if not state.begun and await asyncio.to_thread(self._spool.opened) is None:
            return state.unlisted
        now = self._clock.now()
        due = [each for each in buckets if each not in state.unlisted and self._due.get(each, now) <= now]
        return (*state.unlisted, *(due if len(buckets) > 1 else ()))

    async def _even_out(self, state: SpoolState, bucket: str) -> None:
        owed = bucket in state.unlisted
        self._due[bucket] = self._clock.now() + COMPARE_AGAIN
        try:
            lacking = await self._lacking(state, bucket)
        except DrError as error:
            # Who does not answer is told of by its own lane; that it lacks anything is known of what is owed alone.
            if owed:
                self._failed(bucket, error)
            else:
                self.problems.pop(bucket, None)
            return
        try:
            for name, sources in lacking.items():
                await self._copy(state, sources, bucket, name)
            if owed:
                await asyncio.to_thread(self._spool.settle, bucket)
                log.info("wal_owed_no_more", bucket=bucket)
        except (DrError, OSError) as error:
            self._failed(bucket, error)
        else:
            self.problems.pop(bucket, None)
            self._due[bucket] = self._clock.now() + COMPARE_EVERY

    async def _lacking(self, state: SpoolState, bucket: str) -> Mapping[str, Sequence[str]]:
        """Names of what other buckets have and this one has not, or not as it was stored, in the order of a replay,
        each with those that have it; histories first. Nothing for a bucket that the plan file names no more."""
        buckets = self._archive.policy.wal_buckets
        if bucket not in buckets:
            return {}
        # In this order: what others had from this disk and what is not on it any more, is in every bucket by now.
        there = {other: await self._sizes(other) for other in buckets if other != bucket}
        waiting = await asyncio.to_thread(self._spool.waiting)
        here = await self._sizes(bucket)
        names = {name for each in there.values() for name in each} - here.keys() - {*waiting}
        names |= await self._damaged(state, bucket, here, there.values())
        ordered = sorted(names, key=lambda name: (not name.endswith(HISTORY), _place(name)))
        return {name: [other for other in there if name in there[other]] for name in ordered}

    async def _damaged(
        self, state: SpoolState, bucket: str, here: Mapping[str, int], there: Iterable[Mapping[str, int]]
    ) -> set[str]:
        """What is there and not what it says of itself. Where the same thing is longer in another bucket, or shorter,
        it was perhaps sealed twice: its beginning tells."""
        doubtful = {name for each in there for name, size in each.items() if here.get(name, size) != size}
        found = set[str]()
        for name in sorted(doubtful)[-DOUBTS:]:
            kind, key = _kind(name), self._archive.key(name)
            try:
                begin = await self._archive.read_first(bucket, name)
                self._archive.checked(begin, key, name, kind, state.system_id, size=here[name])
            except (VerificationError, UserError) as error:
                log.warning("wal_damaged_in_bucket", bucket=bucket, segment=name, error=str(error))
                found.add(name)
        return found

    def _failed(self, bucket: str, error: Exception) -> None:
        _, since = self.problems.get(bucket, ("", self._clock.now()))
        self.problems[bucket] = str(error), since
        log.warning("wal_still_owed", bucket=bucket, error=str(error))

    async def _sizes(self, bucket: str) -> Mapping[str, int]:
        """Of its segments and histories, as stored; what else the listing says takes ten times as much memory."""
        found = await self._archive.listing(bucket)
        segments = {name: facts.bytes for name, facts in found.segments.items()}
        return segments | {history_name(timeline_id): facts.bytes for timeline_id, facts in found.histories.items()}

    async def _copy(self, state: SpoolState, sources: Sequence[str], bucket: str, name: str) -> None:
        """From the first one that has it as it was stored. Where none has, whoever reads the archive finds the same
        damage, and tells it."""
        kind, key = _kind(name), self._archive.key(name)
        for source in sources:
            body = await self._archive.read(source, name)
            try:
                header = self._archive.checked(body, key, name, kind, state.system_id)
                await asyncio.to_thread(check_stored, body, header, key)
            except VerificationError as error:
                log.warning("wal_damaged_not_brought", source=source, bucket=bucket, segment=name, error=str(error))
                continue
            await self._archive.put(bucket, header, body)
            log.info("wal_segment_brought", source=source, bucket=bucket, segment=name)
            return


def _kind(name: str) -> SealedKind:
    return SealedKind.HISTORY if name.endswith(HISTORY) else SealedKind.SEGMENT


def _place(name: str) -> tuple[str, str]:
    """Orders names of segments by their place, then by timeline."""
    return name[8:], name[:8]
