"""Reviews: a run that one person started alone is looked at by others, who are asked until they have."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from actions.approval import State, reviewers
from actions.errors import DrError
from actions.ports import Clock
from bot.plan_file import BreakGlass
from bot.services.announcements import utc
from bot.services.approvals import Approvals
from bot.services.paging import page
from bot.services.policy import stored
from storage import outbox, plans, runs, timeline
from storage.session import Database
from storage.tables import PlanRow

log = structlog.get_logger()

LOOK_EVERY = timedelta(seconds=30)
BEFORE, AFTER = timedelta(hours=4), timedelta(hours=1)
"""How often the on-call channel is reminded of a review, before its deadline and after it."""

DROPPED = BreakGlass(delay=timedelta(minutes=1), review_within=timedelta(hours=24))
"""By what a run is reviewed that was started under break-glass when the plan file in force has none any more."""


class Reviews:
    """Asks for the review of every run under break-glass, again and again, until two others have made it."""

    def __init__(self, database: Database, approvals: Approvals, clock: Clock) -> None:
        self._database = database
        self._approvals = approvals
        self._clock = clock

    async def run(self) -> None:
        """Look until cancelled. Any number of clocks may."""
        while True:
            try:
                await self.remind(self._clock.now())
            except DrError as error:
                log.warning("reviews_not_looked_at", error=str(error))
            await asyncio.sleep(LOOK_EVERY.total_seconds())

    async def remind(self, now: datetime) -> list[str]:
        """Remind of each review that is open, once for each stretch of time; the plans that were reminded of."""
        allowed = self._approvals.policy.break_glass or DROPPED
        async with self._database.session() as session:
            rows = await plans.unreviewed(session)
        return [row.id for row in rows if await self._look(row, allowed, now)]

    async def _look(self, row: PlanRow, allowed: BreakGlass, now: datetime) -> bool:
        policy = self._approvals.policy
        async with self._database.session() as session:
            run = await runs.get(session, row.id)
            if run is None or run.started_at is None:
                return False
            done = reviewers(await self._approvals.case(session, row))
            decision = await self._approvals.decision(session, row, now, started_at=run.started_at)
            same = row.policy == stored(policy.version)  # a later one says nothing on what had been signed
            if same and decision.state is State.APPROVED and decision.review_by is None:
                text = f"Run {row.id} had all its signatures, so it needs no review."
                await self._note(session, row, text, now, key=plans.reviewed_key(row.id))
                return False
            what = f"{row.document.get('summary', row.action)} (plan {row.id})"
            if len(done) >= allowed.reviewers:
                text = f"Review complete: {what}, by {' and '.join(map(policy.name, done))}."
                await self._tell(session, row, text, now, key=plans.reviewed_key(row.id))
                return False
            # A roster that changed since voids the decision, not the duty.
            due = decision.review_by or run.started_at + allowed.review_within
            late = now >= due
            stretch = (now - due) // AFTER if late else (now - run.started_at) // BEFORE
            left = allowed.reviewers - len(done)
            text = (
                f"{'OVERDUE: the' if late else 'The'} run that {policy.name(row.requester)} started alone must be "
                f"reviewed by {left} more person(s) {'since' if late else 'until'} {utc(due)}: {what}. Read its "
                f"timeline, then `/dr review {row.id} WORDS` or `drbot review {row.id}`."
            )
            new = await self._tell(
                session, row, text, now, key=f"review/{row.id}/{'late' if late else 'open'}/{stretch}"
            )
            if new and late and stretch == 0:
                await page(session, text, key=f"review/{row.id}")
            return new

    async def _tell(self, session: AsyncSession, row: PlanRow, text: str, now: datetime, *, key: str) -> bool:
        new = await self._note(session, row, text, now, key=key)
        if new:
            await outbox.add(session, "text", self._approvals.policy.on_call_channel, payload={"text": text})
        return new

    async def _note(self, session: AsyncSession, row: PlanRow, text: str, now: datetime, *, key: str) -> bool:
        return await timeline.add(
            session,
            incident_id=row.incident_id,
            kind="review",
            actor="drbot",
            occurred_at=now,
            text=text,
            data={"plan": row.id},
            source_key=key,
        )
