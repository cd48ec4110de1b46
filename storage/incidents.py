"""Incidents."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

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


async def open_channels(session: AsyncSession) -> dict[str, str]:
    """Every open incident that has a channel, and that channel; one opened outside Slack may have none."""
    statement = select(col(Incident.id), col(Incident.channel))
    rows = await session.execute(statement.where(col(Incident.closed_at).is_(None), col(Incident.channel) != ""))
    return {row.id: row.channel for row in rows}


async def open_channels_since(session: AsyncSession, moment: datetime) -> dict[str, str]:
    """Those, and every one that was closed since."""
    recent = col(Incident.closed_at).is_(None) | (col(Incident.closed_at) >= moment)
    statement = select(col(Incident.id), col(Incident.channel)).where(recent, col(Incident.channel) != "")
    return {row.id: row.channel for row in await session.execute(statement)}


async def at_hand(session: AsyncSession, incident_id: str | None) -> Incident | None:
    """The open incident that a request is about: its channel's, else the only one that is open."""
    if incident_id is not None:
        row = await get(session, incident_id)
        return row if row is not None and row.closed_at is None else None
    rows = (await session.execute(select(Incident).where(col(Incident.closed_at).is_(None)).limit(2))).scalars().all()
    return rows[0] if len(rows) == 1 else None


async def newest(session: AsyncSession, limit: int = 20) -> Sequence[Incident]:
    """Open ones first, then by number, newest first."""
    newest_first = select(Incident).order_by(col(Incident.number).desc())
    still_open = newest_first.where(col(Incident.closed_at).is_(None)).limit(limit)
    rows = list((await session.execute(still_open)).scalars())
    # Two queries, each along an index: sorted by both at once, every incident there ever was would be read.
    closed = newest_first.where(col(Incident.closed_at).is_not(None)).limit(limit - len(rows))
    return [*rows, *(await session.execute(closed)).scalars()]
