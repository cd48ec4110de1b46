"""The rules by which a rollout counts as done, failed or held up, on objects as the API server shows them."""

from typing import Any

import pytest

from actions.adapters import kubernetes_rollout as rollouts
from actions.ports import FailingPod
from actions.site import WorkloadKind

Json = dict[str, Any]


def deployment(*, generation: int = 2, observed: int = 2, replicas: int = 2, **status: Any) -> Json:
    return {
        "metadata": {"name": "api", "uid": "d", "generation": generation},
        "spec": {"replicas": replicas},
        "status": {"observedGeneration": observed, **status},
    }


def pod(name: str = "api-1", *, ready: bool = False, waiting: Json | None = None, **status: Any) -> Json:
    containers = [{"name": "app", "restartCount": 1, "state": {"waiting": waiting} if waiting else {"running": {}}}]
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    found = {"phase": "Running", "containerStatuses": containers, "conditions": conditions, **status}
    return {"metadata": {"name": name}, "spec": {}, "status": found}


def state(found: Json, *pods: Json) -> Any:
    return rollouts.state(WorkloadKind.DEPLOYMENT, found, pods, pods)


ALL = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "readyReplicas": 2}


@pytest.mark.parametrize(
    ("found", "done"),
    [
        (deployment(**ALL), True),
        (deployment(**ALL, observed=1), False),
        (deployment(**{**ALL, "updatedReplicas": 1}), False),
        (deployment(**{**ALL, "replicas": 3}), False),
        (deployment(**{**ALL, "availableReplicas": 1}), False),
        (deployment(), False),
    ],
)
def test_a_deployment_is_done_when_all_counts_agree(found: Json, done: bool) -> None:
    assert state(found).done is done


def test_a_deadline_that_passed_is_a_failure_and_names_who_is_not_ready() -> None:
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    found = state(deployment(**{**ALL, "updatedReplicas": 1}, conditions=[late]), pod(), pod("api-2", ready=True))
    assert (found.done, found.failed) == (False, True)
    assert [(one.name, one.reason) for one in found.failing] == [("api-1", "NotReady")]


def test_a_pod_that_cannot_be_made_is_named_by_its_workload() -> None:
    quota = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}
    assert state(deployment(conditions=[quota])).failing == (
        FailingPod(name="api", reason="FailedCreate", message="exceeded quota"),
    )


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (pod(waiting={"reason": "ErrImagePull", "message": "not found"}), "ErrImagePull"),
        (pod(waiting={"reason": "ContainerCreating"}), ""),
        (pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]), "Unschedulable"),
        (
            pod(containerStatuses=[{"name": "app", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]),
            "OOMKilled",
        ),
        (pod(containerStatuses=[{"name": "app", "state": {"terminated": {"exitCode": 0}}}]), ""),
        (
            pod(initContainerStatuses=[{"name": "init", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]),
            "CrashLoopBackOff",
        ),
    ],
)
def test_why_a_pod_does_not_start(found: Json, reason: str) -> None:
    assert [one.reason for one in rollouts.failing_pods([found], late=False)] == ([reason] if reason else [])
    assert rollouts.pod_facts(found).reason == reason


def stateful(spec: Json, **status: Any) -> Any:
    found = {"metadata": {"name": "db", "uid": "s", "generation": 1}, "spec": {"replicas": 3, **spec}}
    return rollouts.state(WorkloadKind.STATEFUL_SET, {**found, "status": {"observedGeneration": 1, **status}}, [], [])


def test_a_stateful_set_is_done_by_its_revisions() -> None:
    assert stateful({}, readyReplicas=3, currentRevision="a", updateRevision="a").done
    assert not stateful({}, readyReplicas=3, currentRevision="a", updateRevision="b").done
    assert not stateful({}, readyReplicas=2, currentRevision="a", updateRevision="a").done
    part = {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}
    assert stateful(part, readyReplicas=3, updatedReplicas=1, currentRevision="a", updateRevision="b").done
    by_hand = {"updateStrategy": {"type": "OnDelete"}}
    assert stateful(by_hand, readyReplicas=3, currentRevision="a", updateRevision="b").done


def test_the_selector_is_written_as_the_api_reads_it() -> None:
    rules = [
        {"key": "tier", "operator": "In", "values": ["a", "b"]},
        {"key": "old", "operator": "DoesNotExist"},
        {"key": "zone", "operator": "NotIn", "values": ["x"]},
        {"key": "live", "operator": "Exists"},
    ]
    found = {"spec": {"selector": {"matchLabels": {"app": "api"}, "matchExpressions": rules}}}
    assert rollouts.label_selector(found) == "app=api,tier in (a,b),!old,zone notin (x),live"


def test_pods_that_are_over_do_not_count_as_left() -> None:
    evicted = pod(phase="Failed")
    assert rollouts.alive([evicted, pod("api-2")]) == [pod("api-2")]
