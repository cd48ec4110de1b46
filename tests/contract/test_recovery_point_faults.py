"""A recovery point when something is away, was changed, died in the middle, or is older than what it rests on."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from actions import registry
from actions.backup.physical import Gap, RecoveryTarget
from actions.catalog.point_restore import RestorePointParams
from actions.catalog.points import PointsParams
from actions.catalog.record_retention import PinPointParams
from actions.contract import Plan, Verdict
from actions.errors import TemporaryError, UserError, VerificationError
from actions.points import PointEntry
from actions.ports import no_progress
from actions.runner import Outcome
from actions.site import Site
from actions.steps.alarms import alarms
from actions.steps.facts import DiskFree
from actions.steps.health import health
from actions.steps.point_databases import side_by_side
from actions.steps.point_share import Share
from actions.steps.secret_return import KeepSecrets, ReturnSecrets
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.history import (
    NEWER,
    POINT,
    POINT_AT,
    SCRATCH_ID,
    a_secret,
    add_a_scratch,
    record_a_point,
    with_a_point,
    with_a_point_of_dumps,
    with_sealed_secrets,
    with_secrets,
)
from tests.fakes.manifests import an_entry
from tests.fakes.physical_world import with_bases
from tests.fakes.world import APP_DIGEST, START, World, a_world

KEPT = "images/kept.json"


async def planned(world: World, secret: str = "", *, scratch: str | None = None) -> Plan:
    params = RestorePointParams(point=POINT, secret=secret, scratch=scratch)
    return await registry.action("restore.recovery_point").plan(params, world, PLAN_ID)


def by_hand(plan: Plan) -> dict[str, str]:
    return {
        finding.check.removeprefix("by hand: "): f"{finding.detail} {finding.hint}"
        for finding in plan.findings
        if finding.check.startswith("by hand: ")
    }


def value_of(world: World, name: str) -> str | None:
    return next((each["data"]["key"] for each in world.live.held if each["metadata"]["name"] == name), None)


def moved_to(world: World, site: Site) -> None:
    """From now on the plan file says this."""
    object.__setattr__(world, "site", site)
    world.points._site = world.points._parts._site = world.backups._site = site


# ---------------------------------------------------------------- recording


@pytest.mark.corruption
async def test_a_list_of_images_that_cannot_be_believed_costs_no_point_and_is_made_anew_from_the_points() -> None:
    world = a_world()
    await world.points.record("point-0")
    for workload in world.cluster.workloads.values():
        workload.images = ()
    await world.objects.put("uploads-copy", KEPT, b"{}")

    point = await world.points.record("point-1")

    assert any(f"`{KEPT}` cannot be read" in sentence and "made anew" in sentence for sentence in point.missing)
    listed = json.loads(await world.objects.get("uploads-copy", KEPT))["body"]["images"]
    assert [image["digest"] for image in listed] == [APP_DIGEST]


async def test_images_stay_on_the_list_as_long_as_points_are_kept() -> None:
    world = a_world()
    assert world.site.points is not None
    kept = world.site.points.model_copy(update={"retention": timedelta(days=400)})
    moved_to(world, world.site.model_copy(update={"points": kept}))
    await world.points.record("point-0")
    for workload in world.cluster.workloads.values():
        workload.images = ()
    world.clock.advance(timedelta(days=200))

    await world.points.record("point-1")

    assert (await world.objects.get("uploads-copy", "images/kept.txt")).decode() == f"mirror/app@{APP_DIGEST}\n"


async def test_a_moment_that_the_wal_of_a_database_does_not_lead_to_is_said() -> None:
    """Of two databases the one that has dumps alone sets the moment; the base backups of the other may be younger."""
    world = with_bases()
    crm = world.site.databases["shop"].model_copy(update={"name": "crm", "server": "spare", "service": None})
    policy = world.site.backups["shop"].model_copy(update={"database": "crm"})
    moved_to(
        world,
        world.site.model_copy(
            update={
                "databases": {**world.site.databases, "crm": crm},
                "backups": {**world.site.backups, "crm": policy},
            }
        ),
    )
    at = START.replace(hour=1, minute=0)
    world.backups.entries["crm", "b-crm"] = an_entry(id="b-crm", database="crm", snapshot_at=at, finished_at=at)

    point = await world.points.gather("point-1")

    assert point.moment == at
    [said] = [sentence for sentence in point.missing if "moment of this point" in sentence]
    assert said.startswith("Database `shop` cannot be brought back to 2026-11-23 01:00:00 UTC")
    assert "leads from 2026-11-23 02:30:00 UTC to " in said


async def test_a_store_that_hangs_does_not_use_up_the_time_of_other_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    world, looked = a_world(), asyncio.Event()
    catalogue, keys = world.backups.catalogue, world.sealing.keys

    async def waits(database: str) -> Any:
        await looked.wait()
        return await catalogue(database)

    async def seen(cluster: str) -> Any:
        looked.set()
        return await keys(cluster)

    monkeypatch.setattr(world.backups, "catalogue", waits)
    monkeypatch.setattr(world.sealing, "keys", seen)

    async with asyncio.timeout(20):
        assert (await world.points.gather("point-1")).databases


async def test_a_secret_that_came_after_a_try_that_died_is_said_not_to_be_sealed() -> None:
    world = with_secrets()
    own = [each.name for each in (await world.secret_copies.current("main")).secrets if not each.by]
    await world.secret_copies.seal(POINT, "main", own)  # the worker died before it wrote the point
    world.live.held.append(a_secret("late", version=70))

    point = await world.points.record(POINT)

    assert "`Secret main/shop/late` came too late for this point, and is not sealed." in point.missing


async def test_a_point_that_lacks_a_database_or_its_secrets_is_an_alarm_of_its_own() -> None:
    world, key = with_secrets(), "poor-point/points:site"

    async def told() -> dict[str, str]:
        return {alarm.key: alarm.text for alarm in alarms(await health(world))}

    await world.points.record("point-1")
    assert key not in await told()
    world.backups.entries.clear()
    world.live.refused.add("Secret")
    world.clock.advance(timedelta(minutes=1))
    await world.points.record("point-2")

    said = await told()
    assert "late-point/points:site" not in said
    assert "`point-2` lacks database `shop` and the sealed Secrets of `main`" in said[key]


async def test_the_list_says_how_much_a_point_lacks_and_where_all_of_it_is() -> None:
    world = a_world(gitops=False)
    world.registry.down = True
    await world.points.record("point-1")

    report = await registry.query("status.points").read(PointsParams(), world)

    [cell] = [row[report.columns.index("lacks")] for row in report.rows]
    lacking = len((await world.points.gather("point-2")).missing)
    assert cell == f"`uploads` has no copy in another region and {lacking - 1} more"
    assert len(cell) <= 64
    assert report.lines[0].endswith("`/dr point list POINT`.")
    for number in range(21):
        world.clock.advance(timedelta(minutes=1))
        await world.points.record(f"point-{number + 2}")
    report = await registry.query("status.points").read(PointsParams(), world)
    assert report.lines[1].startswith("Not shown: 2 older ones")


# ---------------------------------------------------------------- pins


async def test_a_pin_that_could_not_be_written_leaves_no_hold_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    world = a_world()
    world.objects.lockable = {"uploads-copy"}
    await world.points.record("point-1")
    plan = await registry.action("point.pin").plan(PinPointParams(point="point-1", why="case 4711"), world, PLAN_ID)
    whole, refused = world.objects.put, [UserError("AccessDenied")]

    async def put(bucket: str, key: str, body: bytes, *, only_if_absent: bool = False) -> None:
        if refused and key.startswith("recovery-point-pins/"):
            raise refused.pop()
        await whole(bucket, key, body, only_if_absent=only_if_absent)

    monkeypatch.setattr(world.objects, "put", put)

    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.FAILED, result.message
    assert not refused
    assert world.objects.legal_holds == set()
    assert {entry.point.id: entry.pinned for entry in await world.points.entries()} == {"point-1": ""}
    assert not any(each.pinned for each in world.backups.entries.values())


# ---------------------------------------------------------------- bringing back


async def test_room_for_the_copies_of_several_databases_of_a_server_is_counted_together() -> None:
    """Each alone would fit, and the second would fill the disk of production."""
    world = a_world()
    free = world.postgres.servers["primary"].free_bytes
    assert free is not None
    each = DiskFree(server="primary", at_least=free * 2 // 3)

    found = await side_by_side(world, Share(preconditions=(each, each)))

    assert [part.at_least for part in found.preconditions if isinstance(part, DiskFree)] == [2 * each.at_least]
    assert [(finding.check, finding.verdict) for finding in found.findings] == [("disk", Verdict.STOP)]
    alone = await side_by_side(world, Share(preconditions=(each,)))
    assert (alone.preconditions, alone.findings) == ((each,), ())


async def test_a_namespace_without_a_workload_is_no_cluster_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = with_a_point()
    world.cluster.workloads.clear()

    plan = await planned(world)

    assert "kubectl --context main -n shop set image deployment/api" in by_hand(plan)["images of api"]
    seen = {each.name: each.value for each in plan.observations}
    assert seen["images"].startswith("none that the bot can set back; see what is left to people")

    async def silent(*_: str) -> Any:
        raise TemporaryError("Cluster `main` cannot be reached.")

    monkeypatch.setattr(world.cluster, "overview", silent)
    with pytest.raises(UserError, match=rf"bring the parts back one by one: `/dr point list {POINT}`"):
        await planned(world)


async def test_files_that_cannot_be_looked_at_are_peoples_and_hold_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_a_point()

    async def silent(_: Any) -> Any:
        raise TemporaryError("Bucket `uploads` does not answer.")

    monkeypatch.setattr(world.files, "difference", silent)
    plan = await planned(world)

    assert "Bucket `uploads` does not answer." in by_hand(plan)["files uploads"]
    assert "swap_databases" in {step.kind for step in plan.steps}
    assert "bring_back_files" not in {step.kind for step in plan.steps}


async def test_a_point_whose_wal_is_gone_comes_back_out_of_the_dump_that_a_pin_has_held() -> None:
    world = with_a_point(scratch=False)
    [part] = [each for entry in await world.points.entries() for each in entry.point.databases]
    assert part.by_wal
    hole = {"timeline_id": 1, "first": "0" * 24, "last": "0" * 24}
    after, before = POINT_AT - timedelta(minutes=20), POINT_AT + timedelta(seconds=1)
    world.physical.gaps = (Gap.model_validate(hole | {"after": after, "before": before}),)

    plan = await planned(world)

    assert [step.kind for step in plan.steps[:2]] == ["load_dump", "compare_copy"]
    add_a_scratch(world, RecoveryTarget(time=START))
    with pytest.raises(UserError, match="was restored to"):  # who names one wants that one
        await planned(world, scratch=SCRATCH_ID)
    del world.scratch.made[SCRATCH_ID]
    [said] = [finding.detail for finding in plan.findings if finding.check == "moments"]
    assert "No WAL leads `shop` to the moment of the point any more" in said
    result = await run(plan, world, MemoryJournal())
    assert result.outcome is Outcome.SUCCEEDED, result.message


async def test_what_is_left_to_people_is_said_also_where_the_last_look_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_a_point()
    step = (await planned(world)).steps[-1]

    async def hangs(*_: Any, **__: Any) -> Any:
        raise TemporaryError("Bucket `backups` does not answer.")

    monkeypatch.setattr(world.points, "gather", hangs)
    said = await step.outcome(world)

    assert said.startswith("The site could not be looked at as a whole: Bucket `backups` does not answer.")
    assert "Left to people: " in said
    assert "stays suspended" in said


async def test_files_out_of_a_copy_are_said_to_be_of_another_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    world = a_world()
    world.buckets.settings.pop("uploads")
    record_a_point(world)
    [entry] = await world.points.entries()
    parts = tuple(
        part.model_copy(update={"as_of": None, "copy_id": "copy-1", "copy_of": START - timedelta(hours=3)})
        for part in entry.point.files
    )
    point = entry.point.model_copy(update={"files": parts})

    async def found(_: str) -> PointEntry:
        return entry.model_copy(update={"point": point})

    monkeypatch.setattr(world.points, "find", found)
    plan = await planned(world)

    assert "`uploads` to that of the copy" in plan.data_loss
    assert "Copy `copy-1` of the point is gone." in by_hand(plan)["files uploads"]


async def test_an_rto_that_all_of_it_together_misses_is_told() -> None:
    world = with_a_point_of_dumps()
    shop = world.site.databases["shop"].model_copy(update={"rto": timedelta(seconds=1)})
    moved_to(world, world.site.model_copy(update={"databases": {"shop": shop}}))

    said = [finding.detail for finding in (await planned(world)).findings if finding.check == "RTO"]

    assert any("for all of it, RTO of `shop` 1 s" in detail for detail in said)


# ---------------------------------------------------------------- Secrets


async def test_a_breach_in_the_middle_of_the_run_keeps_values_of_the_point_away_and_people_decide_about_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = with_sealed_secrets()
    plan, stop = await planned(world, "database"), world.cluster.stop

    async def stopped(*words: Any, **more: Any) -> None:
        await stop(*words, **more)
        if not world.runs.exposures:
            world.runs.exposures.append((START, "Incident 7 `Security Breach` was declared."))

    monkeypatch.setattr(world.cluster, "stop", stopped)
    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.ASKING
    assert result.message.startswith("Incident 7 `Security Breach` was declared. Values of the point")
    assert "skip it" in result.message
    assert (value_of(world, "mail"), value_of(world, "database")) == (None, NEWER)


@pytest.mark.corruption
async def test_nothing_is_replaced_once_the_copy_of_what_is_there_is_not_what_was_signed() -> None:
    """As large as it was, so no listing tells."""
    world = with_sealed_secrets()
    plan = await planned(world, "database")
    steps = [step for step in plan.steps if isinstance(step, KeepSecrets | ReturnSecrets)]
    await steps[0].apply(world, no_progress)
    key = f"escrow-secrets/main/before-{PLAN_ID}/secrets.age"
    await world.objects.put("backups", key, bytes(len(await world.objects.get("backups", key))))

    with pytest.raises(VerificationError, match=f"`before-{PLAN_ID}`, which keeps what would be replaced"):
        await steps[1].apply(world, no_progress)

    assert value_of(world, "database") == NEWER


async def test_sealed_secrets_are_named_also_once_the_plan_file_has_no_escrow() -> None:
    world = with_sealed_secrets()
    world.cluster.workloads[next(iter(world.cluster.workloads))].images = ("app:9",)
    moved_to(world, world.site.model_copy(update={"escrow": None}))

    assert f"where sealed copy `{POINT}` is" in by_hand(await planned(world))["secrets of main"]


async def test_who_keeps_secrets_by_hand_is_told_whom_to_encrypt_them_to() -> None:
    world = with_sealed_secrets()
    assert world.site.escrow is not None
    [step] = [each for each in (await planned(world, "database")).steps if isinstance(each, KeepSecrets)]

    [line, _] = step.by_hand()

    assert all(f"-r {recipient}" in line for recipient in world.site.escrow.recipients)
    assert "recipients.txt" not in line
    assert "del(.metadata.resourceVersion" in line  # `kubectl create` refuses it


async def test_without_an_identity_people_are_sent_to_the_plan_that_has_the_commands() -> None:
    world = with_sealed_secrets()
    assert world.site.escrow is not None
    moved_to(world, world.site.model_copy(update={"escrow": world.site.escrow.model_copy(update={"identity": ""})}))
    world.secret_copies._shelf._site = world.site

    line = by_hand(await planned(world))["secret shop/mail"]

    assert "/dr secrets status" not in line
    assert "the plan of `/dr-restore recovery-point` has the command for each" in line
    assert "kubectl --context main -n shop create -f -" in line
