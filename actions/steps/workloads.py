"""Steps on one workload: another replica count, a restart."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from actions.contract import Probe, Step
from actions.errors import VerificationError
from actions.ports import Ports, Progress
from actions.site import WorkloadRef
from actions.steps import byhand
from actions.steps.rollouts import await_rollouts, settled

PATIENCE = timedelta(minutes=8)

UNDO_PATIENCE = timedelta(minutes=1)


class ScaleWorkload(Step):
    """A workload at another count, its rollout done."""

    kind: Literal["scale_workload"] = "scale_workload"
    timeout: timedelta = PATIENCE + timedelta(minutes=1)
    undo_on_failure: bool = True
    ref: WorkloadRef
    replicas_before: int
    replicas: int

    @property
    def summary(self) -> str:
        return f"Scale {self.ref} to {self.replicas} and wait for the rollout"

    @property
    def before(self) -> str:
        return f"{self.replicas_before} replicas"

    @property
    def after(self) -> str:
        return f"{self.replicas} replicas, all ready"

    def by_hand(self) -> tuple[str, ...]:
        return (byhand.scaled(self.ref, self.replicas), byhand.rollout_status(self.ref))

    async def probe(self, ports: Ports) -> Probe:
        facts = await ports.cluster.workload(self.ref)
        if facts is None or facts.replicas != self.replicas:
            return Probe.TODO
        return Probe.DONE if (await ports.cluster.rollout(self.ref)).done else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:
        await ports.cluster.scale(self.ref, self.replicas)
        await await_rollouts(ports, [self.ref], patience=PATIENCE, progress=progress, phase="waiting for")

    async def verify(self, ports: Ports) -> None:
        facts = await ports.cluster.workload(self.ref)
        found = None if facts is None else facts.replicas
        if found != self.replicas:
            raise VerificationError(
                f"{self.ref} is at {found} replicas, not {self.replicas}. Find out who scales it (HPA, GitOps, people)."
            )

    async def undo(self, ports: Ports) -> None:
        facts = await ports.cluster.workload(self.ref)
        if facts is not None and facts.replicas == self.replicas:
            await ports.cluster.scale(self.ref, self.replicas_before)
        # Bounded and not an error: it may not have been healthy before either.
        await settled(ports, [self.ref], patience=UNDO_PATIENCE)

    def undo_by_hand(self) -> tuple[str, ...]:
        return (byhand.scaled(self.ref, self.replicas_before),)

    async def undone(self, ports: Ports) -> None:
        facts = await ports.cluster.workload(self.ref)
        if facts is not None and facts.replicas == self.replicas != self.replicas_before:
            raise VerificationError(
                f"{self.ref} is still at {self.replicas} replicas, not {self.replicas_before} as before. Find out who "
                "scales it (HPA, GitOps, people)."
            )


class RestartWorkload(Step):
    """New pods for a workload, once per plan."""

    kind: Literal["restart_workload"] = "restart_workload"
    timeout: timedelta = PATIENCE + timedelta(minutes=1)
    ref: WorkloadRef
    mark: str

    @property
    def summary(self) -> str:
        return f"Restart {self.ref} and wait for the rollout"

    @property
    def before(self) -> str:
        return "pods as they run now"

    @property
    def after(self) -> str:
        return "every pod replaced and ready"

    def by_hand(self) -> tuple[str, ...]:
        return (byhand.restarted(self.ref), byhand.rollout_status(self.ref))

    async def probe(self, ports: Ports) -> Probe:
        facts = await ports.cluster.workload(self.ref)
        if facts is None or facts.restarted != self.mark:
            return Probe.TODO
        return Probe.DONE if (await ports.cluster.rollout(self.ref)).done else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:
        await ports.cluster.restart(self.ref, mark=self.mark)
        await await_rollouts(ports, [self.ref], patience=PATIENCE, progress=progress, phase="waiting for")

    async def verify(self, ports: Ports) -> None:
        facts = await ports.cluster.workload(self.ref)
        if facts is None or facts.restarted != self.mark:
            raise VerificationError(f"{self.ref} does not carry the restart of this plan. Restart it again.")
