"""A restore to a time through pgBackRest by the engine, against the same commands by hand.

Both end with a server that has rested at its target and is shut down. The native engine's restore of as much data
stands beside it without a limit: another server (PostgreSQL 18), the same store, WAL as long.

PGBACKREST_MB=n (about what the database holds), PAIRS=n in the environment, and DRBOT_TESTS_PLACE=/tmp: all of it on a
disk.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from actions.adapters.embedded_postgres import EmbeddedPostgres, free_port
from actions.adapters.programs import Program, run
from actions.adapters.s3 import S3Store
from actions.adapters.secrets import SecretReferences
from actions.backup.physical import BackupKind, BaseRequest, RecoveryTarget, ScratchRequest
from actions.ports import no_progress
from actions.site import Bucket, Site
from benchmarks.table import pairs
from tests.fixtures.needed import POSTGRES_15
from tests.fixtures.pgbackrest import Archived, archiving
from tests.fixtures.shared_s3 import S3
from tests.pgbackrest_world import MARK, SERVER, PgBackRestWorld
from tests.physical_world import PhysicalWorld

pytestmark = [pytest.mark.bench, pytest.mark.asyncio(loop_scope="session")]

PAIRS = int(os.environ.get("PAIRS", "10"))
MEGABYTES = int(os.environ.get("PGBACKREST_MB", "1000"))
LIMIT = 1.05
HOUR = timedelta(hours=1)
FILL = (
    "CREATE TABLE bulk AS SELECT g AS id, repeat(md5(g::text), 30) AS body FROM generate_series(1, {rows}) g",
    "ALTER TABLE bulk ADD PRIMARY KEY (id)",
    "CHECKPOINT",
)
CHANGE = "UPDATE bulk SET body = reverse(body) WHERE id % 20 = 0"
ROWS = MEGABYTES * 1000


def fill() -> list[str]:
    return [statement.format(rows=ROWS) for statement in FILL]


@pytest.fixture
def archived(run_directory: Path, s3: S3) -> Iterator[Archived]:
    """A server that waits for its disk: what the bare commands restore starts with its configuration, and the engine's
    instance waits for the disk whatever that says."""
    with archiving(run_directory, s3, "bench", durable=True) as made:
        yield made


async def test_delegated_restore(archived: Archived, s3: S3, bucket: str, run_directory: Path) -> None:
    world = PgBackRestWorld(archived, s3, archived.config.parent / "world")
    await asyncio.to_thread(world.directory.mkdir, mode=0o755)
    archived.sql("CREATE TABLE ledger (row text PRIMARY KEY)", *fill())
    await world.engine.take(BaseRequest(id="base", server=SERVER, kind=BackupKind.FULL), no_progress)
    archived.sql(CHANGE)
    world.commit("target")
    world.commit("after")
    world.archive()
    moment, label = world.moments["target"], (await world.program.info(SERVER)).backup[0].label
    await world.engine.windows(SERVER)  # as every status does: what `archive-get` asks for is made once
    native, native_moment = await _native(s3, bucket, run_directory / "native")
    ours: list[float] = []
    bare: list[float] = []
    beside: list[float] = []
    for number in range(PAIRS):
        # Each side goes first as often as the other: what the one leaves in the caches is the other's.
        for side in ("engine", "bare") if number % 2 == 0 else ("bare", "engine"):
            if side == "engine":
                ours.append(await _through_the_engine(world, moment, f"r{number}"))
            else:
                bare.append(await _bare(world, moment, label, run_directory / f"bare-{number}"))
        beside.append(await _natively(native, native_moment, f"n{number}"))
        load = os.getloadavg()[0]
        print(
            f"  engine {ours[-1]:.2f} s, bare {bare[-1]:.2f} s, native {beside[-1]:.2f} s, load {load:.1f}", flush=True
        )
    await native.server.stop()
    pairs("native beside pgBackRest", beside, ours, None)
    assert pairs(f"pgBackRest restore, {MEGABYTES} MB", ours, bare, LIMIT) <= LIMIT


async def _through_the_engine(world: PgBackRestWorld, moment: datetime, name: str) -> float:
    os.sync()
    begun = time.monotonic()
    request = ScratchRequest(id=name, server=SERVER, target=RecoveryTarget(time=moment), backup="base", mark=MARK)
    restored = await world.engine.restore(request, no_progress)
    took = time.monotonic() - begun
    print(f"  engine by phase: {dict(restored.seconds)}")
    await world.scratch.discard(name, mark=MARK)
    return took


async def _bare(world: PgBackRestWorld, moment: datetime, label: str, folder: Path) -> float:
    """`pgbackrest restore`, start, wait until it is paused, stop; WAL by `archive-get`, as pgBackRest sets it up."""
    archived = world.archived
    await asyncio.to_thread(folder.mkdir, mode=0o700)
    if archived.account is not None:
        os.chown(folder, archived.account.uid, archived.account.gid)
    os.sync()
    begun = time.monotonic()
    options = [f"--set={label}", f"--pg1-path={folder / 'data'}", "--archive-mode=off", "--log-level-console=off"]
    target = ["--type=time", f"--target={moment:%Y-%m-%d %H:%M:%S.%f}+00", "--target-action=pause"]
    await run(["mkdir", "-m", "700", str(folder / "data")], account=archived.account, timeout=HOUR)
    await asyncio.to_thread(lambda: archived.bare(*options, *target, "restore", timeout=HOUR))
    port = free_port()
    settings = ["listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "archive_mode=off"]
    settings += ["shared_buffers=128MB"]  # as the engine's instance has
    words = [word for setting in settings for word in ("-c", setting)]
    with Program.start(
        [POSTGRES_15 / "bin" / "postgres", "-D", str(folder / "data"), "-p", str(port), *words],
        secrets=archived.secrets,
        account=archived.account,
        cwd=folder,
        log=archived.config.parent / "log" / "bare.log",
    ) as program:
        while not await asyncio.to_thread(_paused, folder, port):
            assert program.code() is None, program.stderr()
            await asyncio.sleep(0.05)
        stop = [str(POSTGRES_15 / "bin" / "pg_ctl"), "-D", str(folder / "data"), "-m", "fast", "stop"]
        await run(stop, account=archived.account, cwd=Path("/"), timeout=HOUR)
        took = time.monotonic() - begun
    await asyncio.to_thread(shutil.rmtree, folder)
    return took


def _paused(folder: Path, port: int) -> bool:
    try:
        with psycopg.connect(host=str(folder), port=port, user="postgres", dbname="postgres") as connection:
            row = connection.execute("SELECT pg_get_wal_replay_pause_state()").fetchone()
    except psycopg.OperationalError:
        return False
    return row is not None and row[0] == "paused"


async def _native(s3: S3, bucket: str, directory: Path) -> tuple[PhysicalWorld, datetime]:
    """A PostgreSQL 18 with as much, in the same store."""
    await asyncio.to_thread(directory.mkdir, mode=0o755)
    server = EmbeddedPostgres(directory / "pg", settings={"wal_keep_size": "4GB"})
    await server.start()
    values = {"ACCESS": s3.access_key, "SECRET": s3.secret_key}
    place = Bucket(name=bucket, endpoint=s3.endpoint, access_key="env:ACCESS", secret_key="env:SECRET")
    store = S3Store(Site(buckets={bucket: place}), SecretReferences(values))
    world = PhysicalWorld(server, store, directory / "world", bucket=bucket, endpoint=s3.endpoint, values=values)
    world.sql(*fill())
    await world.take("base")
    world.sql(CHANGE)
    moment = world.sql("SELECT clock_timestamp()")[0][0]
    assert isinstance(moment, datetime)
    world.sql("CREATE TABLE after_it ()")
    await world.archive()
    return world, moment


async def _natively(world: PhysicalWorld, moment: datetime, name: str) -> float:
    os.sync()
    begun = time.monotonic()
    await world.restore(RecoveryTarget(time=moment), scratch=name, backup="base")
    took = time.monotonic() - begun
    await world.scratch.discard(name, mark="drbot:scratch:plan1")
    return took
