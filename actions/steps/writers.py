"""Steps that stop everything that writes to a database, and start it again as it was."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

from actions.contract import Probe, Step
from actions.errors import VerificationError
from actions.ports import Ports, Progress, WorkloadFacts, no_progress
from actions.site import Frozen, WorkloadRef
from actions.steps import byhand
from actions.steps.rollouts import await_rollouts, settled

STOP_PATIENCE = timedelta(minutes=5)
"""Longer than the usual grace period of a pod (30 s) and of a CronJob's last run."""

START_PATIENCE = timedelta(minutes=8)

UNDO_PATIENCE = timedelta(minutes=1)


class Writer(Frozen):
    """A workload and the replicas it had when the plan was made; what it really had is recorded when it is stopped."""

    ref: WorkloadRef
    replicas: int


class StopWriters(Step):
    """Replica counts recorded on the workloads, scaled to zero, no pod left."""

    kind: Literal["stop_writers"] = "stop_writers"
    timeout: timedelta = STOP_PATIENCE + timedelta(minutes=1)
    undo_on_failure: bool = True
    writers: tuple[Writer, ...]  # in stop order
    mark: str

    @property
    def summary(self) -> str:
        return f"Stop {_listed(self.writers)} and wait until none of their pods is left"

    @property
    def before(self) -> str:
        return _replicas(self.writers)

    @property
    def after(self) -> str:
        return "0 replicas each, CronJobs suspended, the real counts recorded on the workloads"

    def by_hand(self) -> tuple[str, ...]:
        return tuple(byhand.scaled(writer.ref, 0) for writer in self.writers)

    async def probe(self, ports: Ports) -> Probe:
        for writer in self.writers:
            facts = await ports.cluster.workload(writer.ref)
            if facts is None or facts.replicas != 0 or facts.recorded is None:
                return Probe.TODO
            if not (await ports.cluster.rollout(writer.ref)).done:
                return Probe.TODO
        return Probe.DONE

    async def apply(self, ports: Ports, progress: Progress) -> None:
        await stop(ports, self.writers, mark=self.mark, progress=progress)

    async def verify(self, ports: Ports) -> None:
        for writer in self.writers:
            facts = await ports.cluster.workload(writer.ref)
            if facts is not None and facts.replicas != 0:
                raise VerificationError(
                    f"{writer.ref} is at {facts.replicas} replicas again. Find out who scales it (HPA, GitOps, people)."
                )

    async def undo(self, ports: Ports) -> None:
        await give_back(ports, self.writers, mark=self.mark)
        # As it was is not the same as healthy: with a damaged database its pods may never have become ready.
        await settled(ports, [writer.ref for writer in self.writers], patience=UNDO_PATIENCE)

    def undo_by_hand(self) -> tuple[str, ...]:
        return tuple(line for writer in reversed(self.writers) for line in _started(writer))


class StartWriters(Step):
    """Every workload at the count it had, its rollout done."""

    kind: Literal["start_writers"] = "start_writers"
    timeout: timedelta = START_PATIENCE + timedelta(minutes=1)
    undo_on_failure: bool = True
    writers: tuple[Writer, ...]  # in stop order; started in reverse
    mark: str

    @property
    def summary(self) -> str:
        return f"Start {_listed(tuple(reversed(self.writers)))} and wait for the rollout"

    @property
    def before(self) -> str:
        return "stopped"

    @property
    def after(self) -> str:
        return f"the recorded counts given back ({_replicas(self.writers)}), all pods ready"

    def by_hand(self) -> tuple[str, ...]:
        started = reversed(self.writers)
        return tuple(line for writer in started for line in (*_started(writer), byhand.rollout_status(writer.ref)))

    async def probe(self, ports: Ports) -> Probe:
        for writer in self.writers:
            facts = await ports.cluster.workload(writer.ref)
            if facts is None or facts.recorded is not None:
                return Probe.TODO
            if not (await ports.cluster.rollout(writer.ref)).done:
                return Probe.TODO
        return Probe.DONE

    async def apply(self, ports: Ports, progress: Progress) -> None:
        await give_back(ports, self.writers, mark=self.mark)
        refs = [writer.ref for writer in reversed(self.writers)]
        await await_rollouts(ports, refs, patience=START_PATIENCE, progress=progress, phase="waiting for")

    async def verify(self, ports: Ports) -> None:
        for writer in self.writers:
            facts = await ports.cluster.workload(writer.ref)
            if facts is None or facts.recorded is not None:
                raise VerificationError(f"{writer.ref} did not get its replicas back. Scale it to {writer.replicas}.")

    async def undo(self, ports: Ports) -> None:
        # What comes before this step can only be undone without writers.
        await stop(ports, self.writers, mark=self.mark, progress=no_progress)

    def undo_by_hand(self) -> tuple[str, ...]:
        return tuple(byhand.scaled(writer.ref, 0) for writer in self.writers)


async def stop(ports: Ports, writers: Sequence[Writer], *, mark: str, progress: Progress) -> None:
    """Stop all, then wait for all: they end at the same time."""
    for writer in writers:
        await ports.cluster.stop(writer.ref, mark=mark)
    refs = [writer.ref for writer in writers]
    await await_rollouts(ports, refs, patience=STOP_PATIENCE, progress=progress, phase="waiting for the end of")


async def give_back(ports: Ports, writers: Sequence[Writer], *, mark: str) -> None:
    """Start all in reverse stop order."""
    for writer in reversed(writers):
        await ports.cluster.give_back(writer.ref, mark=mark)


def writers_of(facts: Sequence[WorkloadFacts]) -> tuple[Writer, ...]:
    """What a plan records of workloads; one that is stopped already shows the count to be given back, unless
    somebody has scaled it up since."""
    return tuple(
        Writer(ref=item.ref, replicas=item.replicas if item.recorded is None or item.replicas else item.recorded)
        for item in facts
    )


def _started(writer: Writer) -> tuple[str, ...]:
    return byhand.scaled(writer.ref, writer.replicas), byhand.unrecorded(writer.ref)


def _listed(writers: Sequence[Writer]) -> str:
    return ", ".join(f"{writer.ref.kind} `{writer.ref.name}`" for writer in writers)


def _replicas(writers: Sequence[Writer]) -> str:
    return ", ".join(f"`{writer.ref.name}` {writer.replicas}" for writer in writers)
