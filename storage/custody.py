"""The chain of custody: an item of evidence is its first event, what follows is added behind it, nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from storage.session import readable
from storage.tables import CustodyEvent

COLLECTED = "collected"
"""The action an item begins with."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happened to an item. `holder` is who has it from then on, empty when that stays as it was; `sha256` is of
    the content, in hex."""

    action: str
    actor: str
    occurred_at: datetime
    holder: str = ""
    reason: str = ""
    location: str = ""
    sha256: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


async def hold(session: AsyncSession) -> None:
    """Be the only one who adds events until this transaction ends: numbers have no gaps, so that one is noticed."""
    await session.execute(text("SELECT pg_advisory_xact_lock(hashtext('drbot custody'))"))


async def collect(
    session: AsyncSession, incident_id: str, event: Event, *, source_key: str | None = None
) -> CustodyEvent:
    """Begin the chain of a new item, under `hold`."""
    last = await session.scalar(select(func.coalesce(func.max(CustodyEvent.item), 0)))
    return await _add(session, incident_id, int(last or 0) + 1, 1, event, source_key)


async def append(
    session: AsyncSession, last: CustodyEvent, event: Event, *, source_key: str | None = None
) -> CustodyEvent:
    """Add the event that follows the item's last one, under `hold`."""
    return await _add(session, last.incident_id, last.item, last.seq + 1, event, source_key)


async def _add(
    session: AsyncSession, incident_id: str, item: int, seq: int, event: Event, source_key: str | None
) -> CustodyEvent:
    row = CustodyEvent(
        item=item,
        seq=seq,
        incident_id=incident_id,
        action=event.action,
        actor=event.actor,
        holder=readable(session, event.holder),
        occurred_at=event.occurred_at,
        reason=readable(session, event.reason),
        location=readable(session, event.location),
        sha256=event.sha256,
        data=readable(session, dict(event.data)),
        source_key=source_key,
    )
    session.add(row)
    await session.flush()
    return row


async def from_source(session: AsyncSession, source_key: str) -> CustodyEvent | None:
    """The event that was added under this key."""
    statement = select(CustodyEvent).where(col(CustodyEvent.source_key) == source_key)
    return (await session.execute(statement)).scalar_one_or_none()


async def chain(session: AsyncSession, item: int) -> Sequence[CustodyEvent]:
    """The events of one item in their order; none when there is no such item."""
    statement = select(CustodyEvent).where(col(CustodyEvent.item) == item).order_by(col(CustodyEvent.seq))
    return (await session.execute(statement)).scalars().all()


async def newest(session: AsyncSession, count: int) -> Sequence[CustodyEvent]:
    """The events of so many items, those that were taken up last, by item and in their order."""
    last = select(func.coalesce(func.max(CustodyEvent.item), 0)).scalar_subquery()
    statement = select(CustodyEvent).where(col(CustodyEvent.item) > last - count)
    return (await session.execute(statement.order_by(col(CustodyEvent.item), col(CustodyEvent.seq)))).scalars().all()


async def of_incident(session: AsyncSession, incident_id: str | None) -> Sequence[CustodyEvent]:
    """The events of all items of an incident, or of every incident, by item and in their order."""
    statement = select(CustodyEvent).order_by(col(CustodyEvent.item), col(CustodyEvent.seq))
    if incident_id is not None:
        statement = statement.where(col(CustodyEvent.incident_id) == incident_id)
    return (await session.execute(statement)).scalars().all()
