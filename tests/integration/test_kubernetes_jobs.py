"""Jobs of the cluster stand-in in trouble: what is told, and that nothing runs twice."""

from __future__ import annotations

import asyncio
import ssl
from datetime import timedelta

import aiohttp
import pytest

from actions.errors import TemporaryError, UserError
from actions.ports import JobPhase, JobState, Progress, ProgressReport, no_progress
from actions.site import JobPlace, JobSecret
from bot.demo.cluster import ClusterStandIn, Fault
from bot.demo.cluster import kinds as k
from tests.contract.test_executor_port import begun, spec
from tests.fixtures.executors import CLAIM, PLACE, PLAN, ExecutorWorld, kubernetes_executor, pods_of
from tests.fixtures.waiting import until

pytestmark = pytest.mark.integration

SOON = timedelta(seconds=0.5)


@pytest.fixture
def world(kubernetes_world: ExecutorWorld) -> ExecutorWorld:
    return kubernetes_world


def stand_in(world: ExecutorWorld) -> ClusterStandIn:
    assert world.cluster is not None
    return world.cluster


async def given_up(world: ExecutorWorld, place: JobPlace, progress: Progress = no_progress) -> JobState:
    """Start a job that cannot begin, and wait until the executor gives up."""
    port = kubernetes_executor(stand_in(world), place, patience=SOON)
    await port.start(spec())
    state = await port.wait("job-1", progress)
    assert state.phase is JobPhase.LOST
    assert not pods_of(stand_in(world), "job-1")
    assert await port.find("job-1") == state  # told again to whoever asks later
    await port.forget("job-1")
    return state


async def struck(world: ExecutorWorld, reason: str) -> str:
    await world.port.start(spec())
    await until(begun(world), within=60)
    cluster = stand_in(world)
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    name = pods_of(cluster, "job-1")[0]["metadata"]["name"]
    headers = {"Authorization": f"Bearer {cluster.token}"}
    async with (
        aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(ssl=trust)) as http,
        http.post(f"{cluster.url}/_control/pods/production/{name}/{reason}") as answer,
    ):
        assert answer.status == 200
    state = await world.port.wait("job-1", no_progress)
    assert state.phase is JobPhase.LOST
    return state.error


# ---------------------------------------------------------------- named reasons


async def test_image_that_cannot_be_pulled(world: ExecutorWorld) -> None:
    reports: list[ProgressReport] = []
    image = "registry.superprismora.example/drbot:broken"
    state = await given_up(world, PLACE.model_copy(update={"image": image}), reports.append)
    assert f"the image `{image}` cannot be pulled" in state.error
    assert "correct `jobs.image`" in state.error
    assert any("cannot be pulled" in report.phase for report in reports)


async def test_pod_that_no_node_takes(world: ExecutorWorld) -> None:
    state = await given_up(world, PLACE.model_copy(update={"memory": "900Gi"}))
    assert "Unschedulable: 0/1 nodes are available: 1 Insufficient memory" in state.error


async def test_claim_that_is_not_there(world: ExecutorWorld) -> None:
    stand_in(world).objects.delete(k.CLAIM, "production", "drbot-data")
    assert 'persistentvolumeclaim "drbot-data" not found' in (await given_up(world, PLACE)).error


async def test_secret_that_is_not_there(world: ExecutorWorld) -> None:
    place = PLACE.model_copy(update={"secrets": (JobSecret(name="drbot-references"),)})
    error = (await given_up(world, place)).error
    assert 'CreateContainerConfigError: secret "drbot-references" not found' in error


async def test_mount_that_is_not_there(world: ExecutorWorld) -> None:
    stand_in(world).objects.delete(k.CONFIG_MAP, "production", "drbot-plan")
    error = (await given_up(world, PLACE)).error
    assert 'FailedMount: MountVolume.SetUp failed: configmap "drbot-plan" not found' in error


async def test_cause_that_is_repaired_in_time_is_no_failure(world: ExecutorWorld) -> None:
    stand_in(world).objects.delete(k.CONFIG_MAP, "production", "drbot-plan")
    await world.port.start(spec())
    reports: list[ProgressReport] = []
    wait = asyncio.create_task(world.port.wait("job-1", reports.append))
    await until(lambda: any("FailedMount" in report.phase for report in reports), within=60)
    stand_in(world).apply(PLAN)
    world.release()
    assert (await wait).phase is JobPhase.SUCCEEDED


async def test_memory_that_runs_out(world: ExecutorWorld) -> None:
    error = await struck(world, "OOMKilled")
    assert "ran out of memory (OOMKilled, limit 256Mi): raise `jobs.memory`" in error


async def test_pod_that_is_evicted(world: ExecutorWorld) -> None:
    assert "evicted (The node was low on resource: ephemeral-storage.)" in await struck(world, "Evicted")


async def test_node_that_is_gone(world: ExecutorWorld) -> None:
    await world.port.start(spec())
    await until(begun(world), within=60)
    await world.lose("job-1")
    state = await world.port.wait("job-1", no_progress)
    assert state.error == "its pod was deleted, or its node is gone"
    assert world.starts() == 1  # the Job made no second pod


async def test_time_limit_of_the_cluster(world: ExecutorWorld) -> None:
    await world.port.start(spec())
    await until(begun(world), within=60)

    def shorten(job: dict[str, object]) -> None:
        job["spec"] = {**job["spec"], "activeDeadlineSeconds": 1}  # type: ignore[dict-item]

    cluster = stand_in(world)
    cluster.objects.edit(k.JOB, cluster.objects.get(k.JOB, "production", "job-1"), shorten)
    state = await world.port.wait("job-1", no_progress)
    assert (state.phase, state.error.partition(":")[0]) == (JobPhase.LOST, "it was ended after its time limit")


