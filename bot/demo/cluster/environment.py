"""The environment of a container, resolved as the kubelet does it. Pure, but for the look-ups it is given."""

import base64
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Lookup = Callable[[str, str], Json | None]  # kind name, object name -> object


class MissingSourceError(Exception):
    """A ConfigMap, Secret or key that the container names is not there."""


def resolved(pod: Json, container: Json, lookup: Lookup) -> tuple[dict[str, str], dict[str, str]]:
    """Plain values and secret values, apart. Raises MissingSourceError."""
    plain: dict[str, str] = {}
    secret: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        prefix = source.get("prefix", "")
        for kind, key, into in (("ConfigMap", "configMapRef", plain), ("Secret", "secretRef", secret)):
            if ref := source.get(key):
                into |= {f"{prefix}{name}": value for name, value in _values(kind, ref, lookup).items()}
    for entry in container.get("env") or []:
        name, origin = entry["name"], entry.get("valueFrom") or {}
        for into in (plain, secret):
            into.pop(name, None)
        if ref := origin.get("configMapKeyRef"):
            plain |= _one("ConfigMap", name, ref, lookup)
        elif ref := origin.get("secretKeyRef"):
            secret |= _one("Secret", name, ref, lookup)
        elif ref := origin.get("fieldRef"):
            plain[name] = field_of(pod, ref["fieldPath"])
        else:
            plain[name] = str(entry.get("value", ""))
    return plain, secret


def _values(kind: str, ref: Json, lookup: Lookup) -> dict[str, str]:
    found = lookup(kind, ref["name"])
    if found is None:
        if ref.get("optional"):
            return {}
        raise MissingSourceError(f'{kind.lower()} "{ref["name"]}" not found')
    data = found.get("data") or {}
    if kind == "Secret":
        return {key: base64.b64decode(value).decode() for key, value in data.items()}
    return dict(data)


def _one(kind: str, name: str, ref: Json, lookup: Lookup) -> dict[str, str]:
    values = _values(kind, ref, lookup)
    if ref["key"] in values:
        return {name: values[ref["key"]]}
    if ref.get("optional"):
        return {}
    raise MissingSourceError(f"couldn't find key {ref['key']} in {kind} {ref['name']}")


def field_of(pod: Json, path: str) -> str:
    """A field of the pod, as the downward API gives it."""
    found: Any = {**pod, "status": {"podIP": "127.0.0.1", **(pod.get("status") or {})}}
    if path.endswith("']"):  # metadata.annotations['key'], metadata.labels['key']
        place, _, key = path.removesuffix("']").partition("['")
        return str((found["metadata"].get(place.removeprefix("metadata.")) or {}).get(key, ""))
    for word in path.split("."):
        found = found.get(word, "") if isinstance(found, dict) else ""
    return str(found)
