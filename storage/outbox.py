"""What Slack is to be told. Cards are coalesced: one pending row a card is enough, since it is rendered when sent.
Rows without a channel are answers to the command line, which fetches them itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from storage.session import notify, readable
from storage.tables import CardMessage, OutboxRow

CARDS = ("plan", "incident")


async def add(
    session: AsyncSession, kind: str, channel: str, *, ref: str = "", payload: Mapping[str, Any] | None = None
) -> None:
    """Queue one message and wake the sender. A card that is already waiting is not queued twice; one without a channel
    (a routine run's) is shown to nobody."""
    if kind in CARDS:
        if not channel:
            return
        waiting = select(col(OutboxRow.id)).where(
            col(OutboxRow.state) == "pending",
            col(OutboxRow.kind) == kind,
            col(OutboxRow.ref) == ref,
            col(OutboxRow.channel) == channel,
        )
        # Locked rows are being sent at this moment with what was true before; those do not count as waiting.
        if (await session.execute(waiting.limit(1).with_for_update(skip_locked=True))).first() is not None:
            await notify(session, "outbox")
            return
    session.add(OutboxRow(kind=kind, channel=channel, ref=ref, payload=readable(session, dict(payload or {}))))
    await session.flush()
    await notify(session, "outbox")


async def due(session: AsyncSession, limit: int) -> Sequence[OutboxRow]:
    """The oldest due rows, locked for this transaction."""
    statement = (
        select(OutboxRow)
        .where(col(OutboxRow.state) == "pending", text("due_at <= clock_timestamp()"), col(OutboxRow.channel) != "")
        .order_by(col(OutboxRow.id))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return (await session.execute(statement)).scalars().all()


async def claim(session: AsyncSession, limit: int, *, hold: timedelta) -> Sequence[OutboxRow]:
    """Take due rows for `hold`; a sender that dies gives them back by silence."""
    rows = await due(session, limit)
    for row in rows:
        await session.execute(
            update(OutboxRow)
            .where(col(OutboxRow.id) == row.id)
            .values(state="sending", attempts=row.attempts + 1, due_at=_in(hold))
            .execution_options(synchronize_session=False)
        )
    return rows


async def claim_page(session: AsyncSession, *, hold: timedelta) -> OutboxRow | None:
    """Take the oldest page that is due for `hold`, also one whose worker fell silent with it."""
    statement = (
        select(OutboxRow)
        .where(
            col(OutboxRow.kind) == "page",
            col(OutboxRow.state).in_(("pending", "sending")),
            text("due_at <= clock_timestamp()"),
        )
        .order_by(col(OutboxRow.id))
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = (await session.execute(statement)).scalar_one_or_none()
    if row is not None:
        row.state, row.attempts = "sending", row.attempts + 1
        row.due_at = (await session.execute(select(_in(hold)))).scalar_one()
        session.add(row)
    return row


async def requeue_silent(session: AsyncSession) -> None:
    """Rows whose sender died while sending are due again."""
    await session.execute(
        update(OutboxRow)
        .where(col(OutboxRow.state) == "sending", text("due_at <= clock_timestamp()"))
        .values(state="pending")
        .execution_options(synchronize_session=False)
    )


async def settle(
    session: AsyncSession, row_id: int, *, state: str, error: str = "", retry: timedelta | None = None
) -> None:
    """Record how sending went: `sent`, `dead`, or `pending` again after `retry`."""
    values: dict[str, Any] = {"state": state, "error": error}
    if retry is not None:
        values["due_at"] = _in(retry)
    if state == "sent":
        values["sent_at"] = text("clock_timestamp()")
    await session.execute(
        update(OutboxRow)
        .where(col(OutboxRow.id) == row_id)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


async def answers(session: AsyncSession, request_id: int) -> Sequence[OutboxRow]:
    """What the worker answered to one request."""
    statement = select(OutboxRow).where(text("(payload ->> 'request')::bigint = :id").bindparams(id=request_id))
    return (await session.execute(statement.order_by(col(OutboxRow.id)))).scalars().all()


async def get(session: AsyncSession, row_id: int) -> OutboxRow | None:
    return await session.get(OutboxRow, row_id)


def _in(duration: timedelta) -> Any:
    return text(f"clock_timestamp() + interval '{duration.total_seconds():.3f} seconds'")


async def message_ts(session: AsyncSession, kind: str, ref: str, channel: str) -> str | None:
    """Where the card stands in this channel."""
    row = await session.get(CardMessage, (kind, ref, channel))
    return None if row is None else row.ts


async def remember(session: AsyncSession, kind: str, ref: str, channel: str, ts: str) -> None:
    statement = insert(CardMessage).values(kind=kind, ref=ref, channel=channel, ts=ts)
    await session.execute(
        statement.on_conflict_do_update(index_elements=["kind", "ref", "channel"], set_={"ts": statement.excluded.ts})
    )
