"""Alarms that stand, and turns: what one process of many does at a time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from storage.session import readable
from storage.tables import AlarmRow


async def turn(session: AsyncSession, name: str, *, every: timedelta) -> bool:
    """Whether it is this process's turn: nobody has had it for so long."""
    statement = text("""
        INSERT INTO turn (name, taken_at) VALUES (:name, clock_timestamp())
        ON CONFLICT (name) DO UPDATE SET taken_at = clock_timestamp()
            WHERE turn.taken_at < clock_timestamp() - make_interval(secs => :every)
        RETURNING name
    """)
    return (await session.execute(statement, {"name": name, "every": every.total_seconds()})).first() is not None


async def standing(session: AsyncSession) -> Sequence[AlarmRow]:
    """Those that stand, longest first."""
    statement = select(AlarmRow).where(col(AlarmRow.cleared_at).is_(None)).order_by(col(AlarmRow.raised_at))
    return (await session.execute(statement)).scalars().all()


async def raise_(session: AsyncSession, key: str, words: str, *, wants_base: bool, seen_at: datetime) -> bool:
    """Let it stand; True when it did not stand before. What was seen earlier than what is stored changes nothing."""
    statement = text("""
        INSERT INTO alarm (key, text, wants_base, raised_at, seen_at) VALUES (:key, :text, :wants, :seen, :seen)
        ON CONFLICT (key) DO UPDATE SET text = :text, wants_base = :wants, seen_at = :seen,
                raised_at = CASE WHEN alarm.cleared_at IS NULL THEN alarm.raised_at ELSE :seen END, cleared_at = NULL
            WHERE alarm.seen_at < :seen
        RETURNING raised_at = :seen
    """)
    values = {"key": key, "text": readable(session, words), "wants": wants_base, "seen": seen_at}
    row = (await session.execute(statement, values)).first()
    return row is not None and bool(row[0])


async def clear(session: AsyncSession, key: str, *, seen_at: datetime) -> AlarmRow | None:
    """End it; the row when it stood until now."""
    statement = text("""
        UPDATE alarm SET cleared_at = :seen, seen_at = :seen
        WHERE key = :key AND cleared_at IS NULL AND seen_at < :seen RETURNING key
    """)
    if (await session.execute(statement, {"key": key, "seen": seen_at})).first() is None:
        return None
    return await session.get(AlarmRow, key, populate_existing=True)
