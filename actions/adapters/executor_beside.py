"""Jobs that read a scratch instance run beside it, on the machine of the worker; all others where the worker is told.

A scratch instance is reached through a socket in its folder: a Job of a cluster may see the folder, never the server.
"""

from __future__ import annotations

from collections.abc import Sequence

from actions.ports import BESIDE_JOBS, Executor, JobKind, JobSpec, JobState, Progress

BESIDE = frozenset({JobKind.COPY, JobKind.RESCUE})


class BesideExecutor(Executor):
    """`here` runs the kinds in `BESIDE`, `elsewhere` the others. A job is looked for in both, here first; not so one
    whose name says that it runs here, since the cluster may be what is lost."""

    def __init__(self, here: Executor, elsewhere: Executor) -> None:
        self._here = here
        self._elsewhere = elsewhere

    async def start(self, spec: JobSpec) -> None:
        if spec.kind not in BESIDE:
            await self._elsewhere.start(spec)
        elif await self._holder(spec.name) is self._here or await self._elsewhere.find(spec.name) is None:
            await self._here.start(spec)  # an earlier version may have started it elsewhere, under another name

    async def find(self, name: str) -> JobState | None:
        return await (await self._holder(name)).find(name)

    async def wait(self, name: str, progress: Progress) -> JobState:
        return await (await self._holder(name)).wait(name, progress)

    async def cancel(self, name: str) -> None:
        await (await self._holder(name)).cancel(name)

    async def forget(self, name: str) -> None:
        await (await self._holder(name)).forget(name)

    async def problems(self) -> Sequence[str]:
        return [*await self._here.problems(), *await self._elsewhere.problems()]

    async def _holder(self, name: str) -> Executor:
        if name.startswith(BESIDE_JOBS) or await self._here.find(name) is not None:
            return self._here
        return self._elsewhere
