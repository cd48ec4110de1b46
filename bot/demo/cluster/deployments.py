"""Deployments and their ReplicaSets: rolling updates, revisions, and giving up after the deadline."""

import contextlib
import copy
import math
import time
from typing import Any

from bot.demo.cluster import kinds as k
from bot.demo.cluster.answers import RefusedError
from bot.demo.cluster.objects import Objects
from bot.demo.cluster.workloads import (
    active,
    is_ready,
    make_pod,
    owner_reference,
    set_status,
    tell,
    template_hash,
    with_condition,
)

Json = dict[str, Any]

HASH = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"


class ReplicaSets:
    """Makes and ends pods until their number is right."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def reconcile(self) -> None:
        for found in self._objects.all(k.REPLICA_SET):
            with contextlib.suppress(RefusedError):  # its namespace is going
                self._one(found)

    def _one(self, found: Json) -> None:
        wanted = found["spec"]["replicas"]
        pods = active(self._objects.owned(k.POD, found))
        for _ in range(wanted - len(pods)):
            make_pod(self._objects, k.REPLICA_SET, found, found["spec"]["template"])
        # Those not ready go first, then the youngest.
        youngest_first = list(reversed(pods))
        youngest_first.sort(key=is_ready)
        for pod in youngest_first[: max(0, len(pods) - wanted)]:
            self._objects.delete(k.POD, pod["metadata"]["namespace"], pod["metadata"]["name"])
        pods = active(self._objects.owned(k.POD, found))
        ready = sum(is_ready(pod) for pod in pods)
        status = {"replicas": len(pods), "fullyLabeledReplicas": len(pods), "readyReplicas": ready}
        status |= {"availableReplicas": ready, "observedGeneration": found["metadata"]["generation"]}
        set_status(self._objects, k.REPLICA_SET, found, status)


class Deployments:
    """Rolls from one ReplicaSet to the next within maxSurge and maxUnavailable."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._progress: dict[str, tuple[object, float]] = {}  # uid -> what was last seen, since when
        self._finished: dict[str, str] = {}  # uid -> template whose rollout ended well

    def reconcile(self) -> None:
        for found in self._objects.all(k.DEPLOYMENT):
            with contextlib.suppress(RefusedError):  # its namespace is going
                self._one(found)

    def _one(self, found: Json) -> None:
        paused = bool(found["spec"].get("paused"))
        sets = self._objects.owned(k.REPLICA_SET, found)
        digest = template_hash(found["spec"]["template"])
        newest = next((one for one in sets if one["metadata"]["labels"].get(HASH) == digest), None)
        if newest is None and paused:
            newest = max(sets, key=_revision, default=None)
        if newest is None or (_revision(newest) != max(_revision(one) for one in sets) and not paused):
            newest = self._turn(found, newest, sets, digest)
            sets = self._objects.owned(k.REPLICA_SET, found)
        self._show_revision(found, newest)
        old = [one for one in sets if one["metadata"]["uid"] != newest["metadata"]["uid"]]
        if found["spec"]["strategy"]["type"] == "Recreate":
            self._recreate(found, newest, old)
        else:
            self._roll(found, newest, old, paused=paused)
        self._tidy(found, old)
        self._report(found, newest, digest)

    def _turn(self, found: Json, newest: Json | None, sets: list[Json], digest: str) -> Json:
        """Make the ReplicaSet of the current template the newest revision, creating it where there is none."""
        revision = str(max((_revision(one) for one in sets), default=0) + 1)
        if newest is not None:
            return self._objects.edit(
                k.REPLICA_SET, newest, lambda fresh: fresh["metadata"]["annotations"].update({REVISION: revision})
            )
        template = copy.deepcopy(found["spec"]["template"])
        labels = template.setdefault("metadata", {}).setdefault("labels", {})
        labels[HASH] = digest
        selector = copy.deepcopy(found["spec"]["selector"])
        selector.setdefault("matchLabels", {})[HASH] = digest
        body = {
            "metadata": {
                "name": f"{found['metadata']['name']}-{digest}",
                "labels": dict(labels),
                "annotations": {REVISION: revision},
                "ownerReferences": [owner_reference(k.DEPLOYMENT, found)],
            },
            "spec": {"replicas": 0, "selector": selector, "template": template},
        }
        return self._objects.create(k.REPLICA_SET, found["metadata"]["namespace"], body, manager="controller")

    def _show_revision(self, found: Json, newest: Json) -> None:
        revision = newest["metadata"]["annotations"][REVISION]
        if (found["metadata"].get("annotations") or {}).get(REVISION) != revision:
            self._objects.edit(
                k.DEPLOYMENT,
                found,
                lambda fresh: fresh["metadata"].setdefault("annotations", {}).update({REVISION: revision}),
            )

    def _recreate(self, found: Json, newest: Json, old: list[Json]) -> None:
        for one in old:
            self._scale(found, one, 0)
        if not any(self._objects.owned(k.POD, one) for one in old):
            self._scale(found, newest, found["spec"]["replicas"])

    def _roll(self, found: Json, newest: Json, old: list[Json], *, paused: bool) -> None:
        wanted = found["spec"]["replicas"]
        rolling = found["spec"]["strategy"].get("rollingUpdate") or {}
        surge = _share(rolling.get("maxSurge", "25%"), wanted, up=True)
        unavailable = _share(rolling.get("maxUnavailable", "25%"), wanted, up=False)
        if surge == 0 and unavailable == 0:
            unavailable = 1
        size = newest["spec"]["replicas"]
        olds = sum(one["spec"]["replicas"] for one in old)
        if wanted == 0 or olds == 0 or size > wanted:
            self._scale(found, newest, wanted)
        elif not paused:
            room = max(0, wanted + surge - size - olds)
            self._scale(found, newest, min(wanted, size + room))
        if wanted == 0:
            for one in old:
                self._scale(found, one, 0)
        elif not paused:
            self._shrink(found, newest, old, least=wanted - unavailable)

    def _shrink(self, found: Json, newest: Json, old: list[Json], *, least: int) -> None:
        size = self._objects.get(k.REPLICA_SET, newest["metadata"]["namespace"], newest["metadata"]["name"])["spec"]
        available = {one["metadata"]["uid"]: self._available(one) for one in [newest, *old]}
        missing = size["replicas"] - available[newest["metadata"]["uid"]]
        spare = size["replicas"] + sum(one["spec"]["replicas"] for one in old) - least - missing
        for one in old:
            broken = one["spec"]["replicas"] - available[one["metadata"]["uid"]]
            gone = max(0, min(broken, spare))
            # What is broken serves nobody; only then what still works, as far as the newest stands in for it.
            working = one["spec"]["replicas"] - broken
            over = max(0, min(working, sum(available.values()) - least, spare - gone))
            available[one["metadata"]["uid"]] -= over
            spare -= gone + over
            self._scale(found, one, one["spec"]["replicas"] - gone - over)

    def _available(self, one: Json) -> int:
        return sum(is_ready(pod) for pod in active(self._objects.owned(k.POD, one)))

    def _scale(self, found: Json, one: Json, replicas: int) -> None:
        fresh = self._objects.find(k.REPLICA_SET, one["metadata"]["namespace"], one["metadata"]["name"])
        if fresh is None or fresh["spec"]["replicas"] == replicas:
            return
        word = "up" if fresh["spec"]["replicas"] < replicas else "down"
        self._objects.edit(k.REPLICA_SET, one, lambda inner: inner["spec"].update({"replicas": replicas}))
        message = f"Scaled {word} replica set {one['metadata']['name']} to {replicas}"
        tell(self._objects, k.DEPLOYMENT, found, reason="ScalingReplicaSet", message=message)

    def _tidy(self, found: Json, old: list[Json]) -> None:
        idle = [one for one in old if one["spec"]["replicas"] == 0 and not self._objects.owned(k.POD, one)]
        surplus = len(idle) - found["spec"]["revisionHistoryLimit"]
        for one in sorted(idle, key=_revision)[: max(0, surplus)]:
            self._objects.delete(k.REPLICA_SET, one["metadata"]["namespace"], one["metadata"]["name"])

    def _report(self, found: Json, newest: Json, digest: str) -> None:
        pods = [active(self._objects.owned(k.POD, one)) for one in self._objects.owned(k.REPLICA_SET, found)]
        every = [pod for group in pods for pod in group]
        ready = sum(is_ready(pod) for pod in every)
        updated = len(active(self._objects.owned(k.POD, newest)))
        wanted = found["spec"]["replicas"]
        uid = found["metadata"]["uid"]
        if updated == len(every) == ready == wanted:
            self._finished[uid] = digest
        conditions = (found.get("status") or {}).get("conditions") or []
        enough = ready >= wanted - _share(
            (found["spec"]["strategy"].get("rollingUpdate") or {}).get("maxUnavailable", 0), wanted, up=False
        )
        reason = "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable"
        conditions = with_condition(conditions, "Available", met=enough, reason=reason)
        late, reason, message = self._advance(found, newest, digest, (updated, len(every), ready))
        conditions = with_condition(conditions, "Progressing", met=not late, reason=reason, message=message)
        status = {
            "observedGeneration": found["metadata"]["generation"],
            "replicas": len(every),
            "updatedReplicas": updated,
            "readyReplicas": ready,
            "availableReplicas": ready,
            "unavailableReplicas": max(0, wanted - ready),
            "conditions": conditions,
        }
        set_status(self._objects, k.DEPLOYMENT, found, status)

    def _advance(self, found: Json, newest: Json, digest: str, seen: tuple[int, int, int]) -> tuple[bool, str, str]:
        uid, name = found["metadata"]["uid"], newest["metadata"]["name"]
        if self._finished.get(uid) == digest:
            return False, "NewReplicaSetAvailable", f'ReplicaSet "{name}" has successfully progressed.'
        mark = (found["metadata"]["generation"], digest, *seen)
        before, since = self._progress.get(uid, (None, 0.0))
        now = time.monotonic()
        if before != mark:
            self._progress[uid], since = (mark, now), now
        if not found["spec"].get("paused") and now - since > found["spec"]["progressDeadlineSeconds"]:
            return True, "ProgressDeadlineExceeded", f'ReplicaSet "{name}" has timed out progressing.'
        return False, "ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.'


def _revision(one: Json) -> int:
    return int(one["metadata"]["annotations"][REVISION])


def _share(value: int | str, whole: int, *, up: bool) -> int:
    if isinstance(value, int):
        return value
    part = int(value.rstrip("%")) * whole / 100
    return math.ceil(part) if up else math.floor(part)
