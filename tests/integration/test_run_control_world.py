"""Orders and answers on real servers: what was stopped is really over, what is undone is really back."""

from __future__ import annotations

import pytest

from bot.demo.dataset import DATABASE
from bot.services.cards import PlanCard
from tests.fixtures.endings import ends_once, held_in_the_load
from tests.fixtures.waiting import until
from tests.fixtures.world import LEDGER, End, FaultWorld

pytestmark = [
    pytest.mark.kill,
    pytest.mark.xdist_group("faults"),
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="session"),
]


async def signed(world: FaultWorld, name: str, card: PlanCard) -> PlanCard:
    """A plan about the run of this card, signed by both, at its end."""
    plan = await world.planned(name, typed=card.target, run=card.plan_id)
    await world.approve(plan)
    assert await world.ended(plan, within=120) == End("succeeded", ""), await world.story(plan)
    return plan


async def test_a_load_that_was_stopped_is_over_and_can_be_done_again(world: FaultWorld) -> None:
    oid = (await world.databases())[LEDGER]
    card = await world.restoring(LEDGER)
    await held_in_the_load(card)
    await world.order("run.stop", card)
    end = await world.ended(card)
    assert end.state == "asking"
    assert "was stopped within. Looked at since, it has not happened, or not completely." in end.message
    await until(lambda: world.jobs() == [])
    assert (await world.databases())[LEDGER] == oid
    await signed(world, "run.repeat", card)
    await ends_once(world, card, oid, LEDGER)


async def test_a_restore_that_is_over_is_undone_as_a_plan_of_its_own(world: FaultWorld) -> None:
    await world.damage()
    oid = (await world.databases())[DATABASE]
    damaged = await world.rows()
    card = await world.restoring()
    assert await world.ended(card, within=120) == End("succeeded", ""), await world.story(card)
    assert (await world.databases())[DATABASE] != oid
    await signed(world, "run.undo_finished", card)
    assert (await world.databases())[DATABASE] == oid
    assert await world.rows() == damaged
    assert world.counts() == world.replicas
