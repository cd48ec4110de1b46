"""Reads the state of a rollout from plain objects. Pure: it decides, the adapter fetches.

The rules are those of `kubectl rollout status`, with two additions: a workload at zero is done only when no pod is
left, and pods are told apart by the revision that owns them, so that a dying old pod is not blamed.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from actions.ports import FailingPod, PodFacts, Rollout
from actions.site import WorkloadKind

Json = dict[str, Any]

# A container waits for these reasons in every good start.
USUAL_WAITS = frozenset({"ContainerCreating", "PodInitializing"})
REVISION = "deployment.kubernetes.io/revision"


def label_selector(workload: Json) -> str:
    """The workload's own selector as the API takes it in a query."""
    selector = workload["spec"].get("selector") or {}
    terms = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for rule in selector.get("matchExpressions") or []:
        key, operator, values = rule["key"], rule["operator"], ",".join(rule.get("values") or [])
        terms.append(
            {
                "In": f"{key} in ({values})",
                "NotIn": f"{key} notin ({values})",
                "Exists": key,
                "DoesNotExist": f"!{key}",
            }[operator]
        )
    return ",".join(terms)


def owned(objects: Iterable[Json], owner: Json) -> list[Json]:
    """Those objects that name `owner` as their controller."""
    uid = owner["metadata"]["uid"]
    return [
        found
        for found in objects
        if any(
            ref.get("uid") == uid and ref.get("controller") for ref in found["metadata"].get("ownerReferences") or []
        )
    ]


def current_replica_set(deployment: Json, replica_sets: Iterable[Json]) -> Json | None:
    """The ReplicaSet of the deployment's current revision."""
    revision = _annotations(deployment).get(REVISION)
    mine = owned(replica_sets, deployment)
    return next((found for found in mine if _annotations(found).get(REVISION) == revision), None)


def state(kind: WorkloadKind, workload: Json, pods: Sequence[Json], current: Sequence[Json]) -> Rollout:
    """`pods` are all live pods of the workload, `current` those of its newest revision."""
    spec, status = workload["spec"], workload.get("status") or {}
    wanted = int(spec.get("replicas", 1))
    ready = int(status.get("readyReplicas") or 0)
    seen = int(status.get("observedGeneration") or 0) >= int(workload["metadata"].get("generation") or 0)
    if wanted == 0:
        left = [FailingPod(name=_name(pod), reason="Terminating", message="the pod has not ended yet") for pod in pods]
        ready = sum(_ready(pod) for pod in pods)  # the status of the workload lags behind its pods
        return Rollout(done=seen and not left, failed=False, ready=ready, wanted=0, failing=tuple(left))
    complete, failed = _deployment(wanted, status) if kind is WorkloadKind.DEPLOYMENT else _stateful(spec, status)
    failing = [] if seen and complete else [*_refused(workload), *failing_pods(current, late=failed)]
    return Rollout(
        done=seen and complete,
        failed=seen and failed and not complete,
        ready=ready,
        wanted=wanted,
        failing=tuple(failing),
    )


def _deployment(wanted: int, status: Json) -> tuple[bool, bool]:
    updated, available = int(status.get("updatedReplicas") or 0), int(status.get("availableReplicas") or 0)
    total = int(status.get("replicas") or 0)
    late = any(
        condition.get("type") == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded"
        for condition in status.get("conditions") or []
    )
    return updated >= wanted and total <= updated and available >= updated, late


def _stateful(spec: Json, status: Json) -> tuple[bool, bool]:
    # A StatefulSet has no deadline: it never gives up, so it never counts as failed.
    wanted = int(spec.get("replicas", 1))
    strategy = spec.get("updateStrategy") or {}
    ready = int(status.get("readyReplicas") or 0) >= wanted
    if strategy.get("type") == "OnDelete":
        return ready, False  # new pods are made by hand; there is no rollout to follow
    partition = int((strategy.get("rollingUpdate") or {}).get("partition") or 0)
    if partition > 0:
        return ready and int(status.get("updatedReplicas") or 0) >= wanted - partition, False
    return ready and status.get("updateRevision") == status.get("currentRevision"), False


