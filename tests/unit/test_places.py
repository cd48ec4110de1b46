"""Where a moment, an LSN, a transaction or a name lies is told before anybody signs."""

from __future__ import annotations

from datetime import timedelta

import pytest

from actions.backup.physical import NamedPoint, PlaceRequest
from actions.catalog.point import PointParams, RestorePoint
from actions.catalog.standby import Halt, HaltParams
from actions.contract import Plan, Verdict
from actions.errors import UserError, VerificationError
from actions.ports import JobSpec, Progress
from actions.steps.scratch import RestoreScratch
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.history import HARMED_AT, SCRATCH_ID, with_a_standby, with_history
from tests.fakes.world import World

BETWEEN = HARMED_AT - timedelta(seconds=1)
AROUND = (
    "the last one in it transaction 811 at 2026-11-23 10:11:17 UTC; the first one after it transaction 812 at "
    "2026-11-23 10:11:19 UTC, 2 transactions up to now"
)


async def point(world: World, **given: object) -> Plan:
    return await RestorePoint().plan(PointParams.model_validate({"database": "shop", **given}), world, PLAN_ID)


def seen(plan: Plan) -> dict[str, str]:
    return {item.name: item.value for item in plan.observations}


def base(plan: Plan) -> str:
    step = plan.steps[0]
    assert isinstance(step, RestoreScratch)
    return step.backup


def named(world: World, *lsns: str) -> World:
    points = [NamedPoint(name="before", lsn=lsn, timeline_id=1) for lsn in lsns]
    world.physical.history["primary"].points = points
    return world


@pytest.mark.parametrize(
    "given",
    [{"at": f"{BETWEEN:%Y-%m-%d %H:%M:%S}"}, {"lsn": "0/4000180"}, {"xid": 811}, {"name": "before"}],
)
async def test_moment_loss_and_what_was_committed_around_it_are_told(given: dict[str, object]) -> None:
    plan = await point(named(with_history(), "0/4000180"), **given)
    at, lost = ("10:11:18.0", "42 s") if "at" in given else ("10:11:17.0", "43 s")
    assert seen(plan)["recommended"] == f"{at}, loses {lost} and 2 transactions"
    assert seen(plan)["committed around it"] == AROUND
    assert plan.data_loss.endswith(f"{at}, loses {lost} and 2 transactions.")
    assert base(plan) == "base-new"
    assert not [item for item in plan.findings if item.check == "committed around it"]


async def test_a_transaction_before_the_newest_base_is_restored_from_the_one_before_it() -> None:
    world = with_history()
    entry = world.physical.entries["primary", "base-new"]
    later = entry.manifest.model_copy(update={"stop_lsn": "0/4000280"})
    world.physical.entries["primary", "base-new"] = entry.model_copy(update={"manifest": later})
    assert base(await point(world, xid=812)) == "base-old"
    assert base(await point(world, xid=813)) == "base-new"
    assert base(await point(named(world, "0/4000180"), name="before")) == "base-old"


async def test_what_is_in_no_archived_wal_is_said_and_needs_a_base_by_name() -> None:
    with pytest.raises(UserError, match=r"does not hold transaction 900. Name the backup to start from"):
        await point(with_history(), xid=900)
    plan = await point(with_history(), xid=900, backup="base-new")
    [told] = [item for item in plan.findings if item.check == "committed around it"]
    assert told.verdict is Verdict.WARN
    assert told.detail == "The archived WAL that leads to now does not hold transaction 900."
    assert told.hint.startswith("See that it is written right.")


async def test_of_several_points_of_one_name_people_choose() -> None:
    with pytest.raises(UserError, match=r"2 restore points are called `before`. Choose one: `--lsn 0/4000180` \(after"):
        await point(named(with_history(), "0/4000180", "0/4000080"), name="before")


async def test_wal_that_cannot_be_looked_through_keeps_no_plan_and_the_loss_is_told_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = with_history()

    async def not_now(request: PlaceRequest, progress: Progress) -> None:
        raise VerificationError("It was not done within 60 s.")

    monkeypatch.setattr(world.physical, "find_places", not_now)
    plan = await point(world, lsn="0/4000180")
    [told] = [item for item in plan.findings if item.check == "committed around it"]
    assert told.detail.endswith("could not be looked through for LSN 0/4000180: It was not done within 60 s.")
    assert "at the end of the run" in told.hint
    assert "known once it is restored" in seen(plan)["recommended"]
    journal = MemoryJournal()
    await run(plan, world, journal)
    end = journal.lines[-1].detail
    assert "The last commit in it is of 2026-11-23 10:11:17 UTC: given back as a whole it loses" in end


async def test_nobody_waits_for_it_longer_than_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    world, limits = with_history(), list[timedelta]()
    start = world.executor.start

    async def noted(spec: JobSpec) -> None:
        limits.append(spec.timeout)
        await start(spec)

    monkeypatch.setattr(world.executor, "start", noted)
    await point(world, at="10:11:18")
    await point(world, latest=True)
    assert limits == [timedelta(minutes=1)]


async def test_a_standby_that_is_stopped_at_a_time_tells_it_as_well() -> None:
    params = HaltParams(scratch=SCRATCH_ID, at=f"{BETWEEN:%Y-%m-%d %H:%M:%S}")
    plan = await Halt().plan(params, with_a_standby(), PLAN_ID)
    assert seen(plan)["committed around it"] == AROUND
    assert seen(plan)["recommended"] == "10:11:18.0, loses 42 s and 2 transactions"
