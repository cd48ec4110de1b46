"""HorizontalPodAutoscalers without a metric: they keep the count between their bounds, and are off at zero."""

from typing import Any

from bot.demo.cluster.kinds import AUTOSCALER
from bot.demo.cluster.objects import Objects
from bot.demo.cluster.workloads import set_status

Json = dict[str, Any]


class Autoscalers:
    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def reconcile(self) -> None:
        for found in self._objects.all(AUTOSCALER):
            target = found["spec"]["scaleTargetRef"]
            kind = self._objects.kinds.by_name(target.get("apiVersion", "apps/v1"), target["kind"])
            live = self._objects.find(kind, found["metadata"]["namespace"], target["name"]) if kind else None
            if kind is None or live is None:
                continue
            now = int(live["spec"].get("replicas", 0))
            wanted = min(max(now, found["spec"]["minReplicas"]), found["spec"]["maxReplicas"]) if now else 0
            if wanted != now:
                _keep(self._objects, kind, live, wanted)
            status = {"currentReplicas": now, "desiredReplicas": wanted}
            set_status(self._objects, AUTOSCALER, found, status)


def _keep(objects: Objects, kind: Any, live: Json, wanted: int) -> None:
    objects.edit(kind, live, lambda fresh: fresh["spec"].update({"replicas": wanted}), manager="autoscaler")
