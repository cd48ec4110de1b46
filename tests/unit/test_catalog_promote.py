"""What a promotion refuses, says and goes on with."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from actions.adapters.postgres_fence import does_not_hold
from actions.backup.physical import Check, ScratchState
from actions.catalog.promote import Promote, PromoteParams
from actions.catalog.rescue import Rescue, RescueParams
from actions.catalog.restore import Restore, RestoreParams
from actions.catalog.swap import Swap, SwapParams
from actions.contract import JournalState, Plan, Verdict
from actions.errors import PermanentError, TemporaryError, UserError, VerificationError
from actions.ports import Pulse
from actions.runner import Order, OrderKind, Outcome, Runner
from actions.site import DatabaseRef, ScratchBudget
from actions.steps import promotion, promotion_scene
from actions.steps.promotion import FencePrimary
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.history import SCRATCH_ID, with_a_scratch
from tests.fakes.world import API, HEALTH, START, World


async def promote(world: World, *, old_primary_is_dead: bool = False) -> Plan:
    params = PromoteParams(scratch=SCRATCH_ID, old_primary_is_dead=old_primary_is_dead)
    return await Promote().plan(params, world, PLAN_ID)


def without_a_host(world: World, value: str) -> World:
    world.cluster.configs["main", "shop", "shop-config"]["DATABASE_HOST"] = value
    return replace(world, site=world.site.model_copy(update={"scratch": ScratchBudget()}))


@pytest.mark.parametrize(("value", "stops"), [("db.example:5432", 1), ("127.0.0.1:6000", 0)])
async def test_applications_elsewhere_need_an_advertised_host(value: str, stops: int) -> None:
    plan = await promote(without_a_host(with_a_scratch(), value))

    assert len(plan.stopped) == stops
    assert all("advertised_host" in finding.hint for finding in plan.stopped)


async def test_an_application_that_knows_a_host_alone_goes_on_to_use_its_port() -> None:
    world = with_a_scratch()
    world.scratch.made[SCRATCH_ID] = world.scratch.made[SCRATCH_ID].model_copy(update={"address": "127.0.0.1:40000"})
    assert seen(await promote(world)) == "dr.example:5432"
    world.cluster.configs["main", "shop", "shop-config"]["DATABASE_HOST"] = "primary:6000"
    assert seen(await promote(world)) == "dr.example:40000"


def seen(plan: Plan) -> str:
    return next(item.value for item in plan.observations if item.name == "address")


async def test_a_primary_that_answers_is_not_called_dead() -> None:
    [stop] = (await promote(with_a_scratch(), old_primary_is_dead=True)).stopped
    assert stop.hint == "Leave `--old-primary-is-dead` out."


@pytest.mark.parametrize("heard", [Pulse.ANSWERS, Pulse.REFUSES])
async def test_a_primary_that_lets_nobody_in_for_now_is_not_dead(heard: Pulse) -> None:
    """All its connections are taken, or it starts."""
    world = with_a_scratch()
    world.postgres.servers["primary"].down, world.postgres.servers["primary"].heard = True, heard
    [stop] = (await promote(world, old_primary_is_dead=True)).stopped
    assert "is not dead: it is there and lets nobody in now" in stop.detail


@pytest.mark.parametrize("heard", [Pulse.ANSWERS, Pulse.REFUSES])
async def test_nothing_is_promoted_beside_a_dead_primary_that_came_back_and_lets_nobody_in(heard: Pulse) -> None:
    world = with_a_scratch()
    old = world.postgres.servers["primary"]
    old.down = True
    plan = await promote(world, old_primary_is_dead=True)
    assert plan.stopped == ()
    old.heard = heard

    result = await run(plan, world, MemoryJournal())
    assert (result.outcome, "answers again" in result.message) == (Outcome.STALE, True)
    fence = next(step for step in plan.steps if step.kind == "fence_primary")
    with pytest.raises(VerificationError, match="answers again"):
        await fence.verify(world)


async def test_a_standby_is_no_old_primary() -> None:
    world = with_a_scratch()
    world.postgres.servers["primary"].in_recovery = True
    [stop] = (await promote(world)).stopped
    assert "is a standby now" in stop.detail


async def test_a_primary_that_is_only_silent_is_not_dead_and_one_that_comes_back_is_not_overtaken() -> None:
    world = with_a_scratch()
    old = world.postgres.servers["primary"]
    old.down = True
    [stop] = (await promote(world)).stopped
    assert "it may still take writes" in stop.detail

    plan = await promote(world, old_primary_is_dead=True)
    assert plan.stopped == ()
    [fence] = [step for step in plan.steps if isinstance(step, FencePrimary)]
    await fence.verify(world)
    old.down = False
    with pytest.raises(VerificationError, match="`primary` answers again"):
        await fence.verify(world)


async def test_the_plan_says_what_of_the_configuration_is_left() -> None:
    plan = await promote(with_a_scratch())
    [left] = [finding for finding in plan.findings if finding.check == "configuration"]
    assert (left.verdict, "`shared_preload_libraries`" in left.detail) == (Verdict.WARN, True)


async def test_a_failure_after_the_promotion_keeps_the_old_primary_closed_and_is_gone_on_with() -> None:
    world = with_a_scratch()
    world.service.answers[HEALTH] = "it answers 500"
    failed = await run(await promote(world), world, MemoryJournal())

    assert failed.outcome is Outcome.ASKING
    assert "was promoted, so nothing is put back" in failed.message
    assert (await world.postgres.fencing("primary")).holds
    assert world.cluster.configs["main", "shop", "shop-config"]["DATABASE_HOST"] == "dr.example"

    world.service.answers[HEALTH] = None
    again = await promote(world)
    assert again.stopped == ()
    assert (await run(again, world, MemoryJournal())).outcome is Outcome.SUCCEEDED


async def test_a_rollout_that_does_not_get_ready_leaves_one_primary_and_is_gone_on_with() -> None:
    world = with_a_scratch()
    plan = await promote(world)
    world.cluster.workloads[API].broken = True
    failed = await run(plan, world, MemoryJournal())

    assert failed.outcome is Outcome.ASKING
    assert "The rollout of" in failed.message
    assert "leave this run (`/dr run leave`), then ask for the promotion again" in failed.message
    assert (await world.postgres.fencing("primary")).holds
    assert world.scratch.made[SCRATCH_ID].state is ScratchState.PROMOTED

    world.cluster.workloads[API].broken = False
    again = await promote(world)
    assert again.stopped == ()
    assert (await run(again, world, MemoryJournal())).outcome is Outcome.SUCCEEDED


async def test_an_old_primary_that_cannot_be_closed_keeps_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_a_scratch()
    before = dict(world.cluster.configs["main", "shop", "shop-config"])

    async def refused(server: str) -> int:
        raise PermanentError(f"`{server}` did not take it: ALTER SYSTEM is not allowed in this environment")

    monkeypatch.setattr(world.postgres, "fence", refused)
    failed = await run(await promote(world), world, MemoryJournal())

    assert failed.outcome is Outcome.FAILED
    assert "ALTER SYSTEM is not allowed" in failed.message
    assert world.cluster.configs["main", "shop", "shop-config"] == before
    assert world.cluster.workloads[API].replicas > 0
    facts = world.scratch.made[SCRATCH_ID]
    assert (facts.state, facts.opened) == (ScratchState.PAUSED, False)


async def test_nothing_is_promoted_on_the_mere_word_that_the_old_primary_was_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = with_a_scratch()

    async def unheeded(server: str) -> int:  # it ends well, and changes nothing
        return 0

    monkeypatch.setattr(world.postgres, "fence", unheeded)
    failed = await run(await promote(world), world, MemoryJournal())

    assert failed.outcome is Outcome.FAILED
    assert "`primary` may still take writes" in failed.message
    assert world.scratch.made[SCRATCH_ID].state is ScratchState.PAUSED


async def paused_before_the_promotion(world: World, *, old_primary_is_dead: bool = False) -> tuple[Plan, MemoryJournal]:
    """A run that stands between the end of the old primary and the promotion."""
    plan, journal = await promote(world, old_primary_is_dead=old_primary_is_dead), MemoryJournal()

    async def orders() -> Order | None:
        done = {line.step for line in journal.lines if line.state is JournalState.VERIFIED}
        fenced = next(number for number, step in enumerate(plan.steps) if isinstance(step, FencePrimary))
        return Order(kind=OrderKind.PAUSE, sentence="Maria paused it.") if fenced in done else None

    result = await Runner(plan, world, journal, orders=orders).run()
    assert result.outcome is Outcome.PAUSED
    return plan, journal


async def test_nothing_is_promoted_beside_an_old_primary_that_was_opened_while_the_run_was_paused() -> None:
    world = with_a_scratch()
    plan, journal = await paused_before_the_promotion(world)
    await world.postgres.unfence("primary", closed=(), limit=-1)  # somebody wanted to have a look

    result = await run(plan, world, journal)
    assert (result.outcome, "was closed and is not any more" in result.message) == (Outcome.FAILED, True)
    assert world.scratch.made[SCRATCH_ID].state is ScratchState.PAUSED
    assert world.cluster.workloads[API].replicas > 0


async def test_nothing_is_promoted_beside_a_dead_primary_that_came_back_while_the_run_was_paused() -> None:
    world = with_a_scratch()
    world.postgres.servers["primary"].down = True
    plan, journal = await paused_before_the_promotion(world, old_primary_is_dead=True)
    world.postgres.servers["primary"].down = False

    result = await run(plan, world, journal)
    assert (result.outcome, "answers again" in result.message) == (Outcome.FAILED, True)
    assert world.scratch.made[SCRATCH_ID].state is ScratchState.PAUSED


async def test_a_closed_primary_that_ended_while_the_run_was_paused_holds_nothing_up() -> None:
    world = with_a_scratch()
    plan, journal = await paused_before_the_promotion(world)
    world.postgres.servers["primary"].down = True
    await run(plan, world, journal)
    assert world.scratch.made[SCRATCH_ID].state is ScratchState.PROMOTED


@pytest.mark.parametrize("silent", [False, True])
async def test_the_new_primary_takes_no_timeline_id_that_the_archive_has(silent: bool) -> None:
    """The server went on with timeline id 3 since this was restored. What was known before people signed counts as
    well, should nobody answer any more."""
    world = with_a_scratch()
    world.physical.history["primary"].timeline_id = 3
    plan = await promote(world)
    if silent:
        world.physical.history["primary"].timeline_id = 1
    await run(plan, world, MemoryJournal())
    assert world.postgres.servers[f"scratch-{SCRATCH_ID}"].timeline_id == 4


async def test_a_background_worker_that_comes_back_is_told_before_and_where_the_fence_does_not_hold() -> None:
    world = with_a_scratch()
    world.postgres.servers["primary"].workers = ("`pg_cron launcher` in `postgres`",)
    plan = await promote(world)
    [told] = [finding for finding in plan.findings if finding.check == "background workers"]
    assert "`pg_cron launcher` in `postgres` of `primary`: the fence may not hold" in told.detail
    assert "`shared_preload_libraries`" in told.hint

    failed = await run(plan, world, MemoryJournal())
    assert (failed.outcome, "comes back each time it is ended" in failed.message) == (Outcome.FAILED, True)
    assert world.scratch.made[SCRATCH_ID].state is ScratchState.PAUSED
    assert world.cluster.workloads[API].replicas > 0


def test_what_did_not_end_is_told_from_what_came_back() -> None:
    stayed = does_not_hold("main", [(7, "shop", "client backend")], {7})
    assert isinstance(stayed, TemporaryError)
    assert "`client backend` in `shop` (pid 7) did not end within 30 s" in str(stayed)
    back = does_not_hold("main", [(9, "postgres", "pg_cron launcher"), (7, "shop", "client backend")], {7, 8})
    assert isinstance(back, PermanentError)
    assert "`pg_cron launcher` in `postgres` came back each time it was ended, and `client backend`" in str(back)
    assert "`--old-primary-is-dead`" in str(back)


async def test_what_another_plan_has_set_aside_stays_closed_when_a_fence_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = with_a_scratch()
    plan = await promote(world)
    aside = DatabaseRef("primary", "shop_quarantine_x")
    world.postgres.add(aside, mark="drbot:quarantine:x").allows_connections = False  # since people looked at the plan

    async def fails(*_: object, **__: object) -> None:
        raise PermanentError("It does not promote.")

    monkeypatch.setattr(world.scratch, "promote", fails)
    assert (await run(plan, world, MemoryJournal())).outcome is Outcome.FAILED
    assert not world.postgres.database_behind(aside).allows_connections
    assert world.postgres.database_behind(DatabaseRef("primary", "shop")).allows_connections


@pytest.mark.parametrize("state", [ScratchState.PAUSED, ScratchState.PROMOTED])
async def test_one_that_did_not_pass_a_check_since_it_was_signed_for_is_not_promoted(state: ScratchState) -> None:
    """Once it was promoted it is too late for that: the run goes on."""
    world = with_a_scratch()
    plan = await promote(world)
    if state is ScratchState.PROMOTED:
        await world.scratch.promote(SCRATCH_ID)
    bad = Check(at=START, problem="A page is damaged.")
    await world.scratch.judge(SCRATCH_ID, "shop", bad)
    result = await run(plan, world, MemoryJournal())
    stale = result.outcome is Outcome.STALE and "A page is damaged." in result.message
    assert stale is (state is ScratchState.PAUSED)


async def test_a_primary_that_takes_logins_and_never_answers_keeps_no_plan_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one whose disk hangs."""
    world = with_a_scratch()

    async def hangs(_: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(promotion, "ASKED", timedelta(milliseconds=10))
    monkeypatch.setattr(promotion_scene, "ASKED", timedelta(milliseconds=10))
    monkeypatch.setattr(world.postgres, "fencing", hangs)
    [stop] = (await promote(world)).stopped
    assert "Power it off" in stop.hint
    [stop] = (await promote(world, old_primary_is_dead=True)).stopped
    assert "is not dead" in stop.detail


async def test_a_closed_primary_that_does_not_answer_any_more_is_not_overtaken_while_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = with_a_scratch()
    plan, journal = await paused_before_the_promotion(world)

    async def hangs(_: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(promotion, "ASKED", timedelta(milliseconds=10))
    monkeypatch.setattr(world.postgres, "fencing", hangs)
    result = await run(plan, world, journal)
    assert "does not say whether it is still closed. Nothing is promoted. Power it off" in result.message
    assert world.scratch.made[SCRATCH_ID].state is ScratchState.PAUSED


@pytest.mark.parametrize("signed_before", [False, True])
async def test_nothing_is_given_back_into_a_primary_that_a_promotion_has_closed(signed_before: bool) -> None:
    """Of two incidents at once the second one meets it, until the plan file names the new primary."""
    world = with_a_scratch(dropped="users")

    async def plans() -> list[Plan]:
        return [
            await Swap().plan(SwapParams(scratch=SCRATCH_ID), world, PLAN_ID),
            await Restore().plan(RestoreParams(database="shop"), world, PLAN_ID),
        ]

    async def rescue() -> Plan:
        return await Rescue().plan(RescueParams(scratch=SCRATCH_ID, table="public.users"), world, PLAN_ID)

    made = [*await plans(), await rescue()] if signed_before else []
    await world.postgres.fence("primary")
    with pytest.raises(UserError, match="was closed by a promotion"):
        await rescue()
    for plan in made:
        result = await run(plan, world, MemoryJournal())
        assert (result.outcome, "was closed by a promotion" in result.message) == (Outcome.STALE, True)
    if not signed_before:
        for plan in await plans():
            assert [finding.check for finding in plan.stopped if "by a promotion" in finding.detail] == ["server"]
