"""Incidents."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, text
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


_EXPOSED = text(
    r"""
    SELECT said FROM (
      SELECT declared_at AS at, format('Incident %s `%s` was declared %s UTC.', number, title,
        to_char(declared_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI')) AS said
      FROM incident WHERE declared_at >= :since AND (scenario || ' ' || title) ~* :words
      UNION ALL
      SELECT coalesce(closed_at, declared_at), format('Incident %s `%s` was open after it.', number, title)
      FROM incident WHERE declared_at < :since AND (closed_at IS NULL OR closed_at > :since)
        AND (scenario || ' ' || title) ~* :words
      UNION ALL
      SELECT occurred_at, format('Incident %s: %s wrote %s UTC what speaks of it (entry %s of the record).',
        number, actor, to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), seq)
      FROM timeline_entry JOIN incident ON incident.id = incident_id
      WHERE kind IN ('note', 'message') AND occurred_at >= :since AND text ~* :words
      UNION ALL
      SELECT created_at, format('Plan %s (`%s`) rotates credentials.', plan.id, action)
      FROM plan JOIN run ON run.id = plan.id
      WHERE action LIKE 'rotate.%' AND started_at IS NOT NULL AND coalesce(ended_at, now()) >= :since
    ) AS found ORDER BY at, said
    """
)


async def exposures_since(session: AsyncSession, since: datetime, words: str) -> Sequence[str]:
    """A sentence for each incident, for each word of people on a timeline and for each run, since a moment, that tells
    of credentials known to others or exchanged. `words`: a regular expression of PostgreSQL."""
    found = await session.execute(_EXPOSED, {"since": since, "words": words})
    return [str(row[0]) for row in found]
