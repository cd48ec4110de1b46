"""Finds the GitOps controller of a workload and tells how to suspend it. Pure, but for the reads it is given.

Argo CD marks what it tracks with the annotation `argocd.argoproj.io/tracking-id` or the label
`app.kubernetes.io/instance`; it reverts drift while `spec.syncPolicy.automated` is there and enabled.
Flux marks with `kustomize.toolkit.fluxcd.io/name|namespace` and `helm.toolkit.fluxcd.io/name|namespace`, and reverts
unless `spec.suspend` is true. An object above that one (an ApplicationSet, a parent Application) may take the
suspension back; `GitOps.suspended` is therefore read again and never assumed.
"""

import json
from typing import Any, NamedTuple

from actions.adapters.kubernetes_session import Resource, Session
from actions.ports import GitOps
from actions.site import WorkloadRef

Json = dict[str, Any]

MARK = "dr.superprismora.com/gitops-mark"
RECORD = "dr.superprismora.com/gitops-record"
ARGO_GROUP = "argoproj.io"
FLUX = {  # label prefix -> kind, plural; the prefix is the API group as well
    "kustomize.toolkit.fluxcd.io": ("Kustomization", "kustomizations"),
    "helm.toolkit.fluxcd.io": ("HelmRelease", "helmreleases"),
}


class Controller(NamedTuple):
    """The custom object that governs a workload."""

    facts: GitOps
    resource: Resource
    found: Json


def controller(session: Session, ref: WorkloadRef, workload: Json, argocd_namespace: str) -> Controller | None:
    """Look for the object that would undo a change; None without one, or where its kind is not installed."""
    return _flux(session, workload) or _argo(session, ref, workload, argocd_namespace)


def _flux(session: Session, workload: Json) -> Controller | None:
    labels: dict[str, str] = workload["metadata"].get("labels") or {}
    for group, (kind, plural) in FLUX.items():
        name = labels.get(f"{group}/name")
        namespace = labels.get(f"{group}/namespace")
        if not name or not namespace:
            continue
        version = session.preferred_version(group)
        if version is None:
            continue
        resource = Resource(group, version, plural)
        found = session.get(resource, namespace, name)
        if found is not None:
            suspended = bool((found.get("spec") or {}).get("suspend"))
            facts = GitOps(
                tool="flux",
                kind=kind,
                namespace=namespace,
                name=name,
                suspended=suspended,
                revision=str((found.get("status") or {}).get("lastAppliedRevision") or ""),
                status=ready(found),
                mark=_noted(found, MARK) if suspended else "",
            )
            return Controller(facts, resource, found)
    return None


def _argo(session: Session, ref: WorkloadRef, workload: Json, home: str) -> Controller | None:
    tracking = (workload["metadata"].get("annotations") or {}).get("argocd.argoproj.io/tracking-id", "")
    label = (workload["metadata"].get("labels") or {}).get("app.kubernetes.io/instance", "")
    owner = tracking.split(":", maxsplit=1)[0] or label
    version = session.preferred_version(ARGO_GROUP) if owner else None
    if version is None:
        return None
    resource = Resource(ARGO_GROUP, version, "applications")
    # Applications outside Argo CD's own namespace are tracked as <namespace>_<name>.
    namespace, _, name = owner.rpartition("_")
    found = session.get(resource, namespace or home, name)
    if found is None or not (tracking or _lists(found, ref)):
        return None
    automated = ((found.get("spec") or {}).get("syncPolicy") or {}).get("automated")
    suspended = automated is None or automated.get("enabled") is False
    mark = _noted(found, MARK) if suspended else ""
    given_back = _noted(found, RECORD) if mark else ""
    facts = GitOps(
        tool="argocd",
        kind="Application",
        namespace=namespace or home,
        name=name,
        suspended=suspended,
        revision=str(((found.get("status") or {}).get("sync") or {}).get("revision") or ""),
        status=synced(found),
        mark=mark,
        automated=given_back or ("" if automated is None else json.dumps(automated, sort_keys=True)),
    )
    return Controller(facts, resource, found)


def synced(application: Json) -> str:
    """What an Application says of itself: `OutOfSync, Degraded`; empty before its first look."""
    status = application.get("status") or {}
    said = [(status.get("sync") or {}).get("status"), (status.get("health") or {}).get("status")]
    return ", ".join(str(word) for word in said if word)


def ready(found: Json) -> str:
    """What a Flux object says of itself; empty before its first look."""
    for condition in (found.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "Ready":
            return (
                "Ready" if condition.get("status") == "True" else f"not ready: {condition.get('reason') or 'unknown'}"
            )
    return ""


def _lists(application: Json, ref: WorkloadRef) -> bool:
    # Helm sets the same label on what Argo CD knows nothing about. An application that lists its resources settles
    # it; one that was never synchronised lists none and gets the benefit of the doubt.
    resources = (application.get("status") or {}).get("resources")
    if not resources:
        return True
    return any(
        found.get("kind") == ref.kind.value
        and found.get("name") == ref.name
        and found.get("namespace") == ref.namespace
        for found in resources
    )


def suspension(owner: Controller, mark: str) -> Json | None:
    """The merge patch that suspends, or None when somebody has done so already."""
    if owner.facts.suspended:
        return None
    spec = owner.found.get("spec") or {}
    record: Any
    change: Json
    if owner.facts.tool == "flux":
        record, change = spec.get("suspend"), {"suspend": True}
    else:
        record, change = spec["syncPolicy"]["automated"], {"syncPolicy": {"automated": None}}
    # Somebody switched it on again after an earlier plan of ours: what is there now is what must come back, so an
    # old record is written over on purpose.
    note = {MARK: mark, RECORD: json.dumps(record, sort_keys=True)}
    return {"metadata": {**_version(owner.found), "annotations": note}, "spec": change}


def resumption(owner: Controller, mark: str) -> Json | None:
    """The merge patch that takes back a suspension made under `mark`; None when it was not, or nothing is left."""
    if _noted(owner.found, MARK) != mark:
        return None
    patch: Json = {"metadata": {**_version(owner.found), "annotations": {MARK: None, RECORD: None}}}
    if not owner.facts.suspended:
        return patch  # switched on by hand meanwhile; only our note goes
    record = json.loads(_noted(owner.found, RECORD) or "null")
    # In a merge patch null removes the key: just what an absent `suspend` asks for.
    patch["spec"] = {"suspend": record} if owner.facts.tool == "flux" else {"syncPolicy": {"automated": record}}
    return patch


def _noted(found: Json, annotation: str) -> str:
    return str((found["metadata"].get("annotations") or {}).get(annotation) or "")


def _version(found: Json) -> Json:
    return {"resourceVersion": found["metadata"]["resourceVersion"]}
