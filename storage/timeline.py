"""The record: entries are added, never changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from storage.session import readable
from storage.tables import RefusalRow, TimelineEntry


async def add(
    session: AsyncSession,
    *,
    incident_id: str | None,
    kind: str,
    actor: str,
    occurred_at: datetime,
    text: str,
    data: Mapping[str, Any] | None = None,
    permalink: str | None = None,
    source_key: str | None = None,
) -> bool:
    """False when an entry with this `source_key` is already there."""
    values = {
        "incident_id": incident_id,
        "kind": kind,
        "actor": actor,
        "occurred_at": occurred_at,
        "text": readable(session, text),
        "data": readable(session, dict(data or {})),
        "permalink": permalink,
        "source_key": source_key,
    }
    statement = insert(TimelineEntry).values(**values).on_conflict_do_nothing(index_elements=["source_key"])
    result = await session.execute(statement.returning(col(TimelineEntry.seq)))
    return result.first() is not None


async def of_incident(session: AsyncSession, incident_id: str, *, limit: int = 100_000) -> Sequence[TimelineEntry]:
    """In the order they were recorded."""
    statement = (
        select(TimelineEntry)
        .where(col(TimelineEntry.incident_id) == incident_id)
        .order_by(col(TimelineEntry.seq))
        .limit(limit)
    )
    return (await session.execute(statement)).scalars().all()


async def about(session: AsyncSession, kind: str, name: str, value: str) -> Sequence[TimelineEntry]:
    """The entries of one kind whose data has this value under this name, in the order they were recorded."""
    statement = (
        select(TimelineEntry)
        .where(col(TimelineEntry.kind) == kind, col(TimelineEntry.data)[name].astext == value)
        .order_by(col(TimelineEntry.seq))
    )
    return (await session.execute(statement)).scalars().all()


async def of_kinds(session: AsyncSession, incident_id: str | None, kinds: Sequence[str]) -> Sequence[TimelineEntry]:
    """The entries of some kinds about an incident, or about none, in the order they were recorded."""
    statement = (
        select(TimelineEntry)
        .where(col(TimelineEntry.incident_id) == incident_id, col(TimelineEntry.kind).in_(kinds))
        .order_by(col(TimelineEntry.seq))
    )
    return (await session.execute(statement)).scalars().all()


async def incidents_of(session: AsyncSession, kind: str) -> Sequence[str]:
    """The incidents that have an entry of this kind, in no order."""
    statement = (
        select(col(TimelineEntry.incident_id))
        .where(col(TimelineEntry.kind) == kind, col(TimelineEntry.incident_id).is_not(None))
        .distinct()
    )
    return [found for found in (await session.execute(statement)).scalars() if found is not None]


async def entry(session: AsyncSession, incident_id: str, seq: int) -> TimelineEntry | None:
    """One entry of an incident by its number."""
    statement = select(TimelineEntry).where(
        col(TimelineEntry.seq) == seq, col(TimelineEntry.incident_id) == incident_id
    )
    return (await session.execute(statement)).scalar_one_or_none()


async def refuse(
    session: AsyncSession, *, plan_id: str | None, account: str, person: str, code: str, text: str
) -> None:
    """Record that somebody was refused, and why."""
    shown = readable(session, text)
    session.add(RefusalRow(plan_id=plan_id, account=account, person=person, code=code, text=shown))
