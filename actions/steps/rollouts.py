"""Waiting for workloads, and saying which pod keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from actions.errors import VerificationError
from actions.ports import Ports, Progress, ProgressReport, Rollout
from actions.site import WorkloadRef

PAUSE = timedelta(seconds=1)


async def await_rollouts(
    ports: Ports, refs: Sequence[WorkloadRef], *, patience: timedelta, progress: Progress, phase: str
) -> None:
    """Return once every rollout is done. Raises VerificationError naming the workload and its failing pods when one
    gave up or `patience` for all of them together is over."""
    deadline = ports.clock.now() + patience
    for number, ref in enumerate(refs):
        progress(ProgressReport(done=number, total=len(refs), unit="steps", phase=f"{phase} {ref.name}"))
        rollout = await ports.cluster.rollout(ref)
        while not rollout.done:
            if rollout.failed or ports.clock.now() >= deadline:
                raise VerificationError(stuck(ref, rollout))
            await ports.clock.sleep(PAUSE)
            rollout = await ports.cluster.rollout(ref)
    progress(ProgressReport(done=len(refs), total=len(refs), unit="steps", phase=phase))


async def settled(ports: Ports, refs: Sequence[WorkloadRef], *, patience: timedelta) -> bool:
    """Wait as long as `patience` for every rollout and tell whether all are done. Never raises for a stuck one."""
    deadline = ports.clock.now() + patience
    for ref in refs:
        while not (await ports.cluster.rollout(ref)).done:
            if ports.clock.now() >= deadline:
                return False
            await ports.clock.sleep(PAUSE)
    return True


def stuck(ref: WorkloadRef, rollout: Rollout) -> str:
    """One sentence: the workload, its numbers, the pods that fail and why."""
    pods = ", ".join(
        f"`{pod.name}` ({pod.reason}{': ' + pod.message if pod.message else ''})" for pod in rollout.failing
    )
    named = f" Failing: {pods}." if pods else ""
    gave_up = "gave up" if rollout.failed else "is not done in time"
    return f"The rollout of {ref} {gave_up}: {rollout.ready} of {rollout.wanted} ready.{named}"
