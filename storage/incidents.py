"""Incidents."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from storage.tables import Incident


async def get(session: AsyncSession, incident_id: str) -> Incident | None:
    return await session.get(Incident, incident_id)


async def by_number(session: AsyncSession, number: int) -> Incident | None:
    return (await session.execute(select(Incident).where(col(Incident.number) == number))).scalar_one_or_none()


async def open_in(session: AsyncSession, channel: str) -> Incident | None:
    """The newest open incident of a channel."""
    statement = (
        select(Incident)
        .where(col(Incident.channel) == channel, col(Incident.closed_at).is_(None))
        .order_by(col(Incident.number).desc())
        .limit(1)
    )
    return (await session.execute(statement)).scalar_one_or_none()


async def newest(session: AsyncSession, limit: int = 20) -> Sequence[Incident]:
    """Open ones first, then by number, newest first."""
    statement = (
        select(Incident).order_by(col(Incident.closed_at).is_not(None), col(Incident.number).desc()).limit(limit)
    )
    return (await session.execute(statement)).scalars().all()
