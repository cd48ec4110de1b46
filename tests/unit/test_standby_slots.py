"""What a standby must hold for the archiver, and what is said where it does not."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from actions.adapters.clock import SystemClock
from actions.backup.physical import Lsn
from actions.backup.standby_slots import StandbySlots
from actions.backup.wal_source import SourceFacts
from actions.errors import TemporaryError
from tests.fakes.wal_source import FACTS, SLOT, MemoryWalSource
from tests.fixtures.waiting import until

STANDBY = FACTS.model_copy(update={"in_recovery": True, "slot": None})
OFTEN = timedelta(milliseconds=5)


class _Clock(SystemClock):
    looks = 0

    async def sleep(self, duration: timedelta) -> None:
        self.looks += 1
        await super().sleep(duration)


class _World:
    def __init__(self, standby: MemoryWalSource) -> None:
        self.standby = standby
        self.primary: SourceFacts | None = FACTS
        self.stored = Lsn.parse("0/90000")
        self.clock = _Clock()
        self.slots = StandbySlots(
            {"b": standby}, self.clock, primary=lambda: self.primary, stored=lambda: self.stored, every=OFTEN
        )

    async def looked(self) -> str:
        """What is wrong after two looks."""
        before = self.clock.looks
        work = asyncio.ensure_future(self.slots.run())
        await until(lambda: self.clock.looks >= before + 2)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return self.slots.problems.get("b", "")


async def test_a_standby_holds_what_the_primary_s_slot_holds() -> None:
    world = _World(MemoryWalSource(STANDBY))
    assert await world.looked() == ""
    assert world.standby.held == Lsn.parse("0/50000")
    world.primary = FACTS.model_copy(update={"slot": SLOT.model_copy(update={"restart_lsn": "0/70000"})})
    assert await world.looked() == ""
    assert world.standby.held == Lsn.parse("0/70000")


async def test_it_also_holds_what_a_bucket_lacks() -> None:
    world = _World(MemoryWalSource(STANDBY))
    world.stored = Lsn.parse("0/30000")
    assert await world.looked() == ""
    assert world.standby.held == Lsn.parse("0/30000")


async def test_before_anything_was_closed_the_slot_alone_decides() -> None:
    world = _World(MemoryWalSource(STANDBY))
    world.stored = Lsn(0)
    assert await world.looked() == ""
    assert world.standby.held == Lsn.parse("0/50000")


@pytest.mark.parametrize(
    "primary",
    [
        None,
        FACTS.model_copy(update={"in_recovery": True}),
        FACTS.model_copy(update={"slot": None}),
        FACTS.model_copy(update={"slot": SLOT.model_copy(update={"restart_lsn": None})}),
    ],
)
async def test_without_a_place_of_the_primary_s_nothing_moves(primary: SourceFacts | None) -> None:
    world = _World(MemoryWalSource(STANDBY))
    world.primary = primary
    assert await world.looked() == ""
    assert world.standby.held is None


async def test_the_slot_of_a_new_primary_is_left_alone() -> None:
    world = _World(MemoryWalSource(FACTS))
    assert await world.looked() == ""
    assert world.standby.held is None


async def test_wal_that_is_gone_on_the_standby_is_told_until_it_is_archived() -> None:
    world = _World(MemoryWalSource(STANDBY, oldest="0/60000"))
    assert "has WAL from 0/60000 on, and what comes after 0/50000 is not archived" in await world.looked()
    world.primary = FACTS.model_copy(update={"slot": SLOT.model_copy(update={"restart_lsn": "0/70000"})})
    assert await world.looked() == ""


async def test_a_slot_that_begins_later_in_the_same_segment_holds_all_of_it() -> None:
    assert await _World(MemoryWalSource(STANDBY, oldest="0/5FFF8")).looked() == ""


async def test_a_standby_that_is_behind_holds_more_and_that_is_no_trouble() -> None:
    world = _World(MemoryWalSource(STANDBY, replayed="0/20000"))
    assert await world.looked() == ""
    assert world.standby.held == Lsn.parse("0/20000")


async def test_a_stranger_and_a_disk_without_limit_are_told() -> None:
    world = _World(MemoryWalSource(STANDBY.model_copy(update={"system_id": "8"})))
    assert "has system id 8 and its primary 7000000000000000001: it is no standby" in await world.looked()
    assert world.standby.held is None
    world = _World(MemoryWalSource(STANDBY.model_copy(update={"keep_bytes": None})))
    assert "`max_slot_wal_keep_size` is not set on standby `b`" in await world.looked()
    assert world.standby.held is not None


async def test_a_standby_that_does_not_answer_is_told_until_it_does() -> None:
    world = _World(MemoryWalSource(STANDBY))
    world.standby.error = TemporaryError("Server `b` does not answer.")
    work = asyncio.ensure_future(world.slots.run())
    try:
        await until(lambda: "is unknown. Server `b` does not answer." in world.slots.problems.get("b", ""))
        world.standby.error = None
        await until(lambda: not world.slots.problems)
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
