"""The `scale` subresource as autoscaling/v1 shows it. Pure."""

from typing import Any

from bot.demo.cluster.answers import RefusedError, stale

Json = dict[str, Any]


def read_scale(found: Json) -> Json:
    metadata = found["metadata"]
    shown = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    labels = (found["spec"].get("selector") or {}).get("matchLabels") or {}
    return {
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": {key: metadata[key] for key in shown if key in metadata},
        "spec": {"replicas": found["spec"].get("replicas", 0)},
        "status": {
            "replicas": (found.get("status") or {}).get("replicas", 0),
            "selector": ",".join(f"{key}={value}" for key, value in labels.items()),
        },
    }


def write_scale(live: Json, scale: Json) -> Json:
    """The object with the replicas of `scale`. Raises RefusedError (409) on a stale version."""
    version = (scale.get("metadata") or {}).get("resourceVersion", live["metadata"]["resourceVersion"])
    if version != live["metadata"]["resourceVersion"]:
        raise stale("scale", live["metadata"]["name"])
    try:
        replicas = int(scale["spec"]["replicas"])
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(422, "Scale is invalid: spec.replicas: Required value") from error
    return {**live, "spec": {**live["spec"], "replicas": replicas}}
