"""Carries out a plan: probe, journal `applying`, apply, verify, journal `verified`; resuming is running again.

The journal is written before the world is touched. A step that is found `applying` (the bot died in it) is probed:
DONE is accepted after `verify`, TODO is applied again, UNKNOWN stops and asks people; nothing is repeated on a guess.
When a step fails, the finished steps that carry `undo_on_failure` are undone, newest first, the failed one included.
An undo that fails stops there and asks people: going on would undo the rest in the wrong order. Running again tries
that undo again; once a step has failed, a run never goes forward.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Protocol, TypeVar

from actions.contract import JournalEntry, JournalState, Plan, Probe, Step
from actions.errors import DrError, PermanentError, PreconditionError, TemporaryError, UnknownOutcomeError
from actions.ports import Ports, ProgressReport
from actions.site import Frozen

ATTEMPTS = 3
"""How often a step, an undo or a precondition is tried when the world answers with TemporaryError."""

LONGEST_PAUSE = timedelta(seconds=30)

_BACKWARD = (JournalState.FAILED, JournalState.UNDOING, JournalState.UNDONE)

T = TypeVar("T")

log = logging.getLogger(__name__)


class BrokenOffError(Exception):
    """The journal or the guard could not be asked for now. The run stands where it was: run again to resume.

    Not a DrError, since it says nothing of the world: no step has failed and nothing must be put back for it.
    """


class UnforeseenError(PermanentError):
    """A defect of a step, its port or a library; the cause has the details."""


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
        """Never raises DrError for what the world answers; what the journal raises (a lost lease) and cancellation pass
        through. Raises BrokenOffError while the journal or the guard cannot be asked."""
        entries = await self._journal.entries()
        # A step that failed keeps the run from going forward, also when its undo asked people later.
        if any(entry.state in _BACKWARD for entry in entries):
            return await self._finish_undo(entries)
        last = _last_states(entries)
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
                violation = await self._retried(partial(precondition.violation, self._ports))
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
            await self._unbroken(self._guard())
            try:
                await self._carry_out(index, step, found=found)
            except (DrError, BrokenOffError):
                raise
            except Exception as error:
                # Raised on, it would leave the run to be resumed into the same defect for ever, production half
                # switched and nobody told.
                log.exception("step_unforeseen: %s", step.kind)
                raise UnforeseenError(
                    f"{step.summary}: this failed in a way that was not foreseen ({type(error).__name__}). "
                    "The log of the worker has the details."
                ) from error
        except UnknownOutcomeError as error:
            await self._append(index, JournalState.ASKING, str(error), started)
            return RunResult(outcome=Outcome.ASKING, message=str(error), step=index)
        except DrError as error:
            await self._append(index, JournalState.FAILED, str(error), started)
            return await self._fail(index, str(error))
        await self._append(index, JournalState.VERIFIED, "", started)
        return None

    async def _carry_out(self, index: int, step: Step, *, found: JournalState | None) -> None:
        # Once per run of this step: a retry is the same attempt to the journal.
        journalled = found is JournalState.APPLYING

        async def attempt() -> None:
            nonlocal journalled
            async with _limit(step):
                if await self._todo(step):
                    if not journalled:
                        await self._append(index, JournalState.APPLYING, "", self._ports.clock.now())
                        journalled = True
                    await step.apply(self._ports, lambda report: self._progress(index, report))
                await step.verify(self._ports)

        await self._retried(attempt)

    async def _todo(self, step: Step) -> bool:
        probe = await step.probe(self._ports)
        if probe is Probe.UNKNOWN:
            raise UnknownOutcomeError(
                f"{step.summary}: it cannot be told whether this has happened. Look at the target, then answer."
            )
        return probe is Probe.TODO

    async def _fail(self, index: int, message: str) -> RunResult:
        last = _last_states(await self._journal.entries())
        numbers = [
            number for number in range(index, -1, -1) if number in last and self._plan.steps[number].undo_on_failure
        ]
        for number in numbers:
            if last[number] is JournalState.UNDONE:
                continue
            stuck = await self._put_back(number, message)
            if stuck is not None:
                return stuck
        tail = " What was changed for it has been put back." if numbers else ""
        return RunResult(outcome=Outcome.FAILED, message=f"{message}{tail}", step=index)

    async def _finish_undo(self, entries: Sequence[JournalEntry]) -> RunResult:
        """The bot died, or asked, while undoing: go on undoing, never forward."""
        failed = next((entry for entry in entries if entry.state is JournalState.FAILED), entries[-1])
        return await self._fail(failed.step, failed.detail or "The run failed.")

    async def _put_back(self, index: int, message: str) -> RunResult | None:
        """Undo one step; a result when that cannot be done."""
        step = self._plan.steps[index]
        started = self._ports.clock.now()
        await self._append(index, JournalState.UNDOING, "", started)

        async def attempt() -> None:
            async with _limit(step):
                await step.undo(self._ports)

        try:
            await self._retried(attempt)
        except DrError as error:
            asked = f"{message} Putting it back stopped at step {index + 1} ({step.summary}): {error}"
            await self._append(index, JournalState.ASKING, asked, started)
            return RunResult(outcome=Outcome.ASKING, message=asked, step=index)
        await self._append(index, JournalState.UNDONE, "", started)
        return None

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try as often as ATTEMPTS while the world answers with TemporaryError; then it is permanent.

        Every different answer is kept: the first one may name what was saved, where the last one only says that nobody
        answers any more.
        """
        tried = 1
        said: list[str] = []
        while True:
            try:
                return await attempt()
            except TemporaryError as error:
                if str(error) not in said:
                    said.append(str(error))
                if tried == ATTEMPTS:
                    raise PermanentError(f"{' Then: '.join(said)} Tried {ATTEMPTS} times.") from error
                tried += 1
                await self._ports.clock.sleep(min(error.retry_after, LONGEST_PAUSE))

    async def _append(self, index: int, state: JournalState, detail: str, started: datetime) -> None:
        now = self._ports.clock.now()
        elapsed = max(0, round((now - started).total_seconds() * 1000))
        entry = JournalEntry(step=index, state=state, detail=detail, at=now, elapsed_ms=elapsed)
        await self._unbroken(self._journal.append(entry))

    async def _unbroken(self, asked: Awaitable[None]) -> None:
        """Ask the journal or the guard, whose trouble is not the step's."""
        try:
            await asked
        except TemporaryError as error:
            raise BrokenOffError(str(error)) from error


@asynccontextmanager
async def _limit(step: Step) -> AsyncIterator[None]:
    """The step's own time limit, as an error that says so."""
    try:
        async with asyncio.timeout(step.timeout.total_seconds()):
            yield
    except TimeoutError as error:
        raise PermanentError(f"{step.summary}: not done within {step.timeout}.") from error


def _last_states(entries: Sequence[JournalEntry]) -> dict[int, JournalState]:
    return {entry.step: entry.state for entry in entries}
