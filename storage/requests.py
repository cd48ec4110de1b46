"""What people asked the worker for."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from storage.session import notify
from storage.tables import RequestRow


async def add(session: AsyncSession, row: RequestRow) -> int:
    """Store the request and wake a worker. One with a `source_key` that is known already is that request."""
    if row.source_key is not None:
        held = select(col(RequestRow.id)).where(col(RequestRow.source_key) == row.source_key)
        known = (await session.execute(held)).scalar_one_or_none()
        if known is not None:
            return known
    session.add(row)
    await session.flush()
    await notify(session, "request")
    if row.id is None:
        raise RuntimeError("PostgreSQL gave no id to the request")
    return row.id


async def take(session: AsyncSession) -> RequestRow | None:
    """The oldest open request, locked for this transaction; a worker that dies gives it back by dying.

    Looking at the world for it may take a while in which this transaction is silent.
    """
    statement = (
        select(RequestRow)
        .where(col(RequestRow.state) == "new")
        .order_by(col(RequestRow.id))
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    request = (await session.execute(statement)).scalar_one_or_none()
    if request is not None:
        await session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '10min'"))
    return request


async def of_plan(session: AsyncSession, plan_id: str) -> Sequence[RequestRow]:
    """The requests that say that this plan was made for them; one, unless somebody wrote into the database."""
    statement = select(RequestRow).where(col(RequestRow.plan_id) == plan_id).order_by(col(RequestRow.id)).limit(10)
    return (await session.execute(statement)).scalars().all()


async def get(session: AsyncSession, request_id: int) -> RequestRow | None:
    return await session.get(RequestRow, request_id)
