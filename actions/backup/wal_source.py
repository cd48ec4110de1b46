"""What an archiver of WAL needs from a server: its place in the WAL, a replication slot, and the stream itself.

`actions.adapters.wal_receiver` is the adapter; it runs `pg_receivewal`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pydantic import AwareDatetime

from actions.errors import PermanentError, TemporaryError
from actions.site import Frozen


class SlotFacts(Frozen):
    """The archiver's replication slot. LSNs as PostgreSQL prints them."""

    active: bool
    restart_lsn: str | None  # WAL from here on is kept; None when the slot is lost or was never used
    wal_status: str | None  # reserved, extended, unreserved or lost
    written_lsn: str | None  # the archiver has said that it wrote everything before it
    safe_bytes: int | None  # that may still be written until it is lost; None: no limit
    sync_state: str | None = None  # of the archiver's stream: sync, quorum, potential, async; None: it does not stream

    @property
    def lost(self) -> bool:
        return self.wal_status == "lost"


class SourceFacts(Frozen):
    """A server as it answers now."""

    at: AwareDatetime  # its own clock
    system_id: str
    in_recovery: bool
    timeline_id: int
    flush_lsn: str  # all that is committed lies before it
    segment_bytes: int
    keep_bytes: int | None  # max_slot_wal_keep_size; None: no limit
    synchronous_names: str  # synchronous_standby_names
    synchronous_commit: str = "on"  # for the archiver's login
    not_waiting: tuple[str, ...] = ()  # "role `batch` in database `shop` (`off`)": where it is set to something else
    slot: SlotFacts | None


class WalGoneError(PermanentError):
    """The server no longer has the WAL that was asked for."""


class DiskFullError(TemporaryError):
    """What is received cannot be written: the archiver's disk has no room."""


class WalSource(Protocol):
    """One server. It is found where its connection string leads: after a failover that is another one."""

    async def facts(self) -> SourceFacts:
        """Raises TemporaryError when it does not answer, UserError when it refuses the login."""

    async def make_slot(self, *, anew: bool = False) -> None:
        """A physical slot that keeps WAL from now on. One that is there is left alone, a lost one is made anew; with
        `anew` every one that nobody uses."""

    async def keep_from(self, lsn: str) -> str:
        """On a standby: hold WAL from here on under the slot, older WAL may go; where it is held from. That is before
        `lsn` where this was not replayed yet, and behind it where WAL is gone. A slot that is missing, lost, or without
        a place is made. Raises as `facts` does."""

    async def history(self, timeline_id: int) -> str:
        """The text of a timeline's history file. Raises UserError where there is none."""

    async def receive(self, directory: Path, *, synchronous: bool) -> None:
        """Write the stream into the directory, going on after the newest segment there; returns only by raising or
        by being cancelled. Raises WalGoneError, DiskFullError, TemporaryError for everything else that may be better
        the next time."""


class AlarmKind(StrEnum):
    """What people must know about an archiver."""

    SERVER_AWAY = "server_away"
    NO_PRIMARY = "no_primary"
    OTHER_SERVER = "other_server"  # another system id, or a timeline that does not come from the archived one
    SLOT_LOST = "slot_lost"
    SLOT_BEHIND = "slot_behind"
    KEEP_SIZE = "keep_size"  # max_slot_wal_keep_size is missing or small
    STANDBY_SLOT = "standby_slot"  # a standby does not hold, or holds without limit, what a failover to it would need
    NOT_SYNCHRONOUS = "not_synchronous"
    DISK_LOW = "disk_low"
    DISK_FULL = "disk_full"  # nothing more is received
    DISK_UNUSABLE = "disk_unusable"  # the archiver's disk takes or gives nothing, and is not full
    DISK_LOST = "disk_lost"  # the archiver began on an empty disk
    BACKLOG = "backlog"
    BUCKET_AWAY = "bucket_away"
    OPEN_AWAY = "open_away"
    CONFLICT = "conflict"  # two servers write one archive
    GAP = "gap"
