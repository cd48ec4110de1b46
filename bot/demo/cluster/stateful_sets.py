"""StatefulSets: numbered pods, started in order, replaced from the highest number down."""

import contextlib
from typing import Any

from bot.demo.cluster import kinds as k
from bot.demo.cluster.answers import RefusedError
from bot.demo.cluster.objects import Objects
from bot.demo.cluster.workloads import active, is_ready, make_pod, set_status, template_hash

Json = dict[str, Any]

REVISION = "controller-revision-hash"


class StatefulSets:
    """One pod at a time, as `podManagementPolicy: OrderedReady` and `RollingUpdate` say."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def reconcile(self) -> None:
        for found in self._objects.all(k.STATEFUL_SET):
            with contextlib.suppress(RefusedError):  # its namespace is going
                self._one(found)

    def _one(self, found: Json) -> None:
        name, wanted = found["metadata"]["name"], found["spec"]["replicas"]
        revision = f"{name}-{template_hash(found['spec']['template'])}"
        pods = self._objects.owned(k.POD, found)
        by_name = {pod["metadata"]["name"]: pod for pod in pods}
        names = [f"{name}-{number}" for number in range(wanted)]
        ending = any("deletionTimestamp" in pod["metadata"] for pod in pods)
        surplus = sorted(set(by_name) - set(names), key=lambda one: -int(one.rpartition("-")[2]))
        missing = next((one for one in names if one not in by_name), None)
        settled = all(is_ready(by_name[one]) for one in names if one in by_name) and not ending
        if surplus and not ending:
            self._delete(by_name[surplus[0]])
        elif missing is not None and all(is_ready(by_name[one]) for one in names[: names.index(missing)]):
            labels = {REVISION: revision, "statefulset.kubernetes.io/pod-name": missing}
            make_pod(self._objects, k.STATEFUL_SET, found, found["spec"]["template"], name=missing, labels=labels)
        elif missing is None and found["spec"]["updateStrategy"].get("type") != "OnDelete":
            old = [by_name[one] for one in names if by_name[one]["metadata"]["labels"].get(REVISION) != revision]
            # A pod of the old revision that never became ready would block the repair of its own rollout.
            if old and (settled or not is_ready(old[-1])) and not ending:
                self._delete(old[-1])
        self._report(found, revision)

    def _delete(self, pod: Json) -> None:
        self._objects.delete(k.POD, pod["metadata"]["namespace"], pod["metadata"]["name"])

    def _report(self, found: Json, revision: str) -> None:
        pods = active(self._objects.owned(k.POD, found))
        updated = [pod for pod in pods if pod["metadata"]["labels"].get(REVISION) == revision]
        ready = sum(is_ready(pod) for pod in pods)
        before = (found.get("status") or {}).get("currentRevision", revision)
        done = len(updated) == len(pods) == ready == found["spec"]["replicas"]
        current = revision if done else before
        status = {
            "observedGeneration": found["metadata"]["generation"],
            "replicas": len(pods),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "updatedReplicas": len(updated),
            "currentReplicas": sum(pod["metadata"]["labels"].get(REVISION) == current for pod in pods),
            "currentRevision": current,
            "updateRevision": revision,
        }
        set_status(self._objects, k.STATEFUL_SET, found, status)
