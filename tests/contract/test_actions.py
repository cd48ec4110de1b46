"""The laws every action keeps, in every case: see `tests/contract/kit.py` for how the world is broken."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from actions import registry
from actions.approval import State
from actions.contract import Risk
from actions.runner import Outcome
from tests.contract.cases import CASES, SICK_CASES
from tests.contract.kit import (
    MANY,
    PLAN_ID,
    ActionCase,
    MemoryJournal,
    Moment,
    calls_to_break,
    died_and_resumed,
    every_other,
    failed,
    fractions_in,
    read_back,
    run,
    secrets_in,
    signed_by_requester_alone,
)
from tests.contract.snapshot import production, seen

each_case = pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])


def test_every_action_has_a_case() -> None:
    assert {case.action for case in CASES} == {kind.name for kind in registry.ACTIONS}
    assert len([case for case in CASES if case.action == "restore.dump"]) >= 3


def test_every_step_and_precondition_of_the_cases_is_in_the_registry() -> None:
    kinds = registry.kinds()
    assert all(kinds.steps[name].model_fields["kind"].default == name for name in kinds.steps)
    assert all(kinds.preconditions[name].model_fields["kind"].default == name for name in kinds.preconditions)


# ---------------------------------------------------------------- planning


@each_case
async def test_planning_changes_nothing(case: ActionCase) -> None:
    world = case.world()
    before = await seen(world)

    await case.plan(world)

    assert await seen(world) == before


@each_case
async def test_planning_twice_gives_the_same_plan(case: ActionCase) -> None:
    world = case.world()
    first, second = await case.plan(world), await case.plan(world)

    assert first.digest == second.digest
    assert first.id == PLAN_ID


@each_case
async def test_a_plan_keeps_its_digest_through_json(case: ActionCase) -> None:
    plan = await case.plan(case.world())

    assert read_back(plan).digest == plan.digest
    assert read_back(plan).signed_part() == plan.signed_part()


@each_case
async def test_a_plan_can_be_signed_by_people(case: ActionCase) -> None:
    plan = await case.plan(case.world())
    words = [plan.summary, plan.target, *(step.summary for step in plan.steps)]
    words += [precondition.summary for precondition in plan.preconditions]

    assert plan.stopped == ()
    assert all(words)
    assert plan.locks
    assert all(step.by_hand() or step.kind == "compare_copy" for step in plan.steps)
    assert plan.risk.level <= registry.action(case.action).risk.level
    if not registry.action(case.action).of_a_run:  # those are held against the run's own plan
        assert plan.risk.level >= registry.action(case.action).least_risk(plan).level
    assert fractions_in(plan.signed_part()) == []
    assert "NaN" not in json.dumps(plan.signed_part())


@each_case
async def test_a_plan_gives_no_secret_away(case: ActionCase) -> None:
    plan = await case.plan(case.world())

    assert secrets_in(plan.model_dump_json()) == []
    assert secrets_in(json.dumps(plan.signed_part())) == []


@each_case
async def test_two_person_actions_do_not_start_with_one(case: ActionCase) -> None:
    plan = await case.plan(case.world())
    alone = signed_by_requester_alone(plan).state

    assert alone is (State.PENDING if plan.risk.level >= Risk.DISRUPTIVE.level else State.APPROVED)


# ---------------------------------------------------------------- running


@each_case
async def test_running_again_changes_nothing_more(case: ActionCase) -> None:
    world = case.world()
    plan = await case.plan(world)
    journal = MemoryJournal()
    first = await run(plan, world, journal)
    after = await seen(world)

    assert first.outcome is Outcome.SUCCEEDED, first.message
    assert (await run(plan, world, journal)).outcome is Outcome.SUCCEEDED
    assert await seen(world) == after
    # A journal that was lost: the world itself tells what has happened.
    assert (await run(plan, world, MemoryJournal())).outcome in (Outcome.SUCCEEDED, Outcome.STALE)
    assert await seen(world) == after
    assert secrets_in(repr(journal.lines)) == []


@pytest.mark.kill
@each_case
@pytest.mark.parametrize("moment", list(Moment))
async def test_dying_at_any_call_ends_in_the_same_world(case: ActionCase, moment: Moment) -> None:
    """In a run of many calls before and after every second one: the moment after a call is the one before the next."""
    await dies(case, moment, every_other(await calls_to_break(case), 1))


@each_case
@pytest.mark.parametrize("moment", list(Moment))
async def test_a_failure_at_any_call_leaves_production_as_it_was(case: ActionCase, moment: Moment) -> None:
    """In a run of many calls each fails in one way: the odd ones before their effect, the even ones after it."""
    calls = await calls_to_break(case, spared=frozenset({"clock"}))
    await fails(case, moment, every_other(calls, 1 if moment is Moment.BEFORE else 2))


@pytest.mark.kill
@pytest.mark.parametrize("case", SICK_CASES, ids=[case.id for case in SICK_CASES])
@pytest.mark.parametrize("moment", list(Moment))
async def test_dying_while_putting_back_leaves_production_as_it_was(case: ActionCase, moment: Moment) -> None:
    """In a run of many calls before and after every second one."""
    await dies_sick(case, moment, every_other(await calls_to_break(case, ends=Outcome.FAILED), 1))


@pytest.mark.soak
@each_case
@pytest.mark.parametrize("moment", list(Moment))
async def test_every_call_of_a_long_run_may_be_the_last(case: ActionCase, moment: Moment) -> None:
    """The three before, where they leave calls out."""
    calls = await calls_to_break(case)
    if len(calls) <= MANY:
        pytest.skip("a short run, broken at every call by the others")
    await dies(case, moment, calls)
    await fails(case, moment, await calls_to_break(case, spared=frozenset({"clock"})))


@pytest.mark.soak
@pytest.mark.parametrize("case", SICK_CASES, ids=[case.id for case in SICK_CASES])
@pytest.mark.parametrize("moment", list(Moment))
async def test_every_call_of_a_long_run_that_fails_may_be_the_last(case: ActionCase, moment: Moment) -> None:
    await dies_sick(case, moment, await calls_to_break(case, ends=Outcome.FAILED))


async def dies(case: ActionCase, moment: Moment, calls: Sequence[int]) -> None:
    undisturbed = case.world()
    await run(await case.plan(undisturbed), undisturbed, MemoryJournal())
    wanted = await seen(undisturbed)

    for at in calls:
        result, world = await died_and_resumed(case, at, moment)

        assert result.outcome is Outcome.SUCCEEDED, f"died {moment} call {at}: {result.message}"
        assert await seen(world) == wanted, f"died {moment} call {at}"


async def fails(case: ActionCase, moment: Moment, calls: Sequence[int]) -> None:
    before = await production(case.world())

    for at in calls:
        failure = await failed(case, at, moment)
        result = failure.result

        where = f"failed {moment} call {at}, {failure.call}: {result.outcome}, {result.message}"
        if result.outcome is Outcome.ASKING:
            assert failure.step in case.asks, where
        elif result.outcome is not Outcome.SUCCEEDED and case.undoable:
            assert await production(failure.world) == before, where
        assert secrets_in(result.message) == []


async def dies_sick(case: ActionCase, moment: Moment, calls: Sequence[int]) -> None:
    before = await production(case.world())

    for at in calls:
        result, world = await died_and_resumed(case, at, moment)

        assert result.outcome is Outcome.FAILED, f"died {moment} call {at}: {result.message}"
        assert await production(world) == before, f"died {moment} call {at}"


@each_case
async def test_undoing_gives_production_back(case: ActionCase) -> None:
    if not case.undoable or case.final:
        pytest.skip("new pods cannot be exchanged for the old ones")
    world = case.world()
    before = await production(world)
    plan = read_back(await case.plan(world))
    assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED

    for _ in range(2):  # undoing is safe to repeat
        for step in reversed(plan.steps):
            if step.undo_on_failure or plan.risk is Risk.REVERSIBLE:
                await step.undo(world)

    assert await production(world) == before


@each_case
async def test_undoing_what_never_ran_changes_nothing(case: ActionCase) -> None:
    world = case.world()
    plan = read_back(await case.plan(world))
    before = await production(world)

    for step in reversed(plan.steps):
        if step.undo_on_failure:
            await step.undo(world)

    assert await production(world) == before
