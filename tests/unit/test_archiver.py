"""What the archiver says of itself ends when its cause has ended; the server of these tests never answers."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from actions.adapters.clock import SystemClock
from actions.backup.archiver import Archiver
from actions.backup.native_catalogue import BaseFolder
from actions.backup.physical import PhysicalManifest
from actions.backup.segments import Segment
from actions.backup.signing import Signed
from actions.backup.wal_source import AlarmKind
from actions.backup.wal_spool import SpoolState, WalSpool
from actions.backup.wal_status import BaseWanted
from actions.errors import TemporaryError
from tests.fakes.clock import START
from tests.fakes.entries import an_entry
from tests.fakes.s3 import MemoryObjects
from tests.fakes.wal import HERE, OPEN, THERE, MemoryWal
from tests.fakes.wal_source import MemoryWalSource
from tests.fixtures.waiting import eventually, until

OFTEN = timedelta(milliseconds=20)
WANTED = BaseWanted(after_lsn="0/5000000", since=START, reason="it was removed", timeline_id=1)


class _Disk(WalSpool):
    full = False

    def absorb(self) -> list[str]:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().absorb()


class _World:
    def __init__(self, directory: Path) -> None:
        self.wal, self.source = MemoryWal(), MemoryWalSource()
        self.source.error = TemporaryError("It does not answer.")
        self.wal.objects = MemoryObjects("base", HERE, THERE, OPEN, clock=SystemClock())
        self.spool = _Disk(directory / "spool")
        self.spool.receive.mkdir(parents=True)
        self.spool.closed.mkdir()
        self.archiver = Archiver(
            self.source,
            self.wal.objects,
            self.wal.policy,
            self.spool,
            self.wal.keys.signing,
            SystemClock(),
            open_every=OFTEN,
            say_every=OFTEN,
            base_every=OFTEN,
        )

    @asynccontextmanager
    async def archiving(self) -> AsyncIterator[None]:
        work = asyncio.ensure_future(self.archiver.run())
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def base(self, name: str, *, segment: int) -> None:
        """A full backup that begins with this segment."""
        found = an_entry(name, START, segment=segment).manifest
        folder = BaseFolder(self.wal.policy, name)
        stored = found.stored.model_copy(update={"bucket": "base", "key": folder.base, "bytes": 4})
        update = {"server": "main", "system_id": self.wal.system_id, "stored": stored, "files": None}
        manifest = found.model_copy(update=update)
        await self.wal.objects.put("base", folder.base, b"base")
        signed = Signed[PhysicalManifest].sign(manifest, self.wal.keys.signing)
        await self.wal.objects.put("base", folder.manifest, signed.body())

    def alarms(self) -> set[AlarmKind]:
        return {alarm.kind for alarm in self.archiver.status().alarms}


@pytest.fixture
def world(tmp_path: Path) -> _World:
    return _World(tmp_path)


async def test_a_base_is_wanted_until_one_begins_behind_the_gap(world: _World) -> None:
    world.spool.remember(SpoolState(system_id=world.wal.system_id, segment_bytes=1 << 24, base_wanted=WANTED))
    await world.base("before", segment=4)
    async with world.archiving():
        await asyncio.sleep(0.1)
        assert AlarmKind.GAP in world.alarms()
        await world.base("after", segment=6)
        await until(lambda: AlarmKind.GAP not in world.alarms())
    assert world.spool.state is not None
    assert world.spool.state.base_wanted is None


@pytest.mark.corruption
async def test_a_disk_that_was_full_for_a_moment_is_no_alarm_afterwards(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.spool.remember(SpoolState(system_id=world.wal.system_id, segment_bytes=1 << 24))
    monkeypatch.setattr("actions.backup.archiver.LOOK_EVERY", OFTEN)
    monkeypatch.setattr("actions.backup.archiver.ABSORB_EVERY", OFTEN)
    monkeypatch.setattr("actions.backup.wal_alarms.DISK_FLOOR", 0)
    monkeypatch.setattr("actions.backup.wal_alarms.DISK_SHARE", 0.0)
    world.spool.full = True
    async with world.archiving():
        await until(lambda: AlarmKind.DISK_LOW in world.alarms())
        world.spool.full = False
        await until(lambda: AlarmKind.DISK_LOW not in world.alarms())


@pytest.mark.parametrize(("age", "left"), [(timedelta(days=6), True), (timedelta(days=8), False)])
async def test_ranges_of_a_timeline_that_ended_go_with_its_wal(world: _World, age: timedelta, left: bool) -> None:
    old, new = Segment(1, 9, 1 << 16), Segment(2, 9, 1 << 16)
    state = SpoolState(system_id=world.wal.system_id, segment_bytes=1 << 16, newest=str(new), begun=True)
    world.spool.remember(state)
    await world.wal.opened(old.number, 0, 100)
    ranges = world.wal.objects.buckets[OPEN]
    for key, found in ranges.items():
        ranges[key] = replace(found, modified_at=found.modified_at - age)
    async with world.archiving():
        if left:
            await asyncio.sleep(0.2)
        else:

            async def gone() -> bool:
                return not await world.wal.archive.open_ranges()

            await eventually(gone)
    assert bool(await world.wal.archive.open_ranges()) is left
