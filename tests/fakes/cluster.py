"""Clusters in memory: the `Cluster` port for tests that are not about Kubernetes.

The world goes on before every read and write: an autoscaler keeps its bounds, a GitOps controller that is not suspended
puts its own count back. Pods start and end at once, unless their image is marked broken.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from actions.errors import PreconditionError, UserError
from actions.ports import (
    Autoscaler,
    FailingPod,
    GitOps,
    NamespaceFacts,
    PodFacts,
    PodLog,
    Rollout,
    WorkloadFacts,
)
from actions.site import WorkloadKind, WorkloadRef


@dataclass(kw_only=True)
class MemoryWorkload:
    """One workload as it stands. `git_replicas` is what its GitOps controller would put back."""

    ref: WorkloadRef
    replicas: int
    images: tuple[str, ...] = ("app:1", "sidecar:1")
    init_images: tuple[str, ...] = ()
    broken: bool = False
    recorded: int | None = None
    mark: str = ""
    restarted: str = ""
    restarts: int = 0
    autoscaler: Autoscaler | None = None
    gitops: GitOps | None = None
    git_replicas: int = 0
    lines: tuple[str, ...] = ()
    lasting: tuple[str, ...] = ()
    started: Callable[[], None] | None = None  # what its pods do when the first one begins
    stopped: Callable[[], None] | None = None  # what its pods take along when the last one ends
    follows: Callable[["MemoryWorkload"], None] | None = None  # what its controller applies while it is not suspended

    @property
    def containers(self) -> dict[str, str]:
        return dict(zip(("app", "sidecar", "proxy"), self.images, strict=False))

    def settle(self) -> None:
        if self.gitops is not None and not self.gitops.suspended:
            self.replicas = self.git_replicas
            if self.follows is not None:
                self.follows(self)
        if self.autoscaler is not None and self.replicas > 0:
            self.replicas = min(max(self.replicas, self.autoscaler.minimum), self.autoscaler.maximum)


@dataclass
class MemoryCluster:
    """`writes` counts every change. `interfere` is called once, between the next read and its write."""

    workloads: dict[WorkloadRef, MemoryWorkload] = field(default_factory=dict)
    configs: dict[tuple[str, str, str], dict[str, str]] = field(default_factory=dict)
    writes: int = 0
    interfere: Callable[[], None] | None = None

    def add(
        self,
        ref: WorkloadRef,
        *,
        replicas: int = 1,
        autoscaler: Autoscaler | None = None,
        gitops: GitOps | None = None,
        lines: Sequence[str] = (),
    ) -> MemoryWorkload:
        """Put a workload into the world; with `gitops` its count is what git says."""
        added = MemoryWorkload(
            ref=ref,
            replicas=replicas,
            autoscaler=autoscaler,
            gitops=gitops,
            git_replicas=replicas,
            lines=tuple(lines),
        )
        self.workloads[ref] = added
        return added

    async def workload(self, ref: WorkloadRef) -> WorkloadFacts | None:
        found = self.workloads.get(ref)
        if found is None:
            return None
        found.settle()
        return _facts(found)

    async def overview(self, cluster: str, namespace: str) -> NamespaceFacts:
        here = [found for ref, found in self.workloads.items() if ref[:2] == (cluster, namespace)]
        for found in here:
            found.settle()
        return NamespaceFacts(
            workloads=tuple(_facts(found).model_copy(update={"gitops": None}) for found in here),
            pods=tuple(pod for found in here for pod in _pods(found)),
        )

    async def logs(self, ref: WorkloadRef, *, lines: int = 50) -> Sequence[PodLog]:
        found = self._existing(ref)
        return [PodLog(pod=pod.name, container="app", lines=found.lines[-lines:]) for pod in _pods(found)[:10]]

    async def stop(self, ref: WorkloadRef, *, mark: str) -> None:
        found = self._for_writing(ref)
        if found.recorded is None or (found.replicas != 0 and found.mark != mark):
            found.recorded, found.mark = found.replicas, mark
        elif found.replicas == 0:
            return
        self._set(found, 0)

    async def give_back(self, ref: WorkloadRef, *, mark: str) -> None:
        found = self._for_writing(ref)
        if found.recorded is None:
            return
        count = found.recorded
        if found.autoscaler is not None and count > 0:
            count = min(max(count, found.autoscaler.minimum), found.autoscaler.maximum)
        found.recorded, found.mark = None, ""
        self._set(found, count)

    async def scale(self, ref: WorkloadRef, replicas: int) -> None:
        if replicas < 0:
            raise UserError(f"{ref} cannot have {replicas} replicas; give a number from 0 on.")
        found = self._for_writing(ref)
        wanted = min(replicas, 1) if ref.kind is WorkloadKind.CRON_JOB else replicas
        if found.replicas != wanted:
            self._set(found, wanted)

    async def restart(self, ref: WorkloadRef, *, mark: str) -> None:
        if ref.kind is WorkloadKind.CRON_JOB:
            raise UserError(f"{ref} has nothing to restart: its next job reads the new configuration by itself.")
        found = self._for_writing(ref)
        if found.restarted != mark:
            found.restarted = mark
            found.restarts += 1
            self.writes += 1

    async def set_images(self, ref: WorkloadRef, *, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        found = self._for_writing(ref)
        there = found.containers
        wrong = [
            f"`{name}` of {ref} asks for `{there.get(name)}`, not `{before.get(name)}` as planned"
            for name, image in after.items()
            if there.get(name) not in (image, before.get(name)) or name not in there
        ]
        if wrong:
            raise PreconditionError(wrong)
        wanted = {name: after.get(name, image) for name, image in there.items()}
        if wanted != there:
            found.images = tuple(wanted.values())
            self.writes += 1

    async def rollout(self, ref: WorkloadRef) -> Rollout:
        found = self._existing(ref)
        found.settle()
        failing: tuple[FailingPod, ...] = ()
        if found.broken and found.replicas:
            failing = (FailingPod(name=f"{ref.name}-0", reason="ErrImagePull", message="the image is not there"),)
        ready = 0 if failing else found.replicas
        if ref.kind is WorkloadKind.CRON_JOB:
            ready = 0  # no job is under way
        return Rollout(done=not failing, failed=False, ready=ready, wanted=found.replicas, failing=failing)

    async def suspend_gitops(self, ref: WorkloadRef, *, mark: str) -> None:
        found = self._for_writing(ref)
        if found.gitops is not None and not found.gitops.suspended:
            found.gitops = found.gitops.model_copy(update={"suspended": True, "mark": mark})
            self.writes += 1

    async def resume_gitops(self, ref: WorkloadRef, *, mark: str) -> None:
        found = self._for_writing(ref)
        if found.gitops is not None and found.gitops.mark == mark:
            found.gitops = found.gitops.model_copy(update={"suspended": False, "mark": ""})
            self.writes += 1

    async def config(self, cluster: str, namespace: str, name: str) -> Mapping[str, str]:
        return dict(self._config(cluster, namespace, name))

    async def set_config(self, cluster: str, namespace: str, name: str, *, key: str, before: str, after: str) -> None:
        found = self._config(cluster, namespace, name)
        if found.get(key) != before:
            shown = f"`{found[key]}`" if key in found else "absent"
            raise PreconditionError([f"`{key}` of ConfigMap `{name}` is {shown}, not `{before}` as planned"])
        found[key] = after
        self.writes += 1

    # ------------------------------------------------------------ inside

    def _existing(self, ref: WorkloadRef) -> MemoryWorkload:
        if ref not in self.workloads:
            raise UserError(f"There is no {ref}.")
        return self.workloads[ref]

    def _for_writing(self, ref: WorkloadRef) -> MemoryWorkload:
        # What others do between our read and our write makes us read again: it has happened before we decide.
        interfere, self.interfere = self.interfere, None
        if interfere is not None:
            interfere()
        found = self._existing(ref)
        found.settle()
        return found

    def _set(self, found: MemoryWorkload, replicas: int) -> None:
        begins = found.replicas == 0 and replicas > 0
        found.replicas = replicas
        self.writes += 1
        if replicas == 0 and found.stopped is not None:
            found.stopped()
        if begins and found.started is not None:
            found.started()

    def _config(self, cluster: str, namespace: str, name: str) -> dict[str, str]:
        if (cluster, namespace, name) not in self.configs:
            raise UserError(f"There is no ConfigMap `{name}` in `{cluster}/{namespace}`.")
        return self.configs[cluster, namespace, name]


def _facts(found: MemoryWorkload) -> WorkloadFacts:
    cron = found.ref.kind is WorkloadKind.CRON_JOB
    return WorkloadFacts(
        ref=found.ref,
        uid=f"uid-{found.ref.name}",
        replicas=found.replicas,
        ready=0 if found.broken or cron else found.replicas,
        recorded=found.recorded,
        mark=found.mark,
        restarted=found.restarted,
        containers=found.containers,
        init_images=found.init_images,
        autoscaler=found.autoscaler,
        gitops=found.gitops,
        lasting=found.lasting,
    )


def _pods(found: MemoryWorkload) -> list[PodFacts]:
    if found.ref.kind is WorkloadKind.CRON_JOB:
        return []
    reason = "ErrImagePull" if found.broken else ""
    return [
        PodFacts(
            name=f"{found.ref.name}-{number}",
            images=found.images,
            init_images=found.init_images,
            phase="Pending" if found.broken else "Running",
            ready=not found.broken,
            reason=reason,
        )
        for number in range(found.replicas)
    ]
