"""A container as a process of this machine: its argv, its environment and its folders.

The first container of a pod runs for real when the pod has the annotation `COMMAND`, or when its image is one the
stand-in was given the entry point of. There is no mount namespace: where an argument or a plain variable is a path
under a mount, the host's folder is put in its place.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bot.demo.cluster.environment import Lookup, field_of, resolved

Json = dict[str, Any]
Images = Mapping[str, Sequence[str]]
"""Image -> its entry point on this machine."""

COMMAND = "demo.superprismora.com/command"
TERMINATION = "/dev/termination-log"
TERMINATION_KEPT = 4096  # bytes, as the kubelet cuts it
FAILED_MOUNT = "FailedMount"


class Prepared(NamedTuple):
    """What is started. `message` is where the container may leave its last words."""

    argv: list[str]
    env: dict[str, str]
    secrets: dict[str, str]
    message: Path


class UnmountableError(Exception):
    """A volume's source is not there: the pod waits in ContainerCreating."""


def is_real(pod: Json, images: Images) -> bool:
    annotations = pod["metadata"].get("annotations") or {}
    return COMMAND in annotations or pod["spec"]["containers"][0]["image"] in images


def prepared(pod: Json, directory: Path, images: Images, lookup: Lookup, *, port: int) -> Prepared:
    """Make the folders of the pod and say what is to be started.

    Raises MissingSourceError for the environment, UnmountableError for a volume.
    """
    container = pod["spec"]["containers"][0]
    home = directory / "pods" / pod["metadata"]["name"]
    home.mkdir(parents=True, exist_ok=True)
    message = home / "termination-message"
    places = {str(container.get("terminationMessagePath") or TERMINATION): message}
    for mount in container.get("volumeMounts") or []:
        volume = next(one for one in pod["spec"]["volumes"] if one["name"] == mount["name"])
        inner = _volume(pod, volume, directory, home, lookup)
        places[str(mount["mountPath"]).rstrip("/")] = inner / str(mount.get("subPath") or "")
    env, secrets = resolved(pod, container, lookup)
    annotated = (pod["metadata"].get("annotations") or {}).get(COMMAND)
    entry: list[str] = []  # of the host already
    if annotated is not None:
        words = [str(word) for word in json.loads(annotated)]
    elif container.get("command"):
        words = [*container["command"], *(container.get("args") or [])]
    else:
        entry, words = [*images[container["image"]]], [*(container.get("args") or [])]
    argv = [_on_host(str(word).replace("{port}", str(port)), places) for word in words]
    return Prepared([*entry, *argv], {name: _on_host(value, places) for name, value in env.items()}, secrets, message)


def last_words(message: Path) -> str:
    """What the container wrote as its termination message."""
    try:
        return message.read_bytes()[:TERMINATION_KEPT].decode(errors="replace")
    except FileNotFoundError:
        return ""


def _on_host(word: str, places: Mapping[str, Path]) -> str:
    for path in sorted(places, key=len, reverse=True):
        if word == path or word.startswith(f"{path}/"):
            return f"{places[path]}{word[len(path) :]}"
    return word


def _volume(pod: Json, volume: Json, directory: Path, home: Path, lookup: Lookup) -> Path:
    namespace, inner = pod["metadata"]["namespace"], home / "volumes" / str(volume["name"])
    if claim := volume.get("persistentVolumeClaim"):
        inner = Path(directory, "claims", f"{namespace}.{claim['claimName']}")
        inner.mkdir(parents=True, exist_ok=True)
        return inner
    inner.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes] = {}
    if source := volume.get("configMap"):
        files = {name: text.encode() for name, text in _data("ConfigMap", source["name"], source, lookup).items()}
    elif source := volume.get("secret"):
        data = _data("Secret", source["secretName"], source, lookup)
        files = {name: base64.b64decode(value) for name, value in data.items()}
    elif source := volume.get("downwardAPI"):
        files = {item["path"]: field_of(pod, item["fieldRef"]["fieldPath"]).encode() for item in source["items"]}
    for name, content in files.items():
        (inner / name).write_bytes(content)
    return inner


def _data(kind: str, name: str, source: Json, lookup: Lookup) -> dict[str, str]:
    found = lookup(kind, name)
    if found is None and not source.get("optional"):
        raise UnmountableError(f'MountVolume.SetUp failed: {kind.lower()} "{name}" not found')
    data: dict[str, str] = (found or {}).get("data") or {}
    return data


def unscheduled(pod: Json, claims: Lookup, *, memory: int) -> str:
    """Why no node takes the pod; empty when one does. There is one node, with `memory` bytes."""
    for volume in pod["spec"].get("volumes") or []:
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if claim and claims("PersistentVolumeClaim", claim) is None:
            return f'persistentvolumeclaim "{claim}" not found'
    wanted = sum(
        quantity(str(((one.get("resources") or {}).get("requests") or {}).get("memory", "0")))
        for one in pod["spec"]["containers"]
    )
    return "0/1 nodes are available: 1 Insufficient memory." if wanted > memory else ""


def quantity(text: str) -> int:
    """A Kubernetes quantity of bytes, whole units only."""
    units = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "K": 10**3, "M": 10**6, "G": 10**9}
    for unit, factor in units.items():
        if text.endswith(unit):
            return int(text.removesuffix(unit)) * factor
    return int(text)


def cleared(directory: Path, pod: Json) -> None:
    """Remove the folders of a pod that is gone; claims stay."""
    shutil.rmtree(directory / "pods" / pod["metadata"]["name"] / "volumes", ignore_errors=True)
