"""A base backup that an alarm asks for: its run looks again, since what it waited for may have ended the alarm."""

from __future__ import annotations

from actions import registry
from actions.catalog.base import BaseParams
from actions.contract import Plan
from actions.runner import Outcome
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.physical_world import SERVER, a_base, with_bases
from tests.fakes.world import START, World


async def planned(world: World, *, alarmed: bool = True) -> Plan:
    return await registry.action("backup.base").plan(BaseParams(alarmed=alarmed), world, PLAN_ID)


async def test_it_is_made_while_the_alarm_stands() -> None:
    world = with_bases(bases=False)  # without any, no point in time can be reached
    result = await run(await planned(world), world, MemoryJournal())
    assert result.outcome is Outcome.SUCCEEDED
    assert len(world.physical.entries) == 1


async def test_it_is_not_made_twice_where_another_one_has_ended_the_alarm_while_it_waited() -> None:
    world = with_bases(bases=False)
    plan = await planned(world)
    world.physical.entries[SERVER, "by-hand"] = a_base("by-hand", START)
    result = await run(plan, world, MemoryJournal())
    assert result.outcome is Outcome.STALE
    assert "none is made. `by-hand` was made meanwhile." in result.message
    assert len(world.physical.entries) == 1


async def test_one_that_people_ask_for_is_made_whatever_stands() -> None:
    world = with_bases()
    plan = await planned(world, alarmed=False)
    assert "base_wanted" not in {each.kind for each in plan.preconditions}
    assert "alarmed" not in plan.params
    assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
