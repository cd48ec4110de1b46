"""A copy of files that cannot be read holds no new one up; only what is over its time stays for now."""

from __future__ import annotations

from datetime import timedelta

import pytest

from actions import registry
from actions.buckets import FilesCopyRequest
from actions.catalog.files import CopyParams
from actions.contract import Verdict
from actions.ports import no_progress
from actions.runner import Outcome
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.world import World, a_world

COPIES = "uploads-copy"


async def with_broken(of: str) -> World:
    """Two copies, the older one over its time; the manifest or the list of the newer one was cut off."""
    world = a_world(files_damaged=False)
    for days in (60, 1):
        world.clock.advance(-timedelta(days=days))
        await world.files.copy(FilesCopyRequest(id=f"uploads-{days}", name="uploads"), no_progress)
        world.clock.advance(timedelta(days=days))
    key = f"files/uploads/copies/uploads-1/{of}"
    await world.buckets.put(COPIES, key, (await world.buckets.get(COPIES, key))[:-9])
    return world


@pytest.mark.corruption
@pytest.mark.parametrize("of", ["manifest.json", "part-00001"])
async def test_a_broken_copy_holds_no_new_one_up_and_nothing_is_deleted(of: str) -> None:
    world = await with_broken(of)

    plan = await registry.action("files.copy").plan(CopyParams(name="uploads"), world, PLAN_ID)
    result = await run(plan, world, MemoryJournal())

    assert [step.kind for step in plan.steps] == ["copy_files"]
    [told] = [each for each in plan.findings if each.check == "expiry"]
    assert told.verdict is Verdict.WARN
    assert "`uploads-1`" in told.detail
    assert f"s3://{COPIES}/files/uploads/copies/" in told.hint
    assert result.outcome is Outcome.SUCCEEDED
    good = [copy.manifest.id for copy in await world.files.copies("uploads") if copy.problem is None]
    assert "uploads-60" in good
    assert good[0] not in ("uploads-1", "uploads-60")  # the new one


@pytest.mark.corruption
async def test_once_the_broken_copy_is_removed_old_ones_go_again() -> None:
    world = await with_broken("manifest.json")
    for facts in await world.buckets.list(COPIES, "files/uploads/copies/uploads-1/"):
        await world.buckets.delete(COPIES, facts.key)
    await world.files.copy(FilesCopyRequest(id="uploads-0", name="uploads"), no_progress)

    plan = await registry.action("files.copy").plan(CopyParams(name="uploads"), world, PLAN_ID)

    assert [step.kind for step in plan.steps] == ["copy_files", "expire_copies"]
    assert plan.findings == ()
