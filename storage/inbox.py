"""Clicks and commands as they arrived, and whether they were carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from storage.tables import InboxRow


async def store(session: AsyncSession, key: str, kind: str, payload: Mapping[str, Any]) -> bool:
    """True when it is new; False when this key was stored before (a retry, a double delivery)."""
    statement = insert(InboxRow).values(key=key, kind=kind, payload=dict(payload)).on_conflict_do_nothing()
    result = await session.execute(statement.returning(col(InboxRow.key)))
    return result.first() is not None


async def finished(session: AsyncSession, key: str) -> bool:
    """Whether it was carried out, or answered."""
    statement = select(col(InboxRow.finished_at)).where(col(InboxRow.key) == key)
    return (await session.execute(statement)).scalar_one_or_none() is not None


async def finish(session: AsyncSession, key: str) -> None:
    """It was carried out, or answered."""
    await session.execute(
        update(InboxRow)
        .where(col(InboxRow.key) == key)
        .values(finished_at=text("clock_timestamp()"))
        .execution_options(synchronize_session=False)
    )


async def unfinished(session: AsyncSession, *, kind: str, after: timedelta, within: timedelta) -> Sequence[InboxRow]:
    """What a process took and did not carry out, oldest first. Younger than `after` may still be in its hands, older
    than `within` is history."""
    recent = text(
        "received_at > clock_timestamp() - make_interval(secs => :within) "
        "AND received_at < clock_timestamp() - make_interval(secs => :after)"
    )
    statement = (
        select(InboxRow)
        .where(col(InboxRow.kind) == kind, col(InboxRow.finished_at).is_(None))
        .where(recent.bindparams(within=within.total_seconds(), after=after.total_seconds()))
        .order_by(col(InboxRow.received_at))
    )
    return (await session.execute(statement)).scalars().all()
