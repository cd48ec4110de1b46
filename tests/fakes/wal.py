"""An archive of WAL in memory, filled as `drbot wal` fills it; segments are small and hold noise."""

from __future__ import annotations

import io
import itertools
import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from actions.backup.physical import Lsn, RecoveryTarget
from actions.backup.sealed import SealedKind, Sealer, What
from actions.backup.segments import Segment, history_name
from actions.backup.wal import WalArchive, WalStart
from actions.backup.wal_fetch import FetchedWal, WalFetch
from actions.ports import ObjectStore, no_progress
from actions.site import PhysicalPolicy
from tests.dump_world import Keys
from tests.fakes.clock import START, MemoryClock
from tests.fakes.s3 import MemoryObject, MemoryObjects
from tests.fakes.secrets import MemorySecrets

SIZE = 1 << 16
SYSTEM = "7000000000000000001"
HERE, THERE, OPEN = "wal-here", "wal-there", "wal-open"
MINUTE = timedelta(minutes=1)


def plain_of(segment: Segment) -> bytes:
    """What a test's segment holds; a new timeline begins with a copy of the old one, which is not played here."""
    return random.Random(str(segment)).randbytes(segment.size)


@dataclass
class MemoryWal:
    """Segment `n` of timeline 1 was closed `n` minutes after START."""

    keys: Keys = field(default_factory=Keys)
    system_id: str = SYSTEM

    def __post_init__(self) -> None:
        self.clock = MemoryClock()
        self.objects = MemoryObjects(HERE, THERE, OPEN, clock=self.clock)
        self.policy = PhysicalPolicy(
            server="main",
            bucket="base",
            wal_buckets=(HERE, THERE),
            open_bucket=OPEN,
            recipients=(self.keys.recipient,),
            identity="env:IDENTITY",
            signing_key="env:SIGNING",
            trusted_signers=(self.keys.signer,),
        )
        self.secrets = MemorySecrets({"env:IDENTITY": self.keys.identity, "env:SIGNING": self.keys.pem})
        self.sealer = Sealer(self.policy.recipients, self.keys.signing)

    @property
    def archive(self) -> WalArchive:
        return WalArchive(self.objects, self.policy)

    def start(self, number: int = 1, timeline_id: int = 1) -> WalStart:
        return WalStart(SYSTEM, timeline_id, Lsn(number * SIZE + 40), SIZE)

    def what(self, segment: Segment, kind: SealedKind = SealedKind.SEGMENT, first: int = 0) -> What:
        return What(
            kind=kind,
            name=str(segment),
            system_id=self.system_id,
            timeline_id=segment.timeline_id,
            first=first,
            segment_bytes=segment.size,
        )

    async def closed(self, *numbers: int, timeline_id: int = 1, buckets: tuple[str, ...] = (HERE, THERE)) -> None:
        for number in numbers:
            segment = Segment(timeline_id, number, SIZE)
            self.at(START + number * MINUTE)
            sealed = self.sealer.seal(self.what(segment), io.BytesIO(plain_of(segment)), self.clock.now())
            for bucket in buckets:
                await self.archive.put(bucket, *sealed)

    async def opened(self, number: int, *cuts: int, timeline_id: int = 1) -> None:
        """Ranges between the cuts."""
        segment = Segment(timeline_id, number, SIZE)
        self.at(START + number * MINUTE)
        for first, last in itertools.pairwise(cuts):
            plain = io.BytesIO(plain_of(segment)[first:last])
            await self.archive.put_range(
                *self.sealer.seal(self.what(segment, SealedKind.RANGE, first), plain, self.clock.now())
            )

    async def history(self, timeline_id: int, text: str, *, buckets: tuple[str, ...] = (HERE, THERE)) -> None:
        what = What(
            kind=SealedKind.HISTORY,
            name=history_name(timeline_id),
            system_id=self.system_id,
            timeline_id=timeline_id,
            history=text,
        )
        for bucket in buckets:
            await self.archive.put(bucket, *self.sealer.seal(what, io.BytesIO(text.encode()), self.clock.now()))

    def at(self, moment: datetime) -> None:
        """The clock of archiver and buckets."""
        self.clock.advance(moment - self.clock.now())

    async def fetch(
        self,
        into: Path,
        target: RecoveryTarget,
        *,
        start: WalStart | None = None,
        objects: ObjectStore | None = None,
        patience: timedelta = timedelta(),
    ) -> FetchedWal:
        reader = WalFetch(objects or self.objects, self.secrets, self.policy, patience=patience)
        return await reader.fetch(start or self.start(), target, into, no_progress)

    def key(self, number: int, timeline_id: int = 1) -> str:
        return self.archive.key(str(Segment(timeline_id, number, SIZE)))

    def flip(self, bucket: str, key: str, place: int) -> None:
        """One bit of a stored object."""
        stored = self.objects.buckets[bucket][key]
        body = bytearray(stored.body)
        body[place] ^= 1
        self.objects.buckets[bucket][key] = MemoryObject(bytes(body), stored.modified_at)
