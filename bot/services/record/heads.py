"""Where people are told the head of the log. A channel is a witness too, out of reach for who rules the database: an
auditor gives the line that is copied from it to `drbot timeline verify`. It counts for nothing when a worker asks
whether it may go on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta

from bot.services.record.checkpoint import Checkpoint, Signed

IN_INCIDENTS = timedelta(minutes=30)
"""How often an incident's channel is told, where people have other things to read."""

LONGEST = 2_000
"""Characters of a checkpoint whose line fits into one message uncut; most have 300. Where many runs start at once,
people are told the next one."""


class Heads:
    """The audit channel is told at most once in `every`; the channel of an incident every half hour while it is open,
    and once when it is closed. Empty `audit`: nobody is told."""

    def __init__(self, audit: str, *, every: timedelta) -> None:
        self._audit = audit
        self._every = every
        self._told: dict[str, Checkpoint] = {}
        self._open: Mapping[str, str] | None = None  # incidents and their channels at the last checkpoint

    @property
    def begun(self) -> bool:
        """Whether it knows what was open at the last checkpoint."""
        return self._open is not None

    def begin(self, incidents: Mapping[str, str]) -> None:
        """Of a process that was not there: what was open then. One that was closed while nobody sealed is told now."""
        self._open = dict(incidents)

    def due(self, checkpoint: Checkpoint, incidents: Mapping[str, str]) -> list[str]:
        """The channels to tell of this checkpoint; `incidents` are the open ones with their channels."""
        if not self._audit or _too_long(checkpoint):
            return []
        closed = {channel for name, channel in (self._open or {}).items() if name not in incidents}
        late = {name for name in incidents.values() if name in self._told and self._late(name, checkpoint)}
        audit = {self._audit} if self._late(self._audit, checkpoint) else set()
        return sorted(audit | closed | (late - {self._audit}))

    def _late(self, channel: str, checkpoint: Checkpoint) -> bool:
        told = self._told.get(channel)
        every = self._every if channel == self._audit else IN_INCIDENTS
        return told is None or (told.size != checkpoint.size and checkpoint.at - told.at >= every)

    def told(self, channels: Collection[str], checkpoint: Checkpoint, incidents: Mapping[str, str]) -> None:
        """Remember it, once it is committed. The half hour of a new incident begins here."""
        if _too_long(checkpoint):
            return
        kept = {self._audit, *incidents.values()}
        new = kept - self._told.keys() - {self._audit}
        known = {channel: last for channel, last in self._told.items() if channel in kept}
        self._told = known | dict.fromkeys(new | (kept & set(channels)), checkpoint)
        self._open = dict(incidents)


def _too_long(checkpoint: Checkpoint) -> bool:
    return len(checkpoint.body()) > LONGEST


def sentence(checkpoint: Checkpoint, signed: Signed) -> str:
    """The head, as people read it, and the signed line, as `drbot timeline verify` does."""
    return (
        f"Record: checkpoint {checkpoint.number} at {checkpoint.at:%Y-%m-%d %H:%M:%S} UTC, "
        f"{checkpoint.size} entries.\n```{signed.head()}```"
    )
