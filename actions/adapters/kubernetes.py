"""The `Cluster` port on real API servers.

Every change is one merge patch that carries the `resourceVersion` that was read: another writer in between makes the
server answer 409, and the decision is taken again on what is there now. A merge patch leaves alone what it does not
name, so sidecars, other annotations and other people's fields survive. Records lie on the objects themselves, because
the object is what outlives the bot.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog

from actions.adapters import kubernetes_gitops as gitops
from actions.adapters import kubernetes_rollout as rollouts
from actions.adapters.kubernetes_session import Resource, Session, StaleError
from actions.adapters.kubernetes_sessions import Connect, Sessions
from actions.adapters.kubernetes_volumes import lasting
from actions.errors import PreconditionError, TemporaryError, UserError
from actions.ports import Autoscaler, NamespaceFacts, PodLog, Rollout, Secrets, WorkloadFacts
from actions.site import Site, WorkloadKind, WorkloadRef

Json = dict[str, Any]
T = TypeVar("T")

RECORD = "dr.superprismora.com/replicas"
MARK = "dr.superprismora.com/mark"
RESTARTED = "dr.superprismora.com/restarted"
RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"

WORKLOADS = {
    WorkloadKind.DEPLOYMENT: Resource("apps", "v1", "deployments"),
    WorkloadKind.STATEFUL_SET: Resource("apps", "v1", "statefulsets"),
    WorkloadKind.CRON_JOB: Resource("batch", "v1", "cronjobs"),
}
PODS = Resource("", "v1", "pods")
CONFIG_MAPS = Resource("", "v1", "configmaps")
REPLICA_SETS = Resource("apps", "v1", "replicasets")
JOBS = Resource("batch", "v1", "jobs")
AUTOSCALERS = Resource("autoscaling", "v2", "horizontalpodautoscalers")

ATTEMPTS = 6  # compare-and-set against other writers
PODS_LOGGED = 10

log = structlog.get_logger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


class KubernetesCluster:
    """All clusters of the site. `connect` opens a session from cluster name, kubeconfig text and context."""

    def __init__(
        self,
        site: Site,
        secrets: Secrets,
        *,
        now: Callable[[], datetime] = utc_now,
        argocd_namespace: str = "argocd",
        connect: Connect = Session.open,
    ) -> None:
        self._now = now
        self._argocd_namespace = argocd_namespace
        self._sessions = Sessions(site, secrets, connect=connect)

    def close(self) -> None:
        """Close all connections; the next call opens new ones."""
        self._sessions.close()

    async def workload(self, ref: WorkloadRef) -> WorkloadFacts | None:
        return await self._in(ref.cluster, lambda session: self._workload(session, ref))

    async def overview(self, cluster: str, namespace: str) -> NamespaceFacts:
        def read(session: Session) -> NamespaceFacts:
            autoscalers = session.list(AUTOSCALERS, namespace)
            workloads = [
                _facts(WorkloadRef(cluster, namespace, kind, found["metadata"]["name"]), found, autoscalers)
                for kind, resource in WORKLOADS.items()
                for found in session.list(resource, namespace)
            ]
            pods = [rollouts.pod_facts(pod) for pod in session.list(PODS, namespace)]
            return NamespaceFacts(workloads=tuple(workloads), pods=tuple(pods))

        return await self._in(cluster, read)

    async def logs(self, ref: WorkloadRef, *, lines: int = 50) -> Sequence[PodLog]:
        def read(session: Session) -> list[PodLog]:
            pods = _pods(session, ref, _existing(session, ref))
            newest = sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), reverse=True)
            logs = []
            for pod in newest[:PODS_LOGGED]:
                for container in pod["spec"]["containers"]:
                    name, part = pod["metadata"]["name"], container["name"]
                    text = session.log(ref.namespace, name, part, lines=lines)
                    if text is not None:
                        logs.append(PodLog(pod=name, container=part, lines=tuple(text.splitlines()[-lines:])))
            return logs

        return await self._in(ref.cluster, read)

    async def stop(self, ref: WorkloadRef, *, mark: str) -> None:
        def decide(found: Json) -> Json | None:
            now = _count(ref, found)
            recorded = _recorded(ref, found)
            # It runs though another plan stopped it: people have scaled it since, and their count is the real one.
            stale = now != 0 and _annotations(found).get(MARK) != mark
            if recorded is None or stale:
                return _desired(ref, 0, {RECORD: str(now), MARK: mark})
            return _desired(ref, 0, {}) if now != 0 else None

        await self._change(ref, decide)

    async def give_back(self, ref: WorkloadRef, *, mark: str) -> None:
        def give(session: Session) -> None:
            autoscalers = session.list(AUTOSCALERS, ref.namespace)

            def decide(found: Json) -> Json | None:
                count = _recorded(ref, found)
                if count is None:
                    return None
                autoscaler = _autoscaler(ref, autoscalers)
                if autoscaler is not None and count > 0:
                    # Zero switched the autoscaler off; from one on it owns the count again.
                    count = min(max(count, autoscaler.minimum), autoscaler.maximum)
                stopped_by = _annotations(found).get(MARK)
                log.info("workload_given_back", workload=str(ref), replicas=count, mark=mark, stopped_by=stopped_by)
                return _desired(ref, count, {RECORD: None, MARK: None})

            _compare_and_set(session, ref, decide)

        await self._in(ref.cluster, give)

    async def scale(self, ref: WorkloadRef, replicas: int) -> None:
        if replicas < 0:
            raise UserError(f"{ref} cannot have {replicas} replicas; give a number from 0 on.")
        wanted = min(replicas, 1) if ref.kind is WorkloadKind.CRON_JOB else replicas
        await self._change(ref, lambda found: _desired(ref, wanted, {}) if _count(ref, found) != wanted else None)

    async def restart(self, ref: WorkloadRef, *, mark: str) -> None:
        if ref.kind is WorkloadKind.CRON_JOB:
            raise UserError(f"{ref} has nothing to restart: its next job reads the new configuration by itself.")

        def decide(found: Json) -> Json | None:
            if _annotations(found).get(RESTARTED) == mark:
                return None
            if found["spec"].get("paused"):
                raise UserError(f"{ref} is paused and would not restart; resume it with `kubectl rollout resume`.")
            template = {"metadata": {"annotations": {RESTARTED_AT: self._now().strftime("%Y-%m-%dT%H:%M:%SZ")}}}
            return {"metadata": {"annotations": {RESTARTED: mark}}, "spec": {"template": template}}

        await self._change(ref, decide)

    async def set_images(self, ref: WorkloadRef, *, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        def decide(found: Json) -> Json | None:
            containers = [dict(each) for each in _pod_spec(ref, found)["containers"]]
            there = {str(each["name"]): str(each["image"]) for each in containers}
            wrong = [
                f"`{name}` of {ref} asks for `{there.get(name)}`, not `{before.get(name)}` as planned"
                for name, image in after.items()
                if there.get(name) not in (image, before.get(name)) or name not in there
            ]
            if wrong:
                raise PreconditionError(wrong)
            if all(there[name] == image for name, image in after.items()):
                return None
            # A merge patch replaces a list as a whole: all of it goes along, and the version that was read guards it.
            for each in containers:
                each["image"] = after.get(each["name"], each["image"])
            pod = {"spec": {"template": {"spec": {"containers": containers}}}}
            return {"spec": {"jobTemplate": pod}} if ref.kind is WorkloadKind.CRON_JOB else pod

        await self._change(ref, decide)

    async def rollout(self, ref: WorkloadRef) -> Rollout:
        return await self._in(ref.cluster, lambda session: _rollout(session, ref))

    async def suspend_gitops(self, ref: WorkloadRef, *, mark: str) -> None:
        await self._change_owner(ref, lambda owner: gitops.suspension(owner, mark))

    async def resume_gitops(self, ref: WorkloadRef, *, mark: str) -> None:
        await self._change_owner(ref, lambda owner: gitops.resumption(owner, mark))

    async def config(self, cluster: str, namespace: str, name: str) -> Mapping[str, str]:
        found = await self._in(cluster, lambda session: _config_map(session, namespace, name))
        return dict(found.get("data") or {})

    async def set_config(self, cluster: str, namespace: str, name: str, *, key: str, before: str, after: str) -> None:
        def change(session: Session) -> None:
            found = _config_map(session, namespace, name)
            seen = (found.get("data") or {}).get(key)
            if seen != before:
                shown = "absent" if seen is None else f"`{seen}`"
                raise PreconditionError([f"`{key}` of ConfigMap `{name}` is {shown}, not `{before}` as planned"])
            version = {"resourceVersion": found["metadata"]["resourceVersion"]}
            session.patch(CONFIG_MAPS, namespace, name, {"metadata": version, "data": {key: after}})

        await self._in(cluster, lambda session: _insisting(f"ConfigMap {name}", lambda: change(session)))

    # ------------------------------------------------------------ inside

    def _workload(self, session: Session, ref: WorkloadRef) -> WorkloadFacts | None:
        found = session.get(WORKLOADS[ref.kind], ref.namespace, ref.name)
        if found is None:
            return None
        owner = gitops.controller(session, ref, found, self._argocd_namespace)
        facts = _facts(ref, found, session.list(AUTOSCALERS, ref.namespace))
        return facts.model_copy(update={"gitops": owner.facts if owner else None})

    async def _change(self, ref: WorkloadRef, decide: Callable[[Json], Json | None]) -> None:
        await self._in(ref.cluster, lambda session: _compare_and_set(session, ref, decide))

    async def _change_owner(self, ref: WorkloadRef, decide: Callable[[gitops.Controller], Json | None]) -> None:
        def change(session: Session) -> None:
            owner = gitops.controller(session, ref, _existing(session, ref), self._argocd_namespace)
            patch = decide(owner) if owner else None
            if owner and patch:
                session.patch(owner.resource, owner.facts.namespace, owner.facts.name, patch)

        await self._in(ref.cluster, lambda session: _insisting(str(ref), lambda: change(session)))

    async def _in(self, cluster: str, work: Callable[[Session], T]) -> T:
        return await self._sessions.run(cluster, work)


def _compare_and_set(session: Session, ref: WorkloadRef, decide: Callable[[Json], Json | None]) -> None:
    def once() -> None:
        found = _existing(session, ref)
        patch = decide(found)
        if patch is not None:
            metadata = {**patch.get("metadata", {}), "resourceVersion": found["metadata"]["resourceVersion"]}
            session.patch(WORKLOADS[ref.kind], ref.namespace, ref.name, {**patch, "metadata": metadata})

    _insisting(str(ref), once)


def _insisting(what: str, once: Callable[[], None]) -> None:
    for attempt in range(ATTEMPTS):
        try:
            return once()
        except StaleError:
            # In a thread; controllers write in bursts, so let the burst pass.
            time.sleep(random.uniform(0.01, 0.05) * 2**attempt)  # noqa: S311 - jitter
    raise TemporaryError(f"{what} was changed by others {ATTEMPTS} times while the bot tried to change it.")


def _existing(session: Session, ref: WorkloadRef) -> Json:
    found = session.get(WORKLOADS[ref.kind], ref.namespace, ref.name)
    if found is None:
        raise UserError(f"There is no {ref}.")
    return found


def _config_map(session: Session, namespace: str, name: str) -> Json:
    found = session.get(CONFIG_MAPS, namespace, name)
    if found is None:
        raise UserError(f"There is no ConfigMap `{name}` in `{session.name}/{namespace}`.")
    return found


def _facts(ref: WorkloadRef, found: Json, autoscalers: Sequence[Json]) -> WorkloadFacts:
    status = found.get("status") or {}
    cron = ref.kind is WorkloadKind.CRON_JOB
    return WorkloadFacts(
        ref=ref,
        uid=found["metadata"]["uid"],
        replicas=_count(ref, found),
        ready=len(status.get("active") or []) if cron else int(status.get("readyReplicas") or 0),
        recorded=_recorded(ref, found),
        mark=_annotations(found).get(MARK, ""),
        restarted=_annotations(found).get(RESTARTED, ""),
        containers={each["name"]: each["image"] for each in _pod_spec(ref, found)["containers"]},
        init_images=tuple(each["image"] for each in _pod_spec(ref, found).get("initContainers") or []),
        autoscaler=_autoscaler(ref, autoscalers),
        lasting=lasting(found["spec"], _pod_spec(ref, found)),
    )


def _pod_spec(ref: WorkloadRef, found: Json) -> Json:
    spec = found["spec"]["jobTemplate"]["spec"] if ref.kind is WorkloadKind.CRON_JOB else found["spec"]
    pod: Json = spec["template"]["spec"]
    return pod


def _autoscaler(ref: WorkloadRef, autoscalers: Sequence[Json]) -> Autoscaler | None:
    for found in autoscalers:
        target = found["spec"]["scaleTargetRef"]
        if (target["kind"], target["name"]) == (ref.kind.value, ref.name):
            minimum = found["spec"].get("minReplicas")
            return Autoscaler(
                name=found["metadata"]["name"],
                minimum=1 if minimum is None else int(minimum),
                maximum=int(found["spec"]["maxReplicas"]),
            )
    return None


def _rollout(session: Session, ref: WorkloadRef) -> Rollout:
    found = _existing(session, ref)
    pods = _pods(session, ref, found)
    if ref.kind is WorkloadKind.CRON_JOB:
        # A suspended CronJob starts nothing new; what it started before goes on writing until it ends.
        wanted, active = _count(ref, found), len((found.get("status") or {}).get("active") or [])
        left = rollouts.running_pods(rollouts.alive(pods)) if wanted == 0 else []
        return Rollout(
            done=not left and (wanted > 0 or not active), failed=False, ready=active, wanted=wanted, failing=tuple(left)
        )
    current = pods
    if ref.kind is WorkloadKind.DEPLOYMENT:
        newest = rollouts.current_replica_set(found, session.list(REPLICA_SETS, ref.namespace))
        current = rollouts.owned(pods, newest) if newest else []
    return rollouts.state(ref.kind, found, rollouts.alive(pods), current)


def _pods(session: Session, ref: WorkloadRef, found: Json) -> list[Json]:
    """Pods the workload owns. The label selector narrows the list, the owner references decide."""
    if ref.kind is WorkloadKind.CRON_JOB:
        jobs = rollouts.owned(session.list(JOBS, ref.namespace), found)
        return [pod for pod in session.list(PODS, ref.namespace) if any(rollouts.owned([pod], job) for job in jobs)]
    pods = session.list(PODS, ref.namespace, labels=rollouts.label_selector(found))
    if ref.kind is WorkloadKind.STATEFUL_SET:
        return rollouts.owned(pods, found)
    sets = rollouts.owned(session.list(REPLICA_SETS, ref.namespace), found)
    return [pod for pod in pods if any(rollouts.owned([pod], owner) for owner in sets)]


def _count(ref: WorkloadRef, found: Json) -> int:
    if ref.kind is WorkloadKind.CRON_JOB:
        return 0 if found["spec"].get("suspend") else 1
    return int(found["spec"].get("replicas", 1))


def _desired(ref: WorkloadRef, count: int, annotations: Mapping[str, str | None]) -> Json:
    spec = {"suspend": count == 0} if ref.kind is WorkloadKind.CRON_JOB else {"replicas": count}
    return {"metadata": {"annotations": dict(annotations)}, "spec": spec} if annotations else {"spec": spec}


def _recorded(ref: WorkloadRef, found: Json) -> int | None:
    text = _annotations(found).get(RECORD)
    if text is None:
        return None
    if not text.isdecimal():
        raise UserError(f"The annotation `{RECORD}` of {ref} is `{text}`, not a count; correct it or remove it.")
    return int(text)


def _annotations(found: Json) -> dict[str, str]:
    return found["metadata"].get("annotations") or {}
