"""What the Slack sender takes from the outbox, and how it reports back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from actions.approval import Refusal
from actions.errors import UserError
from bot.ports import Kind, Outgoing
from bot.services.cards import IncidentCard, PlanCard
from bot.services.incidents import Incidents
from bot.services.plans import Plans
from bot.services.wake import Wake
from storage import incidents, outbox, plans, timeline
from storage.session import Database

HOLD = timedelta(seconds=60)
"""How long a sender may take for one row before another one tries it."""


class Deliveries:
    """The outbox as the sender sees it. Rows survive crashes: they are due again after `HOLD`."""

    def __init__(self, database: Database, all_plans: Plans, all_incidents: Incidents, wake: Wake) -> None:
        self._database = database
        self._plans = all_plans
        self._incidents = all_incidents
        self._wake = wake

    async def due(self, limit: int) -> Sequence[Outgoing]:
        """Rows to send now, oldest first."""
        async with self._database.session() as session:
            await outbox.requeue_silent(session)
            rows = await outbox.claim(session, limit, hold=HOLD)
            return [
                Outgoing(
                    id=row.id or 0,
                    kind=Kind(row.kind),
                    channel=row.channel,
                    ref=row.ref,
                    payload=row.payload,
                    attempts=row.attempts,
                )
                for row in rows
            ]

    async def sent(self, row: int, ts: str | None, *, channel: str | None = None) -> None:
        """It is in Slack; where a card stands is remembered. An incident whose card went elsewhere moves there."""
        async with self._database.session() as session:
            await outbox.settle(session, row, state="sent")
            sent = await outbox.get(session, row)
            if ts is None or sent is None or sent.kind not in outbox.CARDS:
                return
            where = channel or sent.channel
            await outbox.remember(session, sent.kind, sent.ref, where, ts)
            if sent.kind == Kind.INCIDENT and where != sent.channel:
                await self._incidents.move(session, sent.ref, where)

    async def failed(self, row: int, error: str, retry_after: timedelta | None) -> None:
        """It is not in Slack; None means that trying again is pointless."""
        async with self._database.session() as session:
            if retry_after is None:
                await outbox.settle(session, row, state="dead", error=error)
            else:
                await outbox.settle(session, row, state="pending", error=error, retry=retry_after)

    async def refused(self, row: Outgoing, refusal: Refusal) -> None:
        """It must not be shown there. Nobody need have asked for it there, so the record says it for the bot."""
        what = f"{row.kind} `{row.ref}`" if row.ref else str(row.kind)
        text = f"The {what} was not posted in `{row.channel}`: {refusal.text}"
        async with self._database.session() as session:
            await outbox.settle(session, row.id, state="dead", error=text)
            plan = row.ref if row.kind is Kind.PLAN else None
            await timeline.refuse(session, plan_id=plan, account="", person="drbot", code=refusal.code, text=text)

    async def card(self, kind: Kind, ref: str) -> PlanCard | IncidentCard:
        """The card as it is now. Raises UserError when there is no such plan or incident."""
        async with self._database.session() as session:
            if kind is Kind.PLAN:
                plan = await plans.get(session, ref)
                if plan is not None:
                    return await self._plans.card(session, plan)
            else:
                incident = await incidents.get(session, ref)
                if incident is not None:
                    return await self._incidents.card(session, incident)
        raise UserError(f"There is no {kind} `{ref}`.")

    async def message_ts(self, kind: Kind, ref: str, channel: str) -> str | None:
        """Where the card stands in this channel, if it was posted there."""
        async with self._database.session() as session:
            return await outbox.message_ts(session, kind, ref, channel)

    async def wait(self, timeout: float) -> None:
        """Until something is queued, at most `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait("outbox")
        except TimeoutError:
            return
