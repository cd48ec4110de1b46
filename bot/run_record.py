"""What a worker writes while it carries a run out: the journal, and figures for people."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import structlog

from actions.contract import JournalEntry, Plan
from actions.errors import DrError
from actions.ports import Ports, ProgressReport
from bot.services.custody import note_step
from bot.services.own_runs import entries
from bot.services.plans import note_plan
from bot.services.progress import Meters
from storage import outbox, runs
from storage.session import Database
from storage.tables import PlanRow

log = structlog.get_logger()

DRAWN_EVERY = timedelta(seconds=2.5)
"""How often progress is written for people: Slack takes some fifty updates a minute, of all channels together."""


class DatabaseJournal:
    """The runner's journal in the bot's database, guarded by owner and epoch. Every line is also on the timeline,
    and what a step has set aside is evidence of the incident."""

    def __init__(self, database: Database, row: PlanRow, plan: Plan, *, owner: str, epoch: int) -> None:
        self._database = database
        self._row = row
        self._plan = plan
        self._owner = owner
        self._epoch = epoch

    async def entries(self) -> Sequence[JournalEntry]:
        async with self._database.session() as session:
            return entries(await runs.journal(session, self._row.id))

    async def append(self, entry: JournalEntry) -> None:
        async with self._database.session() as session:
            await runs.append(session, self._row.id, owner=self._owner, epoch=self._epoch, entry=entry)
            step = self._plan.steps[entry.step]
            detail = f": {entry.detail}" if entry.detail else ""
            text = f"Step {entry.step + 1} {entry.state}: {step.summary}{detail}"
            data = {"plan": self._row.id, "step": entry.step + 1, "state": entry.state, "elapsed_ms": entry.elapsed_ms}
            await note_plan(session, self._row, kind="step", text=text, at=entry.at, data=data)
            await note_step(session, self._row, step, entry.state, entry.at)


class Painter:
    """Writes progress for people now and then, and never holds the work up."""

    def __init__(self, database: Database, row: PlanRow, ports: Ports, *, epoch: int) -> None:
        self._database = database
        self._row = row
        self._clock = ports.clock
        self._epoch = epoch
        self._meters = Meters()
        self._task = asyncio.create_task(self._paint())

    def take(self, step: int, report: ProgressReport) -> None:
        """Remember what is to be drawn next."""
        self._meters.take(step, report)

    async def _paint(self) -> None:
        while True:
            await asyncio.sleep(DRAWN_EVERY.total_seconds())
            now = self._clock.now()
            drawn = self._meters.draw(now)
            if drawn is None:
                continue
            step, text = drawn
            try:
                async with self._database.session() as session:
                    progress: dict[str, object] = {"step": step, "text": text}
                    if (rest := self._meters.rest) is not None:
                        phase, left = rest
                        progress |= {"phase": phase, "left_s": left.total_seconds(), "at": now.isoformat()}
                    await runs.set_progress(session, self._row.id, epoch=self._epoch, progress=progress)
                    await outbox.add(session, "plan", self._row.channel, ref=self._row.id)
            except DrError as error:
                log.warning("progress_not_drawn", run=self._row.id, error=type(error).__name__)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
