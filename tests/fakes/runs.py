"""Runs of the bot in memory: their journals, and the answers they were given."""

from __future__ import annotations

from dataclasses import dataclass, field

from actions.contract import JournalState, Plan
from actions.errors import PermanentError
from actions.ports import Answer, RunFacts, Runs


@dataclass
class MemoryRun:
    """One run. Journal lines are numbered from 1."""

    plan: Plan
    state: str
    message: str = ""
    lines: list[tuple[int, JournalState]] = field(default_factory=list)

    @property
    def question(self) -> int | None:
        asks = self.state == "asking" and self.lines and self.lines[-1][1] is JournalState.ASKING
        return len(self.lines) if asks else None


_ANSWERS = {answer.value for answer in Answer}
_BACKWARD = {JournalState.FAILED, JournalState.ABORTED, JournalState.UNDOING, JournalState.UNDONE}


class MemoryRuns(Runs):
    """`add` puts a run there; what it was answered is its last line."""

    def __init__(self) -> None:
        self.runs: dict[str, MemoryRun] = {}

    def add(self, plan: Plan, state: str, *lines: tuple[int, JournalState], message: str = "") -> None:
        self.runs[plan.id] = MemoryRun(plan, state, message, list(lines))

    async def find(self, run: str) -> RunFacts | None:
        found = self.runs.get(run)
        if found is None:
            return None
        pairs = enumerate(zip(found.lines, found.lines[1:], strict=False), start=1)
        return RunFacts(
            id=run,
            state=found.state,
            plan=found.plan,
            message=found.message,
            question=found.question,
            answered={
                number: Answer(said)
                for number, ((_, asked), (_, said)) in pairs
                if asked is JournalState.ASKING and said in _ANSWERS
            },
            step=found.lines[-1][0] if found.question is not None else None,
            backward=any(state in _BACKWARD for _, state in found.lines),
            last=dict(found.lines),
            lines=len(found.lines),
        )

    async def answer(self, run: str, question: int, answer: Answer, *, plan: str) -> None:
        facts = await self.find(run)
        if facts is not None and facts.answered.get(question) is answer:
            return
        if facts is None or facts.question != question or facts.step is None:
            raise PermanentError(f"Run `{run}` does not ask this any more; nothing was changed. Look at its card.")
        found = self.runs[run]
        found.lines.append((facts.step, JournalState(answer.value)))
        found.state = "failed" if answer is Answer.LEFT else "running"
