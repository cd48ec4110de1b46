"""The copy is measured by whoever compares it, whatever the job that loaded it says of its work."""

from __future__ import annotations

import pytest

from actions.catalog.restore import Restore, RestoreParams
from actions.errors import VerificationError
from actions.ports import JobPhase, JobState, ProgressReport, no_progress
from actions.steps.copies import CompareCopy, LoadDump
from tests.fakes.world import DAMAGED, GOOD, World, a_world


async def loaded() -> tuple[World, LoadDump, CompareCopy]:
    world = a_world()
    plan = await Restore().plan(RestoreParams(database="shop"), world, "p1")
    load, compare = plan.steps[:2]
    assert isinstance(load, LoadDump)
    assert isinstance(compare, CompareCopy)
    await load.apply(world, no_progress)
    return world, load, compare


async def test_equal_copy_passes() -> None:
    world, _, compare = await loaded()
    reports: list[ProgressReport] = []
    await compare.apply(world, reports.append)
    rows = sum(GOOD.rows.values())
    assert reports[-1] == ProgressReport(done=rows, total=rows, unit="rows", phase="count")


async def test_report_of_the_load_cannot_make_a_wrong_copy_pass() -> None:
    world, load, compare = await loaded()
    world.executor.jobs[load.job].state = JobState(phase=JobPhase.SUCCEEDED, result=GOOD.model_dump(mode="json"))
    world.postgres.servers[load.into.server].databases[load.into.name].fingerprint = DAMAGED
    with pytest.raises(VerificationError, match=r"The copy is not what `b-new` promises: .*users"):
        await compare.apply(world, no_progress)
