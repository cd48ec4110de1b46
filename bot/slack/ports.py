"""What the Slack layer needs from the services. `bot.services` implements it without knowing Slack.

A handler stores the click, acknowledges it and calls one method of `Desk`. What people are shown travels back through
the outbox: the services write rows, the role with the Slack tokens renders and delivers them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from actions.approval import Act
from bot.services.asked import Command, Outgoing, ReplyTo, Who
from bot.services.cards import IncidentCard, PlanCard

CARDS = ("plan", "incident")
"""Kinds of outbox rows that name a card, which is read from the database when it is sent."""


class Desk(Protocol):
    """Where every click and command ends. Methods raise UserError for what the person can put right."""

    async def store(self, key: str, kind: str, payload: Mapping[str, Any]) -> bool:
        """Make the click durable. False when this key was stored before: nothing more is to be done."""

    async def ask(self, who: Who, command: Command, *, reply: ReplyTo) -> int | None:
        """Take a query, a plan or an incident command; the answer comes through the outbox."""

    async def sign(self, who: Who, token: str, *, act: Act, digest: str, typed: str, reason: str) -> str:
        """Record a signature and return the sentence for the signer."""

    async def may_sign(self, who: Who, token: str) -> None:
        """Refuse, and record it, when this account's signature cannot count."""

    async def refuse_account(self, who: Who, token: str, problem: str) -> None:
        """Record that an account was turned away. Always raises UserError."""

    async def plan_card(self, token: str) -> PlanCard:
        """Return the plan behind a button as it stands in the database now."""

    async def recommend(self, who: Who, database: str | None, view_id: str) -> None:
        """Have an outbox row `view` fill the open modal with the recommendation."""

    async def pin(
        self, who: Who, *, channel: str, ts: str, text: str, author: str, permalink: str | None, occurred_at: datetime
    ) -> bool:
        """Add a message to the timeline of the channel's incident, once."""

    async def channel_made(self, incident_id: str, channel: str) -> None:
        """A channel was made for this incident."""


class OutboxSource(Protocol):
    """The outbox as the one who delivers it sees it. `due` lends rows for a minute; each ends by `sent` or `failed`,
    or is lent again."""

    async def due(self, limit: int) -> Sequence[Outgoing]:
        """Rows to send now, oldest first."""

    async def sent(self, row: Outgoing, ts: str | None) -> None:
        """Mark as delivered; `ts` of the message is remembered for cards."""

    async def failed(self, row: Outgoing, error: str, retry_after: timedelta | None) -> None:
        """Due again after `retry_after`; None sets the row aside for an operator."""

    async def card(self, kind: str, ref: str) -> PlanCard | IncidentCard:
        """Return the card as it stands in the database now. Raises UserError when there is none."""

    async def message_ts(self, kind: str, ref: str, channel: str) -> str | None:
        """Return the ts of the card's message in this channel, None before the first post."""

    async def wait(self, timeout: timedelta) -> None:  # noqa: ASYNC109 - the longest wait, not a failure
        """Return when there may be something due, after `timeout` at the latest."""
