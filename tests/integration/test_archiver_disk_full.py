"""The archiver's own disk is really full under a real `pg_receivewal`: it says so, the primary goes on and its slot
keeps what was not received, and once there is room nothing is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from actions.backup.archiver import Archiver
from actions.backup.wal_source import AlarmKind
from tests.fixtures.small_disk import fill, small_disk
from tests.wal_world import HERE, OPEN, THERE, WalWorld, eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.corruption,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("wal"),
    pytest.mark.asyncio(loop_scope="module"),
]

DISK = 72 << 20  # four segments, and half of one
INODES = 64


@pytest.fixture
def disk(server_directory: Path) -> Iterator[Path]:
    with small_disk(server_directory / "disk", DISK, inodes=INODES) as place:
        yield place


@pytest.fixture
def world(wal_world: WalWorld, disk: Path, monkeypatch: pytest.MonkeyPatch) -> WalWorld:
    """Its spool is on the small disk, which is not too small to be told of nothing."""
    monkeypatch.setattr("actions.backup.wal_alarms.DISK_FLOOR", 0)
    monkeypatch.setattr("actions.backup.wal_alarms.DISK_SHARE", 0.0)
    monkeypatch.setattr("actions.backup.wal_alarms.BUCKET_PATIENCE", timedelta(0))
    monkeypatch.setattr("actions.backup.wal_receiving.BACK_OFF", (0.2, 0.5))
    wal_world.spool = disk / "spool"
    return wal_world


def told(archiver: Archiver) -> dict[AlarmKind, str]:
    """Not out of a bucket, which may be away. Nothing before it has begun."""
    if archiver._spool.state is None:
        return {}
    return {alarm.kind: alarm.text for alarm in archiver.status().alarms}


def assert_told_as_full(world: WalWorld, archiver: Archiver) -> None:
    found = told(archiver)
    assert f"The archiver's disk is full: `{world.spool}" in found[AlarmKind.DISK_FULL]
    assert f"Slot `{world.slot}` keeps WAL on the primary" in found[AlarmKind.DISK_FULL]
    assert not {AlarmKind.SERVER_AWAY, AlarmKind.DISK_LOW} & found.keys()


async def assert_nothing_is_missing(world: WalWorld, archived: list[str]) -> None:
    await world.archived(*archived, within=60)
    await eventually(world.silent)
    await eventually(lambda: not list((world.spool / "closed").iterdir()))


async def test_wal_that_waits_for_its_buckets_fills_it(world: WalWorld) -> None:
    async with world.archiving() as archiver:
        await world.following()
        base, start = await world.base()
        await world.archived(world.switch())
        world.memory.away |= {HERE, THERE, OPEN}
        names = []
        for number in range(7):
            world.fill(f"segment {number}", rows=20)
            names.append(world.switch())
        await eventually(lambda: AlarmKind.DISK_FULL in told(archiver))
        assert_told_as_full(world, archiver)
        # What it could still take is whole, what it could not is no half file, and the rest is on the primary.
        assert [path.name for path in (world.spool / "closed").iterdir()]
        assert all(path.stat().st_size in (0, 16 << 20) for path in (world.spool / "receive").glob("*.partial"))
        world.fill("the primary goes on", rows=20)
        [(status, kept)] = world.execute(
            "SELECT wal_status, pg_walfile_name(restart_lsn) FROM pg_replication_slots "
            f"WHERE slot_name = '{world.slot}'"
        )
        assert status in ("reserved", "extended")
        assert str(kept) <= names[-1]
        world.memory.away.clear()
        await assert_nothing_is_missing(world, names)
        await world.open_until(world.fill("the end", rows=20))
    for bucket in (HERE, THERE):
        assert list(await world.archive.gaps(start, await world.archive.listing(bucket))) == []
    recovered = await world.recovered(base, start)
    try:
        world.point_to(recovered)
        assert world.execute("SELECT count(*) FROM ledger WHERE note ~ 'segment|goes on|the end'") == [(9 * 20,)]
    finally:
        await recovered.stop()


async def test_it_is_full_when_the_archiver_starts(world: WalWorld, disk: Path) -> None:
    ballast = fill(disk, 0)
    async with world.archiving() as archiver:
        await eventually(lambda: AlarmKind.DISK_FULL in told(archiver))
        assert_told_as_full(world, archiver)
        # The slot is there from the first moment, so nothing gets lost from now on.
        _, start = await world.base()
        names = []
        for number in range(3):
            world.fill(f"segment {number}", rows=20)
            names.append(world.switch())
        ballast.unlink()
        await assert_nothing_is_missing(world, names)
    assert list(await world.archive.gaps(start, await world.archive.listing(HERE))) == []


async def test_an_archiver_that_cannot_even_make_its_folders_waits_for_room(world: WalWorld, disk: Path) -> None:
    fillers = [disk / str(number) for number in range(INODES - 1)]
    for filler in fillers:
        filler.touch()
    async with world.archiving():
        await eventually(lambda: world.warns(AlarmKind.DISK_FULL))
        for filler in fillers:
            filler.unlink()
        await world.following()
        await assert_nothing_is_missing(world, [world.switch()])


async def test_what_another_program_takes_is_told_and_what_cannot_be_noted_stays(world: WalWorld, disk: Path) -> None:
    """The end of a segment is noted in a file of ours. While that cannot be written the segment itself says it."""
    async with world.archiving() as archiver:
        await world.following()
        _, start = await world.base()
        await world.archived(world.switch())
        await eventually(lambda: not list((world.spool / "closed").iterdir()))
        for _ in range(20):  # a note that is being written gives back a page when it takes the place of the last one
            ballast = fill(disk, 0)
            await asyncio.sleep(0.05)
        names = [world.switch()]
        await world.archived(*names)
        await eventually(lambda: AlarmKind.DISK_FULL in told(archiver))
        assert_told_as_full(world, archiver)
        assert [path.name for path in (world.spool / "closed").iterdir()] == names
    async with world.archiving():  # restarted in the middle of it
        names.append(world.switch())
        ballast.unlink()
        names.append(world.switch())
        await assert_nothing_is_missing(world, names)
    assert list(await world.archive.gaps(start, await world.archive.listing(HERE))) == []
