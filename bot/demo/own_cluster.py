"""The demo's workloads in a cluster of your own.

The application itself runs on this machine, where the databases are: a cluster elsewhere could not reach 127.0.0.1. So
your cluster gets a namespace with the same Deployments, CronJob and ConfigMap, whose pods do nothing (the pause image).
The bot stops, scales, restarts and repoints those, and the processes here follow what your cluster says. The namespace
goes when the demo goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from actions.adapters.kubernetes import CONFIG_MAPS, RESTARTED_AT, WORKLOADS
from actions.adapters.kubernetes_session import Resource, Session
from actions.errors import DrError, TemporaryError, UserError
from actions.site import WorkloadKind
from bot.demo.cluster import ClusterStandIn
from bot.demo.cluster import kinds as k

Json = dict[str, Any]

NAMESPACES = Resource("", "v1", "namespaces")
DEPLOYMENTS, CRON_JOBS = WORKLOADS[WorkloadKind.DEPLOYMENT], WORKLOADS[WorkloadKind.CRON_JOB]
FOLLOWED = ((DEPLOYMENTS, k.DEPLOYMENT), (CRON_JOBS, k.CRON_JOB), (CONFIG_MAPS, k.CONFIG_MAP))
PAUSE = "registry.k8s.io/pause:3.10"
NEVER = "0 0 1 1 *"  # the jobs run here
PERIOD = 0.3  # seconds between two looks
READY_WITHIN = 120.0


def kubeconfig() -> Path:
    """The file of KUBECONFIG. Raises UserError when it names none, or several."""
    path = Path(os.environ.get("KUBECONFIG", ""))
    if not path.is_file():
        raise UserError("KUBECONFIG names no file. Set it to one kubeconfig, or leave `--own-cluster` out.")
    return path.resolve()


class OwnCluster:
    """`async with` makes the namespace, and removes it. `local` is the stand-in whose processes follow.

    Raises UserError when the cluster refuses, or its pods do not become ready.
    """

    def __init__(self, path: Path, local: ClusterStandIn, *, home: str) -> None:
        self.namespace = f"superprismora-demo-{secrets.token_hex(3)}"
        self._path = path
        self._local = local
        self._home = home  # the namespace in the stand-in
        self._session: Session | None = None
        self._uid = ""
        self._follower: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._session = await asyncio.to_thread(Session.open, "your own", str(self._path), None)
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        made = await asyncio.to_thread(self._session.create, NAMESPACES, "", body)
        self._uid = made["metadata"]["uid"]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        if self._session is not None:
            try:
                await asyncio.to_thread(self._session.delete, NAMESPACES, "", self.namespace, uid=self._uid)
            except DrError as failure:
                raise TemporaryError(
                    f"Namespace `{self.namespace}` of your cluster could not be removed ({failure}). Remove it: "
                    f"kubectl delete namespace {self.namespace}"
                ) from failure
            finally:
                self._session.close()

    async def apply(self, manifests: Sequence[Json]) -> None:
        """Make the workloads, wait until their pods are ready, then let the processes here follow them."""
        session = self._opened()
        for resource, body in _idle(manifests, self.namespace):
            await asyncio.to_thread(session.create, resource, self.namespace, body)
        loop = asyncio.get_running_loop()
        end = loop.time() + READY_WITHIN
        while waiting := await asyncio.to_thread(_unready, session, self.namespace):
            if loop.time() >= end:
                raise UserError(
                    f"In your cluster {', '.join(waiting)} did not become ready within {READY_WITHIN:g} s. Look at "
                    f"`kubectl -n {self.namespace} get pods`: it needs the image `{PAUSE}`."
                )
            await asyncio.sleep(PERIOD)
        self._follower = asyncio.create_task(self._follow(), name="own-cluster")

    def _opened(self) -> Session:
        if self._session is None:
            raise RuntimeError("used outside its `async with`")
        return self._session

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(TemporaryError):  # away for a moment; what runs here stays as it is
                found = await asyncio.to_thread(self._read)
                for kind, theirs in found:
                    self._copy(kind, theirs)
            await asyncio.sleep(PERIOD)

    def _read(self) -> list[tuple[k.Kind, Json]]:
        session = self._opened()
        return [(kind, found) for resource, kind in FOLLOWED for found in session.list(resource, self.namespace)]

    def _copy(self, kind: k.Kind, theirs: Json) -> None:
        ours = self._local.objects.find(kind, self._home, theirs["metadata"]["name"])
        if ours is None:
            return  # such as the ConfigMap that every namespace gets

        def change(fresh: Json) -> None:
            if kind is k.CONFIG_MAP:
                fresh["data"] = theirs.get("data") or {}
            elif kind is k.CRON_JOB:
                fresh["spec"]["suspend"] = bool(theirs["spec"].get("suspend"))
            else:
                fresh["spec"]["replicas"] = theirs["spec"]["replicas"]
                restarted = (theirs["spec"]["template"]["metadata"].get("annotations") or {}).get(RESTARTED_AT)
                if restarted is not None:
                    fresh["spec"]["template"]["metadata"].setdefault("annotations", {})[RESTARTED_AT] = restarted

        self._local.objects.edit(kind, ours, change, manager="own-cluster")


def _idle(manifests: Sequence[Json], namespace: str) -> Iterator[tuple[Resource, Json]]:
    """The demo's workloads with pods that do nothing."""
    resources = {"Deployment": DEPLOYMENTS, "CronJob": CRON_JOBS, "ConfigMap": CONFIG_MAPS}
    for manifest in manifests:
        if manifest["kind"] not in resources:
            continue  # Secrets stay on this machine
        body = copy.deepcopy(manifest)
        body["metadata"]["namespace"] = namespace
        if manifest["kind"] == "CronJob":
            body["spec"]["schedule"] = NEVER
            _empty(body["spec"]["jobTemplate"]["spec"]["template"])
        elif manifest["kind"] == "Deployment":
            _empty(body["spec"]["template"])
        yield resources[manifest["kind"]], body


def _empty(template: Json) -> None:
    template["metadata"].pop("annotations", None)
    template["spec"]["containers"] = [{"name": one["name"], "image": PAUSE} for one in template["spec"]["containers"]]


def _unready(session: Session, namespace: str) -> list[str]:
    return [
        f"`{found['metadata']['name']}`"
        for found in session.list(DEPLOYMENTS, namespace)
        if int((found.get("status") or {}).get("readyReplicas") or 0) < int(found["spec"]["replicas"])
    ]
