"""Runs of the bot in memory: their journals, and the answers they were given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from actions.backup.physical import BackupKind
from actions.contract import JournalState, Plan
from actions.errors import PermanentError
from actions.ports import Answer, MeasuredLoad, RunFacts, Runs
from actions.steps.bases import MakeBase
from actions.steps.copies import LoadDump

NO_TIME = timedelta()
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class MemoryRun:
    """One run. Journal lines are numbered from 1."""

    plan: Plan
    state: str
    message: str = ""
    lines: list[tuple[int, JournalState]] = field(default_factory=list)
    took: timedelta = NO_TIME  # each of its steps
    at: datetime = LONG_AGO  # each of its lines

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
        self.next: dict[tuple[str, str], datetime] = {}  # action and target of a drill
        self.rhythm: dict[tuple[str, str], timedelta] = {}  # likewise
        self.exposures: list[tuple[datetime, str]] = []  # when, and the sentence

    def add(
        self,
        plan: Plan,
        state: str,
        *lines: tuple[int, JournalState],
        message: str = "",
        took: timedelta = NO_TIME,
        at: datetime = LONG_AGO,
    ) -> None:
        self.runs[plan.id] = MemoryRun(plan, state, message, list(lines), took, at)

    async def last_load(self, database: str) -> MeasuredLoad | None:
        for run in reversed(self.runs.values()):
            if run.plan.action != "restore.dump" or not run.took:
                continue
            for index, step in enumerate(run.plan.steps):
                mine = [state for number, state in run.lines if number == index]
                once = mine.count(JournalState.APPLYING) == 1 and JournalState.VERIFIED in mine
                if isinstance(step, LoadDump) and step.database == database and step.database_bytes and once:
                    return MeasuredLoad(database_bytes=step.database_bytes, took=run.took, at=run.at)
        return None

    async def full_since(self, server: str) -> datetime | None:
        at_work = [
            run.at
            for run in self.runs.values()
            if (run.state, run.plan.action, run.plan.target) == ("running", "backup.base", server)
            and isinstance(run.plan.steps[0], MakeBase)
            and run.plan.steps[0].backup_kind is BackupKind.FULL
        ]
        return min(at_work, default=None)

    async def exposures_since(self, since: datetime) -> Sequence[str]:
        return [said for at, said in sorted(self.exposures) if at >= since]

    async def next_of(self, action: str, target: str) -> datetime | None:
        return self.next.get((action, target))

    async def rhythm_of(self, action: str, target: str) -> timedelta | None:
        return self.rhythm.get((action, target))

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
