"""Where the stream is taken up, and when it is given up for another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from actions.adapters.clock import SystemClock
from actions.backup.segments import Segment
from actions.backup.wal_receiving import OTHER_TIMELINE_LOOKS, WalReceiving
from actions.backup.wal_spool import SpoolState, WalSpool
from tests.fakes.wal import SIZE, SYSTEM, MemoryWal
from tests.fakes.wal_source import FACTS, SLOT, MemoryWalSource
from tests.fixtures.waiting import until

AWAY = FACTS.model_copy(update={"timeline_id": 2, "slot": SLOT.model_copy(update={"active": False})})
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
