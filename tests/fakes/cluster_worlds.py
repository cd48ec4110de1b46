"""Worlds that the contract of the `Cluster` port is tried in: memory, the stand-in, and a real API server.

A world makes workloads, plays the other people who change them, and shows what the port does not.
"""

import abc
import asyncio
import contextlib
import json
import os
import secrets as randomness
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from actions.adapters.kubernetes import WORKLOADS, KubernetesCluster
from actions.adapters.kubernetes_session import Resource, Session
from actions.ports import Autoscaler, Cluster, GitOps
from actions.site import ClusterAccess, Site, WorkloadKind, WorkloadRef
from bot.demo.cluster import ClusterStandIn
from tests.fakes.cluster import MemoryCluster

Json = dict[str, Any]

IMAGE = os.environ.get("DRBOT_TEST_IMAGE", "nginx:alpine")  # must run without arguments
BROKEN_IMAGE = "image.invalid/none:broken"
GIT = "demo.superprismora.com/git"
AUTOMATED = '{"prune": false, "selfHeal": true}'


class World(abc.ABC):
    """`patience` is how many seconds this world may take to settle."""

    cluster: Cluster
    namespace = "production"
    patience = 15.0
    has_gitops = True

    @abc.abstractmethod
    async def workload(self, kind: WorkloadKind, *, replicas: int = 2) -> WorkloadRef:
        """With two containers, `app` and `sidecar`."""

    @abc.abstractmethod
    async def autoscaler(self, ref: WorkloadRef, minimum: int, maximum: int) -> None: ...

    @abc.abstractmethod
    async def scaled_by_others(self, ref: WorkloadRef, replicas: int) -> None: ...

    @abc.abstractmethod
    def scaled_before_next_write(self, ref: WorkloadRef, replicas: int) -> None:
        """Somebody else's change lands between the next read of the port and its write."""

    @abc.abstractmethod
    async def break_image(self, ref: WorkloadRef) -> None: ...

    @abc.abstractmethod
    async def images(self, ref: WorkloadRef) -> dict[str, str]: ...

    @abc.abstractmethod
    async def version(self, ref: WorkloadRef) -> str:
        """Changes with every restart, and only then."""

    @abc.abstractmethod
    async def governed(self, tool: str, *, replicas: int) -> WorkloadRef:
        """A Deployment under a GitOps controller that reverts."""

    @abc.abstractmethod
    async def policy(self, ref: WorkloadRef) -> Any:
        """What the controller's object says about reverting."""

    @abc.abstractmethod
    async def suspended_by_others(self, ref: WorkloadRef) -> None: ...

    @abc.abstractmethod
    async def config_map(self, name: str, data: dict[str, str]) -> None: ...


class MemoryWorld(World):
    def __init__(self) -> None:
        self.memory = MemoryCluster()
        self.cluster = self.memory

    async def workload(self, kind: WorkloadKind, *, replicas: int = 2) -> WorkloadRef:
        ref = WorkloadRef("here", self.namespace, kind, f"w{len(self.memory.workloads)}")
        self.memory.add(ref, replicas=min(replicas, 1) if kind is WorkloadKind.CRON_JOB else replicas, lines=["hello"])
        return ref

    async def autoscaler(self, ref: WorkloadRef, minimum: int, maximum: int) -> None:
        self.memory.workloads[ref].autoscaler = Autoscaler(name=ref.name, minimum=minimum, maximum=maximum)

    async def scaled_by_others(self, ref: WorkloadRef, replicas: int) -> None:
        self.memory.workloads[ref].replicas = replicas

    def scaled_before_next_write(self, ref: WorkloadRef, replicas: int) -> None:
        found = self.memory.workloads[ref]
        self.memory.interfere = lambda: setattr(found, "replicas", replicas)

    async def break_image(self, ref: WorkloadRef) -> None:
        self.memory.workloads[ref].broken = True

    async def images(self, ref: WorkloadRef) -> dict[str, str]:
        return dict(zip(("app", "sidecar"), self.memory.workloads[ref].images, strict=True))

    async def version(self, ref: WorkloadRef) -> str:
        return str(self.memory.workloads[ref].restarts)

    async def governed(self, tool: str, *, replicas: int) -> WorkloadRef:
        ref = await self.workload(WorkloadKind.DEPLOYMENT, replicas=replicas)
        kind = {"argocd": "Application", "flux": "Kustomization"}[tool]
        automated = AUTOMATED if tool == "argocd" else ""
        owner = GitOps(tool=tool, kind=kind, namespace="argocd", name=ref.name, suspended=False, automated=automated)
        self.memory.workloads[ref].gitops = owner
        return ref

    async def policy(self, ref: WorkloadRef) -> Any:
        return self.memory.workloads[ref].gitops

    async def suspended_by_others(self, ref: WorkloadRef) -> None:
        found = self.memory.workloads[ref]
        assert found.gitops is not None
        found.gitops = found.gitops.model_copy(update={"suspended": True})

    async def config_map(self, name: str, data: dict[str, str]) -> None:
        self.memory.configs["here", self.namespace, name] = dict(data)


