"""A recovery point brought back as one: what the plan holds, what it refuses, and what it leaves to people."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest

from actions import registry
from actions.backup.physical import RecoveryTarget
from actions.buckets import LifecycleRule
from actions.catalog.point_restore import RestorePointParams
from actions.contract import Plan
from actions.errors import UserError
from actions.runner import Outcome
from actions.site import DatabaseRef
from tests.contract.kit import PLAN_ID, MemoryJournal, run, secrets_in
from tests.fakes.history import (
    POINT,
    POINT_AT,
    SCRATCH_ID,
    a_secret,
    add_a_scratch,
    record_a_point,
    with_a_point,
    with_a_point_of_dumps,
)
from tests.fakes.world import API, APP_DIGEST, COMMIT, GOOD, HEALTH, SECRETS, START, World, a_world


async def planned(world: World, *, scratch: str | None = None) -> Plan:
    params = RestorePointParams(point=POINT, scratch=scratch)
    return await registry.action("restore.recovery_point").plan(params, world, PLAN_ID)


def by_hand(plan: Plan) -> dict[str, str]:
    return {
        finding.check.removeprefix("by hand: "): f"{finding.detail} {finding.hint}"
        for finding in plan.findings
        if finding.check.startswith("by hand: ")
    }


async def test_databases_files_and_images_come_back_together() -> None:
    world, journal = with_a_point(), MemoryJournal()
    plan = await planned(world)

    result = await run(plan, world, journal)

    assert result.outcome is Outcome.SUCCEEDED, result.message
    assert world.postgres.database_behind(DatabaseRef("primary", "shop")).fingerprint.rows == GOOD.rows
    assert await world.objects.get("uploads", "b/tax.pdf") == b"tax"
    assert await world.objects.get("uploads", "a/dog.jpg") == b"DOG"  # as of the point, not as of its first version
    assert world.cluster.workloads[API].images == (f"app@{APP_DIGEST}", "sidecar:1")
    assert "stays suspended" in journal.lines[-1].detail
    assert "images by tag" in journal.lines[-1].detail


async def test_the_difference_is_shown_before_anybody_signs() -> None:
    plan = await planned(with_a_point())

    shown = {line.name: line.value for line in plan.observations}
    assert shown["shop: comes back"] == "`public.users`"
    assert shown["images"] == "set back on `api`"
    assert shown["files uploads"].startswith("1 missing and 1 changed of 2")
    assert "loses 43 s" in plan.data_loss
    assert shown["application away"].startswith("about 32 s")  # of it 2 s for the files
    assert plan.estimate == timedelta(seconds=32)


async def test_without_a_scratch_instance_the_command_that_makes_one_is_said() -> None:
    world = with_a_point(scratch=False)

    with pytest.raises(UserError, match=r'/dr-restore point shop --at "2026-11-23 10:11:17 UTC"'):
        await planned(world)


async def test_an_instance_of_another_moment_is_refused() -> None:
    world = with_a_point(scratch=False)
    add_a_scratch(world, RecoveryTarget(time=POINT_AT + timedelta(seconds=1)))

    with pytest.raises(UserError, match="No scratch instance of server `primary` stands at"):
        await planned(world)
    with pytest.raises(UserError, match="was restored to 2026-11-23 10:11:18"):
        await planned(world, scratch=SCRATCH_ID)


async def test_a_dump_is_loaded_where_there_is_nothing_else() -> None:
    world = with_a_point_of_dumps()
    plan = await planned(world)

    assert [step.kind for step in plan.steps[:2]] == ["load_dump", "compare_copy"]
    assert "set_images" not in {step.kind for step in plan.steps}
    assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
    found = await world.cluster.workload(API)
    assert found is not None
    assert found.gitops is not None
    assert not found.gitops.suspended


async def test_a_commit_that_was_gone_on_from_is_peoples_and_signed() -> None:
    world = with_a_point()
    api = world.cluster.workloads[API]
    assert api.gitops is not None
    before = (await planned(world)).digest
    api.gitops = api.gitops.model_copy(update={"revision": "9" * 40})

    plan = await planned(world)

    line = by_hand(plan)["manifests of main"]
    assert f"git checkout {COMMIT} -- production" in line
    assert "its bundles are opened by custodians alone" in line
    assert any("git checkout" in line for line in plan.steps[-1].by_hand())
    assert plan.digest != before


async def test_what_cannot_come_back_is_named_with_its_command() -> None:
    world = with_a_point()
    world.registry.images.clear()
    del world.cluster.workloads[API]

    lines = by_hand(await planned(world))

    assert "kubectl --context main -n shop set image deployment/api" in lines["images of api"]
    assert f"crane copy app@{APP_DIGEST} registry.example/mirror/app:{POINT}" in lines["image mirror/app"]


OTHER_DIGEST = f"sha256:{'b2' * 32}"


async def test_a_tag_that_was_moved_since_is_set_back_by_what_the_registry_had_then() -> None:
    world = with_a_point_of_dumps()  # its pods tell no digest
    assert not [step for step in (await planned(world)).steps if step.kind == "set_images"]
    assert "app:1" not in by_hand(await planned(world))["images by tag"]
    world.registry.add("mirror/app", OTHER_DIGEST, tag="1")

    plan, journal = await planned(world), MemoryJournal()
    result = await run(plan, world, journal)

    assert result.outcome is Outcome.SUCCEEDED, result.message
    assert world.cluster.workloads[API].images == (f"app@{APP_DIGEST}", "sidecar:1")
    assert "sidecar:1" in journal.lines[-1].detail


async def test_a_tag_of_which_the_registry_tells_nothing_now_is_named() -> None:
    world = with_a_point_of_dumps()
    world.registry.down = True

    plan = await planned(world)

    assert "app:1" in by_hand(plan)["images by tag"]
    assert not [step for step in plan.steps if step.kind == "set_images"]


async def test_files_of_a_bucket_without_versions_are_peoples() -> None:
    world = a_world()
    world.buckets.settings.pop("uploads")
    record_a_point(world)

    assert "kept no versions and there was no copy" in by_hand(await planned(world))["files uploads"]


@pytest.mark.parametrize("days", [0, 2])
async def test_old_versions_that_a_rule_has_removed_since_are_told(days: int) -> None:
    """Of a file that was replaced or deleted longer ago than that nothing is left, so it is not found missing."""
    world = with_a_point()
    rule = LifecycleRule(name="tidy", deletes_versions_after=timedelta(days=1))
    kept = world.buckets.settings["uploads"]
    world.buckets.settings["uploads"] = kept.model_copy(update={"lifecycle": (rule,)})
    world.clock.advance(timedelta(days=days))

    found = [finding.detail for finding in (await planned(world)).findings if finding.check == "old versions"]
    assert len(found) == (days > 1)
    assert all("Rule `tidy` of bucket `uploads` removes old versions after 1 d" in detail for detail in found)


async def test_images_set_by_others_meanwhile_need_new_signatures() -> None:
    world = with_a_point()
    plan = await planned(world)
    world.cluster.workloads[API].images = ("app:3", "sidecar:1")

    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.STALE
    assert "asks for `app` app:3 now" in result.message


async def test_a_point_that_was_recorded_anew_needs_new_signatures() -> None:
    world = with_a_point()
    plan = await planned(world)
    await world.objects.delete("uploads-copy", f"recovery-points/{POINT}.json")
    world.clock.advance(timedelta(minutes=1))
    await world.points.record(POINT)

    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.STALE
    assert "says something else now" in result.message


async def test_images_that_cannot_be_pulled_put_everything_back() -> None:
    world = with_a_point()
    plan = await planned(world)
    world.cluster.workloads[API].broken = True

    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.FAILED
    assert world.cluster.workloads[API].images == ("app:2", "sidecar:1")
    assert world.postgres.database_behind(DatabaseRef("primary", "shop")).fingerprint.rows != GOOD.rows
    assert world.clock.now() > START


async def test_versions_of_secrets_are_recorded_and_never_a_value() -> None:
    world = with_a_point()

    [entry] = await world.points.entries()

    versions = {each.name: each.version for each in entry.point.versions}
    assert versions["Secret main/shop/database"] == "41 of uid-1"
    assert versions["env:S3_SECRET"].startswith("hmac ")
    assert "env:PRIMARY_DSN" not in versions  # a password may be one that can be guessed
    text = entry.point.model_dump_json()
    assert secrets_in(text) == []
    assert "Y2FuYXJ5LXZhbHVl" not in text
    assert hashlib.sha256(SECRETS["env:S3_SECRET"].encode()).hexdigest()[:16] not in text


async def test_a_secret_that_was_changed_since_is_named() -> None:
    world = with_a_point()
    assert "secrets" not in by_hand(await planned(world))

    world.live.held[:] = [a_secret("database", version=57), a_secret("mail", version=60, uid="uid-2")]
    plan = await planned(world)

    lines = [line.detail for line in plan.findings if line.check == "by hand: secrets"]
    assert lines == [
        "`Secret main/shop/database` was version 41 and is version 57 now.",
        "`Secret main/shop/mail` was version 42 and is version 60 now, and was made anew.",
    ]
    assert any(
        "get secret/database -o 'jsonpath={.metadata.managedFields}'" in line for line in plan.steps[-1].by_hand()
    )


async def test_a_secret_that_is_gone_and_a_key_that_was_exchanged_are_named() -> None:
    world = with_a_point()
    del world.live.held[0]
    world.point_secrets.values["env:S3_SECRET"] = "canary-another"

    lines = [line.detail for line in (await planned(world)).findings if line.check == "by hand: secrets"]

    assert lines == [
        "`Secret main/shop/database` is not there, or may not be looked at.",
        "`env:S3_SECRET` has another value than in the point.",
    ]


async def test_secrets_that_may_not_be_listed_are_said_to_lack() -> None:
    world = a_world()
    world.live.refused.add("Secret")

    point = await world.points.gather(POINT)

    assert "Versions of Secrets of `main` are not known: no right to it" in point.missing


async def test_files_that_were_replaced_go_back_with_the_databases_when_the_application_fails() -> None:
    world = with_a_point()
    plan = await planned(world)
    world.service.answers[HEALTH] = "503"

    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.FAILED, result.message
    assert world.postgres.database_behind(DatabaseRef("primary", "shop")).fingerprint.rows != GOOD.rows
    assert await world.objects.get("uploads", "a/dog.jpg") == b"cow"
    assert await world.objects.get("uploads", "b/tax.pdf") == b"tax"  # was missing, and is in nobody's way
