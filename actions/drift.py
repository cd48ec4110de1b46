"""Manifests beside what a cluster has. Pure: two sets of objects in, differences out.

Compared is what a manifest says. What it does not say was filled in by the server or a controller, and cannot be told
from what somebody has set: it is no drift. In a list that a manifest does give, every member counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from actions.manifests import DriftEntry, Json, KindName, Live, What

AUTOSCALER = KindName("autoscaling/v2", "HorizontalPodAutoscaler")
OURS = "dr.superprismora.com/"
"""Beginning of the annotations by which the bot marks what it has stopped."""

OWN = ("apiVersion", "kind", "status")
OWN_METADATA = ("managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink")
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
MERGED_BY = ("name", "containerPort", "mountPath", "port", "key", "ip", "topologyKey", "devicePath")
"""Fields by which members of a list are known, as in Kubernetes' merge keys."""

QUANTITIES = re.compile(r"\.(limits|requests|capacity|hard)\.|\.(storage|sizeLimit|averageValue|divisor)$")
UNITS = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "": Decimal(1),
    **{f"{letter}i": Decimal(1024**power) for power, letter in enumerate("KMGTPE", 1)},
}
SECRET_NAME = re.compile(r"passw|token|secret|credential|private|api_?key|dsn|database_url", re.IGNORECASE)
USERINFO = re.compile(r"://[^/\s]*@")
SHOWN = 60
HIDDEN = "(hidden)"
SERVER_MADE = {
    ("ConfigMap", "kube-root-ca.crt"),
    ("ConfigMap", "openshift-service-ca.crt"),
    ("ServiceAccount", "default"),
    ("Service", "kubernetes"),
}
SERVER_TYPES = ("kubernetes.io/service-account-token", "helm.sh/release.v1", "bootstrap.kubernetes.io/token")


class Compared(NamedTuple):
    """The differences, and what was left out on purpose."""

    entries: tuple[DriftEntry, ...]
    notes: tuple[str, ...]
    unknown: tuple[str, ...]


class _Key(NamedTuple):
    group: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        where = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {where}{self.name}"


def compare(wanted: Sequence[Json], live: Live, *, namespace: str) -> Compared:
    """`namespace` is that of objects which name none."""
    wide = {(_group(kind.api_version), kind.kind) for kind in live.cluster_wide}
    silent = {*live.unserved, *(kind for kind, _ in live.refused)}
    found = {_key(each, wide, namespace): each for each in live.objects}
    asked = {_key(each, wide, namespace): each for each in wanted}
    scaled = _scaled([*wanted, *live.objects], namespace)
    entries: list[DriftEntry] = []
    notes: list[str] = []
    for key, each in sorted(asked.items()):
        if KindName(each["apiVersion"], each["kind"]) in silent:
            continue
        there = found.get(key)
        if there is None:
            entries.append(DriftEntry(what=What.MISSING, object=str(key)))
            continue
        ours = _stopped_by_us(there)
        leave = {".spec.replicas"} if key in scaled else set()
        if ours:
            notes.append(f"{key} is held by the bot (`{ours}`): what it changed there is not compared.")
            leave |= {".spec.replicas", ".spec.suspend", ".spec.syncPolicy.automated"}
        elif key in scaled and "replicas" in (each.get("spec") or {}):
            notes.append(f"{key} is scaled by an autoscaler: its replicas are not compared.")
        hides = key.kind == "Secret"
        for path, want, have in _differences(_said(each), _said(there), ""):
            if path not in leave:
                shown = (
                    (HIDDEN, HIDDEN) if hides and path.startswith(".data") else (_shown(path, want), _shown(path, have))
                )
                entries.append(
                    DriftEntry(what=What.CHANGED, object=str(key), path=path[1:], wanted=shown[0], found=shown[1])
                )
    entries += _extra(asked, found)
    unknown = [f"{kind.kind} ({kind.api_version}): the cluster does not know this kind" for kind in live.unserved]
    unknown += [f"{kind.kind}: {said}" for kind, said in live.refused]
    return Compared(tuple(entries), tuple(dict.fromkeys(notes)), tuple(unknown))


def kinds_of(wanted: Sequence[Json]) -> tuple[KindName, ...]:
    """What has to be read of the cluster to compare these, and the autoscalers."""
    found = {KindName(each["apiVersion"], each["kind"]) for each in wanted}
    return tuple(sorted(found | {AUTOSCALER}))


def namespaces_of(wanted: Sequence[Json], namespace: str) -> tuple[str, ...]:
    return tuple(sorted({str(each["metadata"].get("namespace") or namespace) for each in wanted}))


