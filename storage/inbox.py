"""Clicks and commands as they arrived, and whether they were carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, delete, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from storage.tables import InboxRow, RequestRow, SignatureRow


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


async def get_all(session: AsyncSession, keys: Sequence[str]) -> Sequence[InboxRow]:
    """What arrived under these keys; missing ones are left out."""
    statement = select(InboxRow).where(col(InboxRow.key).in_([key for key in keys if key]))
    return (await session.execute(statement)).scalars().all()


async def prune(session: AsyncSession, *, older: timedelta) -> int:
    """Forget what arrived longer ago, unless a signature or an open request rests on it; how many rows that were."""
    rested_on = (
        select(col(SignatureRow.id))
        .where(col(SignatureRow.inbox_key) == col(InboxRow.key), col(SignatureRow.inbox_key) != "")
        .exists()
    )
    asked_with = (
        select(col(RequestRow.id))
        .where(col(RequestRow.source_key) == col(InboxRow.key), col(RequestRow.state) == "new")
        .exists()
    )
    old = text("received_at < clock_timestamp() - make_interval(secs => :older)")
    statement = delete(InboxRow).where(old.bindparams(older=older.total_seconds()), ~rested_on, ~asked_with)
    result = await session.execute(statement.execution_options(synchronize_session=False))
    return int(cast("CursorResult[Any]", result).rowcount)


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
