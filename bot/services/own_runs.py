"""The bot's own runs, as the actions that decide about them see them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from sqlalchemy.ext.asyncio import AsyncSession

from actions.approval import Act
from actions.contract import JournalEntry, JournalState, Kinds, UnknownKindError
from actions.errors import PermanentError, UserError
from actions.ports import Answer, Clock, MeasuredLoad, RunFacts, Runs
from actions.runner import turned_back
from bot.services.approvals import Policy
from bot.services.drills import Drills
from bot.services.plans import note_plan
from storage import incidents, plans, runs
from storage.session import Database
from storage.tables import JournalRow, PlanRow, RunRow

EXPOSED = r"\m(security.?)?breach|\mcompromis|\mstolen|\mleaked|\mrotat"
"""Words of people that tell of credentials which others may know, or which were exchanged on purpose. One too many
keeps a person busy; one too few puts a stolen password back."""

SAID = {
    Answer.HAPPENED: "It has happened",
    Answer.REPEAT: "It has not happened, and is done again",
    Answer.SKIPPED: "It is skipped",
    Answer.ABORTED: "The run is aborted and put back",
    Answer.LEFT: "Everything is left as it stands",
}


class OwnRuns(Runs):
    """Reads runs, and writes what people have signed into the journal of one that asks."""

    def __init__(self, database: Database, policy: Policy, kinds: Kinds, clock: Clock, drills: Drills) -> None:
        self._drills = drills
        self._database = database
        self._policy = policy
        self._kinds = kinds
        self._clock = clock

    async def find(self, run: str) -> RunFacts | None:
        async with self._database.session() as session:
            row, found = await plans.get(session, run), await runs.get(session, run)
            if row is None or found is None:
                return None
            return self._facts(row, found, await runs.journal(session, run))

    async def last_load(self, database: str) -> MeasuredLoad | None:
        async with self._database.session() as session:
            found = await runs.last_load(session, database)
        if found is None:
            return None
        size, elapsed_ms, at = found
        return MeasuredLoad(database_bytes=size, took=timedelta(milliseconds=elapsed_ms), at=at)

    async def full_since(self, server: str) -> datetime | None:
        async with self._database.session() as session:
            return await runs.full_since(session, server)

    async def exposures_since(self, since: datetime) -> Sequence[str]:
        async with self._database.session() as session:
            return await incidents.exposures_since(session, since, EXPOSED)

    async def next_of(self, action: str, target: str) -> datetime | None:
        return await self._drills.next_of(action, target)

    async def rhythm_of(self, action: str, target: str) -> timedelta | None:
        return await self._drills.rhythm_of(action, target)

    def _facts(self, row: PlanRow, run: RunRow, lines: Sequence[JournalRow]) -> RunFacts:
        try:
            plan = self._kinds.plan(row.document)
        except UnknownKindError as error:
            raise UserError(f"Run `{run.id}`: {error}") from error
        asks = run.state == "asking" and bool(lines) and lines[-1].state == JournalState.ASKING
        return RunFacts(
            id=run.id,
            state=run.state,
            plan=plan,
            message=run.message,
            question=lines[-1].seq if asks else None,
            answered=_answered(lines),
            step=lines[-1].step if asks else None,
            backward=turned_back(entries(lines)),
            last={line.step: line.state for line in lines},
            lines=len(lines),
        )

    async def answer(self, run: str, question: int, answer: Answer, *, plan: str) -> None:
        async with self._database.session() as session:
            row = await plans.get(session, run)
            if row is None:
                raise PermanentError(f"There is no run `{run}`.")
            if _answered(await runs.journal(session, run)).get(question) is answer:
                return
            detail = f"{SAID[answer]}: {await self._signers(session, plan)}, by plan {plan}."
            now = self._clock.now()
            left = answer is Answer.LEFT
            if not await runs.answer(session, run, question=question, answer=answer, detail=detail, at=now, left=left):
                raise PermanentError(f"Run `{run}` does not ask this any more; nothing was changed. Look at its card.")
            data = {"plan": run, "answer": answer, "question": question, "signed": plan}
            await note_plan(session, row, kind="answer", text=f"Run {run} is answered. {detail}", at=now, data=data)

    async def _signers(self, session: AsyncSession, plan: str) -> str:
        """`Olivia Ortega (looked at it), Daniel Dietrich (so have I)`."""
        signed = [item for item in await plans.signatures(session, plan) if Act(item.act) in (Act.REQUEST, Act.APPROVE)]
        return ", ".join(f"{self._policy.name(item.person)} ({item.reason})" for item in signed)


def entries(lines: Sequence[JournalRow]) -> list[JournalEntry]:
    """A stored journal as the runner reads it."""
    return [
        JournalEntry(
            step=line.step, state=JournalState(line.state), detail=line.detail, at=line.at, elapsed_ms=line.elapsed_ms
        )
        for line in lines
    ]


def _answered(lines: Sequence[JournalRow]) -> dict[int, Answer]:
    """What was answered to which line that asks."""
    words = set(Answer)
    return {
        asked.seq or 0: Answer(said.state)
        for asked, said in pairwise(lines)
        if asked.state == JournalState.ASKING and said.state in words and said.step == asked.step
    }