class InterruptedSession(Session):
    """The real session, with a place for somebody else's change before a write."""

    before_patch: Callable[[], None] | None = None

    def patch(self, resource: Resource, namespace: str, name: str, body: Json, *, dry_run: bool = False) -> Json:
        happen, self.before_patch = self.before_patch, None
        if happen is not None:
            happen()
        return super().patch(resource, namespace, name, body, dry_run=dry_run)


class TextSecrets:
    """Every reference stands for itself."""

    async def resolve(self, ref: str) -> str:
        return ref


class ApiWorld(World):
    """Through the official client's typed classes, so that the port's own code is not its own witness."""

    def __init__(self, kubeconfig: str, context: str | None, namespace: str) -> None:
        self.namespace = namespace
        loaded = client.Configuration()
        config.load_kube_config(config_file=kubeconfig, context=context, client_configuration=loaded)  # type: ignore[no-untyped-call]
        self.api = client.ApiClient(loaded)
        self._sessions: list[InterruptedSession] = []
        site = Site(clusters={"here": ClusterAccess(name="here", kubeconfig=kubeconfig, context=context)})
        self.adapter = KubernetesCluster(site, TextSecrets(), connect=self._connect)
        self.cluster = self.adapter

    def _connect(self, name: str, kubeconfig: str, context: str | None) -> Session:
        session = InterruptedSession.open(name, kubeconfig, context)
        assert isinstance(session, InterruptedSession)
        self._sessions.append(session)
        return session

    def close(self) -> None:
        self.adapter.close()
        self.api.close()  # type: ignore[no-untyped-call]

    async def workload(
        self, kind: WorkloadKind, *, replicas: int = 2, labels: dict[str, str] | None = None
    ) -> WorkloadRef:
        ref = WorkloadRef("here", self.namespace, kind, f"w-{randomness.token_hex(3)}")
        body = manifest(ref, replicas=replicas, labels=labels)
        create: dict[WorkloadKind, Callable[..., Any]] = {
            WorkloadKind.DEPLOYMENT: client.AppsV1Api(self.api).create_namespaced_deployment,
            WorkloadKind.STATEFUL_SET: client.AppsV1Api(self.api).create_namespaced_stateful_set,
            WorkloadKind.CRON_JOB: client.BatchV1Api(self.api).create_namespaced_cron_job,
        }
        await asyncio.to_thread(create[kind], self.namespace, body)
        return ref

    async def autoscaler(self, ref: WorkloadRef, minimum: int, maximum: int) -> None:
        target = {"apiVersion": "apps/v1", "kind": ref.kind.value, "name": ref.name}
        spec = {"scaleTargetRef": target, "minReplicas": minimum, "maxReplicas": maximum, "metrics": CPU}
        body: Any = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": ref.name},
            "spec": spec,
        }
        api = client.AutoscalingV2Api(self.api)
        await asyncio.to_thread(api.create_namespaced_horizontal_pod_autoscaler, self.namespace, body)

    def _scale(self, ref: WorkloadRef, replicas: int) -> None:
        if ref.kind is WorkloadKind.CRON_JOB:
            body: Json = {"spec": {"suspend": replicas == 0}}
            client.BatchV1Api(self.api).patch_namespaced_cron_job(ref.name, ref.namespace, body)
            return
        apps = client.AppsV1Api(self.api)
        patch = (
            apps.patch_namespaced_deployment_scale
            if ref.kind is WorkloadKind.DEPLOYMENT
            else apps.patch_namespaced_stateful_set_scale
        )
        patch(ref.name, ref.namespace, {"spec": {"replicas": replicas}})

    async def scaled_by_others(self, ref: WorkloadRef, replicas: int) -> None:
        await asyncio.to_thread(self._scale, ref, replicas)

    def scaled_before_next_write(self, ref: WorkloadRef, replicas: int) -> None:
        for session in self._sessions:
            session.before_patch = lambda: self._scale(ref, replicas)

    async def break_image(self, ref: WorkloadRef) -> None:
        body = {"spec": {"template": {"spec": {"containers": [{"name": "app", "image": BROKEN_IMAGE}]}}}}
        apps = client.AppsV1Api(self.api)
        await asyncio.to_thread(apps.patch_namespaced_deployment, ref.name, ref.namespace, body)

    async def _raw(self, ref: WorkloadRef) -> Json:
        path = WORKLOADS[ref.kind].path(ref.namespace, ref.name)
        return await asyncio.to_thread(self._get, path)

    def _get(self, path: str) -> Json:
        method, url, headers, body, post, *_ = self.api.param_serialize("GET", path, auth_settings=["BearerToken"])
        answer = self.api.call_api(method, url, headers, body, post)
        found: Json = json.loads(answer.read())  # type: ignore[no-untyped-call]
        return found

    async def images(self, ref: WorkloadRef) -> dict[str, str]:
        spec = (await self._raw(ref))["spec"]
        template = spec["jobTemplate"]["spec"]["template"] if "jobTemplate" in spec else spec["template"]
        return {found["name"]: found["image"] for found in template["spec"]["containers"]}

    async def version(self, ref: WorkloadRef) -> str:
        return str((await self._raw(ref))["metadata"]["generation"])

    async def governed(self, tool: str, *, replicas: int) -> WorkloadRef:
        owner = f"owner-{randomness.token_hex(3)}"
        flux = {"kustomize.toolkit.fluxcd.io/name": owner, "kustomize.toolkit.fluxcd.io/namespace": self.namespace}
        labels = {"app.kubernetes.io/instance": owner} if tool == "argocd" else flux
        ref = await self.workload(WorkloadKind.DEPLOYMENT, replicas=replicas, labels=labels)
        git = json.dumps(
            [
                {
                    "apiVersion": "apps/v1",
                    "kind": "Deployment",
                    "metadata": {"name": ref.name, "namespace": ref.namespace},
                    "spec": {"replicas": replicas},
                }
            ]
        )
        policy = {"automated": json.loads(AUTOMATED), "syncOptions": ["CreateNamespace=true"]}
        group, version, namespace, plural, kind, spec = _owner(tool, self.namespace)
        body = {
            "apiVersion": f"{group}/{version}",
            "kind": kind,
            "metadata": {"name": owner, "annotations": {GIT: git}},
            "spec": {**spec, "syncPolicy": policy} if tool == "argocd" else spec,
        }
        api = client.CustomObjectsApi(self.api)
        await asyncio.to_thread(api.create_namespaced_custom_object, group, version, namespace, plural, body)
        return ref

    async def _controller(self, ref: WorkloadRef) -> tuple[str, str, str, str, str]:
        labels = (await self._raw(ref))["metadata"]["labels"]
        tool = "argocd" if "app.kubernetes.io/instance" in labels else "flux"
        group, version, namespace, plural, _, _ = _owner(tool, self.namespace)
        name = labels.get("app.kubernetes.io/instance") or labels["kustomize.toolkit.fluxcd.io/name"]
        return group, version, namespace, plural, name

    async def policy(self, ref: WorkloadRef) -> Any:
        api = client.CustomObjectsApi(self.api)
        found: Any = await asyncio.to_thread(api.get_namespaced_custom_object, *await self._controller(ref))
        return found["spec"], found["metadata"]["annotations"]

    async def suspended_by_others(self, ref: WorkloadRef) -> None:
        where = await self._controller(ref)
        argo = where[0] == "argoproj.io"
        body = {"spec": {"syncPolicy": {"automated": None}} if argo else {"suspend": True}}
        api = client.CustomObjectsApi(self.api)
        await asyncio.to_thread(
            api.patch_namespaced_custom_object, *where, body, _content_type="application/merge-patch+json"
        )

    async def config_map(self, name: str, data: dict[str, str]) -> None:
        api = client.CoreV1Api(self.api)
        body: Any = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
        await asyncio.to_thread(api.create_namespaced_config_map, self.namespace, body)


