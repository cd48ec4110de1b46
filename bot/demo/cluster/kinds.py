"""The kinds of objects the stand-in serves, and custom ones registered while it runs."""

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind. `group` is empty for the core group; `parts` are its subresources."""

    group: str
    version: str
    name: str
    plural: str
    namespaced: bool = True
    short: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    custom: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_resource(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def discovered(self) -> list[Json]:
        """Its entries in an APIResourceList."""
        verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        entry: Json = {"name": self.plural, "singularName": self.name.lower(), "namespaced": self.namespaced}
        entry |= {"kind": self.name, "verbs": verbs}
        if self.short:
            entry["shortNames"] = list(self.short)
        if self.plural in ("pods", "services", "deployments", "replicasets", "statefulsets", "jobs", "cronjobs"):
            entry["categories"] = ["all"]  # what `kubectl get all` means
        parts: list[Json] = []
        for part in self.parts:
            kind = "Scale" if part == "scale" else self.name
            part_verbs = ["get"] if part == "log" else ["get", "patch", "update"]
            found: Json = {"name": f"{self.plural}/{part}", "singularName": "", "namespaced": self.namespaced}
            found |= {"kind": kind, "verbs": part_verbs}
            if part == "scale":
                found |= {"group": "autoscaling", "version": "v1"}
            parts.append(found)
        return [entry, *parts]


def _core(name: str, plural: str, *short: str, namespaced: bool = True, parts: tuple[str, ...] = ()) -> Kind:
    return Kind(group="", version="v1", name=name, plural=plural, namespaced=namespaced, short=short, parts=parts)


def _apps(name: str, plural: str, short: str) -> Kind:
    return Kind(group="apps", version="v1", name=name, plural=plural, short=(short,), parts=("status", "scale"))


NAMESPACE = _core("Namespace", "namespaces", "ns", namespaced=False, parts=("status", "finalize"))
POD = _core("Pod", "pods", "po", parts=("status", "log"))
CONFIG_MAP = _core("ConfigMap", "configmaps", "cm")
SECRET = _core("Secret", "secrets")
SERVICE = _core("Service", "services", "svc", parts=("status",))
SERVICE_ACCOUNT = _core("ServiceAccount", "serviceaccounts", "sa")
EVENT = _core("Event", "events", "ev")
CLAIM = _core("PersistentVolumeClaim", "persistentvolumeclaims", "pvc", parts=("status",))
DEPLOYMENT = _apps("Deployment", "deployments", "deploy")
STATEFUL_SET = _apps("StatefulSet", "statefulsets", "sts")
REPLICA_SET = _apps("ReplicaSet", "replicasets", "rs")
JOB = Kind(group="batch", version="v1", name="Job", plural="jobs", parts=("status",))
CRON_JOB = Kind(group="batch", version="v1", name="CronJob", plural="cronjobs", short=("cj",), parts=("status",))
AUTOSCALER = Kind(
    group="autoscaling",
    version="v2",
    name="HorizontalPodAutoscaler",
    plural="horizontalpodautoscalers",
    short=("hpa",),
    parts=("status",),
)
NETWORK_POLICY = Kind(
    group="networking.k8s.io", version="v1", name="NetworkPolicy", plural="networkpolicies", short=("netpol",)
)
CUSTOM_RESOURCE = Kind(
    group="apiextensions.k8s.io",
    version="v1",
    name="CustomResourceDefinition",
    plural="customresourcedefinitions",
    namespaced=False,
    short=("crd", "crds"),
    parts=("status",),
)

BUILT_IN = (
    NAMESPACE,
    POD,
    CONFIG_MAP,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    EVENT,
    CLAIM,
    DEPLOYMENT,
    STATEFUL_SET,
    REPLICA_SET,
    JOB,
    CRON_JOB,
    AUTOSCALER,
    NETWORK_POLICY,
    CUSTOM_RESOURCE,
)

APPLICATION = Kind(group="argoproj.io", version="v1alpha1", name="Application", plural="applications", custom=True)
KUSTOMIZATION = Kind(
    group="kustomize.toolkit.fluxcd.io", version="v1", name="Kustomization", plural="kustomizations", custom=True
)
HELM_RELEASE = Kind(
    group="helm.toolkit.fluxcd.io", version="v2", name="HelmRelease", plural="helmreleases", custom=True
)
GITOPS = (APPLICATION, KUSTOMIZATION, HELM_RELEASE)


class Kinds:
    """The table of kinds served now."""

    def __init__(self, kinds: tuple[Kind, ...] = BUILT_IN) -> None:
        self._kinds = {(kind.group, kind.version, kind.plural): kind for kind in kinds}

    def __iter__(self) -> Any:
        return iter(tuple(self._kinds.values()))

    def by_path(self, group: str, version: str, plural: str) -> Kind | None:
        return self._kinds.get((group, version, plural))

    def by_name(self, api_version: str, name: str) -> Kind | None:
        return next((kind for kind in self if (kind.api_version, kind.name) == (api_version, name)), None)

    def groups(self) -> dict[str, list[str]]:
        """Versions by group, without the core group."""
        found: dict[str, list[str]] = {}
        for kind in self:
            versions = found.setdefault(kind.group, []) if kind.group else []
            if kind.version not in versions:
                versions.append(kind.version)
        return found

    def define(self, definition: Json) -> None:
        """Serve what a CustomResourceDefinition describes."""
        for kind in _defined(definition):
            self._kinds[kind.group, kind.version, kind.plural] = kind

    def withdraw(self, definition: Json) -> list[Kind]:
        """Serve it no longer; returns what is withdrawn."""
        gone = _defined(definition)
        for kind in gone:
            self._kinds.pop((kind.group, kind.version, kind.plural), None)
        return gone


def definition(kind: Kind) -> Json:
    """The CustomResourceDefinition of a custom kind."""
    return {
        "apiVersion": CUSTOM_RESOURCE.api_version,
        "kind": CUSTOM_RESOURCE.name,
        "metadata": {"name": kind.group_resource},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {"kind": kind.name, "plural": kind.plural, "singular": kind.name.lower()},
            "versions": [{"name": kind.version, "served": True, "storage": True}],
        },
    }


def _defined(found: Json) -> list[Kind]:
    spec = found["spec"]
    names = spec["names"]
    return [
        Kind(
            group=spec["group"],
            version=version["name"],
            name=names["kind"],
            plural=names["plural"],
            namespaced=spec.get("scope", "Namespaced") == "Namespaced",
            short=tuple(names.get("shortNames") or ()),
            parts=("status",) if "status" in (version.get("subresources") or {}) else (),
            custom=True,
        )
        for version in spec["versions"]
        if version.get("served", True)
    ]
