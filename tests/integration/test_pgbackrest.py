"""The pgBackRest engine on a real PostgreSQL 15: archive-push, full and diff to S3 over TLS, back to a transaction."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

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
from actions.backup.physical import (
    BackupKind,
    BaseRequest,
    Change,
    FindRequest,
    RecoveryTarget,
    ScratchRequest,
    ScratchState,
)
from actions.errors import UserError, VerificationError
from actions.ports import Clock, no_progress
from actions.site import Bucket, DatabaseRef, EngineKind, PhysicalPolicy, Server, Site
from tests.dump_world import Keys
from tests.fakes.clock import MemoryClock
from tests.fixtures.apart import run_apart
from tests.fixtures.pgbackrest import CIPHER_PASS, PROGRAMS, STANZA, Archived
from tests.fixtures.shared_s3 import S3

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("pgbackrest")]

SERVER, MARK = "primary", "drbot:scratch:plan1"


@dataclass
class World:
    """The server, its engine, and what was committed when."""

    archived: Archived
    s3: S3
    directory: Path
    commits: dict[str, int] = field(default_factory=dict)  # row -> transaction
    moments: dict[str, datetime] = field(default_factory=dict)  # row -> just after its commit, by the server's clock

    def __post_init__(self) -> None:
        keys = Keys()
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
            engine=EngineKind.PGBACKREST,
            bucket=bucket.name,
            wal_buckets=(bucket.name,),
            recipients=(keys.recipient,),
            identity="env:IDENTITY",
            signing_key="env:SIGNING",
            trusted_signers=(keys.signer,),
            stanza=STANZA,
            stanza_config=str(self.archived.config),
            stanza_secrets={"repo1-cipher-pass": "env:CIPHER"},
            minimum_fulls=1,
        )
        server = Server(name=SERVER, admin_dsn="env:DSN", tools=str(PROGRAMS / "bin"))
        self.site = Site(servers={SERVER: server}, buckets={bucket.name: bucket}, physical={SERVER: policy})
        scratch = self.directory / "scratch"
        self.scratch = ScratchInstances(self.site, scratch, SystemClock())
        self.postgres = PostgresServers(self.site, self.secrets, scratch=scratch)
        self.program = PgBackRestProgram(self.site, self.secrets, directory=self.directory / "pgbackrest")
        self.engine = self._engine(SystemClock())

    def at(self, moment: datetime) -> PgBackRestEngine:
        """The engine at another time of day."""
        return self._engine(MemoryClock(moment))

    def _engine(self, clock: Clock) -> PgBackRestEngine:
        return PgBackRestEngine(
            self.site,
            self.program,
            objects=S3Store(self.site, self.secrets),
            secrets=self.secrets,
            clock=clock,
            tools=PhysicalPrograms(self.site, self.secrets, private_directory=self.directory / "private"),
            servers=ScratchPrograms(self.site),
            records=lambda server: PgWaldump(self.site.servers[server].tools),
            scratch_directory=self.directory / "scratch",
            work_directory=self.directory / "spool",
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


@pytest.fixture(scope="session")
def backed_up(archived: Archived, s3: S3) -> World:
    """A full backup with row `a`, a diff with `b`; then `c`, `d`, a DROP, `e`, all archived."""
    directory = archived.config.parent / "world"
    directory.mkdir(mode=0o755)
    made = World(archived, s3, directory)
    archived.sql("CREATE TABLE ledger (row text PRIMARY KEY)", "CREATE TABLE doc AS SELECT 1 AS id")
    made.commit("a")
    run_apart(made.engine.take(BaseRequest(id="base-1", server=SERVER, kind=BackupKind.FULL), no_progress))
    made.commit("b")
    incremental = BaseRequest(id="diff-1", server=SERVER, kind=BackupKind.INCREMENTAL, parent="base-1")
    run_apart(made.engine.take(incremental, no_progress))
    made.commit("c")
    made.commit("d")
    archived.sql("DROP TABLE doc")
    made.commit("e")
    made.archive()
    return made


async def test_a_rerun_finds_what_was_made(backed_up: World) -> None:
    again = await backed_up.engine.take(BaseRequest(id="base-1", server=SERVER, kind=BackupKind.FULL), no_progress)
    entries = await backed_up.engine.catalogue(SERVER)
    assert sorted(entry.manifest.id for entry in entries) == ["base-1", "diff-1"]
    assert again in entries
    diff = next(entry for entry in entries if entry.manifest.id == "diff-1")
    assert (diff.manifest.kind, diff.manifest.parent) == (BackupKind.INCREMENTAL, "base-1")
    assert diff.manifest.superuser == "postgres"
    assert diff.manifest.checksums
    assert diff.problem is None


async def test_the_window_ends_with_the_newest_commit_that_is_archived(backed_up: World) -> None:
    (window,) = await backed_up.engine.windows(SERVER)
    assert (window.bucket, window.fulls, window.incrementals, window.gaps) == (backed_up.archived.bucket, 1, 1, ())
    assert window.oldest is not None
    assert window.newest is not None
    assert datetime.now(UTC) - timedelta(minutes=5) < window.oldest < window.newest < datetime.now(UTC)
    backed_up.archived.sql("INSERT INTO ledger VALUES ('late')", "DELETE FROM ledger WHERE row = 'late'")
    assert (await backed_up.engine.windows(SERVER))[0].newest == window.newest


async def test_back_to_just_before_a_transaction(backed_up: World) -> None:
    target = RecoveryTarget(xid=backed_up.commits["d"], inclusive=False)
    request = ScratchRequest(id="s1", server=SERVER, target=target, mark=MARK)
    restored = await backed_up.engine.restore(request, no_progress)
    assert restored.backup == "diff-1"
    assert restored.checked_pages
    assert await backed_up.engine.restore(request, no_progress) == restored  # a rerun finds it
    try:
        started = await backed_up.scratch.start("s1")
        assert started.state is ScratchState.PAUSED
        assert await backed_up.rows("s1") == ["a", "b", "c"]
        settings = "SELECT name, setting FROM pg_settings WHERE name IN ('archive_mode', 'restore_command')"
        found = await backed_up.postgres.query(DatabaseRef("scratch-s1", "postgres"), settings)
        shown = {str(each["name"]): str(each["setting"]) for each in found}
        assert shown["archive_mode"] == "off"
        assert "pgbackrest" not in shown["restore_command"].replace(str(backed_up.directory), "")
        _no_secret_in_sight(backed_up)
    finally:
        await backed_up.scratch.discard("s1", mark=MARK)


def _no_secret_in_sight(world: World) -> None:
    """Neither in an argv nor in the environment of the restored server."""
    scratch = str(world.directory / "scratch")
    for process in psutil.process_iter():
        try:
            words, environment = " ".join(process.cmdline()), json.dumps(process.environ())
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if scratch in words:
            for secret in (CIPHER_PASS, world.s3.secret_key):
                assert secret not in words
                assert secret not in environment


async def test_back_to_a_time_from_the_full_backup(backed_up: World) -> None:
    moment = backed_up.moments["c"]
    request = ScratchRequest(id="s4", server=SERVER, target=RecoveryTarget(time=moment), backup="base-1", mark=MARK)
    restored = await backed_up.engine.restore(request, no_progress)
    try:
        assert (restored.backup, restored.reached_at is not None) == ("base-1", True)
        await backed_up.scratch.start("s4")
        assert await backed_up.rows("s4") == ["a", "b", "c"]
    finally:
        await backed_up.scratch.discard("s4", mark=MARK)


async def test_who_dropped_the_table(backed_up: World) -> None:
    request = FindRequest(server=SERVER, database="postgres", table="public.doc", changes=(Change.DROP,))
    (found,) = await backed_up.engine.find(request, no_progress)
    assert (found.change, found.before_xid) == (Change.DROP, backed_up.commits["d"])
    assert found.lost >= 1


async def test_a_target_that_no_backup_reaches_is_refused_and_leaves_nothing(backed_up: World) -> None:
    target = RecoveryTarget(time=datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(UserError, match="No base backup"):
        await backed_up.engine.restore(ScratchRequest(id="s2", server=SERVER, target=target, mark=MARK), no_progress)
    assert await backed_up.scratch.find("s2") is None


async def test_a_whole_backup_is_verified_and_says_when(backed_up: World) -> None:
    entry = await backed_up.engine.verify(SERVER, "base-1", no_progress)
    assert entry.verified_at is not None
    assert entry.problem is None


async def test_a_pin_keeps_a_backup(backed_up: World) -> None:
    await backed_up.engine.pin(SERVER, "base-1", reason="legal hold")
    found = {entry.manifest.id: entry for entry in await backed_up.engine.catalogue(SERVER)}
    assert found["base-1"].pinned == "legal hold"
    await backed_up.engine.pin(SERVER, "base-1", reason="")
    found = {entry.manifest.id: entry for entry in await backed_up.engine.catalogue(SERVER)}
    assert found["base-1"].pinned == ""


async def test_what_is_old_goes_with_its_wal_and_what_is_needed_stays(backed_up: World) -> None:
    """Last but one: with a retention of no time at all, the newest full backup is kept by the minimum."""
    backed_up.commit("f")
    await backed_up.engine.take(BaseRequest(id="base-2", server=SERVER, kind=BackupKind.FULL), no_progress)
    late = backed_up.at(datetime.now(UTC) + timedelta(days=60))
    await late.pin(SERVER, "diff-1", reason="legal hold")
    kept = await late.expiry(SERVER)
    assert kept.backups == ()
    assert kept.kept["diff-1"] == "pinned: legal hold"
    assert kept.kept["base-1"] == "`diff-1` rests on it"
    await late.pin(SERVER, "diff-1", reason="")
    shown = await late.expiry(SERVER)
    assert shown.backups == ("diff-1", "base-1")
    assert shown.segments > 0
    assert shown.bytes > 0
    await late.pin(SERVER, "base-1", reason="needed meanwhile")
    await late.expire(SERVER, shown)
    assert {entry.manifest.id for entry in await late.catalogue(SERVER)} == {"base-1", "base-2"}
    await late.pin(SERVER, "base-1", reason="")
    await late.expire(SERVER, await late.expiry(SERVER))
    (left,) = await late.catalogue(SERVER)
    assert (left.manifest.id, left.problem) == ("base-2", None)
    assert (await late.expiry(SERVER)).backups == ()
    (window,) = await backed_up.engine.windows(SERVER)
    assert (window.oldest, window.gaps) == (left.manifest.finished_at, ())


@pytest.mark.corruption
async def test_a_damaged_backup_is_found_named_and_refused_from_then_on(backed_up: World) -> None:
    await backed_up.engine.take(BaseRequest(id="bad-1", server=SERVER, kind=BackupKind.FULL), no_progress)
    label = next(backup.label for backup in (await backed_up.program.info(SERVER)).backup if backup.id == "bad-1")
    client = backed_up.s3.client()
    key = f"repository/backup/{STANZA}/{label}/bundle/1"
    body = bytearray(client.get_object(Bucket=backed_up.archived.bucket, Key=key)["Body"].read())
    body[len(body) // 2] ^= 0xFF
    client.put_object(Bucket=backed_up.archived.bucket, Key=key, Body=bytes(body))
    with pytest.raises(VerificationError, match="must not be used"):
        await backed_up.engine.verify(SERVER, "bad-1", no_progress)
    bad = next(entry for entry in await backed_up.engine.catalogue(SERVER) if entry.manifest.id == "bad-1")
    assert "files are not as they were stored" in (bad.problem or "")
    refused = ScratchRequest(id="s3", server=SERVER, target=RecoveryTarget(latest=True), backup="bad-1", mark=MARK)
    with pytest.raises(VerificationError):
        await backed_up.engine.restore(refused, no_progress)
