"""A PostgreSQL 15 that pgBackRest backs up, its engine as the bot makes it, and scratch instances of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from actions.adapters.clock import SystemClock
from actions.adapters.pg_waldump import PgWaldump
from actions.adapters.pgbackrest import PgBackRestProgram
from actions.adapters.postgres import PostgresServers
from actions.adapters.postgres_physical import PhysicalPrograms
from actions.adapters.s3 import S3Store
from actions.adapters.scratch import ScratchInstances
from actions.adapters.scratch_server import ScratchPrograms
from actions.adapters.secrets import SecretReferences
from actions.backup.pgbackrest import PgBackRestEngine
from actions.backup.pgbackrest_info import PROBLEM
from actions.backup.pgbackrest_keys import PgBackRestKeys, StanzaSecret
from actions.backup.pgbackrest_tools import ExpireOrder
from actions.ports import Clock
from actions.site import Bucket, DatabaseRef, PhysicalPolicy, Server, Site
from tests.dump_world import Keys
from tests.fakes.clock import MemoryClock
from tests.fixtures.apart import run_apart
from tests.fixtures.needed import POSTGRES_15
from tests.fixtures.pgbackrest import CIPHER_PASS, STANZA, Archived
from tests.fixtures.shared_s3 import S3

SERVER, MARK = "primary", "drbot:scratch:plan1"


@dataclass
class PgBackRestWorld:
    """The server, its engine, and what was committed when."""

    archived: Archived
    s3: S3
    directory: Path
    commits: dict[str, int] = field(default_factory=dict)  # row -> transaction
    keys: Keys = field(default_factory=Keys)
    program_directory: Path | None = None
    patience: timedelta = timedelta()  # a test that takes a store away wants to hear of it
    moments: dict[str, datetime] = field(default_factory=dict)  # row -> just after its commit, by the server's clock

    def __post_init__(self) -> None:
        keys = self.keys
        values = {
            "DSN": self.archived.server.dsn(),
            "CIPHER": CIPHER_PASS,
            "ACCESS": self.s3.access_key,
            "SECRET": self.s3.secret_key,
            "IDENTITY": keys.identity,
            "SIGNING": keys.pem,
        }
        self.secrets = SecretReferences(values)
        bucket = Bucket(
            name=self.archived.bucket, endpoint=self.s3.endpoint, access_key="env:ACCESS", secret_key="env:SECRET"
        )
        policy = PhysicalPolicy(
            server=SERVER,
            engine="pgbackrest",
            bucket=bucket.name,
            wal_buckets=(bucket.name,),
            recipients=(keys.recipient,),
            identity="env:IDENTITY",
            signing_key="env:SIGNING",
            trusted_signers=(keys.signer,),
            own=PgBackRestKeys(
                stanza=STANZA,
                stanza_config=str(self.archived.config),
                stanza_secrets=(StanzaSecret(option="repo1-cipher-pass", value="env:CIPHER"),),
            ),
            minimum_fulls=1,
        )
        server = Server(name=SERVER, admin_dsn="env:DSN", tools=str(POSTGRES_15 / "bin"))
        self.site = Site(servers={SERVER: server}, buckets={bucket.name: bucket}, physical={SERVER: policy})
        scratch = self.directory / "scratch"
        self.scratch = ScratchInstances(self.site, scratch, SystemClock())
        self.postgres = PostgresServers(self.site, self.secrets, scratch=scratch)
        self.program = PgBackRestProgram(
            self.site, self.secrets, directory=self.program_directory or self.directory / "pgbackrest"
        )
        self.engine = self._engine(SystemClock())

    def anew(self, directory: Path) -> PgBackRestWorld:
        """The same server and repository with scratch instances in a directory of its own."""
        return replace(self, directory=directory, program_directory=self.directory / "pgbackrest")

    @asynccontextmanager
    async def borrowed(self, directory: Path) -> AsyncIterator[PgBackRestWorld]:
        """As `anew`; the backups that are made meanwhile go again, and no backup stays denounced."""
        before = {backup.label for backup in (await self.program.info(SERVER)).backup}
        yield self.anew(directory)
        for backup in reversed((await self.program.info(SERVER)).backup):
            if backup.label not in before:
                order = ExpireOrder(repository=backup.database.key, label=backup.label, keep_wal_of=0)
                await self.program.expire(SERVER, order, dry_run=False)
            elif PROBLEM in backup.annotation:
                await self.program.annotate(SERVER, backup.label, {PROBLEM: ""})

    def denounce(self, backup: str) -> None:
        """What `verify` leaves on a backup that it found damaged."""

        async def noted() -> None:
            found = next(each for each in (await self.program.info(SERVER)).backup if each.id == backup)
            await self.program.annotate(SERVER, found.label, {PROBLEM: f"`{backup}` is damaged."})

        run_apart(noted())

    def moment_between(self) -> datetime:
        """A moment with an archived commit before it and one after it."""
        for _ in range(2):
            self.commit(f"row-{uuid.uuid4().hex[:8]}")
        self.archive()
        return list(self.moments.values())[-2]

    def at(self, moment: datetime) -> PgBackRestEngine:
        """The engine at another time of day."""
        return self._engine(MemoryClock(moment))

    def _engine(self, clock: Clock) -> PgBackRestEngine:
        return PgBackRestEngine(
            self.site,
            self.program,
            postgres=self.postgres,
            objects=S3Store(self.site, self.secrets),
            secrets=self.secrets,
            clock=clock,
            tools=PhysicalPrograms(self.site, self.secrets, private_directory=self.directory / "private"),
            servers=ScratchPrograms(self.site),
            records=lambda server: PgWaldump(self.site.servers[server].tools),
            scratch_directory=self.directory / "scratch",
            work_directory=self.directory / "spool",
            patience=self.patience,
        )

    def commit(self, row: str) -> None:
        found = self.archived.sql(f"INSERT INTO ledger VALUES ('{row}') RETURNING pg_current_xact_id()::text::bigint")
        self.commits[row] = int(str(found[0][0]))
        moment = self.archived.sql("SELECT clock_timestamp()")[0][0]
        assert isinstance(moment, datetime)
        self.moments[row] = moment
        time.sleep(0.02)  # so that each commit has a time of its own

    def archive(self) -> None:
        """Close the open segment and wait until the archive has it. The switch is a transaction of its own."""
        name = str(self.archived.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")[0][0])
        self.archived.sql("SELECT pg_switch_wal()")
        limit = time.monotonic() + 20
        while str(self.archived.sql("SELECT last_archived_wal FROM pg_stat_archiver")[0][0] or "") < name:
            assert time.monotonic() < limit, "the segment was not archived"
            time.sleep(0.02)

    async def rows(self, scratch: str) -> list[str]:
        """What the started instance holds."""
        found = await self.postgres.query(DatabaseRef(f"scratch-{scratch}", "postgres"), "SELECT row FROM ledger")
        return sorted(str(each["row"]) for each in found)
