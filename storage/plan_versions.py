"""The versions of the plan file that were activated: added, never changed."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from storage.tables import PlanVersion


async def newest(session: AsyncSession, *, at: datetime | None = None) -> PlanVersion | None:
    """The version in force, now or at a moment of the database's clock; None before the first start of a bot on this
    database."""
    statement = select(PlanVersion).order_by(col(PlanVersion.seq).desc()).limit(1)
    if at is not None:
        statement = statement.where(col(PlanVersion.activated_at) <= at)
    return (await session.execute(statement)).scalar_one_or_none()


async def known(session: AsyncSession, sha256: str) -> bool:
    """Whether a file of this hash has ever been in force."""
    return (
        await session.execute(select(col(PlanVersion.seq)).where(col(PlanVersion.sha256) == sha256).limit(1))
    ).first() is not None


async def hold(session: AsyncSession) -> None:
    """Serialise activations until this transaction ends."""
    await session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('drbot plan version', 0))"))


async def add(session: AsyncSession, *, sha256: str, document: str, plan_id: str) -> int:
    """The number of the new version."""
    row = PlanVersion(sha256=sha256, document=document, plan_id=plan_id)
    session.add(row)
    await session.flush()
    return row.seq or 0
