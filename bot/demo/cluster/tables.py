"""What `kubectl get` asks for: rows and columns instead of objects. Pure."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from bot.demo.cluster import kinds as k
from bot.demo.cluster.kinds import Kind

Json = dict[str, Any]
Column = tuple[str, Callable[[Json], Any]]


def table(kind: Kind, found: Json) -> Json:
    """A `meta.k8s.io/v1` Table of an object or a list of them."""
    columns: list[Column] = [("Name", _name), *_COLUMNS.get(kind.name, []), ("Age", _age)]
    items = found.get("items", [found])
    return {
        "apiVersion": "meta.k8s.io/v1",
        "kind": "Table",
        "metadata": {"resourceVersion": found["metadata"].get("resourceVersion", "")},
        "columnDefinitions": [
            {
                "name": name,
                "type": "string",
                "format": "name" if name == "Name" else "",
                "description": "",
                "priority": 0,
            }
            for name, _ in columns
        ],
        "rows": [{"cells": [read(item) for _, read in columns], "object": _partial(item)} for item in items],
    }


def _partial(item: Json) -> Json:
    metadata = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    return {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata}


def _name(item: Json) -> str:
    return str(item["metadata"]["name"])


def _age(item: Json) -> str:
    born = datetime.strptime(item["metadata"]["creationTimestamp"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    seconds = int((datetime.now(UTC) - born).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(0, seconds)}s"


def _status(item: Json, key: str) -> str:
    return str((item.get("status") or {}).get(key, 0))


def _ready(item: Json) -> str:
    return f"{_status(item, 'readyReplicas')}/{item['spec'].get('replicas', 1)}"


def _pod_ready(item: Json) -> str:
    found = (item.get("status") or {}).get("containerStatuses") or []
    return f"{sum(bool(one['ready']) for one in found)}/{len(item['spec']['containers'])}"


def _pod_status(item: Json) -> str:
    if "deletionTimestamp" in item["metadata"]:
        return "Terminating"
    status = item.get("status") or {}
    for one in status.get("containerStatuses") or []:
        for state in ("waiting", "terminated"):
            if reason := (one.get("state") or {}).get(state, {}).get("reason"):
                return str(reason)
    return str(status.get("phase", "Pending"))


def _restarts(item: Json) -> str:
    return str(sum(one["restartCount"] for one in (item.get("status") or {}).get("containerStatuses") or []))


_COLUMNS: dict[str, list[Column]] = {
    "Pod": [("Ready", _pod_ready), ("Status", _pod_status), ("Restarts", _restarts)],
    "Deployment": [
        ("Ready", _ready),
        ("Up-to-date", lambda item: _status(item, "updatedReplicas")),
        ("Available", lambda item: _status(item, "availableReplicas")),
    ],
    "StatefulSet": [("Ready", _ready)],
    "ReplicaSet": [
        ("Desired", lambda item: str(item["spec"]["replicas"])),
        ("Current", lambda item: _status(item, "replicas")),
        ("Ready", lambda item: _status(item, "readyReplicas")),
    ],
    "Job": [("Completions", lambda item: f"{_status(item, 'succeeded')}/{item['spec']['completions']}")],
    "CronJob": [
        ("Schedule", lambda item: item["spec"]["schedule"]),
        ("Suspend", lambda item: str(item["spec"]["suspend"])),
        ("Active", lambda item: str(len((item.get("status") or {}).get("active") or []))),
    ],
    "ConfigMap": [("Data", lambda item: str(len(item.get("data") or {})))],
    "Namespace": [("Status", lambda item: item["status"]["phase"])],
    k.APPLICATION.name: [("Sync Status", lambda item: (item.get("status") or {}).get("sync", {}).get("status", ""))],
}
