"""What an engine of logical backups needs from PostgreSQL beside `PostgresAdmin`: a snapshot, its dump, and a restore.

`actions.adapters.postgres_tools` is the adapter; it runs `pg_dump` and `pg_restore`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from actions.backup.archive import Contents
from actions.backup.manifest import Fingerprint, Globals
from actions.backup.unpacking import Sink
from actions.site import DatabaseRef, Frozen, Invariant


class SnapshotFacts(Frozen):
    """The moment a dump shows."""

    server_version: int
    system_id: str
    lsn: str
    taken_at: datetime
    database_bytes: int
    relfilenodes: Mapping[str, int]
    cluster_globals: Globals


class ArchiveSource(Protocol):
    """The standard output of `pg_dump`. Blocking; for one thread."""

    def read(self, size: int, /) -> bytes: ...

    def finish(self) -> None:
        """Raise when `pg_dump` did not end well."""

    def stop(self) -> None:
        """End it. Any thread may call this, at any time, more than once."""

    def close(self) -> None:
        """End it and give back what it holds, once nobody reads any more."""


class Snapshot(Protocol):
    """An exported snapshot; it lasts as long as its `async with` block."""

    @property
    def facts(self) -> SnapshotFacts: ...

    async def archive(self) -> ArchiveSource:
        """Start `pg_dump` at this snapshot."""

    async def fingerprint(self, invariants: Sequence[Invariant], counted: Callable[[int], None]) -> Fingerprint: ...


class RestoreOrder(Frozen):
    """How an archive goes into a new, empty database."""

    into: DatabaseRef
    mark: str  # of the database, and of the roles that are made for the restore
    owner: str
    extensions: Mapping[str, str]  # those that may be made, with their schema ("" where the extension chooses)
    owners: Mapping[str, str]  # owner in the dump -> owner in the archive that is restored
    jobs: int


class Archive(Protocol):
    """A dump whose stored bytes are known to be right, as it goes into a restore."""

    contents: Contents
    places: Mapping[int, range]  # entry -> the bytes of its data

    async def replay(self, sink: Sink, stop: Callable[[], None]) -> None:
        """Give its plain bytes to the sink, as often as asked, until it raises EnoughError. `stop` ends a sink that is
        held up. Raises VerificationError when they are not those that were dumped."""

    async def check(self) -> None:
        """Raise VerificationError unless all plain bytes are those that were dumped; they are read for it only where
        `replay` has not done so."""


class PostgresTools(Protocol):
    """Dump and restore."""

    def snapshot(self, database: DatabaseRef) -> AbstractAsyncContextManager[Snapshot]:
        """Raises UserError when `pg_dump` is older than the server."""

    async def globals_of(self, database: DatabaseRef) -> Globals: ...

    async def superusers(self, server: str) -> Mapping[str, bool]:
        """Every role of the server, and whether it is a superuser."""

    async def restore(self, order: RestoreOrder, archive: Archive, restored: Callable[[int], None]) -> Sequence[str]:
        """Restore as an unprivileged role and ANALYZE; `restored` is told the database's bytes now and then.
        Returns notes for people on what was left out. Raises VerificationError when `pg_restore` fails."""

    async def check_archive(self, server: str, archive: Path) -> None:
        """Raise VerificationError unless `pg_restore --list` reads it."""

    async def versions(self, server: str) -> Mapping[str, str]:
        """Tool -> version."""
