"""Steps that move data: they run as jobs of the `Executor`, which outlive the bot and are found again by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from actions.contract import Probe, Step
from actions.errors import (
    DrError,
    PermanentError,
    TemporaryError,
    UnknownOutcomeError,
    UserError,
    VerificationError,
)
from actions.ports import JobKind, JobPhase, JobSpec, JobState, Ports, Progress
from actions.steps.forecasts import patience

JOB_LIMIT = timedelta(hours=6)
"""For jobs of which nothing is forecast. Where something is, see `job_timeout`."""

LEEWAY = timedelta(minutes=10)
"""Beyond the job's own limit: the executor ends a job that hangs, and the step then says why."""


def job_timeout(forecast: timedelta) -> timedelta:
    """The time-out of a step whose job is forecast to take so long."""
    return patience(forecast, at_least=JOB_LIMIT) + LEEWAY


class HeavyStep(Step):
    """One job. What it does is idempotent by its name: starting it twice starts it once."""

    timeout: timedelta = JOB_LIMIT + LEEWAY
    job: str  # RFC 1123 label

    @property
    @abstractmethod
    def job_kind(self) -> JobKind: ...

    @abstractmethod
    def request(self) -> Mapping[str, Any]:
        """What `drbot job` is asked to do, as JSON, without secrets."""

    @abstractmethod
    async def effect(self, ports: Ports, job: JobState | None) -> Probe:
        """Whether the effect is there, looking at the world and at the job, which is not running."""

    async def sweep(self, ports: Ports) -> None:
        """Remove what an ended job left half done. Nothing by default."""

    async def probe(self, ports: Ports) -> Probe:
        state = await ports.executor.find(self.job)
        if state is not None and state.phase is JobPhase.RUNNING:
            return Probe.TODO  # `apply` waits for it
        return await self.effect(ports, state)

    async def apply(self, ports: Ports, progress: Progress) -> None:
        state = await ports.executor.find(self.job)
        if state is None:
            await self.sweep(ports)
        elif state.phase is not JobPhase.RUNNING:
            # Lost, stopped, failed in an earlier run, or its effect was removed since: begin again from nothing.
            await self._begin_again(ports)
        spec = JobSpec(name=self.job, kind=self.job_kind, request=self.request(), timeout=self.timeout - LEEWAY)
        await ports.executor.start(spec)
        await self._ended(ports, await ports.executor.wait(self.job, progress))

    async def stop(self, ports: Ports) -> None:
        state = await ports.executor.find(self.job)
        if state is not None and state.phase is JobPhase.RUNNING:
            await ports.executor.cancel(self.job)

    async def _begin_again(self, ports: Ports) -> None:
        # The order matters: once the name is forgotten, nothing tells that there is something to remove.
        await ports.executor.cancel(self.job)
        await self.sweep(ports)
        await ports.executor.forget(self.job)

    async def _ended(self, ports: Ports, state: JobState) -> None:
        if state.phase is JobPhase.SUCCEEDED:
            return
        error = failure(self, state)
        if isinstance(error, TemporaryError):
            await self._begin_again(ports)
        raise error


class ReadingStep(HeavyStep):
    """One that reads something completely and records beside it what it found: reading again harms nothing."""

    async def effect(self, ports: Ports, job: JobState | None) -> Probe:  # noqa: ARG002 - the job tells it
        return Probe.DONE if job is not None and job.phase is JobPhase.SUCCEEDED else Probe.TODO

    async def undo(self, ports: Ports) -> None:
        """A recorded check is kept: it is true."""


def failure(step: Step, state: JobState) -> DrError:
    """The error a job ended with, as an error of this process."""
    text = state.error or "it ended without a result"
    if state.phase is not JobPhase.FAILED:
        return TemporaryError(f"{step.summary}: the job was lost ({text}). Look at the machine it ran on.")
    if state.error_kind == TemporaryError.__name__:
        return TemporaryError(text)
    table: Mapping[str, type[DrError]] = {
        kind.__name__: kind for kind in (UserError, VerificationError, UnknownOutcomeError)
    }
    return table.get(state.error_kind, PermanentError)(text)
