"""Files that have no copy by the plan: their own old versions are the backup, and every command says so."""

from __future__ import annotations

from datetime import timedelta

import pytest

from actions import registry
from actions.buckets import LifecycleRule
from actions.catalog.files import CopyParams, FilesParams, RestoreParams, UndeleteParams
from actions.errors import UserError
from actions.steps.health import health
from tests.contract.kit import PLAN_ID
from tests.fakes.world import World, a_world


@pytest.fixture
def world() -> World:
    return a_world(copied=False)


async def test_nothing_is_copied_and_what_brings_files_back_is_said(world: World) -> None:
    for action, params in (
        ("files.copy", CopyParams(name="uploads")),
        ("files.restore", RestoreParams(name="uploads")),
    ):
        with pytest.raises(UserError, match=r"/dr files undelete uploads TIME"):
            await registry.action(action).plan(params, world, PLAN_ID)


async def test_the_status_tells_what_keeps_them(world: World) -> None:
    report = await registry.query("status.files").read(FilesParams(), world)

    assert report.title == "0 copies of `uploads`"
    assert report.rows[0][:2] == ("uploads", "none: versions in `uploads`, 30 d")
    assert report.findings == ()
    assert [each.subject for each in (await health(world)).beside if each.subject.startswith("files:")] == []


async def test_a_recovery_point_counts_on_their_versions(world: World) -> None:
    point = await world.points.record("point-1")
    [part] = point.files
    assert (part.as_of is not None, part.copy_id) == (True, "")
    assert not [each for each in point.missing if "uploads" in each]
    world.buckets.settings.pop("uploads")
    lost = await world.points.record("point-2")
    assert "`uploads` cannot be brought back at all: its bucket keeps no versions." in lost.missing


async def test_what_a_rule_has_removed_since_is_told(world: World) -> None:
    rule = LifecycleRule(name="tidy", deletes_versions_after=timedelta(days=1))
    kept = world.buckets.settings["uploads"]
    for rules, at, told in (((), "3d ago", False), ((rule,), "4h ago", False), ((rule,), "3d ago", True)):
        world.buckets.settings["uploads"] = kept.model_copy(update={"lifecycle": rules})
        plan = await registry.action("files.undelete").plan(UndeleteParams(name="uploads", at=at), world, PLAN_ID)
        found = [finding.detail for finding in plan.findings if finding.check == "old versions"]
        assert len(found) == told
        if told:
            assert "Rule `tidy` of bucket `uploads` removes old versions after 1 d" in found[0]


async def test_without_versions_there_is_nothing_to_bring_back(world: World) -> None:
    world.buckets.settings.pop("uploads")
    with pytest.raises(UserError, match="Turn them on for what comes"):
        await registry.action("files.undelete").plan(UndeleteParams(name="uploads", at="9:00"), world, PLAN_ID)
