"""Manifests out of the files of a repository: plain YAML and JSON, as `kubectl apply` reads them.

What makes manifests out of something else (Helm, Kustomize) is not rendered and not guessed: it is named.
"""

from __future__ import annotations

import base64
import binascii
import copy
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.resolver import VersionedResolver

from actions.manifests import Json, RepositoryFile, Tree

MAKERS = {
    "Chart.yaml": "Helm",
    "kustomization.yaml": "Kustomize",
    "kustomization.yml": "Kustomize",
    "Kustomization": "Kustomize",
}
NODES = 200_000
"""Of one file; anchors can make a small file endless."""
KEPT = 16 << 20
"""Bytes of the files that are not read again while they stay as they are."""

MADE_BY = {"HelmRelease": "its chart", "Application": "its source", "Kustomization": "its path"}


class _AsKubernetes(SafeConstructor):
    """YAML 1.1 as Kubernetes reads it: `0644` is octal and `yes` is true, but `12:30` and dates stay text."""


class _Eleven(VersionedResolver):
    """1.1 in every document of a file; the stock one forgets it after the first."""

    @property
    def processing_version(self) -> Any:
        return (1, 1)


def _number(constructor: SafeConstructor, node: ScalarNode) -> Any:
    if ":" in node.value:
        return node.value
    return SafeConstructor.construct_yaml_int(constructor, node)


def _decimal(constructor: SafeConstructor, node: ScalarNode) -> Any:
    if ":" in node.value:
        return node.value
    try:
        return float(node.value.replace("_", ""))  # the stock one warns of `5e77`, and quotes it: it may be a secret
    except ValueError:
        return SafeConstructor.construct_yaml_float(constructor, node)  # .inf, .nan


_AsKubernetes.add_constructor("tag:yaml.org,2002:int", _number)
_AsKubernetes.add_constructor("tag:yaml.org,2002:float", _decimal)
_AsKubernetes.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def read(files: Iterable[RepositoryFile]) -> Tree:
    """Every object, Secrets veiled. Never raises for what somebody pushed."""
    files = list(files)
    made: dict[PurePosixPath, str] = {}
    for file in files:
        path = PurePosixPath(file.path)
        if path.name in MAKERS:
            made[path.parent] = MAKERS[path.name]
    objects: list[Json] = []
    unknown = [f"`{folder}` is made by {maker}, which is not rendered here" for folder, maker in sorted(made.items())]
    for file in files:
        if file.body is None:
            unknown.append(f"`{file.path}` {file.problem}")
        elif not any(folder in made for folder in PurePosixPath(file.path).parents):
            found, problem = _KNOWN.objects(file.body)
            objects += found
            unknown += [f"`{file.path}` {problem}"] if problem else []
    unknown += [
        f"{found['kind']} `{found['metadata']['name']}`: what {MADE_BY[found['kind']]} makes is not compared"
        for found in objects
        if found["kind"] in MADE_BY and "." in found["apiVersion"]
    ]
    return Tree(tuple(objects), tuple(dict.fromkeys(unknown)))


class Known:
    """What was made of the files that were read last: a repository is read every few minutes and hardly ever changes,
    and YAML takes half a second of a processor per 100 kB. Files are known by their hash, since a body may hold secrets
    that are not in what is made of it."""

    def __init__(self, limit: int = KEPT) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._made: OrderedDict[bytes, tuple[list[Json], str, int]] = OrderedDict()
        self._bytes = 0

    def objects(self, body: bytes) -> tuple[list[Json], str]:
        """The objects, which are the caller's own, and what is wrong with the file."""
        key = hashlib.sha256(body).digest()
        with self._lock:
            known = self._made.get(key)
            if known is not None:
                self._made.move_to_end(key)
        if known is None:
            known = (*_objects(body), len(body))
            self._keep(key, known)
        return copy.deepcopy(known[0]), known[1]

    def _keep(self, key: bytes, made: tuple[list[Json], str, int]) -> None:
        with self._lock:
            if key not in self._made:
                self._made[key] = made
                self._bytes += made[2]
            while self._bytes > self._limit:
                self._bytes -= self._made.popitem(last=False)[1][2]


_KNOWN = Known()


def _objects(body: bytes) -> tuple[list[Json], str]:
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = _Eleven
    yaml.Constructor = _AsKubernetes
    try:
        loaded = list(yaml.load_all(body.decode()))
        documents = [_plain(document, [NODES]) for document in loaded if document is not None]
    except (YAMLError, ValueError, RecursionError, TypeError):
        # The text of the error may quote the file.
        return [], "cannot be read as YAML (a template is no manifest)"
    found: list[Json] = []
    problem = ""
    for document in documents:
        for each in _listed(document):
            if not _is_object(each):
                problem = "holds something that is no Kubernetes object"
            else:
                found.append(veiled(each))
    return found, problem


def _listed(document: Any) -> Sequence[Any]:
    if isinstance(document, dict) and document.get("kind") == "List" and isinstance(document.get("items"), list):
        items: list[Any] = document["items"]
        return items
    return [document]


def _is_object(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("metadata"), dict):
        return False
    named = (value.get("apiVersion"), value.get("kind"), value["metadata"].get("name"))
    return all(isinstance(word, str) and word for word in named)


def _plain(value: Any, left: list[int]) -> Any:
    """JSON of it. Raises ValueError when it is larger than any manifest."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError("too large")
    if isinstance(value, dict):
        return {_word(key): _plain(item, left) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, left) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _word(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def veiled(found: Json) -> Json:
    """The same object; of a Secret only hashes of its values are left, so that nothing after this can tell them."""
    if found["kind"] != "Secret" or found["apiVersion"] != "v1":
        return found
    held: dict[str, Any] = {}
    for key, value in (found.get("data") or {}).items():
        try:
            held[key] = _hash(base64.b64decode(str(value)))
        except (binascii.Error, ValueError):
            held[key] = _hash(str(value).encode())
    for key, value in (found.get("stringData") or {}).items():
        held[key] = _hash(str(value).encode())
    metadata = dict(found["metadata"])
    # `kubectl apply` writes the whole object, values included, into an annotation of it.
    kept = {key: value for key, value in (metadata.get("annotations") or {}).items() if "last-applied" not in key}
    if "annotations" in metadata:
        metadata["annotations"] = kept
    rest = {key: value for key, value in found.items() if key not in ("data", "stringData", "metadata")}
    return {**rest, "metadata": metadata, **({"data": held} if held else {})}


def _hash(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def images_of(objects: Iterable[Json]) -> tuple[str, ...]:
    """What the pods of these objects would run, sorted."""
    return tuple(sorted({image for each in objects for image in _images(each.get("spec"))}))


def _images(spec: Any) -> Iterator[str]:
    if not isinstance(spec, dict):
        return
    for part in ("containers", "initContainers"):
        for container in spec.get(part) or []:
            if isinstance(container, dict) and isinstance(container.get("image"), str):
                yield container["image"]
    for part in ("template", "jobTemplate"):
        if isinstance(spec.get(part), dict):
            yield from _images(spec[part].get("spec"))
