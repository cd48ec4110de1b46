"""What is said of base backups in two buckets: in the run, the status, the alarms, the doctor and by hand."""

from __future__ import annotations

from datetime import timedelta

import pytest

from actions import registry
from actions.backup.physical import BackupKind, RecoveryTarget, Uncopied
from actions.catalog.backup_status import BackupsParams
from actions.catalog.base import BaseParams
from actions.catalog.retention import DeleteParams
from actions.contract import Probe, Report, Verdict
from actions.errors import TemporaryError, VerificationError
from actions.ports import no_progress
from actions.runner import Outcome, RunResult
from actions.steps.base_copies import base_copy_findings, copy_trouble
from actions.steps.stored_chain import StoredChain
from actions.steps.strays import stray_findings
from tests.contract.kit import MemoryJournal, run
from tests.fakes.physical_world import FAR, SERVER, a_base, with_bases, with_old_backups, with_two_buckets
from tests.fakes.world import START, World

HOUR = timedelta(hours=1)


async def status(world: World) -> Report:
    return await registry.query("status.backups").read(BackupsParams(), world)


async def made(world: World, plan_id: str, kind: BackupKind = BackupKind.FULL) -> RunResult:
    plan = await registry.action("backup.base").plan(BaseParams(kind=kind), world, plan_id)
    return await run(plan, world, MemoryJournal())


async def test_a_bucket_that_is_away_fails_the_copy_alone_and_the_next_run_catches_up() -> None:
    world = with_two_buckets()
    world.physical.silent = {FAR: f"Bucket `{FAR}` does not answer."}
    result = await made(world, "k7m2n3p4q5")
    assert (result.outcome, result.step) == (Outcome.FAILED, 1)
    assert "is whole in `backups`" in result.message
    assert "primary-k7m2n3p4q5" in {entry.manifest.id for entry in await world.physical.catalogue(SERVER)}
    told = {finding.check: finding for finding in (await status(world)).findings}
    assert f"`{FAR}` cannot be looked at" in told["late-copy"].detail
    assert [finding.verdict for finding in await base_copy_findings(world)] == [Verdict.WARN]

    world.physical.silent = {}
    assert (await made(world, "k8m2n3p4q5", BackupKind.INCREMENTAL)).outcome is Outcome.SUCCEEDED
    assert (await world.physical.uncopied(SERVER)).complete
    assert "late-copy" not in {finding.check for finding in (await status(world)).findings}
    [good] = await base_copy_findings(world)
    assert good.verdict is Verdict.OK
    assert f"`{FAR}` has 4, the newest of" in good.detail


async def test_the_status_says_how_many_each_bucket_has() -> None:
    world = with_two_buckets()
    assert (
        f"Base backups: `backups` has 2, the newest of 2026-11-23 10:00 UTC; `{FAR}` has none."
        in ((await status(world)).lines[0])
    )
    assert "Base backups:" not in (await status(with_bases())).lines[0]


def test_what_lacks_is_told_once_its_copy_is_late_and_what_is_spoiled_at_once() -> None:
    policy = with_two_buckets().site.physical_of(SERVER)
    entry = a_base("one", START).model_copy(update={"whole_in": ("backups",), "behind": (FAR,)})
    left = Uncopied(backups={"one": (FAR,)})
    took = entry.manifest.finished_at - entry.manifest.started_at
    assert copy_trouble(policy, [entry], left, START + HOUR + took) == []
    [late] = copy_trouble(policy, [entry], left, START + HOUR + took + timedelta(seconds=1))
    assert late.kind == "late-copy"
    assert late.text.startswith(f"1 base backup of `primary`, or a pin, should be in `{FAR}` as well and is not")
    spoiled = Uncopied(spoiled={"one": {"backups": "it was changed."}, "two": {FAR: "it was cut off."}})
    [bad] = copy_trouble(policy, [entry], spoiled, START)
    assert bad.kind == "spoiled-copy"
    assert "Bucket `backups`: it was changed. So must copies of 1 other." in bad.text


async def test_the_commands_by_hand_name_the_bucket_that_has_it() -> None:
    world = with_two_buckets()
    entry = (await world.physical.catalogue(SERVER))[-1].model_copy(update={"whole_in": (FAR,)})
    stored = StoredChain.of(world.site, SERVER, [entry], entry)
    assert stored is not None
    assert f"s3://{FAR}/{entry.manifest.stored.key}" in "\n".join(stored.commands(RecoveryTarget(latest=True)))

    plan = await registry.action("backup.base").plan(BaseParams(), world, "k7m2n3p4q5")
    *_, last = plan.steps[1].by_hand()
    assert last.endswith(f"s3://{FAR}/physical/base/primary/primary-k7m2n3p4q5/manifest.json")
    gone = await registry.action("backup.delete").plan(
        DeleteParams(server=SERVER, backup="base-hour"), world, "k7m2n3p4q5"
    )
    far, near = gone.steps[0].by_hand()
    assert f"s3://{FAR}/" in far
    assert "s3://backups/" in near


async def test_a_copy_counts_once_the_buckets_show_it() -> None:
    world = with_two_buckets()
    plan = await registry.action("backup.base").plan(BaseParams(), world, "k7m2n3p4q5")
    make, copy = plan.steps
    await make.apply(world, no_progress)
    assert await copy.probe(world) is Probe.TODO
    with pytest.raises(VerificationError, match=f"`{FAR}` lacks something of it"):
        await copy.verify(world)
    world.physical.silent = {FAR: "It does not answer."}
    with pytest.raises(TemporaryError, match="cannot be looked at: It does not answer"):
        await copy.verify(world)
    world.physical.silent = {}
    await copy.apply(world, no_progress)
    await copy.verify(world)
    assert (await copy.probe(world), await copy.outcome(world)) == (Probe.DONE, "")


async def test_one_bucket_makes_the_plans_of_before() -> None:
    """No step, no field and no word more: what was signed keeps its digest."""
    world = with_old_backups()
    plan = await registry.action("backup.base").plan(BaseParams(), world, "k7m2n3p4q5")
    assert [step.kind for step in plan.steps] == ["make_base"]
    gone = await registry.action("backup.delete").plan(
        DeleteParams(server=SERVER, backup="base-ancient"), world, "k7m2n3p4q5"
    )
    assert "copy_bucket" not in gone.steps[0].model_dump_json()
    assert len(gone.steps[0].by_hand()) == 1


@pytest.mark.parametrize("known", [True, False])
async def test_half_a_copy_is_no_stray_while_the_other_bucket_has_all_of_it(known: bool) -> None:
    world = with_two_buckets()
    backup = "base-hour" if known else "base-lost"
    await world.objects.put(FAR, f"physical/base/{SERVER}/{backup}/base.age", b"x" * 100)
    world.clock.advance(timedelta(days=2))
    assert [f"`{backup}` in `{FAR}`" in finding.detail for finding in await stray_findings(world)] == (
        [] if known else [True]
    )
