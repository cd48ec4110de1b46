"""What arrives at the desk: who asks, what for, and where the answer goes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from actions.site import Frozen
from bot.services.cards import TimelineLine


class Who(Frozen):
    """An account as Slack or the command line names it. The roster decides which person that is."""

    slack_user: str = ""
    team: str = ""
    channel: str = ""
    source: Literal["slack", "cli", "clock"] = "slack"
    person: str = ""  # command line only: the roster's short name


class Command(Frozen):
    """A routed command: `name` is an action, a query or an incident command."""

    name: str
    params: Mapping[str, Any] = {}
    reason: str = ""
    typed: str = ""


class ReplyTo(Frozen):
    """Where the answer goes."""

    channel: str = ""
    user: str = ""
    response_url: str | None = None
    view_id: str | None = None
    ephemeral: bool = True


class Outgoing(Frozen):
    """One row of the outbox, as the sender takes it. The payload by kind:

    plan, incident  nothing, or {"again": true} to post the card anew; `ref` names it, it is read when it is sent
    channel         {"name", "topic", "invite": [ids]}; `ref` is the incident the channel is made for
    report          {"report": Report} or {"timeline": TimelinePage}; with "user" or "response_url" it is ephemeral
    text            {"text"}
    ephemeral       {"text", "user", "response_url"?}
    view            {"offer": RestoreOffer} or {"text"}; `ref` is the view's id
    file            {"filename", "title", "content"}
    """

    id: int
    kind: str  # plan, incident, report, text, ephemeral, view, file, channel
    channel: str
    ref: str = ""
    payload: Mapping[str, Any] = {}
    attempts: int = 0


class BackupOffer(Frozen):
    """One backup a restore could use."""

    backup: str  # its id in the catalogue
    taken_at: datetime
    loss: timedelta  # what was written after it and would be lost
    beyond_rpo: bool
    note: str = ""  # "verified 2026-11-23 02:10 UTC", "adopted, never attested"


class RestoreOffer(Frozen):
    """The one recommendation of a restore, with the alternatives behind it."""

    database: str
    target: str  # what the requester types
    databases: tuple[str, ...] = ()  # what else could be restored
    recommended: BackupOffer | None
    alternatives: tuple[BackupOffer, ...] = ()
    rpo: timedelta
    why: str = ""  # why this one, or why none


class TimelinePage(Frozen):
    """A page of an incident's record."""

    incident: str
    number: int
    page: int = 1
    pages: int = 1
    lines: tuple[TimelineLine, ...] = ()