def _extra(asked: Mapping[_Key, Json], found: Mapping[_Key, Json]) -> Iterator[DriftEntry]:
    """Objects of the kinds and namespaces of the manifests that no manifest has. The cluster's own, without a
    namespace, belong to many; they are not listed."""
    managed = {(key.group, key.kind, key.namespace) for key in asked}
    for key, each in sorted(found.items()):
        if not key.namespace or key in asked or (key.group, key.kind, key.namespace) not in managed:
            continue
        labels = each["metadata"].get("labels") or {}
        made = each["metadata"].get("ownerReferences") or (key.kind, key.name) in SERVER_MADE
        sealing = "sealedsecrets.bitnami.com/sealed-secrets-key" in labels
        if not (made or sealing or each.get("type") in SERVER_TYPES):
            yield DriftEntry(what=What.EXTRA, object=str(key))


def _scaled(objects: Sequence[Json], namespace: str) -> set[_Key]:
    scaled = set()
    for each in objects:
        if each["kind"] == AUTOSCALER.kind:
            target = (each.get("spec") or {}).get("scaleTargetRef") or {}
            where = str(each["metadata"].get("namespace") or namespace)
            group = _group(str(target.get("apiVersion") or "apps/v1"))
            scaled.add(_Key(group, str(target.get("kind")), where, str(target.get("name"))))
    return scaled


def _stopped_by_us(found: Json) -> str:
    """The note by which the bot holds an object; empty when it does not. A restart leaves its mark on the pods."""
    notes = found["metadata"].get("annotations") or {}
    return next((key for key in sorted(notes) if key.startswith(OURS)), "")


def _said(each: Json) -> Json:
    metadata = {key: value for key, value in each["metadata"].items() if key not in OWN_METADATA}
    metadata.pop("namespace", None)
    if isinstance(metadata.get("annotations"), dict):
        metadata["annotations"] = {k: v for k, v in metadata["annotations"].items() if k != LAST_APPLIED}
    return {**{key: value for key, value in each.items() if key not in OWN}, "metadata": metadata}


def _differences(want: Any, have: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(want, dict) and isinstance(have, dict):
        for key, value in want.items():
            yield from _differences(value, have.get(key), f"{path}.{key}")
    elif isinstance(want, list) and isinstance(have, list):
        yield from _lists(want, have, path)
    elif not (want == have and isinstance(want, bool) == isinstance(have, bool)) and not _same(want, have, path):
        yield path, want, have


def _lists(want: list[Any], have: list[Any], path: str) -> Iterator[tuple[str, Any, Any]]:
    by = next((key for key in MERGED_BY if _known_by(key, want) and _known_by(key, have)), None)
    if by is None:
        for index in range(max(len(want), len(have))):
            one, other = want[index : index + 1], have[index : index + 1]
            if not one or not other:
                yield f"{path}[{index}]", one[0] if one else None, other[0] if other else None
            else:
                yield from _differences(one[0], other[0], f"{path}[{index}]")
        return
    wanted, found = {each[by]: each for each in want}, {each[by]: each for each in have}
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        where = f"{path}[{name}]"
        if name not in wanted or name not in found:
            yield where, wanted.get(name), found.get(name)
        else:
            yield from _differences(wanted[name], found[name], where)


def _known_by(key: str, members: list[Any]) -> bool:
    names = [each.get(key) if isinstance(each, dict) else None for each in members]
    return all(isinstance(name, str | int) for name in names) and len(set(names)) == len(names)


def _same(want: Any, have: Any, path: str) -> bool:
    """Written otherwise, and yet the same: nothing and empty, quantities."""
    if want in (None, "", [], {}) and have in (None, "", [], {}):
        return True
    if want in ({}, []) or isinstance(want, dict | list):
        return have is None and not want
    if QUANTITIES.search(path):
        one, other = _quantity(want), _quantity(have)
        return one is not None and one == other
    return want in (0, False) and not isinstance(want, str) and have is None  # the server leaves zeros out


def _quantity(value: Any) -> Decimal | None:
    matched = re.fullmatch(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]{0,2})", str(value))
    if matched is None or matched[2] not in UNITS:
        return None
    try:
        return Decimal(matched[1]) * UNITS[matched[2]]
    except InvalidOperation:
        return None


def _shown(path: str, value: Any) -> str:
    """As people may see it. What looks like a secret by its name, or carries a password in an address, is hidden."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return f"{len(value)} field(s)" if isinstance(value, dict) else f"{len(value)} member(s)"
    text = str(value)
    if SECRET_NAME.search(path) and not isinstance(value, bool):
        return HIDDEN
    if "\n" in text:
        return f"{len(text)} characters"
    text = USERINFO.sub("://***@", text)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _key(each: Json, wide: set[tuple[str, str]], namespace: str) -> _Key:
    group, kind = _group(each["apiVersion"]), each["kind"]
    where = "" if (group, kind) in wide else str(each["metadata"].get("namespace") or namespace)
    return _Key(group, kind, where, each["metadata"]["name"])


def _group(api_version: str) -> str:
    return api_version.rpartition("/")[0]
