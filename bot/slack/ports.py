"""What the Slack layer stands on, under one name; defined in `bot.ports` because services may not know Slack."""

from bot.ports import (
    BackupOffer,
    ChannelWish,
    Desk,
    Kind,
    OutboxSource,
    Outgoing,
    ReplyTo,
    RestoreOffer,
    TimelinePage,
    Who,
)
from bot.router import Command

__all__ = [
    "BackupOffer",
    "ChannelWish",
    "Command",
    "Desk",
    "Kind",
    "OutboxSource",
    "Outgoing",
    "ReplyTo",
    "RestoreOffer",
    "TimelinePage",
    "Who",
]
