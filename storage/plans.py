"""Plans and the signatures on them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from string import hexdigits

from sqlalchemy import case, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from storage.session import notify
from storage.tables import PlanRow, RunRow, SignatureRow, TimelineEntry

RETRY = "run.retry"
"""The action that does once more what another plan does."""

CODE = 8
"""Characters of the code that people see of a plan."""


async def add(session: AsyncSession, plan: PlanRow) -> None:
    """Store the plan and the run that waits for its signatures."""
    session.add(plan)
    await session.flush()
    session.add(RunRow(id=plan.id, plan_schema=plan.plan_schema))
    await notify(session, "signature")


async def get(session: AsyncSession, plan_id: str) -> PlanRow | None:
    return await session.get(PlanRow, plan_id)


async def by_code(session: AsyncSession, code: str) -> PlanRow | None:
    """The newest plan with the code that cards show, which is the beginning of its digest."""
    if len(code) < CODE or not set(code) <= set(hexdigits):
        return None
    found = select(PlanRow).where(col(PlanRow.digest).startswith(code.lower())).order_by(col(PlanRow.created_at).desc())
    return (await session.execute(found.limit(1))).scalar_one_or_none()


async def by_token(session: AsyncSession, token: str) -> PlanRow | None:
    return (await session.execute(select(PlanRow).where(col(PlanRow.token) == token))).scalar_one_or_none()


async def of_incident(session: AsyncSession, incident_id: str) -> Sequence[PlanRow]:
    statement = select(PlanRow).where(col(PlanRow.incident_id) == incident_id).order_by(col(PlanRow.created_at))
    return (await session.execute(statement)).scalars().all()


DENIAL_STANDS = timedelta(days=7)
"""How long a denial is shown to those who sign for the same. An incident is over within days, and who denied is back
from leave; later on the world it was said about is another one."""


async def denied(session: AsyncSession, plan: PlanRow, target: str, *, until: datetime | None = None) -> PlanRow | None:
    """The plan that would do the same to the same target and was denied last, in whichever incident or outside of any:
    asking in another place is no answer to a denial. Trying a run again does what the run did. With `until` a later
    denial is left out."""
    about = col(PlanRow.document)["about"].astext
    does = case((col(PlanRow.action) == RETRY, about), else_=col(PlanRow.action))
    statement = (
        select(PlanRow)
        .join(SignatureRow, (col(SignatureRow.plan_id) == col(PlanRow.id)) & (col(SignatureRow.act) == "deny"))
        .where(col(SignatureRow.at) > plan.created_at - DENIAL_STANDS)
        .where(col(PlanRow.id) != plan.id)
        .where(does == (plan.document.get("about") if plan.action == RETRY else plan.action))
        .where(col(PlanRow.document)["target"].astext == target)
        .order_by(col(SignatureRow.id).desc())
        .limit(1)
    )
    if until is not None:
        statement = statement.where(col(SignatureRow.at) <= until)
    return (await session.execute(statement)).scalar_one_or_none()


def reviewed_key(plan_id: str) -> str:
    """The key of the timeline entry that says that a run under break-glass was reviewed."""
    return f"reviewed/{plan_id}"


async def unreviewed(session: AsyncSession) -> Sequence[PlanRow]:
    """The plans under break-glass whose run has begun and whose review is not complete."""
    key = func.concat("reviewed/", col(PlanRow.id))
    statement = (
        select(PlanRow)
        .join(RunRow, col(RunRow.id) == col(PlanRow.id))
        .where(col(PlanRow.break_glass), col(RunRow.started_at).is_not(None))
        .where(~select(col(TimelineEntry.seq)).where(col(TimelineEntry.source_key) == key).exists())
        .order_by(col(PlanRow.created_at))
    )
    return (await session.execute(statement)).scalars().all()


async def hold(session: AsyncSession, plan_id: str) -> None:
    """Serialise decisions on one plan until this transaction ends: signatures and the start of its run."""
    await session.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": f"drbot plan {plan_id}"}
    )


async def sign(session: AsyncSession, signature: SignatureRow) -> None:
    """Add one act and wake the workers."""
    session.add(signature)
    await session.flush()
    await notify(session, "signature")


async def signatures(session: AsyncSession, plan_id: str) -> Sequence[SignatureRow]:
    statement = select(SignatureRow).where(col(SignatureRow.plan_id) == plan_id).order_by(col(SignatureRow.id))
    return (await session.execute(statement)).scalars().all()
