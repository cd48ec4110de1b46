"""Defaults the API server fills in, and the mistakes it refuses with 422. Pure; only what callers here lean on."""

import base64
from typing import Any

from bot.demo.cluster import kinds as k
from bot.demo.cluster.answers import invalid
from bot.demo.cluster.kinds import Kind
from bot.demo.cluster.selectors import matches

Json = dict[str, Any]

# What a new object's status says before a controller has seen it.
FIRST_STATUS: dict[str, Json] = {
    k.NAMESPACE.name: {"phase": "Active"},
    k.POD.name: {"phase": "Pending"},
    k.CLAIM.name: {"phase": "Bound"},
    k.STATEFUL_SET.name: {"replicas": 0},
    k.REPLICA_SET.name: {"replicas": 0},
    k.AUTOSCALER.name: {"currentReplicas": 0, "desiredReplicas": 0},
}


def completed(kind: Kind, found: Json) -> Json:
    """The object with its defaults (in place). Raises RefusedError (422)."""
    name = found["metadata"]["name"]
    if "status" in kind.parts and not kind.custom:
        found["status"] = found.get("status") or dict(FIRST_STATUS.get(kind.name, {}))
    if kind in (k.DEPLOYMENT, k.STATEFUL_SET, k.REPLICA_SET):
        _workload(kind, name, found)
    elif kind is k.POD:
        _pod_spec(kind, name, found.setdefault("spec", {}))
    elif kind is k.JOB:
        _job(kind, name, found)
    elif kind is k.CRON_JOB:
        found["spec"].setdefault("suspend", False)
        found["spec"].setdefault("concurrencyPolicy", "Allow")
        _pod_spec(kind, name, found["spec"]["jobTemplate"]["spec"]["template"]["spec"])
    elif kind is k.SECRET:
        found.setdefault("type", "Opaque")
        for key, value in (found.pop("stringData", None) or {}).items():
            found.setdefault("data", {})[key] = base64.b64encode(value.encode()).decode()
    elif kind is k.NAMESPACE:
        found["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = name
    elif kind is k.AUTOSCALER:
        found["spec"].setdefault("minReplicas", 1)
    return found


def _workload(kind: Kind, name: str, found: Json) -> None:
    spec = found.get("spec") or {}
    if not isinstance(spec.get("selector"), dict) or not isinstance(spec.get("template"), dict):
        raise invalid(kind.name, name, "spec: Required value: selector and template")
    spec.setdefault("replicas", 1)
    if not isinstance(spec["replicas"], int) or spec["replicas"] < 0:
        raise invalid(kind.name, name, f"spec.replicas: Invalid value: {spec['replicas']}: must be at least 0")
    labels = (spec["template"].get("metadata") or {}).get("labels") or {}
    if not matches(spec["selector"], labels):
        raise invalid(kind.name, name, "spec.template.metadata.labels: Invalid value: `selector` does not match them")
    if kind is k.DEPLOYMENT:
        strategy = spec.setdefault("strategy", {})
        strategy.setdefault("type", "RollingUpdate")
        if strategy["type"] == "RollingUpdate":
            rolling = strategy.setdefault("rollingUpdate", {})
            rolling.setdefault("maxSurge", "25%")
            rolling.setdefault("maxUnavailable", "25%")
        spec.setdefault("progressDeadlineSeconds", 600)
        spec.setdefault("revisionHistoryLimit", 10)
    elif kind is k.STATEFUL_SET:
        spec.setdefault("updateStrategy", {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}})
        spec.setdefault("podManagementPolicy", "OrderedReady")
    _pod_spec(kind, name, spec["template"].setdefault("spec", {}))


def _job(kind: Kind, name: str, found: Json) -> None:
    spec = found["spec"]
    spec.setdefault("backoffLimit", 6)
    spec.setdefault("completions", 1)
    spec.setdefault("parallelism", 1)
    spec.setdefault("suspend", False)
    template = spec["template"]
    if template.get("spec", {}).get("restartPolicy") not in ("Never", "OnFailure"):
        raise invalid(kind.name, name, 'spec.template.spec.restartPolicy: Required value: "OnFailure" or "Never"')
    uid = found["metadata"]["uid"]
    spec.setdefault("selector", {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}})
    template.setdefault("metadata", {}).setdefault("labels", {}).update(
        {
            "batch.kubernetes.io/controller-uid": uid,
            "batch.kubernetes.io/job-name": name,
            "controller-uid": uid,
            "job-name": name,
        }
    )
    _pod_spec(kind, name, template["spec"])


def _pod_spec(kind: Kind, name: str, spec: Json) -> None:
    containers = spec.get("containers") or []
    if not containers or not all(found.get("name") and found.get("image") for found in containers):
        raise invalid(kind.name, name, "spec.containers: Required value: each needs a name and an image")
    if len({found["name"] for found in containers}) != len(containers):
        raise invalid(kind.name, name, "spec.containers: Duplicate value")
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
