"""Where the stream is taken up, and when it is given up for another one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from actions.adapters.clock import SystemClock
from actions.backup.archiver import Archiver
from actions.backup.physical import Lsn
from actions.backup.segments import Segment
from actions.backup.wal_receiving import OTHER_TIMELINE_LOOKS, WalReceiving
from actions.backup.wal_source import AlarmKind
from actions.backup.wal_spool import SpoolState, WalSpool
from actions.backup.wal_status import BaseWanted
from actions.errors import TemporaryError
from tests.fakes.s3 import MemoryObject, MemoryObjects
from tests.fakes.wal import HERE as HERE_BUCKET
from tests.fakes.wal import SIZE, SYSTEM, MemoryWal
from tests.fakes.wal import THERE as THERE_BUCKET
from tests.fakes.wal_source import FACTS, SLOT, MemoryWalSource
from tests.fixtures.waiting import until

AWAY = FACTS.model_copy(update={"timeline_id": 2, "slot": SLOT.model_copy(update={"active": False})})
OFTEN = timedelta(milliseconds=20)
HERE = FACTS.model_copy(update={"timeline_id": 2})


class _World:
    """Everything up to segment 5 of timeline 1 is closed."""

    def __init__(self, directory: Path) -> None:
        self.source = MemoryWalSource()
        self.spool = WalSpool(directory / "spool")
        with self.spool.alone():
            pass
        self.spool.remember(
            SpoolState(system_id=SYSTEM, segment_bytes=SIZE, newest=str(Segment(1, 5, SIZE)), begun=True)
        )
        self.receiving = WalReceiving(self.source, MemoryWal().archive, self.spool, SystemClock())

    def streams(self, number: int) -> list[str]:
        """The folder when the stream was asked for this time."""
        return self.source.asked[number - 1]

    def told(self) -> str:
        """Why nothing is received."""
        return "" if self.receiving.problem is None else self.receiving.problem[1]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[_World]:
    made = _World(tmp_path)
    work = asyncio.ensure_future(made.receiving.run())
    await until(lambda: len(made.source.asked) == 1)
    yield made
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


@pytest.mark.parametrize(
    ("fork", "mark"),
    [
        ("0/60000", Segment(2, 5, SIZE)),  # between two segments: of the old timeline there is nothing more
        ("0/60028", Segment(1, 5, SIZE)),  # the rest of the old timeline comes first
        ("0/48000", Segment(2, 3, SIZE)),  # it has more than the new primary ever had
    ],
)
async def test_a_stream_that_hangs_on_the_old_primary_is_taken_up_on_the_new_one(
    world: _World, fork: str, mark: Segment
) -> None:
    assert world.streams(1) == [str(Segment(1, 5, SIZE))]
    world.source.answer, world.source.histories[2] = AWAY, f"1\t{fork}\tno recovery target specified\n"
    for _ in range(OTHER_TIMELINE_LOOKS):
        await world.receiving.look()
    await until(lambda: len(world.source.asked) == 2)
    assert world.streams(2) == [str(mark)]


async def test_an_open_segment_behind_the_fork_is_put_aside(world: _World) -> None:
    partial = world.spool.receive / f"{Segment(1, 6, SIZE)}.partial"
    partial.write_bytes(bytes(SIZE))
    world.source.answer, world.source.histories[2] = AWAY, "1\t0/60000\tno recovery target specified\n"
    for _ in range(OTHER_TIMELINE_LOOKS):
        await world.receiving.look()
    await until(lambda: len(world.source.asked) == 2)
    # `pg_receivewal` would go on with an open segment of this number, whatever its timeline.
    assert world.streams(2) == [str(Segment(2, 5, SIZE))]
    assert (world.spool.directory / "aside" / partial.name).exists()


async def test_a_stream_that_catches_up_with_a_new_timeline_is_left_alone(world: _World) -> None:
    world.source.answer = HERE
    for _ in range(3 * OTHER_TIMELINE_LOOKS):
        await world.receiving.look()
    await asyncio.sleep(0.1)
    assert len(world.source.asked) == 1


async def test_after_a_gap_the_stream_goes_on_whatever_waits_for_its_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits comes before the gap: asked for what follows it, the server would say again that it is gone."""
    monkeypatch.setattr("actions.backup.wal_receiving.BACK_OFF", (0.02, 0.02))
    world = _World(tmp_path)
    (world.spool.closed / str(Segment(1, 5, SIZE))).write_bytes(bytes(SIZE))
    world.source.gone = 1
    world.source.held, world.source.oldest = Lsn(SIZE), Lsn(6 * SIZE)
    work = asyncio.ensure_future(world.receiving.run())
    await until(lambda: len(world.source.asked) == 2)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert world.streams(1) == [str(Segment(1, 5, SIZE))]
    assert world.streams(2) == []  # where the slot begins
    assert world.source.held == world.source.oldest  # made anew: it had gone back to what is gone
    again = WalSpool(world.spool.directory)
    assert again.state is not None
    assert again.state.base_wanted is not None
    assert (again.newest(), again.waiting()) == (None, [str(Segment(1, 5, SIZE))])


