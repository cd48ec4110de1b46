"""What the archiver says of itself ends when its cause has ended; the server of these tests never answers."""

from __future__ import annotations

import asyncio
import errno
import os
import re
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
from tests.fakes.wal import HERE, OPEN, SIZE, THERE, MemoryWal
from tests.fakes.wal_source import MemoryWalSource
from tests.fixtures.waiting import eventually, until

OFTEN = timedelta(milliseconds=20)
WANTED = BaseWanted(after_lsn="0/5000000", since=START, reason="it was removed", timeline_id=1)


class _Disk(WalSpool):
    fault = 0  # of the operating system

    def absorb(self) -> list[str]:
        if self.fault:
            raise OSError(self.fault, os.strerror(self.fault))
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
        return set(self.told())

    def told(self) -> dict[AlarmKind, str]:
        return {alarm.kind: alarm.text for alarm in self.archiver.status().alarms}


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
@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (
            errno.ENOSPC,
            AlarmKind.DISK_FULL,
            "The archiver's disk is full: `.*spool`.*Slot `.*` keeps WAL on the primary",
        ),
        (errno.EDQUOT, AlarmKind.DISK_FULL, "Make the volume larger"),
        (errno.EROFS, AlarmKind.DISK_UNUSABLE, "cannot be used: `.*spool`: Read-only file system"),
    ],
)
async def test_what_a_disk_did_not_take_for_a_moment_is_told_and_no_alarm_afterwards(
    world: _World, monkeypatch: pytest.MonkeyPatch, fault: int, kind: AlarmKind, words: str
) -> None:
    world.spool.remember(SpoolState(system_id=world.wal.system_id, segment_bytes=1 << 24))
    monkeypatch.setattr("actions.backup.archiver.LOOK_EVERY", OFTEN)
    monkeypatch.setattr("actions.backup.archiver.ABSORB_EVERY", OFTEN)
    monkeypatch.setattr("actions.backup.wal_alarms.DISK_FLOOR", 0)
    monkeypatch.setattr("actions.backup.wal_alarms.DISK_SHARE", 0.0)
    world.spool.fault = fault
    async with world.archiving():
        await until(lambda: kind in world.alarms())
        assert re.search(words, world.told()[kind])
        assert AlarmKind.DISK_LOW not in world.alarms()
        world.spool.fault = 0
        await until(lambda: kind not in world.alarms())


async def test_segments_of_a_disk_that_has_lost_its_notes_wait_until_the_server_has_answered(world: _World) -> None:
    name = str(Segment(1, 3, SIZE))
    (world.spool.closed / name).write_bytes(bytes(SIZE))
    async with world.archiving():
        await asyncio.sleep(0.3)
        assert (world.spool.closed / name).exists()
        world.source.error = None

        async def stored() -> bool:
            return name in (await world.wal.archive.listing(HERE)).segments

        await eventually(stored)


@pytest.mark.corruption
async def test_a_segment_that_the_disk_did_not_let_go_goes_once_it_does(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says where to go on for as long as the note of it cannot be written."""
    monkeypatch.setattr("actions.backup.archiver.LOOK_EVERY", OFTEN)
    newest = Segment(1, 3, SIZE)
    world.spool.remember(SpoolState(system_id=world.wal.system_id, segment_bytes=SIZE))
    blocked = world.spool.directory / "state.json.part"
    blocked.mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        world.spool.change(newest=str(newest), begun=True)
    (world.spool.closed / str(newest)).write_bytes(bytes(SIZE))
    async with world.archiving():

        async def stored() -> bool:
            return str(newest) in (await world.wal.archive.listing(THERE)).segments

        await eventually(stored)
        await until(lambda: AlarmKind.DISK_UNUSABLE in world.alarms())
        assert world.spool.waiting() == [str(newest)]
        blocked.rmdir()
        await until(lambda: world.spool.waiting() == [])
        await until(lambda: AlarmKind.DISK_UNUSABLE not in world.alarms())
    assert WalSpool(world.spool.directory).newest() == newest


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
