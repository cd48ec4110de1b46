"""Carries out a plan: probe, journal `applying`, apply, verify, journal `verified`; resuming is running again.

The journal is written before the world is touched. A step that is found `applying` (the bot died in it) is probed:
DONE is accepted after `verify`, TODO is applied again, UNKNOWN stops and asks people; nothing is repeated on a guess.
A run that has asked goes on by itself only where the step turns out DONE: that it did not happen is for people to sign.
When a step fails, the finished steps that carry `undo_on_failure` are undone, newest first, the failed one included.
An undo that fails stops there and asks people: going on would undo the rest in the wrong order. Running again tries
that undo again; once a step has failed, a run never goes forward.

What people answer is a line of the journal, so it is honoured once, whenever the bot dies: HAPPENED becomes VERIFIED
(or UNDONE) on their word, REPEAT is used up by the APPLYING that follows it, SKIPPED passes over an optional step,
ABORTED turns the run back. What they order (`Order`) is read before each step; a stop within a step is obeyed by
running again.
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

from actions.contract import JournalEntry, JournalState, Plan, Precondition, Probe, Step
from actions.errors import DrError, PermanentError, PreconditionError, TemporaryError, UnknownOutcomeError
from actions.ports import Ports, ProgressReport
from actions.site import Frozen

ATTEMPTS = 3
"""How often a step, an undo or a precondition is tried when the world answers with TemporaryError."""

LONGEST_PAUSE = timedelta(seconds=30)

OUTCOME_LIMIT = timedelta(seconds=30)
"""How long the next step waits for what can be said of the last one."""

_TURNS = (JournalState.FAILED, JournalState.ABORTED, JournalState.PREEMPTED)
"""Lines after which a run only goes back. The first one says why."""

_BACKWARD = (*_TURNS, JournalState.UNDOING, JournalState.UNDONE)

_PASSED = (JournalState.VERIFIED, JournalState.SKIPPED)

ATTESTED = "People have looked at it and attest it."
"""What the journal says of a step that was taken as done on signed words alone."""

_FOUND = {
    Probe.DONE: "it has happened",
    Probe.TODO: "it has not happened, or not completely",
    Probe.UNKNOWN: "it cannot be told whether it has happened",
}

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
    PAUSED = "paused"
    ABORTED = "aborted"
    PREEMPTED = "pre-empted"


class RunResult(Frozen):
    """How a run ended, and the sentence people read."""

    outcome: Outcome
    message: str = ""
    step: int | None = None


class OrderKind(StrEnum):
    """PAUSE and ABORT wait for the end of the step, STOP does not; YIELD only where the step can be interrupted."""

    PAUSE = "pause"
    ABORT = "abort"
    STOP = "stop"
    YIELD = "yield"


class Order(Frozen):
    """What a run was told to do, and the sentence that says by whom and why."""

    kind: OrderKind
    sentence: str


Guard = Callable[[], Awaitable[None]]
"""Re-checks signatures and lease; raises to stop before the next step."""

Orders = Callable[[], Awaitable[Order | None]]
"""The order that stands now."""

StepProgress = Callable[[int, ProgressReport], None]


async def _open_guard() -> None:
    """For callers (tests, drills without signatures) that have nothing to re-check."""


async def _no_orders() -> Order | None:
    """For callers whose runs nobody can order about."""
    return None


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
        orders: Orders = _no_orders,
        progress: StepProgress = _silent,
    ) -> None:
        self._plan = plan
        self._ports = ports
        self._journal = journal
        self._guard = guard
        self._orders = orders
        self._progress = progress

    async def run(self) -> RunResult:
        """Never raises DrError for what the world answers; what the journal raises (a lost lease) and cancellation pass
        through. Raises BrokenOffError while the journal or the guard cannot be asked."""
        entries = await self._journal.entries()
        order = await self._unbroken(self._orders())
        if order is not None:
            halted = await self._halted(order, entries)
            if halted is not None:
                return halted
        # A step that failed keeps the run from going forward, also when its undo asked people later.
        if turned_back(entries):
            return await self._finish_undo(entries)
        last = _last_states(entries)
        if not last:
            stale = await self._stale()
            if stale is not None:
                return stale
        for index, step in enumerate(self._plan.steps):
            if last.get(index) in _PASSED:
                continue
            result = await self._one(index, step, found=last.get(index))
            if result is not None:
                return result
        return RunResult(outcome=Outcome.SUCCEEDED)

    async def breaks_off_for(self, order: Order) -> bool:
        """Whether this order is obeyed within the step that runs now, rather than after it."""
        entries = await self._journal.entries()
        return self._breaks_off(order, entries)

    async def asks_about(self, defect: str) -> RunResult:
        """Put a question about the step where the run stands into the journal: what carries the run out has failed
        itself, and would fail again."""
        entries = await self._journal.entries()
        last = _last_states(entries)
        open_steps = [number for number in range(len(self._plan.steps)) if last.get(number) not in _PASSED]
        index = entries[-1].step if turned_back(entries) or not open_steps else open_steps[0]
        return await self._ask(index, defect, self._ports.clock.now())

    def _breaks_off(self, order: Order, entries: Sequence[JournalEntry]) -> bool:
        if not entries or entries[-1].state not in (JournalState.APPLYING, JournalState.UNDOING):
            return False
        if order.kind is OrderKind.YIELD:
            # Putting back is never broken off for others: it ends soon, and gives the locks back itself.
            step = self._plan.steps[entries[-1].step]
            return step.interruptible and entries[-1].state is JournalState.APPLYING
        return order.kind is OrderKind.STOP

    async def _halted(self, order: Order, entries: Sequence[JournalEntry]) -> RunResult | None:
        """End the step that was broken off, say what is found of it, and ask; None when no step was in the middle."""
        if order.kind is OrderKind.STOP and entries and entries[-1].state is JournalState.ASKING:
            return RunResult(outcome=Outcome.ASKING, message=entries[-1].detail, step=entries[-1].step)
        if not self._breaks_off(order, entries):
            return None
        index, started = entries[-1].step, self._ports.clock.now()
        step = self._plan.steps[index]
        what = "Putting back step" if entries[-1].state is JournalState.UNDOING else "Step"
        message = f"{order.sentence} {what} {index + 1} ({step.summary}) was stopped within."
        try:
            probe = await self._retried(_foreseen(step, partial(self._ended, step)))
        except DrError as error:
            message = f"{message} It could not be looked at since, and may go on: {error}"
            return await self._ask(index, message, started)
        if order.kind is OrderKind.YIELD:
            await self._append(index, JournalState.PREEMPTED, message, started)
            return await self._fail(index, message)
        return await self._ask(index, f"{message} Looked at since, {_FOUND[probe]}.", started)

    async def _ended(self, step: Step) -> Probe:
        async with _limit(step):
            await step.stop(self._ports)
            return await step.probe(self._ports)

    async def _ask(self, index: int, message: str, started: datetime) -> RunResult:
        await self._append(index, JournalState.ASKING, message, started)
        return RunResult(outcome=Outcome.ASKING, message=message, step=index)

    async def _stale(self) -> RunResult | None:
        violations: list[str] = []
        for precondition in self._plan.preconditions:
            try:
                violation = await self._retried(_foreseen(precondition, partial(precondition.violation, self._ports)))
            except DrError as error:
                violation = f"{precondition.summary}: could not be read ({error})"
            if violation is not None:
                violations.append(violation)
        if not violations:
            return None
        return RunResult(outcome=Outcome.STALE, message=str(PreconditionError(violations)))

    async def _one(self, index: int, step: Step, *, found: JournalState | None) -> RunResult | None:
        started = self._ports.clock.now()
        # A step with a line in the journal is ended first: between steps is where nothing is half done.
        order = await self._unbroken(self._orders()) if found is None else None
        if order is not None:
            return await self._obey(index, order, started)
        try:
            await self._unbroken(self._guard())
        except UnknownOutcomeError as error:
            return await self._ask(index, str(error), started)
        except DrError as error:
            await self._append(index, JournalState.FAILED, str(error), started)
            return await self._fail(index, str(error))
        try:
            detail = await _foreseen(step, partial(self._carry_out, index, step, found=found))()
        except UnknownOutcomeError as error:
            return await self._ask(index, str(error), started)
        except DrError as error:
            if step.optional:
                return await self._ask(index, f"{error} This step is optional: skip it, repeat it or abort.", started)
            await self._append(index, JournalState.FAILED, str(error), started)
            return await self._fail(index, str(error))
        await self._append(index, JournalState.VERIFIED, detail, started)
        return None

    async def _obey(self, index: int, order: Order, started: datetime) -> RunResult:
        """Between two steps; `index` is the one that does not begin."""
        if order.kind in (OrderKind.PAUSE, OrderKind.STOP):
            message = f"{order.sentence} Nothing is half done; step {index + 1} has not begun."
            return RunResult(outcome=Outcome.PAUSED, message=message, step=index)
        turn = JournalState.ABORTED if order.kind is OrderKind.ABORT else JournalState.PREEMPTED
        await self._append(index, turn, order.sentence, started)
        return await self._fail(index, order.sentence)

    async def _carry_out(self, index: int, step: Step, *, found: JournalState | None) -> str:
        """Raises what the step raises. Returns what the journal should say besides `verified`."""
        # Once per run of this step: a retry is the same attempt to the journal.
        journalled = found is JournalState.APPLYING
        said = found

        async def attempt() -> str:
            nonlocal journalled, said
            async with _limit(step):
                probe = await self._probe(step, said)
                if probe is Probe.UNKNOWN and said is JournalState.HAPPENED:
                    return ATTESTED
                if probe is not Probe.DONE:
                    if not journalled:
                        await self._append(index, JournalState.APPLYING, "", self._ports.clock.now())
                        # From here on their word is used up: what follows is a new attempt with an outcome of its own.
                        journalled, said = True, None
                    await step.apply(self._ports, lambda report: self._progress(index, report))
                await step.verify(self._ports)
            return await self._said_of(step)

        return await self._retried(attempt)

    async def _said_of(self, step: Step) -> str:
        """Its outcome, which is no part of the step: what cannot be read in time must not fail what has happened."""
        try:
            async with asyncio.timeout(OUTCOME_LIMIT.total_seconds()):
                return await step.outcome(self._ports)
        except (DrError, TimeoutError) as error:
            log.warning("outcome_not_read: %s: %s", step.kind, error)
        except Exception:
            log.exception("outcome_unforeseen: %s", step.kind)
        return ""

    async def _probe(self, step: Step, said: JournalState | None) -> Probe:
        """What is found, together with what people said of it. Raises UnknownOutcomeError when that leaves a doubt."""
        try:
            probe = await step.probe(self._ports)
        except DrError:
            if said is not JournalState.HAPPENED:
                raise
            probe = Probe.UNKNOWN
        if probe is Probe.TODO and said is JournalState.HAPPENED:
            raise UnknownOutcomeError(
                f"{step.summary}: people said that it has happened, but the target shows that it has not. Look at the "
                "target again, then answer."
            )
        if probe is Probe.TODO and said is JournalState.ASKING:
            # Whoever has it looked at again has signed nothing; that it did not happen is for signers to say.
            raise UnknownOutcomeError(
                f"{step.summary}: looked at again, it has not happened, or not completely. Answer with "
                "`/dr run repeat` to have it done, which takes the signatures of its risk, or with `/dr run undo`."
            )
        if probe is Probe.UNKNOWN and said not in (JournalState.HAPPENED, JournalState.REPEAT):
            raise UnknownOutcomeError(
                f"{step.summary}: it cannot be told whether this has happened. Look at the target, then answer."
            )
        return probe

    async def _fail(self, index: int, message: str) -> RunResult:
        entries = await self._journal.entries()
        last = _last_states(entries)
        # A step that only was to begin when the run turned has nothing to put back. Neither has one that failed before
        # it was applied: whoever lacks the signatures for a step must not get its undo carried out either.
        turned = (JournalState.ABORTED, JournalState.PREEMPTED, JournalState.FAILED)
        begun = {entry.step for entry in entries if entry.state not in turned}
        numbers = [
            number for number in range(index, -1, -1) if number in begun and self._plan.steps[number].undo_on_failure
        ]
        for number in numbers:
            if last[number] is JournalState.UNDONE:
                continue
            if last[number] is JournalState.HAPPENED:
                await self._append(number, JournalState.UNDONE, ATTESTED, self._ports.clock.now())
                continue
            stuck = await self._put_back(number, message)
            if stuck is not None:
                return stuck
        tail = " What was changed for it has been put back." if numbers else ""
        return RunResult(outcome=_ending(entries), message=f"{message}{tail}", step=index)

    async def _finish_undo(self, entries: Sequence[JournalEntry]) -> RunResult:
        """The bot died, or asked, while undoing: go on undoing, never forward."""
        turned = next((entry for entry in entries if entry.state in _TURNS), entries[-1])
        return await self._fail(turned.step, turned.detail or "The run failed.")

    async def _put_back(self, index: int, message: str) -> RunResult | None:
        """Undo one step; a result when that cannot be done."""
        step = self._plan.steps[index]
        started = self._ports.clock.now()
        await self._append(index, JournalState.UNDOING, "", started)

        async def attempt() -> None:
            async with _limit(step):
                await step.undo(self._ports)

        try:
            await self._retried(_foreseen(step, attempt))
        except DrError as error:
            asked = f"{message} Putting it back stopped at step {index + 1} ({step.summary}): {error}"
            return await self._ask(index, asked, started)
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

    async def _unbroken(self, asked: Awaitable[T]) -> T:
        """Ask the journal, the guard or for orders, whose trouble is not the step's."""
        try:
            return await asked
        except TemporaryError as error:
            raise BrokenOffError(str(error)) from error


