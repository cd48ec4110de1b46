"""What arrives at the desk: who asks, what for, and where the answer goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from actions.site import Frozen


class Who(Frozen):
    """An account as Slack or the command line names it. The roster decides which person that is."""

    slack_user: str = ""
    team: str = ""
    channel: str = ""
    source: Literal["slack", "cli"] = "slack"
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
    """One row of the outbox, as the sender takes it."""

    id: int
    kind: str  # plan, incident, report, text, ephemeral, view, file, channel
    channel: str
    ref: str = ""
    payload: Mapping[str, Any] = {}
    attempts: int = 0
