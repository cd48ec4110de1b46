"""What the controllers share: making pods, counting them, conditions, events."""

import copy
import hashlib
import json
import secrets
from typing import Any

from bot.demo.cluster import kinds as k
from bot.demo.cluster.kinds import Kind
from bot.demo.cluster.objects import Objects, timestamp

Json = dict[str, Any]


def owner_reference(kind: Kind, owner: Json) -> Json:
    return {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def make_pod(
    objects: Objects, kind: Kind, owner: Json, template: Json, *, name: str = "", labels: dict[str, str] | None = None
) -> None:
    """Create a pod of the owner's template; without a name it gets the owner's and a random end."""
    metadata = template.get("metadata") or {}
    pod = {
        "metadata": {
            "name": name or f"{owner['metadata']['name']}-{secrets.token_hex(3)[:5]}",
            "labels": {**(metadata.get("labels") or {}), **(labels or {})},
            "annotations": dict(metadata.get("annotations") or {}),
            "ownerReferences": [owner_reference(kind, owner)],
        },
        "spec": copy.deepcopy(template["spec"]),
        "status": {"phase": "Pending"},
    }
    objects.create(k.POD, owner["metadata"]["namespace"], pod, manager="controller")


def active(pods: list[Json]) -> list[Json]:
    """Those that count: not being ended and not over."""
    return [
        pod
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") not in ("Succeeded", "Failed")
    ]


def is_ready(pod: Json) -> bool:
    found = pod["status"].get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in found)


def template_hash(template: Json) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def with_condition(conditions: list[Json], name: str, *, met: bool, reason: str, message: str = "") -> list[Json]:
    """The list with one condition set; times move only when something in it changes."""
    wanted = {"type": name, "status": "True" if met else "False", "reason": reason, "message": message}
    before = next((found for found in conditions if found["type"] == name), None)
    if before is not None and all(before.get(key) == value for key, value in wanted.items()):
        return conditions
    now = timestamp()
    moved = now if before is None or before["status"] != wanted["status"] else before["lastTransitionTime"]
    rest = [found for found in conditions if found["type"] != name]
    return [*rest, {**wanted, "lastUpdateTime": now, "lastTransitionTime": moved}]


def set_status(objects: Objects, kind: Kind, found: Json, status: Json) -> None:
    """Write the status; one that says the same makes no new version."""

    def change(fresh: Json) -> None:
        fresh["status"] = status

    objects.edit(kind, found, change, part="status")


def tell(objects: Objects, kind: Kind, about: Json, *, reason: str, message: str, warning: bool = False) -> None:
    """An Event, as real clusters write them: `eventTime` is null."""
    metadata = about["metadata"]
    now = timestamp()
    event = {
        "metadata": {"name": f"{metadata['name']}.{secrets.token_hex(8)}"},
        "involvedObject": {
            "apiVersion": kind.api_version,
            "kind": kind.name,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "reason": reason,
        "message": message,
        "type": "Warning" if warning else "Normal",
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "eventTime": None,
        "source": {"component": "stand-in"},
    }
    if objects.find(k.NAMESPACE, "", metadata["namespace"]) is not None:
        objects.create(k.EVENT, metadata["namespace"], event, manager="controller")