# ---------------------------------------------------------------- an API server that is away


async def test_api_server_away_for_a_while_changes_nothing(world: ExecutorWorld) -> None:
    await world.port.start(spec())
    reports: list[ProgressReport] = []
    wait = asyncio.create_task(world.port.wait("job-1", reports.append))
    await until(begun(world), within=60)
    cluster = stand_in(world)
    cluster.faults.add(Fault(what="drop"))
    cluster.sever()
    await until(lambda: any("does not answer" in report.phase for report in reports), within=60)
    world.release()
    with pytest.raises(TemporaryError, match="cannot be reached"):
        await world.port.find("job-1")
    await asyncio.sleep(1)
    cluster.faults.clear()
    assert (await wait).phase is JobPhase.SUCCEEDED
    assert world.starts() == 1


@pytest.mark.parametrize("what", ["drop", "fail", "busy"])
async def test_start_that_was_not_answered_is_repeated(world: ExecutorWorld, what: str) -> None:
    stand_in(world).faults.add(Fault.model_validate({"what": what, "resource": "jobs", "times": 2}))
    world.release()
    await world.port.start(spec())
    assert (await world.port.wait("job-1", no_progress)).phase is JobPhase.SUCCEEDED
    assert world.starts() == 1


async def test_log_that_breaks_off_is_followed_again(world: ExecutorWorld) -> None:
    await world.port.start(spec())
    reports: list[ProgressReport] = []
    wait = asyncio.create_task(world.port.wait("job-1", reports.append))
    first = ProgressReport(done=1, total=2, phase="dump")
    await until(lambda: first in reports, within=60)
    for _ in range(3):
        stand_in(world).sever()
        await asyncio.sleep(0.3)
    world.release()
    assert (await wait).phase is JobPhase.SUCCEEDED
    assert reports.count(first) == 1
    assert reports[-1].phase == "dump"
    assert reports[-1].done == 1000


# ---------------------------------------------------------------- names


async def test_job_of_another_spec_is_not_adopted(world: ExecutorWorld) -> None:
    await world.port.start(spec())
    with pytest.raises(UserError, match="was not made for this step"):
        await world.port.start(spec(database="large"))
    world.release()
    assert (await world.port.wait("job-1", no_progress)).phase is JobPhase.SUCCEEDED


async def test_job_that_ended_without_its_pod_still_succeeded(world: ExecutorWorld) -> None:
    world.release()
    await world.port.start(spec())
    assert (await world.port.wait("job-1", no_progress)).result is not None
    cluster = stand_in(world)
    await until(lambda: bool(cluster.objects.get(k.JOB, "production", "job-1")["status"].get("conditions")))
    for pod in pods_of(cluster, "job-1"):
        cluster.objects.delete(k.POD, "production", pod["metadata"]["name"], grace=0)
    assert await world.port.find("job-1") == JobState(phase=JobPhase.SUCCEEDED)


async def test_job_that_others_deleted_is_not_started_beside_what_is_left_of_it(world: ExecutorWorld) -> None:
    await world.port.start(spec())
    await until(begun(world), within=60)
    cluster = stand_in(world)
    # Its node does not answer: the pod is told to end and does not.
    pod = pods_of(cluster, "job-1")[0]
    cluster.objects.edit(k.POD, pod, lambda found: found["metadata"].update(ownerReferences=[]))
    cluster.objects.delete(k.JOB, "production", "job-1")
    found = await world.port.find("job-1")
    assert found is not None
    assert (found.phase, "its Job was deleted" in found.error) == (JobPhase.LOST, True)
    with pytest.raises(TemporaryError, match="of its last attempt still ends"):
        await world.port.start(spec())
    assert world.starts() == 1
    cluster.objects.delete(k.POD, "production", pod["metadata"]["name"])
    await world.port.cancel("job-1")
    assert await world.port.find("job-1") is None


# ---------------------------------------------------------------- the doctor's questions


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("create", "jobs"),
        ("get", "jobs"),
        ("patch", "jobs"),
        ("delete", "jobs"),
        ("list", "pods"),
        ("get", "pods/log"),
        ("list", "events"),
        ("get", "persistentvolumeclaims"),
        ("get", "configmaps"),
    ],
)
async def test_missing_right_is_named(world: ExecutorWorld, verb: str, resource: str) -> None:
    stand_in(world).faults.add(Fault(what="forbid", verb=verb, resource=resource))
    problems = await world.port.problems()
    assert problems
    assert f'resources: ["{resource}"], verbs: ["{verb}"]' in problems[0]


async def test_missing_objects_are_named(world: ExecutorWorld) -> None:
    cluster = stand_in(world)
    cluster.objects.delete(k.CLAIM, "production", CLAIM["metadata"]["name"])
    cluster.objects.delete(k.CONFIG_MAP, "production", PLAN["metadata"]["name"])
    claim, plan = await world.port.problems()
    assert "no PersistentVolumeClaim `drbot-data`" in claim
    assert "create configmap drbot-plan" in plan
    place = PLACE.model_copy(update={"namespace": "nowhere"})
    assert "no namespace `nowhere`" in (await kubernetes_executor(cluster, place).problems())[0]
