"""A bucket that is silent, refuses or lost a dump: where there is a local copy, dumps and restores go on."""

from __future__ import annotations

import pytest

from actions import registry
from actions.catalog.backup import DumpParams, UploadParams
from actions.catalog.restore import RestoreParams
from actions.contract import Verdict
from actions.errors import DrError, PermanentError, TemporaryError, UserError
from actions.runner import Outcome, Runner
from actions.steps.dumps import MakeDump
from actions.steps.known_backups import restorable
from tests.contract.kit import MemoryJournal
from tests.fakes.world import a_world

PLAN, RESTORE = "k7m2n3p4q5", "r2s3t4u5v6"


async def test_plan_says_that_the_dump_stays_here_and_what_to_do_later() -> None:
    world = a_world(local=True)
    world.backups.away = True
    plan = await registry.action("backup.dump").plan(DumpParams(database="shop"), world, PLAN)
    [step] = plan.steps
    assert isinstance(step, MakeDump)
    assert step.copy_only
    assert plan.findings[0].verdict is Verdict.WARN
    assert "into the local copy alone" in plan.findings[0].detail
    assert f"`/dr-backup upload shop {step.backup}`" in plan.findings[0].hint
    assert "not in the bucket" in step.after


async def test_restore_from_the_local_copy_while_the_bucket_is_away() -> None:
    world = a_world(local=True)
    dump = await registry.action("backup.dump").plan(DumpParams(database="shop"), world, PLAN)
    assert (await Runner(dump, world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED
    restore = registry.action("restore.dump")
    params = RestoreParams(database="shop")
    usual = await restore.plan(params, world, RESTORE)
    world.backups.away = True
    plan = await restore.plan(params, world, RESTORE)
    [told] = [finding for finding in plan.findings if finding.check == "bucket"]
    assert told.verdict is Verdict.WARN
    assert "Only the local copy was looked at" in told.detail
    # The same steps on the same manifest: it does not matter to the run which of the two is there.
    assert plan.steps == usual.steps
    assert plan.preconditions == usual.preconditions
    assert (await Runner(plan, world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED


async def test_restore_needs_the_bucket_where_the_local_copy_has_nothing() -> None:
    world = a_world(local=True)
    world.backups.away = True
    with pytest.raises(TemporaryError, match="does not answer"):
        await registry.action("restore.dump").plan(RestoreParams(database="shop"), world, RESTORE)


async def test_without_a_local_copy_there_is_nothing_to_plan() -> None:
    world = a_world()
    world.backups.away = True
    with pytest.raises(TemporaryError, match="does not answer"):
        await registry.action("backup.dump").plan(DumpParams(database="shop"), world, PLAN)


async def test_upload_takes_the_newest_that_the_bucket_lacks_and_is_refused_when_there_is_none() -> None:
    world = a_world(local=True)
    world.backups.away = True
    dump = await registry.action("backup.dump").plan(DumpParams(database="shop"), world, PLAN)
    assert (await Runner(dump, world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED
    upload = registry.action("backup.upload")
    with pytest.raises(TemporaryError):
        await upload.plan(UploadParams(database="shop"), world, "a")
    world.backups.away = False
    plan = await upload.plan(UploadParams(database="shop"), world, "b2c3d4e5f6")
    assert plan.params["backup"] == plan.target == f"shop-{PLAN}"
    assert (await Runner(plan, world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED
    assert await world.backups.find("shop", f"shop-{PLAN}") is not None
    with pytest.raises(UserError, match="holds no whole dump that the bucket lacks"):
        await upload.plan(UploadParams(database="shop"), world, "c")


@pytest.mark.parametrize(("how", "said"), [("refused", "refused its keys"), ("odd", "did not list: 301")])
async def test_a_bucket_that_refuses_is_no_reason_to_go_without_a_dump_or_a_restore(how: str, said: str) -> None:
    world = a_world(local=True)
    setattr(world.backups, how, True)
    dump = await registry.action("backup.dump").plan(DumpParams(database="shop"), world, PLAN)
    assert said in dump.findings[0].detail
    assert (await Runner(dump, world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED
    plan = await registry.action("restore.dump").plan(RestoreParams(database="shop"), world, RESTORE)
    [told] = [finding for finding in plan.findings if finding.check == "bucket"]
    assert said in told.detail
    assert (await Runner(plan, world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize(("how", "kind"), [("refused", UserError), ("odd", PermanentError), ("away", TemporaryError)])
async def test_an_upload_that_cannot_be_planned_says_what_there_is_and_what_to_do(
    how: str, kind: type[DrError]
) -> None:
    world = a_world(local=True)
    upload = registry.action("backup.upload")
    setattr(world.backups, how, True)
    with pytest.raises(kind, match="holds no whole dump either: make one with `/dr-backup run shop`"):
        await upload.plan(UploadParams(database="shop"), world, "a")
    dump = await registry.action("backup.dump").plan(DumpParams(database="shop"), world, PLAN)
    assert (await Runner(dump, world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED
    with pytest.raises(kind) as raised:
        await upload.plan(UploadParams(database="shop", backup=f"shop-{PLAN}"), world, "a")
    assert f"holds 1 dump of `shop`, the newest `shop-{PLAN}`" in str(raised.value)
    assert str(raised.value).endswith(f"ask again: `/dr-backup upload shop shop-{PLAN}`.")

    setattr(world.backups, how, False)
    plan = await upload.plan(UploadParams(database="shop"), world, "b2c3d4e5f6")
    setattr(world.backups, how, True)
    with pytest.raises(kind, match=f"stays as it is. .*ask again: `/dr-backup upload shop shop-{PLAN}`"):
        await plan.steps[0].probe(world)


async def test_restore_from_the_local_copy_of_a_dump_whose_object_is_lost() -> None:
    world = a_world(local=True)
    dump = await registry.action("backup.dump").plan(DumpParams(database="shop"), world, PLAN)
    assert (await Runner(dump, world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED
    world.backups.lose("shop", f"shop-{PLAN}")
    plan = await registry.action("restore.dump").plan(RestoreParams(database="shop"), world, RESTORE)
    [told] = [finding for finding in plan.findings if finding.check == "bucket"]
    assert told.verdict is Verdict.WARN
    assert f"`shop-{PLAN}`" in told.detail
    assert "the local copy is read" in told.detail
    assert (await Runner(plan, world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED


async def test_the_local_copy_stands_in_only_by_the_very_same_manifest() -> None:
    world = a_world(local=True)
    dump = await registry.action("backup.dump").plan(DumpParams(database="shop"), world, PLAN)
    assert (await Runner(dump, world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED
    backup = f"shop-{PLAN}"
    world.backups.lose("shop", backup)
    copy = world.backups.local["shop", backup]
    world.backups.local["shop", backup] = copy.model_copy(update={"manifest_sha256": "f" * 64})
    entry = await restorable(world, "shop", backup)
    assert entry is not None
    assert entry.problem is not None
