"""Jobs as tasks of the test's loop; the object outlives whatever plays the bot."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from actions.adapters.executor import named
from actions.backup.jobs import Engines, kind_of, run_job
from actions.errors import DrError, UserError
from actions.ports import Executor, JobPhase, JobSpec, JobState, Progress, ProgressReport


@dataclass
class MemoryJob:
    """One job. `held` keeps it from beginning until it is set."""

    spec: JobSpec
    state: JobState = field(default_factory=lambda: JobState(phase=JobPhase.RUNNING))
    reports: list[ProgressReport] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class MemoryExecutor(Executor):
    """`hold()` makes jobs wait, `release()` lets them go, `lose(name)` ends one as a crash of its machine does."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self.jobs: dict[str, MemoryJob] = {}
        self.starts: list[str] = []
        self._free = asyncio.Event()
        self._free.set()

    def hold(self) -> None:
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    async def lose(self, name: str) -> None:
        self.jobs[name].state = JobState(phase=JobPhase.LOST, error="its process ended without a result")
        await self._end(self.jobs[name])

    async def vanish(self, name: str) -> None:
        """Somebody removes all traces of it."""
        await self.lose(name)
        del self.jobs[name]

    async def start(self, spec: JobSpec) -> None:
        if named(spec.name) in self.jobs:
            return
        self.starts.append(spec.name)
        job = self.jobs[spec.name] = MemoryJob(spec)
        job.task = asyncio.create_task(self._run(job))

    async def find(self, name: str) -> JobState | None:
        return self.jobs[name].state if named(name) in self.jobs else None

    async def wait(self, name: str, progress: Progress) -> JobState:
        if name not in self.jobs:
            raise UserError(f"There is no job `{name}`. It was never started here, or was forgotten.")
        job = self.jobs[name]
        if job.task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(job.task)
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise asyncio.CancelledError
        for report in job.reports:
            progress(report)
        return job.state

    async def cancel(self, name: str) -> None:
        job = self.jobs.get(named(name))
        if job is not None and job.state.phase is JobPhase.RUNNING:
            job.state = JobState(phase=JobPhase.LOST, error="it was ended on request")
            await self._end(job)

    async def forget(self, name: str) -> None:
        job = self.jobs.get(named(name))
        if job is not None and job.state.phase is JobPhase.RUNNING:
            raise UserError(f"The job `{name}` is running. Cancel it before it is forgotten.")
        self.jobs.pop(name, None)

    async def problems(self) -> Sequence[str]:
        return ()

    async def _run(self, job: MemoryJob) -> None:
        await self._free.wait()
        try:
            result = await run_job(job.spec, self._engines, job.reports.append)
            job.state = JobState(phase=JobPhase.SUCCEEDED, result=result)
        except DrError as error:
            job.state = JobState(phase=JobPhase.FAILED, error=str(error), error_kind=kind_of(error))

    async def _end(self, job: MemoryJob) -> None:
        if job.task is not None:
            job.task.cancel()
            await asyncio.gather(job.task, return_exceptions=True)