@pytest.mark.corruption
async def test_nothing_is_asked_for_that_the_disk_has_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actions.backup.wal_receiving.BACK_OFF", (0.02, 0.02))
    world, free = _World(tmp_path), [SIZE - 1]
    monkeypatch.setattr(world.spool, "free_bytes", lambda: free[0])
    work = asyncio.ensure_future(world.receiving.run())
    await until(lambda: world.told() != "")
    assert re.match("The archiver's disk is full: .* 0 MiB are free, and a segment takes 0 MiB", world.told())
    assert world.source.held is None  # the slot that is there is left alone
    free[0] = SIZE
    await until(lambda: len(world.source.asked) == 1)
    assert world.told() == ""
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


class _Unsteady(MemoryObjects):
    """Buckets that do not answer."""

    def __init__(self, objects: MemoryObjects) -> None:
        super().__init__(clock=SystemClock())
        self.buckets, self.away = objects.buckets, set[str]()

    def _bucket(self, name: str) -> dict[str, MemoryObject]:
        if name in self.away:
            raise TemporaryError(f"Bucket `{name}` does not answer.")
        return super()._bucket(name)


class _Fresh:
    """The archiver's disk is lost; one bucket has segments 1 to 5, the other one 1 to 3."""

    def __init__(self, directory: Path) -> None:
        self.source, self.wal = MemoryWalSource(), MemoryWal()
        self.spool = WalSpool(directory / "spool")
        with self.spool.alone():
            pass
        self.objects = _Unsteady(self.wal.objects)
        self.wal.objects = self.objects
        self.archiver = Archiver(
            self.source, self.objects, self.wal.policy, self.spool, self.wal.keys.signing, SystemClock(),
            open_every=timedelta(seconds=1), look_every=OFTEN, say_every=OFTEN,
        )  # fmt: skip

    def alarms(self) -> dict[AlarmKind, str]:
        return {alarm.kind: alarm.text for alarm in self.archiver.status().alarms}

    @asynccontextmanager
    async def archiving(self) -> AsyncIterator[None]:
        work = asyncio.ensure_future(self.archiver.run())
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def stored(self, bucket: str) -> list[str]:
        return sorted((await self.wal.archive.listing(bucket)).segments)


@pytest_asyncio.fixture
async def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Fresh:
    monkeypatch.setattr("actions.backup.wal_alarms.BUCKET_PATIENCE", timedelta(0))
    monkeypatch.setattr("actions.backup.wal_receiving.BACK_OFF", (0.02, 0.02))
    made = _Fresh(tmp_path)
    await made.wal.closed(1, 2, 3)
    await made.wal.closed(4, 5, buckets=(HERE_BUCKET,))
    monkeypatch.setattr(made.archiver._owed, "_every", OFTEN)
    return made


