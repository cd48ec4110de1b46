"""A scratch instance that this machine does not see is not taken for one that was removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from actions.adapters.scratch import ScratchInstances
from actions.backup.physical import ScratchFacts
from actions.backup.scratch_place import this_machine
from actions.catalog.promote import Promote, PromoteParams
from actions.catalog.proof import Prove, ProveParams
from actions.catalog.scratch import ScratchDiscard, ScratchParams
from actions.contract import JournalEntry, JournalState, Plan, Probe
from actions.ports import JobPhase
from actions.runner import Outcome
from actions.site import Site
from actions.steps.promotion import PromoteScratch
from actions.steps.proving import RestoreForTest
from actions.steps.restore_test import RemoveScratch
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.clock import MemoryClock
from tests.fakes.history import SCRATCH_ID, with_a_scratch
from tests.fakes.physical_world import with_bases
from tests.fakes.world import World


def leave(world: World, scratch: str) -> ScratchFacts:
    """Let another machine have it."""
    return world.scratch.made.pop(scratch)


async def discard(world: World) -> Plan:
    return await ScratchDiscard().plan(ScratchParams(scratch=SCRATCH_ID), world, PLAN_ID)


async def test_a_discard_that_another_machines_worker_takes_up_asks() -> None:
    world = with_a_scratch()
    plan, journal = await discard(world), MemoryJournal()
    facts = leave(world, SCRATCH_ID)

    result = await run(plan, world, journal)
    assert result.outcome is Outcome.ASKING
    assert result.message == (
        f"Scratch instance `{SCRATCH_ID}` is not on `{this_machine()}` and was not removed from there, so it stands on "
        "another machine, or was removed there or by hand. The timeline of this run names the machines it was on: look "
        f"there for the folder `scratch/{SCRATCH_ID}` in the data directory of the worker. Where it is gone, answer "
        "that this step has happened; where it stands, stop its server and remove the folder first."
    )

    world.scratch.made[SCRATCH_ID] = facts  # on its own machine it is found, and people have it removed there
    assert (await run(plan, world, journal)).outcome is Outcome.ASKING
    assert SCRATCH_ID in world.scratch.made


async def test_a_promotion_that_another_machines_worker_takes_up_says_where_to_go() -> None:
    world = with_a_scratch()
    plan, journal = await Promote().plan(PromoteParams(scratch=SCRATCH_ID), world, PLAN_ID), MemoryJournal()
    started = next(number for number, step in enumerate(plan.steps) if isinstance(step, PromoteScratch))
    for number in range(started + 1):
        state = JournalState.APPLYING if number == started else JournalState.VERIFIED
        await journal.append(JournalEntry(step=number, state=state, at=world.clock.now()))
    leave(world, SCRATCH_ID)

    result = await run(plan, world, journal)
    assert result.outcome is Outcome.ASKING
    assert f"is not on `{this_machine()}`, so it cannot be told whether this has happened" in result.message
    assert "`/dr run again`" in result.message


async def test_one_that_was_removed_here_is_removed() -> None:
    world = with_a_scratch()
    plan = await discard(world)
    await world.scratch.discard(SCRATCH_ID, mark=world.scratch.made[SCRATCH_ID].mark)

    assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED


async def test_a_restore_test_that_another_machine_ends_leaves_its_instance_to_that_one() -> None:
    world = with_bases()
    plan = await Prove().plan(ProveParams(), world, PLAN_ID)
    *_, look, remove = plan.steps
    assert isinstance(remove, RemoveScratch)
    assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
    assert await remove.probe(world) is Probe.DONE

    world.scratch.gone.clear()  # as another machine sees it
    result = await run(plan, world, MemoryJournal())
    assert (result.outcome, "so it stands on another machine" in result.message) == (Outcome.ASKING, True)
    assert await look.probe(world) is Probe.DONE  # the test itself is on record


async def test_a_restore_in_a_pod_of_its_own_says_so_and_its_undo_claims_nothing() -> None:
    world = with_bases()
    plan = await Prove().plan(ProveParams(), world, PLAN_ID)
    restore = plan.steps[0]
    assert isinstance(restore, RestoreForTest)
    await restore.apply(world, lambda _: None)
    leave(world, PLAN_ID)
    state = await world.executor.find(restore.job)
    assert state is not None
    assert state.phase is JobPhase.SUCCEEDED

    for call in (restore.verify, restore.undone):
        with pytest.raises(Exception, match="another machine or in the pod of a Job"):
            await call(world)


async def test_a_folder_that_is_removed_by_hand_is_not_known_to_have_gone(tmp_path: Path) -> None:
    here = ScratchInstances(Site(servers={}), tmp_path, MemoryClock())
    assert not await here.removed("s1")
