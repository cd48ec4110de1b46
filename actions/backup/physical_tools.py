"""What the native engine and scratch instances need of PostgreSQL's programs.

`actions.adapters.postgres_physical` and `actions.adapters.scratch_server` are the adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from pydantic import AwareDatetime

from actions.backup.physical import Lack, Lsn, RecoveryTarget
from actions.backup.scratch_place import ScratchPlace
from actions.backup.tools import ArchiveSource
from actions.errors import UserError, VerificationError
from actions.ports import Progress
from actions.site import Frozen


class SourceServer(Frozen):
    """A server that a base backup is taken from. `now` is by its own clock."""

    now: AwareDatetime
    server_version: int
    system_id: str
    timeline_id: int
    segment_bytes: int
    checksums: bool
    summarizes: bool  # `summarize_wal` is on
    summarized_lsn: str  # up to here; empty when nothing is
    summaries_kept: timedelta | None  # None before PostgreSQL 17; zero is for ever
    wal_level: str  # minimal, replica or logical
    wal_senders: int  # connections that may stream at a time
    replication_slots: int  # how many there may be
    login: str  # the role that asked
    may_stream: bool  # it has the right REPLICATION, or is a superuser
    superuser: str  # the role that `initdb` made
    tablespaces: tuple[str, ...]  # besides PostgreSQL's own two
    bytes: int  # of all databases
    databases: Mapping[str, int]  # those that accept connections -> oid


class SourceState(Frozen):
    """What a server held at one moment, by its own clock."""

    now: AwareDatetime
    snapshot: str  # as pg_current_snapshot() prints it
    relfilenodes: Mapping[str, Mapping[str, int]]  # database -> "schema.table" -> relfilenode


class UnknownChangesError(UserError):
    """A server cannot tell what has changed since another backup, so no incremental can rest on that one."""


class PhysicalTools(Protocol):
    """Base backups. Errors are translated: UserError, TemporaryError, PermanentError, VerificationError."""

    async def facts(self, server: str) -> SourceServer: ...

    async def state(self, server: str, databases: Sequence[str]) -> SourceState: ...

    async def stream_refusal(self, server: str) -> Lack | None:
        """Open a connection of the kind that base backups are streamed through and end it; what the server refused it
        for. None where it was let in. Raises TemporaryError when the server does not answer."""

    async def base(self, server: str, label: str, parent_list: Path | None) -> ArchiveSource:
        """Start `pg_basebackup`: one tar with all files and, last, their list. With `parent_list` (the file list of
        another backup) what changed since that one; its end raises UnknownChangesError where the server cannot tell."""

    async def check_files(self, server: str, backup: str, folder: Path) -> None:
        """Raise VerificationError, naming the backup and the file, unless the folder is what its own list says."""

    async def combine(self, server: str, members: Sequence[Path], into: Path) -> None:
        """A full backup and its incrementals, oldest first, into a new folder. Its files may be the members' own."""

    async def check_pages(self, server: str, data: Path) -> bool:
        """Check every page's checksum in a data directory that was shut down. False when it has no checksums.
        Raises VerificationError naming the first file."""

    async def versions(self, server: str) -> Mapping[str, str]:
        """Tool -> version."""


class Replay(Frozen):
    """How far a restored data directory is replayed."""

    target: RecoveryTarget
    timeline_id: int  # whose history is followed
    start_lsn: str
    end_lsn: str  # where the WAL at hand ends
    restore_command: str  # with %f and %p
    amcheck: bool = False  # check every index while it rests there
    follows: timedelta | None = None  # it never rests: a standby that stays so far behind


class EndsEarlyError(UserError):
    """The WAL at hand ends before the target."""


class DamagedError(VerificationError):
    """It rests at the target, and what is in it is damaged."""

    def __init__(self, message: str, reached: Reached) -> None:
        super().__init__(message)
        self.reached = reached


class Reached(Frozen):
    """Where a replay came to rest: the target itself, seen in the server's own words."""

    lsn: str
    at: AwareDatetime | None  # the last commit that was replayed; None when there was none
    checked_indexes: tuple[str, ...] = ()  # databases whose indexes were compared with their tables

    @property
    def place(self) -> Lsn:
        return Lsn.parse(self.lsn)


class ScratchServers(Protocol):
    """Starts PostgreSQL in a scratch place whose `data` is a restored data directory."""

    async def replay(self, place: ScratchPlace, order: Replay, progress: Progress) -> Reached:
        """Give it a configuration of its own, start it, see it pause at the target, and shut it down again.

        With `amcheck` every index of every database that has that extension is compared with its table meanwhile.

        Raises EndsEarlyError, UserError when the target lies before the backup's end, DamagedError for an index,
        VerificationError when PostgreSQL cannot use what was restored; then it does not run any more.
        """


class EmptyServers(Protocol):
    """Makes PostgreSQL servers in scratch places, without a database of people, for dumps to be loaded into."""

    async def make(self, place: ScratchPlace) -> None:
        """A new, empty server of the claim's version in `data`, started; it goes with this process. Raises UserError
        when this machine cannot run one."""

    async def check_indexes(self, place: ScratchPlace) -> tuple[str, ...]:
        """Compare every index of every database that has the extension `amcheck` with its table; their names. Raises
        VerificationError naming what is damaged."""

    async def versions(self, place: ScratchPlace) -> Mapping[str, str]:
        """Program -> version."""

    async def stop(self, place: ScratchPlace) -> None:
        """Shut it down. Nothing happens when it does not run."""
