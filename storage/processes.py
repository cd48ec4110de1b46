"""Which processes of the bot are alive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from storage.tables import ProcessRow


async def beat(session: AsyncSession, process: str, roles: str, notes: Mapping[str, Any]) -> None:
    """Say that this process is alive, and forget those that have been silent for a day."""
    statement = insert(ProcessRow).values(id=process, roles=roles, notes=dict(notes), seen_at=text("clock_timestamp()"))
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=["id"], set_={"notes": statement.excluded.notes, "seen_at": text("clock_timestamp()")}
        )
    )
    await session.execute(delete(ProcessRow).where(text("seen_at < clock_timestamp() - interval '1 day'")))


async def alive(session: AsyncSession, *, within: timedelta) -> Sequence[ProcessRow]:
    """Processes that said so within this time."""
    statement = select(ProcessRow).where(
        text("seen_at > clock_timestamp() - make_interval(secs => :within)").bindparams(within=within.total_seconds())
    )
    return (await session.execute(statement.order_by(col(ProcessRow.id)))).scalars().all()
