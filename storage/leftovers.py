"""What the memory knows of the plan behind something that was left on a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from storage import outbox, timeline
from storage.runs import open_heir
from storage.tables import JournalRow, PlanRow, RunRow


@dataclass(frozen=True)
class Traces:
    """A plan, its run, and the steps (by number from 0) that its journal has as verified."""

    plan: PlanRow
    run: RunRow
    verified: frozenset[int]


async def traces(session: AsyncSession, plan_id: str, *, hold: bool = False) -> Traces | None:
    """None when nothing is known of the plan. With `hold` its run cannot change until this transaction ends."""
    plan = await session.get(PlanRow, plan_id)
    if plan is None:
        return None
    statement = select(RunRow).where(col(RunRow.id) == plan_id)
    if hold:
        # Removing a database may take a while in which this transaction is silent.
        await session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '10min'"))
        statement = statement.with_for_update()
    run = (await session.execute(statement)).scalar_one()
    # A retry goes on with what the first try has left.
    run = await open_heir(session, plan_id) or run
    states = select(col(JournalRow.step)).where(col(JournalRow.run_id) == plan_id, col(JournalRow.state) == "verified")
    return Traces(plan=plan, run=run, verified=frozenset((await session.execute(states)).scalars()))


async def tell_removed(
    session: AsyncSession, known: Traces | None, told: str, *, data: Mapping[str, Any], at: datetime
) -> None:
    """Put it on the timeline, and into the channel of the incident it belongs to, if to any."""
    incident = None if known is None else known.plan.incident_id
    await timeline.add(
        session, incident_id=incident, kind="leftover", actor="drbot", occurred_at=at, text=told, data=data
    )
    if known is not None and incident is not None:
        await outbox.add(session, "incident", known.plan.channel, ref=incident)