async def test_on_a_fresh_disk_one_bucket_is_enough_and_the_silent_one_gets_its_share_later(fresh: _Fresh) -> None:
    fresh.objects.away = {THERE_BUCKET}
    async with fresh.archiving():
        await until(lambda: len(fresh.source.asked) == 1)
        assert fresh.source.asked[0] == [str(Segment(1, 5, SIZE))]
        await until(lambda: AlarmKind.BUCKET_AWAY in fresh.alarms())
        assert (
            f"`{THERE_BUCKET}` lacks 0 segment(s) and what another bucket alone has"
            in fresh.alarms()[AlarmKind.BUCKET_AWAY]
        )
        assert AlarmKind.SERVER_AWAY not in fresh.alarms()
        assert "is asked for WAL from 0/60000 on" in fresh.alarms()[AlarmKind.DISK_LOST]
        fresh.objects.away = set()
        await until(lambda: fresh.spool.state is not None and not fresh.spool.state.unlisted)
        await until(lambda: AlarmKind.BUCKET_AWAY not in fresh.alarms())
    assert await fresh.stored(THERE_BUCKET) == await fresh.stored(HERE_BUCKET)


async def test_names_that_no_segment_of_this_server_has_hold_the_archiver_up_nowhere(fresh: _Fresh) -> None:
    """Left by a server with larger segments under the same prefix, or put there by whoever can write."""
    for bucket in (HERE_BUCKET, THERE_BUCKET):
        await fresh.objects.put(bucket, fresh.wal.archive.key("0000000100000000FFFFFFFF"), b"nonsense")
    async with fresh.archiving():
        await until(lambda: len(fresh.source.asked) == 1)
        assert fresh.source.asked[0] == [str(Segment(1, 3, SIZE))]
        await until(lambda: fresh.spool.state is not None and not fresh.spool.state.unlisted)
        await asyncio.sleep(0.1)
        assert AlarmKind.SERVER_AWAY not in fresh.alarms()


async def test_a_segment_that_is_ahead_of_the_server_does_not_say_where_to_go_on(fresh: _Fresh) -> None:
    """Put there by whoever can write the bucket. The server would never answer to it."""
    fresh.source.answer = FACTS.model_copy(update={"flush_lsn": "0/65000"})
    fresh.source.gone = 1  # what the bucket that is behind lacks
    for bucket in (HERE_BUCKET, THERE_BUCKET):
        await fresh.objects.put(bucket, fresh.wal.archive.key(str(Segment(1, 7_000, SIZE))), b"nonsense")
    async with fresh.archiving():
        await until(lambda: len(fresh.source.asked) == 2)
    assert fresh.source.asked == [[str(Segment(1, 3, SIZE))], [str(Segment(1, 5, SIZE))]]


async def test_what_a_silent_bucket_is_owed_outlives_a_restart(fresh: _Fresh) -> None:
    fresh.objects.away = {THERE_BUCKET}
    async with fresh.archiving():
        await until(lambda: len(fresh.source.asked) == 1)
    again = WalSpool(fresh.spool.directory)
    assert again.state is not None
    assert again.state.unlisted == (THERE_BUCKET,)


async def test_when_no_bucket_says_where_to_go_on_the_buckets_are_blamed(fresh: _Fresh) -> None:
    fresh.objects.away = {HERE_BUCKET, THERE_BUCKET}
    async with fresh.archiving():
        await until(lambda: AlarmKind.BUCKET_AWAY in fresh.alarms())
        assert "none of the buckets says where to go on" in fresh.alarms()[AlarmKind.BUCKET_AWAY]
        assert AlarmKind.SERVER_AWAY not in fresh.alarms()
        assert fresh.source.asked == []
        fresh.objects.away = {HERE_BUCKET}
        await until(lambda: len(fresh.source.asked) == 1)
        assert fresh.source.asked[0] == [str(Segment(1, 3, SIZE))]


@pytest.mark.corruption
async def test_an_archiver_writes_down_by_itself_what_its_disk_did_not_take(fresh: _Fresh) -> None:
    """An archiver that is started anew asks for no base backup of which it knows nothing."""
    wanted = BaseWanted(after_lsn="0/60000", since=FACTS.at, reason="gone")
    async with fresh.archiving():
        await until(lambda: len(fresh.source.asked) == 1)
        (in_the_way := fresh.spool.directory / "state.json.part").mkdir()
        with pytest.raises(OSError, match="directory"):
            fresh.spool.change(base_wanted=wanted)
        in_the_way.rmdir()
        await until(
            lambda: (again := WalSpool(fresh.spool.directory).state) is not None and again.base_wanted == wanted
        )
