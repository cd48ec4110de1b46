"""A server whose WAL is archived: the archiver in this process or in its own, and recovery from the buckets alone."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import psycopg

from actions.adapters.clock import SystemClock
from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.programs import run
from actions.adapters.secrets import SecretReferences
from actions.adapters.wal_receiver import PostgresWal
from actions.backup.archiver import Archiver
from actions.backup.physical import Lsn, RecoveryTarget
from actions.backup.wal import WalArchive, WalStart
from actions.backup.wal_fetch import FetchedWal, WalFetch
from actions.backup.wal_source import AlarmKind
from actions.backup.wal_spool import WalSpool
from actions.backup.wal_status import WalStatus, read_status
from actions.errors import TemporaryError
from actions.ports import ObjectStore, no_progress
from actions.site import PhysicalPolicy, Server, Site
from tests.dump_world import Keys
from tests.fakes.s3 import MemoryObject, MemoryObjects

HERE, THERE, OPEN = "wal-here", "wal-there", "wal-open"
SERVER = "main"
SETTINGS = {
    "wal_level": "replica",
    "max_wal_senders": "8",
    "shared_buffers": "32MB",
    "min_wal_size": "32MB",
    "max_wal_size": "64MB",
    "max_slot_wal_keep_size": "1GB",
    "checkpoint_timeout": "1h",
    # What was committed is in the WAL, or no test could say up to where it must be archived.
    "synchronous_commit": "on",
}


class UnsteadyObjects(MemoryObjects):
    """Buckets that do not answer, or take nothing more."""

    def __init__(self, *buckets: str) -> None:
        super().__init__(*buckets, clock=SystemClock())
        self.away: set[str] = set()
        self.full: set[str] = set()

    async def put(self, bucket: str, key: str, body: bytes, *, only_if_absent: bool = False) -> None:
        if bucket in self.full:
            raise TemporaryError(f"Bucket `{bucket}` did not store `{key}`: InternalError. Its disk may be full.")
        await super().put(bucket, key, body, only_if_absent=only_if_absent)

    def _bucket(self, name: str) -> dict[str, MemoryObject]:
        if name in self.away:
            raise TemporaryError(f"Bucket `{name}` does not answer.")
        return super()._bucket(name)


@dataclass
class WalWorld:
    """`server` may be replaced by another one, as after a failover: the archiver asks for it each time."""

    directory: Path
    server: EmbeddedPostgres
    objects: ObjectStore = field(default_factory=lambda: UnsteadyObjects(HERE, THERE, OPEN))
    keys: Keys = field(default_factory=Keys)
    prefix: str = "physical/"
    slot: str = "drbot_wal"
    synchronous: bool = False
    tools: str = ""  # a directory with another `pg_receivewal`
    standbys: dict[str, EmbeddedPostgres] = field(default_factory=dict)  # on which the archiver keeps its slot as well

    def __post_init__(self) -> None:
        self.values = {"DSN": self.server.dsn(), "IDENTITY": self.keys.identity, "SIGNING": self.keys.pem}
        self.policy = PhysicalPolicy(
            server=SERVER,
            bucket=HERE,
            prefix=self.prefix,
            wal_buckets=(HERE, THERE),
            open_bucket=OPEN,
            recipients=(self.keys.recipient,),
            identity="env:IDENTITY",
            signing_key="env:SIGNING",
            trusted_signers=(self.keys.signer,),
            slot=self.slot,
            synchronous=self.synchronous,
        )
        self.secrets = SecretReferences(self.values)
        self.spool = self.directory / "spool"

    @property
    def memory(self) -> UnsteadyObjects:
        assert isinstance(self.objects, UnsteadyObjects)
        return self.objects

    @property
    def archive(self) -> WalArchive:
        return WalArchive(self.objects, self.policy)

    # ------------------------------------------------------------ the archiver

    @property
    def source(self) -> PostgresWal:
        """The server as the archiver sees it."""
        site = Site(servers={SERVER: Server(name=SERVER, admin_dsn="env:DSN", tools=self.tools)})
        return PostgresWal(site, self.secrets, SERVER, self.policy.slot)

    def archiver(self, *, open_every: timedelta = timedelta(seconds=0.3)) -> Archiver:
        servers = {SERVER: Server(name=SERVER, admin_dsn="env:DSN", tools=self.tools)}
        for name, standby in self.standbys.items():
            self.values[name] = standby.dsn()
            servers[name] = Server(name=name, admin_dsn=f"env:{name}")
        site = Site(servers=servers, physical={SERVER: self.policy})
        source = PostgresWal(site, self.secrets, SERVER, self.policy.slot)
        spool = WalSpool(self.spool)
        key, clock = self.keys.signing, SystemClock()
        often = timedelta(seconds=0.3)
        return Archiver(
            source,
            self.objects,
            self.policy,
            spool,
            key,
            clock,
            standbys={name: PostgresWal(site, self.secrets, name, self.policy.slot) for name in self.standbys},
            standbys_every=often,
            open_every=open_every,
            look_every=often,
            say_every=often,
        )

    @asynccontextmanager
    async def archiving(self) -> AsyncIterator[Archiver]:
        """The archiver at work; it ends as abruptly as a task can."""
        archiver = self.archiver()
        work = asyncio.ensure_future(archiver.run())
        try:
            yield archiver
            if work.done():
                await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def following(self) -> None:
        """Return when the archiver follows the server: what is written from now on is kept for it."""

        async def there() -> bool:
            status = await self.status()
            return status is not None and status.slot is not None and status.slot.active

        await eventually(there)

    async def status(self) -> WalStatus | None:
        return await read_status(self.objects, self.policy)

    async def warns(self, kind: AlarmKind) -> bool:
        """The archiver has said so last."""
        status = await self.status()
        return status is not None and kind in {alarm.kind for alarm in status.alarms}

    async def silent(self) -> bool:
        """It warns of nothing."""
        status = await self.status()
        return status is None or not status.alarms

    # ------------------------------------------------------------ the server

    def point_to(self, server: EmbeddedPostgres) -> None:
        """What a failover does to the address."""
        self.server = server
        self.values["DSN"] = server.dsn()

    def execute(self, *statements: str) -> list[tuple[object, ...]]:
        """Each in a transaction of its own; the rows of the last one."""
        rows: list[tuple[object, ...]] = []
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def fill(self, note: str, *, rows: int = 200) -> str:
        """Rows that can be told; the place in the WAL after them."""
        self.execute(
            "CREATE TABLE IF NOT EXISTS ledger (id serial PRIMARY KEY, note text, filler text)",
            f"INSERT INTO ledger (note, filler) SELECT '{note}', repeat('x', 1000) FROM generate_series(1, {rows})",
        )
        [(lsn,)] = self.execute("SELECT pg_current_wal_flush_lsn()::text")
        return str(lsn)

    def switch(self) -> str:
        """Close the open segment; its name."""
        self.execute("SELECT pg_logical_emit_message(true, 'test', 'x')")
        [(name,)] = self.execute("SELECT pg_walfile_name(pg_switch_wal())")
        self.execute("SELECT pg_logical_emit_message(true, 'test', 'x')")  # the stream goes on with the next one
        return str(name)

    # ------------------------------------------------------------ the buckets

    async def stored(self, bucket: str) -> list[str]:
        return sorted((await self.archive.listing(bucket)).segments)

    async def archived(self, *names: str, within: float = 30) -> None:
        """Return when every bucket has these segments."""

        async def there() -> bool:
            return all([set(names) <= set(await self.stored(bucket)) for bucket in self.policy.wal_buckets])

        await eventually(there, within=within)

    async def open_until(self, lsn: str, *, within: float = 30) -> None:
        """Return when what is archived reaches this place, the open segment counted."""

        async def there() -> bool:
            status = await self.status()
            return (
                status is not None and status.open is not None and Lsn.parse(status.open.lsn or "0/0") >= Lsn.parse(lsn)
            )

        await eventually(there, within=within)

    # ------------------------------------------------------------ recovery

    async def base(self) -> tuple[Path, WalStart]:
        """A base backup beside the archive, without WAL of its own."""
        path = self.directory / f"base-{len(list(self.directory.glob('base-*')))}"
        await pg_basebackup(self.server, path)
        words = dict(line.split(": ", 1) for line in (path / "backup_label").read_text().splitlines())
        [(system_id,)] = self.execute("SELECT system_identifier::text FROM pg_control_system()")
        lsn = Lsn.parse(words["START WAL LOCATION"].split()[0])
        return path, WalStart(str(system_id), int(words["START TIMELINE"]), lsn)

    async def fetch(self, start: WalStart, target: RecoveryTarget | None = None, *, into: str = "wal") -> FetchedWal:
        reader = WalFetch(self.objects, self.secrets, self.policy)
        return await reader.fetch(start, target or RecoveryTarget(latest=True), self.directory / into, no_progress)

    async def recovered(self, base: Path, start: WalStart) -> EmbeddedPostgres:
        """A server made of the base backup and of what is in the buckets, at the end of the archive."""
        fetched = await self.fetch(start)
        server = await recovered(self.directory / "recovered", base, self.directory / "wal", fetched, self.server)
        await server.start()

        def open_for_writing() -> bool:
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)

        # A started server proves nothing: it takes connections while it still replays.
        await eventually(open_for_writing)
        return server


async def eventually(true: Callable[[], object], *, within: float = 90, every: float = 0.05) -> None:
    """Return as soon as it is true; `true` may be a coroutine function."""
    async with asyncio.timeout(within):
        while True:
            answer = true()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return
            await asyncio.sleep(every)


async def pg_basebackup(server: EmbeddedPostgres, path: Path) -> None:
    """A copy of the server without WAL."""
    await run(
        [
            server.tool("pg_basebackup"),
            *("--pgdata", path, "--wal-method=none", "--checkpoint=fast", "--no-sync", "--no-password"),
            *("--dbname", server.dsn()),
        ],
        env={"PGPASSFILE": str(server.passfile)},
        timeout=timedelta(minutes=5),
    )


async def standby_of(
    server: EmbeddedPostgres,
    directory: Path,
    *,
    settings: Mapping[str, str] = SETTINGS,
    programs: Path | None = None,
) -> EmbeddedPostgres:
    """A streaming standby, started."""
    standby = await asyncio.to_thread(_placed, directory, server, settings, programs)
    await pg_basebackup(server, standby.data)
    (standby.data / "standby.signal").touch()
    with (standby.data / "postgresql.auto.conf").open("a") as stream:
        stream.write(f"primary_conninfo = '{server.dsn()}'\n")
    await asyncio.to_thread(_own, standby)
    await standby.start()
    return standby


async def recovered(
    directory: Path, base: Path, wal: Path, fetched: FetchedWal, source: EmbeddedPostgres
) -> EmbeddedPostgres:
    """A server that will replay the fetched WAL to its end and then be open for writing."""
    server = await asyncio.to_thread(_placed, directory, source, SETTINGS)
    await asyncio.to_thread(shutil.copytree, base, server.data)
    (server.data / "recovery.signal").touch()
    with (server.data / "postgresql.auto.conf").open("a") as stream:
        stream.write(f"restore_command = 'cp {wal}/%f %p'\n")
        stream.write(f"recovery_target_timeline = '{fetched.timeline_id}'\n")
        stream.write("synchronous_standby_names = ''\n")
    await asyncio.to_thread(_own, server, wal)
    return server


def _placed(
    directory: Path, source: EmbeddedPostgres, settings: Mapping[str, str], programs: Path | None = None
) -> EmbeddedPostgres:
    directory.mkdir(mode=0o755, exist_ok=True)
    shutil.copy(source.directory / "superuser.password", directory)
    return EmbeddedPostgres(directory, durable=False, settings=settings, programs=programs)


def _own(server: EmbeddedPostgres, *more: Path) -> None:
    from actions.adapters.postgres_installation import postgres_account

    account = postgres_account(None, must_enter=server.directory)
    for root in (server.data, *more):
        root.chmod(0o700)
        for path in (root, *root.rglob("*")):
            if account is not None:
                shutil.chown(path, account.uid, account.gid)
