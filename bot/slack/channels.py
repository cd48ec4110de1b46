"""Channels whose members are not all of this workspace: nothing is asked, shown or signed there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from actions.approval import Code, Refusal
from actions.errors import PermanentError

_SHARED = ("is_ext_shared", "is_pending_ext_shared", "is_org_shared", "is_shared")
_ID = re.compile(r"[CG][A-Z0-9]{2,}")


class SharedChannelError(PermanentError):
    """A message was meant for a channel that strangers read."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


def looked_up(channel: str) -> bool:
    """Whether Slack can be asked: a channel's id. A direct message has one other member, whose account is looked at; a
    name is the plan file's own."""
    return _ID.fullmatch(channel) is not None


def problem_of(info: Mapping[str, Any], channel: str) -> Refusal | None:
    """Why nothing happens in a channel of conversations.info."""
    if not any(info.get(kind) for kind in _SHARED):
        return None
    text = (
        "This channel is shared with another organisation or workspace, whose people read along, so nothing is asked, "
        "shown or signed here. Do it in a channel of your own, or have "
        f"`{channel}` listed as `channels.shared` in the plan file."
    )
    return Refusal(code=Code.SHARED_CHANNEL, text=text)


UNKNOWN_CHANNEL = Refusal(
    code=Code.LOOKUP_FAILED,
    text=(
        "Slack does not tell whether this channel is shared with another organisation, so nothing was done here. "
        "Invite the bot to the channel, or try again in a minute; `drbot doctor` says whether a scope is missing, and "
        "`drbot sign` works without Slack."
    ),
)
