"""A PostgreSQL that is backed up by the native engine, its WAL archived by hand, and scratch instances of it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from actions.adapters.clock import SystemClock
from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.pg_waldump import PgWaldump
from actions.adapters.postgres import PostgresServers
from actions.adapters.postgres_physical import PhysicalPrograms
from actions.adapters.postgres_tables import PostgresTables
from actions.adapters.postgres_tools import PostgresPrograms
from actions.adapters.scratch import ScratchInstances
from actions.adapters.scratch_server import ScratchPrograms
from actions.adapters.secrets import SecretReferences
from actions.backup.crypto import Identity
from actions.backup.logical import LogicalEngine
from actions.backup.native import NativeEngine
from actions.backup.physical import (
    BackupKind,
    BaseRequest,
    PhysicalEntry,
    RecoveryTarget,
    ScratchRequest,
    ScratchRestored,
)
from actions.backup.scratch_budget import RESERVE
from actions.backup.sealed import SealedKind, Sealer, What, header_of, unseal
from actions.backup.segments import Segment, history_name
from actions.backup.wal import WalArchive
from actions.errors import TemporaryError
from actions.ports import Clock, ObjectStore, no_progress
from actions.site import Bucket, PhysicalPolicy, ScratchBudget, Server, Site
from tests.dump_world import Keys

SERVER, BUCKET = "main", "backups"
MARK = "drbot:scratch:plan1"


@dataclass
class PhysicalWorld:
    """One server and one bucket, or two by `policy_changes`. The archiver is `archive`, called when a test wants WAL to
    be there."""

    server: EmbeddedPostgres
    objects: ObjectStore
    directory: Path
    bucket: str = BUCKET
    endpoint: str | None = None
    budget: ScratchBudget = field(default_factory=lambda: ScratchBudget(disk=20 << 30))
    keys: Keys = field(default_factory=Keys)
    clock: Clock = field(default_factory=SystemClock)
    values: dict[str, str] = field(default_factory=dict)
    policy_changes: dict[str, object] = field(default_factory=dict)
    reserve: int = RESERVE
    patience: timedelta = timedelta()  # a test that takes a store away wants to hear of it

    def __post_init__(self) -> None:
        self.values = {
            "DSN": self.server.dsn(),
            "IDENTITY": self.keys.identity,
            "SIGNING": self.keys.pem,
            **self.values,
        }
        self.secrets = SecretReferences(self.values)
        policy = PhysicalPolicy(
            server=SERVER,
            bucket=self.bucket,
            wal_buckets=(self.bucket,),
            recipients=(self.keys.recipient,),
            identity="env:IDENTITY",
            signing_key="env:SIGNING",
            trusted_signers=(self.keys.signer,),
        )
        self.policy = policy.model_copy(update=self.policy_changes)
        self.site = Site(
            servers={SERVER: Server(name=SERVER, admin_dsn="env:DSN")},
            buckets={
                name: Bucket(
                    name=name,
                    endpoint=self.endpoint,
                    region="us-east-1" if name == self.bucket else "us-west-2",
                    access_key="env:ACCESS",
                    secret_key="env:SECRET",
                )
                for name in {*self.policy.base_buckets, *self.policy.wal_buckets}
            },
            physical={SERVER: self.policy},
            scratch=self.budget,
        )
        self.scratch_directory = self.directory / "scratch"
        self.scratch = ScratchInstances(self.site, self.scratch_directory, self.clock)
        self.postgres = PostgresServers(self.site, self.secrets, scratch=self.scratch_directory)
        self.engine, self.prover = self._engine(self.site), self._engine(self.site.as_prover())
        self.archived: set[str] = set()

    def _engine(self, site: Site) -> NativeEngine:
        return NativeEngine(
            site,
            objects=self.objects,
            secrets=self.secrets,
            clock=self.clock,
            tools=PhysicalPrograms(site, self.secrets, private_directory=self.directory / "private"),
            servers=ScratchPrograms(site),
            records=lambda _: PgWaldump(),
            scratch_directory=self.scratch_directory,
            work_directory=self.directory / "spool",
            reserve=self.reserve,
            patience=self.patience,
        )

    def logical(self, site: Site, directory: Path) -> tuple[LogicalEngine, PostgresTables]:
        """Dumps, loads and rescues between this server and its scratch instances."""
        programs = PostgresPrograms(
            site, self.secrets, private_directory=directory / "logical-private", scratch=self.scratch_directory
        )
        engine = LogicalEngine(
            site,
            postgres=self.postgres,
            objects=self.objects,
            secrets=self.secrets,
            clock=self.clock,
            tools=programs,
            work_directory=directory / "logical-spool",
        )
        return engine, PostgresTables(site, self.secrets, programs, scratch=self.scratch_directory)

    # ------------------------------------------------------------ the server

    def sql(self, *statements: str) -> list[tuple[object, ...]]:
        """Each in a transaction of its own; the rows of the last."""
        rows: list[tuple[object, ...]] = []
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def archive_from_now(self) -> None:
        """Leave out what a server that others use wrote before: a small store has no room for it."""
        open_one = str(self.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")[0][0])
        self.archived.update(path.name for path in (self.server.data / "pg_wal").iterdir() if path.name < open_one)

    async def archive(self) -> None:
        """Close the segment that is open and store all that are closed, as `drbot wal` does."""
        before = str(self.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")[0][0])
        self.sql("SELECT pg_create_restore_point('archived')", "SELECT pg_switch_wal()")
        await self.archive_up_to(before)

    async def archive_up_to(self, last: str) -> None:
        system_id = str(self.sql("SELECT system_identifier::text FROM pg_control_system()")[0][0])
        sealer, archive = Sealer(self.policy.recipients, self.keys.signing), WalArchive(self.objects, self.policy)
        for path in sorted((self.server.data / "pg_wal").glob("0" * 7 + "[1-9]" + "?" * 16)):
            if path.name > last or path.name in self.archived:
                continue
            segment = Segment.parse(path.name)
            what = What(
                kind=SealedKind.SEGMENT,
                name=path.name,
                system_id=system_id,
                timeline_id=segment.timeline_id,
                segment_bytes=segment.size,
            )
            with path.open("rb") as stream:
                header, body = await asyncio.to_thread(sealer.seal, what, stream, datetime.now(UTC))
            for bucket in self.policy.wal_buckets:
                await archive.put(bucket, header, body)
            self.archived.add(path.name)

    async def reopen_last(self) -> str:
        """Take the last closed segment away and lay it there in two pieces, as the archiver sends one that is open; its
        name."""
        archive = WalArchive(self.objects, self.policy)
        last = max((await archive.listing(self.bucket)).segments)
        body, plain = await self.objects.get(self.bucket, archive.key(last)), io.BytesIO()
        header = header_of(body, last, self.policy.trusted_signers)
        await asyncio.to_thread(unseal, body, header, last, Identity(self.keys.identity, "ours"), plain)
        await self.objects.delete(self.bucket, archive.key(last))
        sealer, whole = Sealer(self.policy.recipients, self.keys.signing), plain.getvalue()
        for first, end in ((0, 1 << 20), (1 << 20, len(whole))):
            what = What(
                kind=SealedKind.RANGE,
                name=last,
                system_id=header.system_id,
                timeline_id=Segment.parse(last).timeline_id,
                first=first,
                segment_bytes=len(whole),
            )
            await archive.put_range(*sealer.seal(what, io.BytesIO(whole[first:end]), datetime.now(UTC)))
        return last

    async def archive_history(self, timeline_id: int) -> None:
        """Store how that timeline came about, as `drbot wal` does."""
        name = history_name(timeline_id)
        [(text, system_id)] = self.sql(
            f"SELECT pg_read_file('pg_wal/{name}'), system_identifier::text FROM pg_control_system()"
        )
        sealer, archive = Sealer(self.policy.recipients, self.keys.signing), WalArchive(self.objects, self.policy)
        what = What(
            kind=SealedKind.HISTORY,
            name=name,
            system_id=str(system_id),
            timeline_id=timeline_id,
            history=str(text),
        )
        sealed = await asyncio.to_thread(sealer.seal, what, io.BytesIO(str(text).encode()), datetime.now(UTC))
        for bucket in self.policy.wal_buckets:
            await archive.put(bucket, *sealed)

    # ------------------------------------------------------------ backups

    async def take(self, backup: str, kind: BackupKind = BackupKind.FULL, parent: str | None = None) -> PhysicalEntry:
        request = BaseRequest(id=backup, server=SERVER, kind=kind, parent=parent)
        async with self.archiving():
            return await self.engine.take(request, no_progress)

    @asynccontextmanager
    async def archiving(self) -> AsyncIterator[None]:
        """Meanwhile what is closed is archived."""
        archiving = asyncio.create_task(self._archive_soon())
        try:
            yield
        finally:
            archiving.cancel()
            await asyncio.gather(archiving, return_exceptions=True)

    async def _archive_soon(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            # A base backup closes its last segment by itself.
            open_one = Segment.parse(str(self.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")[0][0]))
            with suppress(TemporaryError):  # an archiver tries again
                await self.archive_up_to(str(replace(open_one, number=open_one.number - 1)))

    async def restore(
        self, target: RecoveryTarget, *, scratch: str = "s1", backup: str | None = None, amcheck: bool = False
    ) -> ScratchRestored:
        request = ScratchRequest(id=scratch, server=SERVER, target=target, backup=backup, mark=MARK, amcheck=amcheck)
        return await self.engine.restore(request, no_progress)

    def clean(self) -> list[str]:
        """What is left in the folders that a failed restore must leave empty."""
        places = (self.scratch_directory, self.directory / "spool")
        return [str(path) for place in places if place.exists() for path in place.iterdir() if path.name[0] != "."]
