"""What the pgBackRest engine needs of the program. `actions/adapters/pgbackrest.py` runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from actions.backup.pgbackrest_info import Repository, Stanza
from actions.backup.wal import WalListing
from actions.site import Frozen


class Version(Frozen):
    """Of the program."""

    major: int
    minor: int
    patch: int = 0

    @property
    def order(self) -> tuple[int, int, int]:
        return self.major, self.minor, self.patch

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}" + (f".{self.patch}" if self.patch else "")


class ArchivePlace(Frozen):
    """The archive of one cluster in one repository."""

    server: str
    repository: Repository
    archive: str  # such as 15-1
    bucket: str
    system_id: str
    version: str  # major version of PostgreSQL
    segment_bytes: int


class RestoreOrder(Frozen):
    """One backup into an empty folder, or with `begun` into one in which a restore of it broke off: what is there as it
    was stored is not fetched again."""

    label: str
    repository: int
    data: Path
    tablespaces: Path  # where every tablespace goes: never where production has it
    begun: bool = False


class ExpireOrder(Frozen):
    """What is to go: one backup with all that rests on it (None: WAL alone), and WAL older than the newest
    `keep_wal_of` full backups (0: none), what each backup needs for itself excepted."""

    repository: int
    label: str | None
    keep_wal_of: int


class Verified(Frozen):
    """What `verify` found. Nothing is good unless it was looked at."""

    problem: str = ""  # of the backup itself; empty: every file of it and of what it rests on is as it was stored
    wal: tuple[str, ...] = ()  # segments that are damaged, of the whole archive


class Expired(Frozen):
    """What `expire` removes, or would remove."""

    labels: tuple[str, ...] = ()
    wal: tuple[tuple[str, str], ...] = ()  # first and last segment of every stretch


class PgBackRest(Protocol):
    """The program, run for a server of the plan file. Errors are translated: UserError, TemporaryError, PermanentError,
    VerificationError."""

    async def version(self) -> Version: ...

    async def info(self, server: str) -> Stanza: ...

    def buckets(self, server: str) -> Mapping[int, str]:
        """Repository -> its bucket, as far as pgBackRest's configuration file can be read."""

    def queue_limit(self, server: str, archive_command: str) -> str:
        """What `archive-push-queue-max` is for a server that archives with this command, as it is written; empty where
        nothing says it, or the configuration that does cannot be read here."""

    async def own(self, folder: Path) -> None:
        """Let pgBackRest write into this folder."""

    async def archived(self, place: ArchivePlace) -> WalListing: ...

    async def fetch(self, place: ArchivePlace, name: str, into: Path) -> bool:
        """One file of the archive as `into/name`, whole or not at all; it must own that folder. False when the archive
        does not have it."""

    async def fetch_ahead(self, place: ArchivePlace, names: Sequence[str], into: Path) -> None:
        """Several files of the archive by one process, each as `into/name`, whole or not at all. What did not come is
        asked for by `fetch`, which says why. It must own that folder, and be the only one that does this there."""

    async def backup(
        self, server: str, kind: str, annotations: Mapping[str, str], shown: Callable[[int], None]
    ) -> None:
        """`kind` is full, diff or incr; `shown` is told the percentage. Expires nothing."""

    async def annotate(self, server: str, label: str, annotations: Mapping[str, str]) -> None:
        """An empty value takes an annotation off."""

    async def verify(self, server: str, label: str, repository: int) -> Verified:
        """Read the backup and the WAL completely and check every file."""

    async def restore(self, server: str, order: RestoreOrder, shown: Callable[[int], None]) -> None: ...

    async def expire(self, server: str, order: ExpireOrder, *, dry_run: bool) -> Expired: ...
