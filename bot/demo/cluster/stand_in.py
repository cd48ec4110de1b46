"""The stand-in as a whole: API server, controllers and kubelet in one event loop."""

import asyncio
import base64
import contextlib
import json
import secrets
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from aiohttp import web

from actions.adapters.programs import Account
from bot.demo.cluster import kinds as k
from bot.demo.cluster.answers import RefusedError
from bot.demo.cluster.api import Api, apply
from bot.demo.cluster.autoscaling import Autoscalers
from bot.demo.cluster.certificates import serving
from bot.demo.cluster.containers import Images
from bot.demo.cluster.deployments import Deployments, ReplicaSets
from bot.demo.cluster.faults import Faults
from bot.demo.cluster.gitops import GitOpsControllers
from bot.demo.cluster.jobs import CronJobs, Jobs
from bot.demo.cluster.kubelet import Kubelet
from bot.demo.cluster.objects import Objects
from bot.demo.cluster.requests import Target, Use
from bot.demo.cluster.services import Services
from bot.demo.cluster.stateful_sets import StatefulSets

Json = dict[str, Any]

TICK = 0.2  # seconds between looks when nothing changes
GITOPS_PERIOD = 0.5  # seconds between two comparisons with git


class Controller(Protocol):
    """Looks at everything of its kind and moves it one step towards what it should be."""

    def reconcile(self) -> None: ...


class ClusterStandIn:
    """A cluster on 127.0.0.1 for the length of an `async with`; its pods end with it.

    `directory` takes the kubeconfig, logs and working directories. `custom_resources` installs the kinds of Argo CD
    and Flux. `account` is what pods run as when the stand-in itself runs as root. `images` are those whose containers
    run for real, by their entry point. `seen` is what clients have asked for, in the words of an RBAC rule.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        namespaces: Iterable[str] = ("default", "production"),
        custom_resources: bool = True,
        account: Account | None = None,
        images: Images | None = None,
    ) -> None:
        self.directory = directory
        self.token = secrets.token_urlsafe(24)
        self.kubeconfig = directory / "kubeconfig"
        self.url = ""
        self.faults = Faults()
        self.kinds = k.Kinds()
        self.objects = Objects(self.kinds)
        self._port = port
        self.seen: set[Use] = set()
        self._kubelet = Kubelet(self.objects, directory, account=account, images=images)
        self._services = Services(self.objects)
        self._runner: web.AppRunner | None = None
        self._loop: asyncio.Task[None] | None = None
        for name in namespaces:
            self.objects.create(k.NAMESPACE, "", {"metadata": {"name": name}}, manager="stand-in")
        if custom_resources:
            self.objects.create(k.NAMESPACE, "", {"metadata": {"name": "argocd"}}, manager="stand-in")
            for kind in k.GITOPS:
                self.objects.create(k.CUSTOM_RESOURCE, "", k.definition(kind), manager="stand-in")

    async def __aenter__(self) -> Self:
        tls, authority = await asyncio.to_thread(self._prepare)
        api = Api(self.objects, self.kinds, self.faults, token=self.token, kubelet=self._kubelet, seen=self.seen)
        # An open watch must not hold up the end.
        self._runner = web.AppRunner(api.application(), shutdown_timeout=0.2, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=tls)
        try:
            await site.start()
        except OSError:
            await self._runner.cleanup()
            raise
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"
        await asyncio.to_thread(self._write_kubeconfig, authority)
        self._loop = asyncio.create_task(self._control(), name="cluster-controllers")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None:
            failed = self._loop.done()
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                try:
                    await self._loop
                finally:
                    await self._close()
            if failed:  # the controllers died of something; awaiting the task raised it
                raise RuntimeError("the controllers of the stand-in ended early")

    async def _close(self) -> None:
        await self._services.close()
        await self._kubelet.close()
        if self._runner is not None:
            await _end(self._runner)

    def sever(self) -> None:
        """Break every open connection, as a network does."""
        server = self._runner.server if self._runner is not None else None
        for handler in server.connections if server is not None else []:
            if handler.transport is not None:
                handler.transport.abort()

    def apply(self, *manifests: Mapping[str, Any]) -> list[Json]:
        """Server-side apply (forced) of whole manifests, in order; returns what is there then.

        Raises RefusedError for an unknown kind or an object the API would refuse.
        """
        return [self._apply(dict(manifest)) for manifest in manifests]

    def _apply(self, manifest: Json) -> Json:
        kind = self.kinds.by_name(manifest["apiVersion"], manifest["kind"])
        if kind is None:
            raise RefusedError(404, f"the stand-in has no kind {manifest['kind']} in {manifest['apiVersion']}")
        metadata = manifest["metadata"]
        namespace = metadata.get("namespace", "default") if kind.namespaced else ""
        target = Target(kind, namespace, metadata["name"], "", "patch")
        return apply(self.objects, target, manifest, "demo", force=True)[0]

    def _prepare(self) -> tuple[ssl.SSLContext, str]:
        self.directory.mkdir(parents=True, exist_ok=True)
        return serving(self.directory)

    def _write_kubeconfig(self, authority: str) -> None:
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(json.dumps(self._access(authority), indent=1))

    def _access(self, authority: str) -> Json:
        name = "stand-in"
        trusted = base64.b64encode(authority.encode()).decode()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": {"server": self.url, "certificate-authority-data": trusted}}],
            "users": [{"name": name, "user": {"token": self.token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "production"}}],
            "current-context": name,
        }

    async def _control(self) -> None:
        objects = self.objects
        gitops = GitOpsControllers(objects)
        controllers: list[Controller] = [
            Autoscalers(objects),
            Deployments(objects),
            ReplicaSets(objects),
            StatefulSets(objects),
            CronJobs(objects),
            Jobs(objects),
        ]
        clock = asyncio.get_running_loop().time
        compared = 0.0
        while True:
            # Not `wait_for`: before Python 3.12 it can swallow the cancellation that ends this loop.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await objects.changed.wait()
            objects.changed.clear()
            if clock() - compared >= GITOPS_PERIOD:
                compared = clock()
                gitops.reconcile()
            for controller in controllers:
                controller.reconcile()
            await self._kubelet.tick()
            await self._services.tick()
            await asyncio.sleep(0.02)  # let a burst of changes become one look


async def _end(runner: web.AppRunner) -> None:
    """Close the API at once, without waiting for the good-bye that TLS wants from clients which keep connections."""
    server = runner.server
    open_now = [handler.transport for handler in server.connections] if server is not None else []
    await runner.cleanup()
    for transport in open_now:
        if transport is not None:
            transport.abort()
    await asyncio.sleep(0)  # the loop closes aborted sockets in its next turn
    await asyncio.sleep(0)
