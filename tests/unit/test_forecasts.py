"""How long a way back takes is told before the signatures, and no limit ends what was forecast to take longer."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from actions.catalog.point import PointParams, RestorePoint
from actions.catalog.promote import Promote, PromoteParams
from actions.catalog.proof import Prove, ProveParams
from actions.catalog.rescue import Rescue, RescueParams
from actions.catalog.restore import Restore, RestoreParams
from actions.catalog.standby import Halt, HaltParams
from actions.catalog.swap import Swap, SwapParams
from actions.contract import JournalState, Plan
from actions.ports import JobSpec, no_progress
from actions.site import DatabaseRef
from actions.steps import forecasts
from actions.steps.choice import SWITCH
from actions.steps.forecasts import HOUR, counting, patience
from actions.steps.heavy import JOB_LIMIT, LEEWAY, HeavyStep
from actions.steps.rescue import RescueTable
from actions.steps.scratch import CHECK_LIMIT, CheckScratch, RestoreScratch
from tests.contract.kit import PLAN_ID
from tests.fakes.history import SCRATCH_ID, with_a_scratch, with_a_standby, with_history
from tests.fakes.world import START, World

TB = 10**12
SHOWN = DatabaseRef(f"scratch-{SCRATCH_ID}", "shop")


def sized(world: World, *, base: int = 3_000_000_000, database: int = 8_000_000) -> World:
    """The newest base backup and production have these sizes in bytes."""
    entry = world.physical.entries["primary", "base-new"]
    manifest = entry.manifest.model_copy(update={"plain_bytes": base})
    world.physical.entries["primary", "base-new"] = entry.model_copy(update={"manifest": manifest})
    world.postgres.database_behind(DatabaseRef("primary", "shop")).bytes = database
    return world


def hurried(world: World) -> World:
    """Nobody may wait longer than 5 s."""
    shop = world.site.databases["shop"].model_copy(update={"rto": timedelta(seconds=5)})
    return replace(world, site=world.site.model_copy(update={"databases": {"shop": shop}}))


async def point(world: World) -> Plan:
    return await RestorePoint().plan(PointParams(database="shop", latest=True), world, PLAN_ID)


def seen(plan: Plan, name: str = "forecast") -> str:
    return next(item.value for item in plan.observations if item.name == name)


@pytest.mark.parametrize(
    ("forecast", "limit"),
    [(timedelta(0), 6 * HOUR), (2 * HOUR, 6 * HOUR), (2.1 * HOUR, 7 * HOUR), (30 * HOUR, 90 * HOUR)],
)
def test_a_limit_is_three_times_the_forecast_and_never_less_than_before(forecast: timedelta, limit: timedelta) -> None:
    assert patience(forecast, at_least=JOB_LIMIT) == limit


def test_both_sides_are_compared_for_as_long_as_anybody_waits() -> None:
    assert counting(0) == timedelta(0)
    assert counting(2 * forecasts.COUNT_RATE) == timedelta(seconds=6)
    assert counting(600 * forecasts.COUNT_RATE) == timedelta(seconds=630)


async def test_a_restore_that_takes_half_a_day_is_not_ended_after_six_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    world = sized(with_history(), base=5 * TB, database=4 * TB)
    plan = await point(world)
    assert plan.estimate is not None
    assert 19 * HOUR < plan.estimate < 20 * HOUR  # 13.9 h to fetch, 5.6 h to count
    restore, check = plan.steps[0], plan.steps[2]
    assert isinstance(restore, RestoreScratch)
    assert isinstance(check, CheckScratch)
    assert restore.timeout > 3 * plan.estimate
    assert check.timeout == 17 * HOUR
    started: list[JobSpec] = []
    start = world.executor.start

    async def noted(spec: JobSpec) -> None:
        started.append(spec)
        await start(spec)

    monkeypatch.setattr(world.executor, "start", noted)
    await restore.apply(world, no_progress)
    assert [spec.timeout for spec in started] == [restore.timeout - LEEWAY]


async def test_the_forecast_is_told_by_phases_that_are_no_part_of_what_is_signed() -> None:
    plan = await point(sized(with_a_scratch(), database=2_000_000_000))
    phases = dict(plan.phases)
    # As the instance that is there took 10 s to fetch and 3 s to check as many bytes.
    assert (phases["fetch"], phases["check"], phases["count"]) == tuple(timedelta(seconds=at) for at in (10, 3, 30))
    assert plan.estimate is not None
    assert abs(sum(phases.values(), timedelta(seconds=10)) - plan.estimate) < timedelta(seconds=1)
    assert plan.model_copy(update={"phases": ()}).digest == plan.digest
    assert "phases" not in plan.model_copy(update={"phases": ()}).model_dump(mode="json")


async def test_a_restore_test_of_a_large_server_is_not_ended_either() -> None:
    large = sized(with_history(), base=5 * TB)
    entry = large.physical.entries["primary", "base-new"]
    manifest = entry.manifest.model_copy(update={"server_bytes": 4 * TB})
    large.physical.entries["primary", "base-new"] = entry.model_copy(update={"manifest": manifest})
    restore, look, _ = (await Prove().plan(ProveParams(server="primary"), large, PLAN_ID)).steps
    assert (restore.timeout - LEEWAY, look.timeout) == (59 * HOUR, 17 * HOUR)
    restore, look, _ = (await Prove().plan(ProveParams(server="primary"), with_history(), PLAN_ID)).steps
    assert (restore.timeout, look.timeout) == (JOB_LIMIT + LEEWAY, CHECK_LIMIT)


async def test_the_limits_of_what_is_quick_are_as_they_were() -> None:
    restore, _, check = (await point(with_history())).steps
    assert (restore.timeout, check.timeout) == (JOB_LIMIT + LEEWAY, CHECK_LIMIT)


async def test_counting_is_part_of_the_forecast() -> None:
    small, large = await point(sized(with_history())), await point(sized(with_history(), database=2_000_000_000))
    assert small.estimate is not None
    assert large.estimate == small.estimate + timedelta(seconds=30)
    assert seen(large).endswith("; 30 s of it to count rows, at an assumed rate")
    assert "count" not in seen(small)


async def test_a_server_that_is_gone_is_counted_as_large_as_its_backup() -> None:
    world = with_history()
    entry = world.physical.entries["primary", "base-new"]
    manifest = entry.manifest.model_copy(update={"server_bytes": 20_000_000_000})
    world.physical.entries["primary", "base-new"] = entry.model_copy(update={"manifest": manifest})
    world.postgres.servers["primary"].down = True
    assert "2 min 10 s of it to count rows" in seen(await point(world))


async def with_a_measured_load(world: World) -> World:
    """The last dump of the database was loaded at 1 MB/s."""
    restore = await Restore().plan(RestoreParams(database="shop"), world, "k9m2n3p4q5")
    step = next(step for step in restore.steps if step.kind == "load_dump")
    took = timedelta(seconds=step.database_bytes / 1_000_000)  # type: ignore[attr-defined]
    at = list(restore.steps).index(step)
    lines = [(at, JournalState.APPLYING), (at, JournalState.VERIFIED)]
    world.runs.add(restore, "succeeded", *lines, took=took, at=START)
    return world


async def swap(world: World) -> Plan:
    world.postgres.database_behind(SHOWN).bytes = 3_000_000_000
    return await Swap().plan(SwapParams(scratch=SCRATCH_ID), world, PLAN_ID)


async def test_a_swap_goes_by_what_was_measured_and_says_what_it_goes_by() -> None:
    assumed = await swap(with_a_scratch())
    assert assumed.estimate == timedelta(seconds=60) + SWITCH
    assert "no restore of this database was measured yet" in seen(assumed)
    plan = await swap(await with_a_measured_load(with_a_scratch()))
    assert plan.estimate == timedelta(seconds=6000) + SWITCH
    assert "at the 1.0 MB/s of the restore of 2026-11-23" in seen(plan)
    copy, compare = plan.steps[:2]
    assert isinstance(copy, HeavyStep)
    assert compare.timeout == 5 * HOUR


async def rescue(world: World) -> Plan:
    world.tables.give(SHOWN, "users", {1: "ada"}, bytes=3_000_000_000)
    return await Rescue().plan(RescueParams(scratch=SCRATCH_ID, table="users"), world, PLAN_ID)


async def test_a_rescue_has_an_estimate_of_its_table() -> None:
    plan = await rescue(await with_a_measured_load(with_a_scratch()))
    assert plan.estimate == timedelta(seconds=6010)
    assert seen(plan).startswith("1 h 40 min to bring and compare 2861 MB, at the 1.0 MB/s of the restore of")
    (step,) = plan.steps
    assert isinstance(step, RescueTable)
    assert step.timeout == JOB_LIMIT + LEEWAY


async def test_every_way_back_says_that_the_rto_is_shorter_and_what_can_be_had() -> None:
    promoted = await Promote().plan(PromoteParams(scratch=SCRATCH_ID), hurried(with_a_scratch()), PLAN_ID)
    halted = await Halt().plan(HaltParams(scratch=SCRATCH_ID, latest=True), hurried(with_a_standby()), PLAN_ID)
    plans = [await swap(hurried(with_a_scratch())), await rescue(hurried(with_a_scratch())), promoted, halted]
    for plan in plans:
        [said] = [item for item in plan.findings if item.check == "RTO"]
        assert said.detail.startswith("The RTO cannot be met by this: ")
        assert said.detail.endswith("RTO 5 s.")
        assert said.hint
    for plan in (await swap(with_a_scratch()), await rescue(with_a_scratch())):
        assert not [item for item in plan.findings if item.check == "RTO"]