CPU = [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 90}}}]


def _owner(tool: str, namespace: str) -> tuple[str, str, str, str, str, Json]:
    if tool == "argocd":
        return "argoproj.io", "v1alpha1", "argocd", "applications", "Application", {"project": "default"}
    spec = {"interval": "1m", "prune": False}
    return "kustomize.toolkit.fluxcd.io", "v1", namespace, "kustomizations", "Kustomization", spec


def manifest(ref: WorkloadRef, *, replicas: int, labels: dict[str, str] | None = None, image: str = IMAGE) -> Json:
    """A workload with a sidecar, for the API."""
    containers = [
        {"name": "app", "image": image, "env": [{"name": "ROLE", "value": "api"}]},
        {"name": "sidecar", "image": image, "command": ["sleep", "3600"]},
    ]
    pod = {
        "metadata": {"labels": {"app": ref.name}},
        "spec": {"containers": containers, "terminationGracePeriodSeconds": 2},
    }
    metadata = {"name": ref.name, "namespace": ref.namespace, "labels": labels or {}}
    if ref.kind is WorkloadKind.CRON_JOB:
        pod["spec"] = {**pod["spec"], "restartPolicy": "Never"}  # type: ignore[dict-item]
        spec: Json = {"schedule": "0 3 * * *", "suspend": replicas == 0, "jobTemplate": {"spec": {"template": pod}}}
        return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata, "spec": spec}
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": ref.name}}, "template": pod}
    if ref.kind is WorkloadKind.STATEFUL_SET:
        spec["serviceName"] = ref.name
    return {"apiVersion": "apps/v1", "kind": ref.kind.value, "metadata": metadata, "spec": spec}


@contextlib.asynccontextmanager
async def world_named(name: str, directory: Path) -> AsyncIterator[World]:
    """`memory`, `stand-in`, or `real`: the cluster of KUBECONFIG, in a namespace made for the test and removed."""
    if name == "memory":
        yield MemoryWorld()
    elif name == "stand-in":
        async with ClusterStandIn(directory) as stand_in:
            world = ApiWorld(str(stand_in.kubeconfig), None, "production")
            try:
                yield world
            finally:
                world.close()
    else:
        namespace = f"drbot-test-{randomness.token_hex(4)}"
        real = await asyncio.to_thread(
            ApiWorld, os.environ["KUBECONFIG"], os.environ.get("DRBOT_TEST_CONTEXT"), namespace
        )
        real.patience, real.has_gitops = 120.0, False
        core = client.CoreV1Api(real.api)
        body: Any = {"metadata": {"name": namespace}}
        await asyncio.to_thread(core.create_namespace, body)
        try:
            yield real
        finally:
            with contextlib.suppress(ApiException):
                await asyncio.to_thread(core.delete_namespace, namespace)
            real.close()
