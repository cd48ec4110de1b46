"""The seam between those who ask (Slack, the command line) and the services that answer.

A handler stores the click, acknowledges it and calls one method of `Desk`. What people are shown travels back through
the outbox: the worker writes `Outgoing` rows, whoever has the Slack tokens renders and delivers them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, Protocol

from pydantic import Field

from actions.approval import Act, Refusal
from actions.site import Frozen
from bot.router import Command
from bot.services.cards import IncidentCard, PlanCard, TimelineLine

Source = Literal["slack", "cli", "key", "clock"]


class Who(Frozen):
    """An account and where it spoke. The desk finds the person in the roster by account and team alone."""

    slack_user: str = ""
    team: str = ""
    channel: str = ""
    source: Source = "slack"
    person: str = ""  # command line and key only: the roster's short name


class ReplyTo(Frozen):
    """Where the answer goes: an open modal, the response URL, or the channel."""

    channel: str = ""
    user: str = ""
    response_url: str | None = None
    view_id: str | None = None
    ephemeral: bool = True


class Kind(StrEnum):
    """What an outbox row is; `Outgoing.payload` for each:

    plan, incident  `ref` names the card, which is read again when it is sent. An incident row may hold
                    `create` (`ChannelWish` as JSON): the card goes to a new channel then.
    report          {"report": Report} or {"timeline": TimelinePage}; with "user" and perhaps "response_url" it is
                    shown to that person alone
    text            {"text": sentence, "said"?: a person's words, "thread_ts"?: ts}
    ephemeral       {"text": sentence, "user": id, "response_url"?: url}
    view            `ref` is the view id; {"restore": RestoreOffer, "alternatives"?: bool} or {"title", "text"}
    file            {"filename", "title", "content", "comment"?}
    """

    PLAN = "plan"
    INCIDENT = "incident"
    REPORT = "report"
    TEXT = "text"
    EPHEMERAL = "ephemeral"
    VIEW = "view"
    FILE = "file"


class Outgoing(Frozen):
    """One row of the outbox. `attempts` counts the tries before this one."""

    id: int
    kind: Kind
    channel: str
    ref: str = ""
    payload: Mapping[str, Any] = Field(default_factory=dict)
    attempts: int = 0


class ChannelWish(Frozen):
    """A channel to make for an incident; where the workspace refuses, the row's own channel is used."""

    name: str
    topic: str = ""
    invite: tuple[str, ...] = ()  # Slack user ids


class BackupOffer(Frozen):
    """One backup a restore could use."""

    backup: str  # its id in the catalogue
    label: str  # "dump of 2026-11-23 02:00 UTC"
    taken_at: datetime
    loss: timedelta  # what was written after it and would be lost
    beyond_rpo: bool
    note: str = ""  # "verified 3 h ago", "adopted, never attested"


class RestoreOffer(Frozen):
    """The one recommendation of a restore, with the alternatives behind it."""

    database: str
    target: str  # what the requester types
    databases: tuple[str, ...] = ()
    recommended: BackupOffer | None
    alternatives: tuple[BackupOffer, ...] = ()
    rpo: timedelta
    why: str = ""  # why this one, or why none
    before: datetime | None = None  # when the impact began, where that is known
    spare: str = ""  # the server to restore on when the database's own is suspect; empty where the plan names none
    window: str = ""  # the moments that can be reached as well; empty where the server has no archive


class Watched(Frozen):
    """What Slack is asked about: the roster's accounts, first those that signed what waits to start and were not looked
    at lately, and the groups that slots name."""

    accounts: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


class TimelinePage(Frozen):
    """A page of an incident's record."""

    incident: str
    number: int
    page: int = 1
    pages: int = 1
    lines: tuple[TimelineLine, ...] = ()


class Desk(Protocol):
    """Where every click and command ends. Methods raise UserError for what the person can put right."""

    async def store(self, key: str, kind: str, payload: Mapping[str, Any]) -> bool:
        """Make the click durable. False when this key was stored before: nothing more is to be done."""

    async def replayed(self, key: str) -> bool:
        """Remember a signed request by this key. True when it came before and was answered (`finish`)."""

    async def take_turn(self, who: Who) -> None:
        """Count a command or a click. Raises UserError, after recording it, when this person asked too often."""

    async def turn_away(self, who: Who, code: str, text: str) -> None:
        """Record a refusal that concerns no plan. Always raises UserError."""

    async def finish(self, key: str) -> None:
        """What was stored under this key is carried out, or refused with a reason."""

    async def unfinished(self, kind: str) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Key and payload of what was stored a while ago and never finished, oldest first."""

    async def ask(self, who: Who, command: Command, *, reply: ReplyTo, key: str | None = None) -> int | None:
        """Take a query, a plan or an incident command; the answer comes through the outbox."""

    async def sign(
        self,
        who: Who,
        token: str,
        *,
        act: Act,
        digest: str,
        typed: str,
        reason: str,
        channel: str,
        ts: str,
        key: str | None = None,
    ) -> str:
        """Record a signature, which rests on the click stored under `key`, and return the sentence for the signer.
        Raises UserError for refusals."""

    async def may_sign(self, who: Who, token: str) -> None:
        """Refuse, and record it, when this account's signature cannot count."""

    async def refuse_account(self, who: Who, token: str, refusal: Refusal) -> None:
        """Record that an account was turned away. Always raises UserError."""

    async def watched(self) -> Watched:
        """The accounts and groups whose state decides about signatures."""

    async def note_account(self, account: str, *, problem: str, groups: Sequence[str]) -> None:
        """Keep what Slack says of an account: why it may not sign, and which of the watched groups it is in."""

    async def plan_card(self, token: str, who: Who | None = None) -> PlanCard:
        """Return the plan as it stands in the database now. Raises UserError when unknown, after recording that `who`
        asked for it."""

    async def pressed(self, who: Who, token: str, *, channel: str, ts: str) -> PlanCard:
        """As `plan_card`, for a button that was pressed on this message. Raises UserError, after recording it, when it
        is not on the plan's own."""

    async def recommend(
        self, who: Who, database: str | None, view_id: str, *, alternatives: bool = False, before: str | None = None
    ) -> None:
        """Have an outbox row `view` fill the open modal with a `RestoreOffer`. `before`: when the impact began; None:
        as the open incident says."""

    async def pin(
        self,
        who: Who,
        *,
        channel: str,
        ts: str,
        text: str,
        author: str,
        permalink: str | None,
        occurred_at: datetime,
    ) -> None:
        """Add a message to the timeline of the channel's incident, once."""


class OutboxSource(Protocol):
    """The outbox, as the one who delivers it sees it. A row stays due until `sent` or a final `failed`."""

    async def due(self, limit: int) -> Sequence[Outgoing]:
        """Rows to send now, oldest first."""

    async def sent(self, row: int, ts: str | None, *, channel: str | None = None) -> None:
        """Mark as delivered. `ts` is the message's, `channel` where it really went."""

    async def failed(self, row: int, error: str, retry_after: timedelta | None) -> None:
        """Try again after `retry_after`; None sets the row aside for an operator."""

    async def refused(self, row: Outgoing, refusal: Refusal) -> None:
        """Set aside, and on the record: this must not be shown there."""

    async def card(self, kind: Kind, ref: str) -> PlanCard | IncidentCard:
        """Return the card as it stands in the database now."""

    async def message_ts(self, kind: Kind, ref: str, channel: str) -> str | None:
        """Return the ts of the card's message in this channel, None before the first post."""

    async def wait(self, timeout: float) -> None:
        """Return when there may be something due, after `timeout` seconds at the latest."""
