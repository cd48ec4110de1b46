"""Scratch instances whose time is over go, and the record tells: real memory, instances in memory."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from actions.backup.physical import ScratchFacts, ScratchState
from bot.services import scratch_sweeps
from bot.services.scratch_sweeps import ScratchSweeps
from storage.roles import DatabaseRole
from storage.session import Database
from storage.tables import PlanRow, RunRow, TimelineEntry
from tests.fakes.history import SCRATCH_ID, with_a_scratch

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("state", "passed", "why"),
    [
        (ScratchState.PAUSED, timedelta(hours=13), "its time was over at"),
        (ScratchState.BROKEN, timedelta(0), "its restore did not end"),
    ],
)
async def test_what_was_removed_is_told(memory: Database, state: ScratchState, passed: timedelta, why: str) -> None:
    at_work = memory.acting_as(DatabaseRole.WORKER)
    world = with_a_scratch(running=False)
    world.scratch.made[SCRATCH_ID] = world.scratch.made[SCRATCH_ID].model_copy(update={"state": state})
    sweeps = ScratchSweeps(at_work, world)
    if passed:
        assert await sweeps.sweep() == []
        world.clock.advance(passed)
    assert [facts.id for facts in await sweeps.sweep()] == [SCRATCH_ID]
    assert await sweeps.sweep() == []
    async with memory.session() as session:
        (entry,) = (await session.execute(select(TimelineEntry))).scalars()
    assert entry.text.startswith(f"Removed scratch instance `{SCRATCH_ID}` of `primary`: {why}")
    await at_work.dispose()


@pytest.mark.parametrize(
    ("state", "valid", "ended", "spared"),
    [
        ("awaiting", timedelta(hours=1), False, True),
        ("awaiting", timedelta(hours=-1), False, False),
        ("queued", timedelta(hours=-1), False, True),
        ("asking", timedelta(hours=-1), False, True),
        ("failed", timedelta(hours=1), True, False),
    ],
)
async def test_one_that_a_plan_or_a_run_needs_stays(
    memory: Database, state: str, valid: timedelta, ended: bool, spared: bool
) -> None:
    now = datetime.now(UTC)
    async with memory.session() as session:
        session.add(
            PlanRow(
                id="k7m2n3p4q5",
                action="restore.swap",
                document={"locks": [{"key": "database:shop", "exclusive": True}, {"key": f"scratch:{SCRATCH_ID}"}]},
                digest="d",
                risk="destructive",
                plan_schema=1,
                requester="ada",
                reason="drill",
                channel="C1",
                token="t",
                created_at=now,
                expires_at=now + valid,
            )
        )
        await session.flush()
        session.add(RunRow(id="k7m2n3p4q5", plan_schema=1, state=state, ended_at=now if ended else None))
    at_work = memory.acting_as(DatabaseRole.WORKER)
    world = with_a_scratch(running=False)
    world.clock.advance(timedelta(hours=13))

    swept = await ScratchSweeps(at_work, world).sweep()

    assert bool(swept) is not spared
    await at_work.dispose()


async def test_a_defect_of_a_sweep_does_not_end_the_worker(memory: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_a_scratch(running=False)
    looks = 0

    async def breaks(_: object) -> list[ScratchFacts]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise OSError("No space left on device")
        raise asyncio.CancelledError

    monkeypatch.setattr(world.scratch, "sweep", breaks)
    monkeypatch.setattr(scratch_sweeps, "EVERY", timedelta(0))
    with pytest.raises(asyncio.CancelledError):
        await ScratchSweeps(memory, world).run()
    assert looks == 2
