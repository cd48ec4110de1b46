"""What the product must know of an engine for base backups and WAL. Each is declared in one file of `actions/engines/`.

The rest of the product asks a declaration, never for an engine by its name: see `docs/howto/engines.md`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from actions.backup.finder import WalRecords
from actions.backup.physical import BackupKind, PhysicalEntry, Proof, RecoveryTarget
from actions.backup.physical_tools import PhysicalTools, ScratchServers
from actions.plan_values import Part
from actions.ports import Clock, ObjectStore, PhysicalBackups, PostgresAdmin, Secrets
from actions.site import PhysicalPolicy, Site
from actions.steps.stored_chain import StoredChain


@dataclass(frozen=True, kw_only=True)
class Means:
    """What an engine is made from. `records` gives the `pg_waldump` of a server's version."""

    site: Site
    postgres: PostgresAdmin
    objects: ObjectStore
    secrets: Secrets
    clock: Clock
    tools: PhysicalTools
    servers: ScratchServers
    records: Callable[[str], WalRecords]
    scratch_directory: Path  # takes the scratch instances
    work_directory: Path  # of this process alone
    data_directory: Path  # of the bot; an engine whose program runs under another account has a folder of its own there


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A base backup that is to be made, as a step knows it."""

    server: str
    backup: str
    kind: BackupKind
    label: str  # `Engine.label`
    bucket: str
    endpoint: str | None
    prefix: str
    recipients: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Copied:
    """A base backup that is to be in a second bucket as well, as a step knows it."""

    server: str
    backup: str
    prefix: str
    bucket: str
    endpoint: str | None
    into: str
    into_endpoint: str | None


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A base backup that is there, as a step knows it."""

    backup: str
    label: str  # `Engine.label`
    bucket: str
    endpoint: str | None
    key: str  # of its object, or its folder
    sha256: str = ""
    superuser: str = ""  # the role that `initdb` made
    chain: StoredChain | None = None  # `Engine.chain`


class NoKeys(Part):
    """Of an engine that needs no keys of its own."""


class Engine(ABC):
    """A declaration: it holds no state and does no work. Commands by hand are shown to people, never run."""

    name: ClassVar[str]
    """In the plan file, and in plans that were signed: never changed."""
    title: ClassVar[str]
    """In sentences."""
    about: ClassVar[str]
    """Whom it is for, in a few words of the plan file's reference."""
    keys: ClassVar[type[Part]] = NoKeys
    """Its own keys of `backups.databases[].base`, each with a default. No two engines have one of the same name."""
    archived_by_us: ClassVar[bool]
    """Whether `drbot wal` archives the WAL; else the server does it itself, by its `archive_command`."""
    one_bucket: ClassVar[str] = "name one bucket"
    """What people do who name a second bucket for base backups; empty where it copies them into that one."""
    verified: ClassVar[str] = "its own checks of what is stored"
    """What a restore compares of everything it reads, before anything is made of it; in plans and restore tests."""
    read_by_kit: ClassVar[bool] = False
    """Whether backups and WAL are in the format that `restore.py` reads, the program that lies beside them."""
    full_instead: ClassVar[bool] = False
    """Whether it makes a full backup where a server cannot tell what has changed."""

    @abstractmethod
    def make(self, means: Means) -> PhysicalBackups:
        """The engine itself. What is slow to import is imported here."""

    @abstractmethod
    def archive_again(self, policy: PhysicalPolicy) -> str:
        """What makes the WAL of a primary that was just made go into the archive: the end of a sentence."""

    @abstractmethod
    def take_by_hand(self, wanted: Wanted) -> tuple[str, ...]:
        """Commands that make a base backup without the bot."""

    @abstractmethod
    def restore_by_hand(self, stored: Stored, target: RecoveryTarget) -> tuple[str, ...]:
        """Commands that make a server out of it which rests at the target, checked. `PGDATA` names its folder."""

    @abstractmethod
    def check_by_hand(self, stored: Stored) -> tuple[str, ...]:
        """Commands that tell whether its stored bytes are those that were written."""

    @abstractmethod
    def remove_by_hand(self, stored: Stored) -> tuple[str, ...]:
        """Commands that delete it."""

    def copy_by_hand(self, copied: Copied) -> tuple[str, ...]:
        """Commands that bring it into the second bucket, where the engine does that (`one_bucket` is empty)."""
        return (f"# copy {copied.backup} from {copied.bucket} into {copied.into} as engine {self.name} keeps it",)

    def label(self, policy: PhysicalPolicy) -> str:  # noqa: ARG002 - most have no name of their own for a server
        """What its own commands call the server; steps carry it. Empty where they need nothing."""
        return ""

    def chain(
        self,
        site: Site,  # noqa: ARG002
        server: str,  # noqa: ARG002
        entries: Sequence[PhysicalEntry],  # noqa: ARG002
        base: PhysicalEntry,  # noqa: ARG002
    ) -> StoredChain | None:
        """What a restore by hand reads, where that is all in the format of `StoredChain`."""
        return None

    def stored(self, site: Site, server: str, entries: Sequence[PhysicalEntry], base: PhysicalEntry) -> Stored:
        """This base backup of the catalogue, for the commands by hand."""
        found, policy = base.manifest, site.physical_of(server)
        return Stored(
            backup=found.id,
            label=self.label(policy),
            bucket=base.bucket,
            endpoint=site.endpoint_of(base.bucket),
            key=found.stored.key,
            sha256=found.stored.sha256,
            superuser=found.superuser,
            chain=self.chain(site, server, entries, base),
        )

    def leftovers(self, policy: PhysicalPolicy) -> str | None:  # noqa: ARG002
        """The prefix in the bucket of base backups under which each has a folder, its manifest written last: what has
        none there was left by a job that ended before. None where the engine sweeps by itself."""
        return None

    def proof_beside(self, policy: PhysicalPolicy, proof: Proof) -> str | None:  # noqa: ARG002
        """The key under which its own catalogue finds a restore test of a backup; None where it looks for none."""
        return None

    def signed_unnamed(self, label: str) -> bool:  # noqa: ARG002
        """Whether a step of a plan that was signed before steps named their engine is one of its own."""
        return False


class UnknownEngine(Engine):
    """Of a plan that another version has made: it can be shown, and nothing can be done with it."""

    title = "another version"
    about = ""
    archived_by_us = False

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]  # what stands in the plan

    def make(self, means: Means) -> PhysicalBackups:  # noqa: ARG002
        raise AssertionError("the registry has no such engine")

    def archive_again(self, policy: PhysicalPolicy) -> str:  # noqa: ARG002
        return f"archive its WAL again as engine `{self.name}` wants it"

    def take_by_hand(self, wanted: Wanted) -> tuple[str, ...]:
        return (f"# take a base backup of {wanted.server} with engine {self.name}, which this version does not know",)

    def restore_by_hand(self, stored: Stored, target: RecoveryTarget) -> tuple[str, ...]:
        return (f"# restore {stored.backup} to {target} with engine {self.name}, which this version does not know",)

    def check_by_hand(self, stored: Stored) -> tuple[str, ...]:
        return (f"# check {stored.backup} with engine {self.name}, which this version does not know",)

    def remove_by_hand(self, stored: Stored) -> tuple[str, ...]:
        return (f"# delete {stored.backup} with engine {self.name}, which this version does not know",)
