"""Carries out a plan: probe, journal `applying`, apply, verify, journal `verified`; resuming is running again.

The journal is written before the world is touched. A step that is found `applying` (the bot died in it) is probed:
DONE is accepted after `verify`, TODO is applied again, UNKNOWN stops and asks people; nothing is repeated on a guess.
When a step fails, the finished steps that carry `undo_on_failure` are undone, newest first, the failed one included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from actions.contract import JournalEntry, JournalState, Plan, Probe, Step
from actions.errors import DrError, PermanentError, PreconditionError, TemporaryError, UnknownOutcomeError
from actions.ports import Ports, ProgressReport
from actions.site import Frozen

ATTEMPTS = 3
"""How often a step is applied when the world answers with TemporaryError."""


class Journal(Protocol):
    """The durable record of one run. `append` raises when the run is no longer ours; nothing may follow then."""

    async def entries(self) -> Sequence[JournalEntry]: ...

    async def append(self, entry: JournalEntry) -> None: ...


class Outcome(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ASKING = "asking"
    STALE = "stale"


class RunResult(Frozen):
    """How a run ended, and the sentence people read."""

    outcome: Outcome
    message: str = ""
    step: int | None = None


Guard = Callable[[], Awaitable[None]]
"""Re-checks signatures and lease; raises to stop before the next step."""

StepProgress = Callable[[int, ProgressReport], None]


async def _open_guard() -> None:
    """For callers (tests, drills without signatures) that have nothing to re-check."""


def _silent(_: int, __: ProgressReport) -> None:
    """For callers that show nothing."""


class Runner:
    """Runs one plan to its end or to the question that people must answer."""

    def __init__(
        self,
        plan: Plan,
        ports: Ports,
        journal: Journal,
        *,
        guard: Guard = _open_guard,
        progress: StepProgress = _silent,
    ) -> None:
        self._plan = plan
        self._ports = ports
        self._journal = journal
        self._guard = guard
        self._progress = progress

    async def run(self) -> RunResult:
        """Never raises DrError; what the journal raises (lost lease) and cancellation pass through."""
        last = _last_states(await self._journal.entries())
        if any(state in (JournalState.UNDOING, JournalState.FAILED, JournalState.UNDONE) for state in last.values()):
            return await self._finish_undo(last)
        if not last:
            stale = await self._stale()
            if stale is not None:
                return stale
        for index, step in enumerate(self._plan.steps):
            if last.get(index) is JournalState.VERIFIED:
                continue
            result = await self._one(index, step, found=last.get(index))
            if result is not None:
                return result
        return RunResult(outcome=Outcome.SUCCEEDED)

    async def _stale(self) -> RunResult | None:
        violations: list[str] = []
        for precondition in self._plan.preconditions:
            try:
                violation = await precondition.violation(self._ports)
            except DrError as error:
                violation = f"{precondition.summary}: could not be read ({error})"
            if violation is not None:
                violations.append(violation)
        if not violations:
            return None
        return RunResult(outcome=Outcome.STALE, message=str(PreconditionError(violations)))

    async def _one(self, index: int, step: Step, *, found: JournalState | None) -> RunResult | None:
        started = self._ports.clock.now()
        try:
            await self._guard()
            await self._carry_out(index, step, found=found)
        except UnknownOutcomeError as error:
            await self._append(index, JournalState.ASKING, str(error), started)
            return RunResult(outcome=Outcome.ASKING, message=str(error), step=index)
        except DrError as error:
            await self._append(index, JournalState.FAILED, str(error), started)
            return await self._fail(index, str(error))
        await self._append(index, JournalState.VERIFIED, "", started)
        return None

    async def _carry_out(self, index: int, step: Step, *, found: JournalState | None) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with asyncio.timeout(step.timeout.total_seconds()):
                    await self._attempt(index, step, found=found)
                return
            except TemporaryError as error:
                if attempt == ATTEMPTS:
                    raise PermanentError(f"{error} Tried {ATTEMPTS} times.") from error
                found = JournalState.APPLYING
                await self._ports.clock.sleep(min(error.retry_after, timedelta(seconds=30)))
            except TimeoutError as error:
                raise PermanentError(f"{step.summary}: not done within {step.timeout}.") from error

    async def _attempt(self, index: int, step: Step, *, found: JournalState | None) -> None:
        probe = await step.probe(self._ports)
        if probe is Probe.UNKNOWN:
            raise UnknownOutcomeError(
                f"{step.summary}: it cannot be told whether this has happened. Look at the target, then answer."
            )
        if probe is Probe.TODO:
            if found is not JournalState.APPLYING:
                await self._append(index, JournalState.APPLYING, "", self._ports.clock.now())
            await step.apply(self._ports, lambda report: self._progress(index, report))
        await step.verify(self._ports)

    async def _fail(self, index: int, message: str) -> RunResult:
        undone = await self._undo_from(index)
        tail = " What was changed for it has been put back." if undone else ""
        return RunResult(outcome=Outcome.FAILED, message=f"{message}{tail}", step=index)

    async def _finish_undo(self, last: dict[int, JournalState]) -> RunResult:
        """The bot died while undoing: go on undoing, never forward."""
        failed = max((i for i, state in last.items() if state is not JournalState.VERIFIED), default=0)
        return await self._fail(failed, "The run failed and was interrupted while it was being put back.")

    async def _undo_from(self, index: int) -> bool:
        last = _last_states(await self._journal.entries())
        undone = False
        for number in range(index, -1, -1):
            step = self._plan.steps[number]
            if not step.undo_on_failure or number not in last or last[number] is JournalState.UNDONE:
                continue
            started = self._ports.clock.now()
            await self._append(number, JournalState.UNDOING, "", started)
            await self._undo(step)
            await self._append(number, JournalState.UNDONE, "", started)
            undone = True
        return undone

    async def _undo(self, step: Step) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with asyncio.timeout(step.timeout.total_seconds()):
                    await step.undo(self._ports)
                return
            except TemporaryError as error:
                if attempt == ATTEMPTS:
                    raise
                await self._ports.clock.sleep(min(error.retry_after, timedelta(seconds=30)))

    async def _append(self, index: int, state: JournalState, detail: str, started: datetime) -> None:
        now = self._ports.clock.now()
        elapsed = max(0, round((now - started).total_seconds() * 1000))
        await self._journal.append(JournalEntry(step=index, state=state, detail=detail, at=now, elapsed_ms=elapsed))


def _last_states(entries: Sequence[JournalEntry]) -> dict[int, JournalState]:
    return {entry.step: entry.state for entry in entries}