def _foreseen(what: Step | Precondition, attempt: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
    """The same attempt, with every defect as an error that people read.

    Raised on, a defect would leave the run to be resumed into the same defect for ever, production half switched and
    nobody told.
    """

    async def guarded() -> T:
        try:
            return await attempt()
        except (DrError, BrokenOffError):
            raise
        except Exception as error:
            log.exception("step_unforeseen: %s", what.kind)
            raise UnforeseenError(
                f"{what.summary}: this failed in a way that was not foreseen ({type(error).__name__}). "
                "The log of the worker has the details."
            ) from error

    return guarded


@asynccontextmanager
async def _limit(step: Step) -> AsyncIterator[None]:
    """The step's own time limit, as an error that says so."""
    try:
        async with asyncio.timeout(step.timeout.total_seconds()):
            yield
    except TimeoutError as error:
        raise PermanentError(f"{step.summary}: not done within {step.timeout}.") from error


def _ending(entries: Sequence[JournalEntry]) -> Outcome:
    """How a run that went back has ended: what turned it first says so."""
    turn = next((entry.state for entry in entries if entry.state in _TURNS), JournalState.FAILED)
    return {JournalState.ABORTED: Outcome.ABORTED, JournalState.PREEMPTED: Outcome.PREEMPTED}.get(turn, Outcome.FAILED)


def turned_back(entries: Sequence[JournalEntry]) -> bool:
    """Whether the run with this journal only goes back from here."""
    return any(entry.state in _BACKWARD for entry in entries)


def _last_states(entries: Sequence[JournalEntry]) -> dict[int, JournalState]:
    return {entry.step: entry.state for entry in entries}
