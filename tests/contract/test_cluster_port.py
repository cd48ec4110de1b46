"""What every `Cluster` promises, in memory, on the stand-in and (`make test-cluster`) on a cluster of your own."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from actions.errors import PreconditionError, UserError
from actions.ports import Rollout, WorkloadFacts
from actions.site import WorkloadKind, WorkloadRef
from tests.fakes.cluster_worlds import AUTOMATED, World, world_named

DEPLOYMENT, STATEFUL_SET, CRON_JOB = WorkloadKind.DEPLOYMENT, WorkloadKind.STATEFUL_SET, WorkloadKind.CRON_JOB
COUNTED = pytest.mark.parametrize("kind", [DEPLOYMENT, STATEFUL_SET])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "world" not in metafunc.fixturenames:
        return
    worlds = [
        pytest.param("memory"),
        pytest.param("stand-in", marks=pytest.mark.integration),
    ]
    # A real cluster has no controller of ours that reverts, so those tests are not collected for it.
    if os.environ.get("KUBECONFIG") and "tool" not in metafunc.fixturenames:
        worlds.append(pytest.param("real", marks=[pytest.mark.cluster, pytest.mark.timeout(600)]))
    metafunc.parametrize("world", worlds, indirect=True)


@pytest.fixture
async def world(request: pytest.FixtureRequest, server_directory: Path) -> AsyncIterator[World]:
    async with world_named(request.param, server_directory) as found:
        yield found


async def seen(world: World, ref: WorkloadRef) -> WorkloadFacts:
    found = await world.cluster.workload(ref)
    assert found is not None
    return found


async def eventually(world: World, condition: Callable[[], Awaitable[bool]], what: str) -> None:
    end = asyncio.get_running_loop().time() + world.patience
    while not await condition():
        assert asyncio.get_running_loop().time() < end, f"still not: {what}"
        await asyncio.sleep(0.05)


async def rolled_out(world: World, ref: WorkloadRef) -> Rollout:
    async def done() -> bool:
        return (await world.cluster.rollout(ref)).done

    await eventually(world, done, f"{ref} rolled out")
    return await world.cluster.rollout(ref)


# ---------------------------------------------------------------- reading


async def test_what_is_not_there_is_none_and_cannot_be_changed(world: World) -> None:
    ref = WorkloadRef("here", world.namespace, DEPLOYMENT, "no-such")
    assert await world.cluster.workload(ref) is None
    with pytest.raises(UserError, match="There is no Deployment/no-such"):
        await world.cluster.stop(ref, mark="plan-1")
    with pytest.raises(UserError, match="There is no Deployment/no-such"):
        await world.cluster.rollout(ref)


@COUNTED
async def test_a_workload_is_shown_with_count_images_and_no_record(world: World, kind: WorkloadKind) -> None:
    ref = await world.workload(kind, replicas=2)
    await rolled_out(world, ref)
    found = await seen(world, ref)
    assert (found.ref, found.replicas, found.ready, len(found.images)) == (ref, 2, 2, 2)
    assert (found.recorded, found.mark, found.restarted, found.autoscaler, found.gitops) == (None, "", "", None, None)
    assert found.uid


async def test_a_namespace_shows_its_workloads_and_pods(world: World) -> None:
    ref = await world.workload(DEPLOYMENT, replicas=2)
    nightly = await world.workload(CRON_JOB, replicas=1)
    await rolled_out(world, ref)
    found = await world.cluster.overview("here", world.namespace)
    assert {one.ref for one in found.workloads} == {ref, nightly}
    assert [(pod.phase, pod.ready, pod.reason) for pod in found.pods] == [("Running", True, "")] * 2


async def test_logs_come_from_the_pods_of_the_workload(world: World) -> None:
    ref = await world.workload(DEPLOYMENT, replicas=2)
    await rolled_out(world, ref)
    logs = await world.cluster.logs(ref, lines=5)
    assert len({log.pod for log in logs}) == 2
    assert all(log.pod.startswith(ref.name) and len(log.lines) <= 5 for log in logs)


# ---------------------------------------------------------------- stop and give back


@COUNTED
async def test_stop_records_the_count_and_leaves_the_sidecar(world: World, kind: WorkloadKind) -> None:
    ref = await world.workload(kind, replicas=2)
    before = await world.images(ref)
    await world.cluster.stop(ref, mark="plan-1")
    found = await seen(world, ref)
    assert (found.replicas, found.recorded, found.mark) == (0, 2, "plan-1")
    assert await world.images(ref) == before


@COUNTED
async def test_a_stopped_workload_is_done_when_no_pod_is_left(world: World, kind: WorkloadKind) -> None:
    ref = await world.workload(kind, replicas=2)
    await rolled_out(world, ref)
    await world.cluster.stop(ref, mark="plan-1")
    state = await rolled_out(world, ref)
    assert (state.wanted, state.ready, state.failing) == (0, 0, ())
    assert (await world.cluster.overview("here", world.namespace)).pods == ()


@COUNTED
async def test_give_back_restores_the_count_and_removes_the_record(world: World, kind: WorkloadKind) -> None:
    ref = await world.workload(kind, replicas=2)
    await world.cluster.stop(ref, mark="plan-1")
    await world.cluster.give_back(ref, mark="plan-1")
    found = await seen(world, ref)
    assert (found.replicas, found.recorded, found.mark) == (2, None, "")
    await world.scaled_by_others(ref, 1)
    await world.cluster.give_back(ref, mark="plan-1")
    assert (await seen(world, ref)).replicas == 1


async def test_stop_twice_keeps_the_first_record(world: World) -> None:
    ref = await world.workload(DEPLOYMENT, replicas=3)
    await world.cluster.stop(ref, mark="plan-1")
    await world.cluster.stop(ref, mark="plan-1")
    await world.cluster.stop(ref, mark="plan-2")
    found = await seen(world, ref)
    assert (found.replicas, found.recorded, found.mark) == (0, 3, "plan-1")


async def test_stop_again_after_somebody_started_it(world: World) -> None:
    ref = await world.workload(DEPLOYMENT, replicas=3)
    await world.cluster.stop(ref, mark="plan-1")
    await world.scaled_by_others(ref, 1)
    await world.cluster.stop(ref, mark="plan-1")
    found = await seen(world, ref)
    assert (found.replicas, found.recorded) == (0, 3)


async def test_what_people_scaled_since_goes_before_the_record_of_another_plan(world: World) -> None:
    ref = await world.workload(DEPLOYMENT, replicas=2)
    await world.cluster.stop(ref, mark="plan-1")
    await world.scaled_by_others(ref, 3)
    await world.cluster.stop(ref, mark="plan-2")
    found = await seen(world, ref)
    assert (found.replicas, found.recorded, found.mark) == (0, 3, "plan-2")
    await world.cluster.give_back(ref, mark="plan-2")
    assert (await seen(world, ref)).replicas == 3


async def test_a_later_plan_gives_back_what_an_earlier_one_stopped(world: World) -> None:
    ref = await world.workload(DEPLOYMENT, replicas=3)
    await world.cluster.stop(ref, mark="plan-1")
    await world.cluster.give_back(ref, mark="plan-2")
    assert (await seen(world, ref)).replicas == 3


async def test_what_stood_at_zero_stays_at_zero(world: World) -> None:
    ref = await world.workload(DEPLOYMENT, replicas=0)
    await world.cluster.stop(ref, mark="plan-1")
    assert (await seen(world, ref)).recorded == 0
    await world.autoscaler(ref, 3, 5)  # switched off by zero, and it stays so
    await world.cluster.give_back(ref, mark="plan-1")
    assert (await seen(world, ref)).replicas == 0


async def test_another_writer_between_read_and_patch_is_recorded(world: World) -> None:
    ref = await world.workload(DEPLOYMENT, replicas=2)
    await seen(world, ref)
    world.scaled_before_next_write(ref, 4)
    await world.cluster.stop(ref, mark="plan-1")
    found = await seen(world, ref)
    assert (found.replicas, found.recorded) == (0, 4)


async def test_a_cron_job_is_suspended_and_comes_back(world: World) -> None:
    ref = await world.workload(CRON_JOB, replicas=1)
    before = await world.images(ref)
    await world.cluster.stop(ref, mark="plan-1")
    found = await seen(world, ref)
    assert (found.replicas, found.recorded, found.mark) == (0, 1, "plan-1")
    assert (await rolled_out(world, ref)).wanted == 0
    await world.cluster.give_back(ref, mark="plan-1")
    found = await seen(world, ref)
    assert (found.replicas, found.recorded) == (1, None)
    assert await world.images(ref) == before


async def test_a_cron_job_suspended_by_others_stays_suspended(world: World) -> None:
    ref = await world.workload(CRON_JOB, replicas=1)
    await world.scaled_by_others(ref, 0)
    await world.cluster.stop(ref, mark="plan-1")
    await world.cluster.give_back(ref, mark="plan-1")
    assert (await seen(world, ref)).replicas == 0


# ---------------------------------------------------------------- autoscalers


async def test_an_autoscaler_is_reported_and_does_not_wake_what_is_stopped(world: World) -> None:
    ref = await world.workload(DEPLOYMENT, replicas=2)
    await world.autoscaler(ref, 2, 5)
    found = (await seen(world, ref)).autoscaler
    assert found is not None
    assert (found.name, found.minimum, found.maximum) == (ref.name, 2, 5)
    await world.cluster.stop(ref, mark="plan-1")
    await rolled_out(world, ref)
    assert (await seen(world, ref)).replicas == 0


async def test_give_back_stays_within_the_autoscaler(world: World) -> None:
    ref = await world.workload(DEPLOYMENT, replicas=2)
    await world.cluster.stop(ref, mark="plan-1")
    await world.autoscaler(ref, 3, 5)
    await world.cluster.give_back(ref, mark="plan-1")
    assert (await seen(world, ref)).replicas == 3


# ---------------------------------------------------------------- scale, restart, rollout


@COUNTED
async def test_scale_sets_the_count(world: World, kind: WorkloadKind) -> None:
    ref = await world.workload(kind, replicas=1)
    await world.cluster.scale(ref, 3)
    assert (await rolled_out(world, ref)).wanted == 3
    assert (await seen(world, ref)).ready == 3
    with pytest.raises(UserError, match="-1 replicas"):
        await world.cluster.scale(ref, -1)


@pytest.mark.parametrize("kind", [DEPLOYMENT, STATEFUL_SET, CRON_JOB])
async def test_images_are_set_from_what_was_planned_and_leave_the_rest(world: World, kind: WorkloadKind) -> None:
    ref = await world.workload(kind)
    before = dict((await seen(world, ref)).containers)
    older = f"{before['app'].partition('@')[0].partition(':')[0]}:older"
    await world.cluster.set_images(ref, before=before, after={"app": older})
    assert await world.images(ref) == {**before, "app": older}
    await world.cluster.set_images(ref, before=before, after={"app": older})  # again changes nothing
    assert (await seen(world, ref)).images == (older, before["sidecar"])
    with pytest.raises(PreconditionError, match=f"asks for `{older}`"):
        await world.cluster.set_images(ref, before=before, after={"app": "other:1"})
    with pytest.raises(PreconditionError, match="`none`"):
        await world.cluster.set_images(ref, before={}, after={"none": "other:1"})
    assert await world.images(ref) == {**before, "app": older}


@COUNTED
async def test_restart_happens_once_per_mark(world: World, kind: WorkloadKind) -> None:
    ref = await world.workload(kind, replicas=1)
    images, first = await world.images(ref), await world.version(ref)
    await world.cluster.restart(ref, mark="plan-1")
    second = await world.version(ref)
    await asyncio.sleep(1.0)  # the time of a restart has a resolution of one second
    await world.cluster.restart(ref, mark="plan-1")
    assert (second != first, await world.version(ref)) == (True, second)
    assert (await seen(world, ref)).restarted == "plan-1"
    await world.cluster.restart(ref, mark="plan-2")
    assert await world.version(ref) != second
    assert (await rolled_out(world, ref)).ready == 1
    assert await world.images(ref) == images


async def test_a_cron_job_has_nothing_to_restart(world: World) -> None:
    ref = await world.workload(CRON_JOB, replicas=1)
    with pytest.raises(UserError, match="nothing to restart"):
        await world.cluster.restart(ref, mark="plan-1")


async def test_a_failing_pod_is_named_with_its_reason(world: World) -> None:
    ref = await world.workload(DEPLOYMENT, replicas=2)
    await rolled_out(world, ref)
    await world.break_image(ref)

    async def failing() -> bool:
        return bool((await world.cluster.rollout(ref)).failing)

    await eventually(world, failing, "a failing pod is named")
    state = await world.cluster.rollout(ref)
    assert not state.done
    assert all(pod.name.startswith(ref.name) for pod in state.failing)
    assert state.failing[0].reason in ("ErrImagePull", "ImagePullBackOff")


# ---------------------------------------------------------------- GitOps


@pytest.mark.parametrize("tool", ["argocd", "flux"])
async def test_suspending_gitops_stops_the_reverting(world: World, tool: str) -> None:
    ref = await world.governed(tool, replicas=2)
    before = await world.policy(ref)
    await world.cluster.scale(ref, 0)

    async def reverted() -> bool:
        return (await seen(world, ref)).replicas == 2

    await eventually(world, reverted, "the controller reverts")
    owner = (await seen(world, ref)).gitops
    assert owner is not None
    assert (owner.tool, owner.suspended, owner.mark) == (tool, False, "")
    assert owner.automated == (AUTOMATED if tool == "argocd" else "")

    await world.cluster.suspend_gitops(ref, mark="plan-1")
    await world.cluster.suspend_gitops(ref, mark="plan-1")
    owner = (await seen(world, ref)).gitops
    assert owner is not None
    assert (owner.suspended, owner.mark) == (True, "plan-1")
    assert owner.automated == (AUTOMATED if tool == "argocd" else "")  # what it gets back
    await world.cluster.stop(ref, mark="plan-1")
    await asyncio.sleep(1.2)  # more than two periods of the controller
    assert (await seen(world, ref)).replicas == 0

    await world.cluster.resume_gitops(ref, mark="another-plan")
    owner = (await seen(world, ref)).gitops
    assert owner is not None
    assert owner.suspended
    await world.cluster.give_back(ref, mark="plan-1")
    await world.cluster.resume_gitops(ref, mark="plan-1")
    assert await world.policy(ref) == before
    assert (await seen(world, ref)).replicas == 2


@pytest.mark.parametrize("tool", ["argocd", "flux"])
async def test_a_suspension_by_others_is_kept(world: World, tool: str) -> None:
    ref = await world.governed(tool, replicas=2)
    await world.suspended_by_others(ref)
    before = await world.policy(ref)
    await world.cluster.suspend_gitops(ref, mark="plan-1")
    await world.cluster.resume_gitops(ref, mark="plan-1")
    assert await world.policy(ref) == before
    owner = (await seen(world, ref)).gitops
    assert owner is not None
    assert (owner.suspended, owner.mark) == (True, "")


async def test_without_gitops_suspending_changes_nothing(world: World) -> None:
    ref = await world.workload(DEPLOYMENT, replicas=1)
    version = await world.version(ref)
    await world.cluster.suspend_gitops(ref, mark="plan-1")
    await world.cluster.resume_gitops(ref, mark="plan-1")
    assert await world.version(ref) == version


# ---------------------------------------------------------------- configuration


async def test_a_config_key_is_set_only_from_what_was_planned(world: World) -> None:
    await world.config_map("settings", {"DATABASE_HOST": "old", "LOG_LEVEL": "info"})
    where = ("here", world.namespace, "settings")
    await world.cluster.set_config(*where, key="DATABASE_HOST", before="old", after="new")
    assert await world.cluster.config(*where) == {"DATABASE_HOST": "new", "LOG_LEVEL": "info"}
    with pytest.raises(PreconditionError, match="is `new`, not `old`"):
        await world.cluster.set_config(*where, key="DATABASE_HOST", before="old", after="other")
    with pytest.raises(PreconditionError, match="is absent"):
        await world.cluster.set_config(*where, key="PORT", before="1", after="2")
    with pytest.raises(UserError, match="no ConfigMap `none`"):
        await world.cluster.config("here", world.namespace, "none")