def _refused(workload: Json) -> list[FailingPod]:
    # A quota or an admission webhook keeps the pod from being made; there is no pod to name then.
    return [
        FailingPod(name=_name(workload), reason=str(found.get("reason")), message=str(found.get("message") or ""))
        for found in (workload.get("status") or {}).get("conditions") or []
        if found.get("type") == "ReplicaFailure" and found.get("status") == "True"
    ]


def failing_pods(pods: Iterable[Json], *, late: bool) -> list[FailingPod]:
    """Pods with a reason not to become ready. `late` also names those that merely are not ready yet."""
    failing = []
    for pod in pods:
        reason, message = _trouble(pod)
        if not reason and late and not _ready(pod):
            reason, message = "NotReady", "it runs but its readiness check does not pass"
        if reason:
            failing.append(FailingPod(name=_name(pod), reason=reason, message=message))
    return failing


def running_pods(pods: Iterable[Json]) -> list[FailingPod]:
    """Pods that have to end by themselves."""
    return [FailingPod(name=_name(pod), reason="Running", message="its job has not ended yet") for pod in pods]


def pod_facts(pod: Json) -> PodFacts:
    """A pod as people look at it."""
    status = pod.get("status") or {}
    ending = "deletionTimestamp" in pod["metadata"]
    return PodFacts(
        name=_name(pod),
        phase="Terminating" if ending else str(status.get("phase") or "Unknown"),
        ready=_ready(pod),
        images=tuple(sorted(_images(pod, "containers", "containerStatuses"))),
        init_images=tuple(sorted(_images(pod, "initContainers", "initContainerStatuses"))),
        restarts=sum(int(found.get("restartCount") or 0) for found in status.get("containerStatuses") or []),
        reason=_trouble(pod)[0],
    )


def _images(pod: Json, containers: str, statuses: str) -> set[str]:
    """By digest once the runtime has pulled it, else as the pod asks for it. A bare digest is of the node alone and
    names no repository: then the name that was asked for has to do."""
    asked = {found["name"]: str(found["image"]) for found in (pod.get("spec") or {}).get(containers) or []}
    ran: dict[str, str] = {}
    for found in (pod.get("status") or {}).get(statuses) or []:
        pulled = str(found.get("imageID") or "")
        if "@sha256:" in pulled:
            ran[found["name"]] = pulled.rpartition("://")[2]
        elif pulled.startswith("sha256:") and found["name"] in asked:
            ran[found["name"]] = asked[found["name"]]
    return set({**asked, **ran}.values())


def alive(pods: Iterable[Json]) -> list[Json]:
    """Pods that may still act: those that ended for good (evicted, completed) are only records."""
    return [pod for pod in pods if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]


def _trouble(pod: Json) -> tuple[str, str]:
    status = pod.get("status") or {}
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") not in USUAL_WAITS:
            return str(waiting.get("reason") or "Waiting"), _said(container, str(waiting.get("message") or ""))
        ended = (container.get("state") or {}).get("terminated")
        if ended and ended.get("exitCode"):
            return str(ended.get("reason") or "Error"), _said(container, f"ended with code {ended['exitCode']}")
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("reason") or "Unschedulable"), str(condition.get("message") or "")
    return "", ""


def _said(container: Json, message: str) -> str:
    last = (container.get("lastState") or {}).get("terminated") or {}
    code = f"last ended with code {last['exitCode']}" if last.get("exitCode") else ""
    return "; ".join(word for word in (f"container `{container.get('name')}`", code, message) if word)


def _ready(pod: Json) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(found.get("type") == "Ready" and found.get("status") == "True" for found in conditions)


def _name(found: Json) -> str:
    return str(found["metadata"]["name"])


def _annotations(found: Json) -> Json:
    return found["metadata"].get("annotations") or {}
