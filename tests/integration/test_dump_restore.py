"""Dump and restore on a real PostgreSQL 18 and a real S3 server."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.postgres_connections import ServerConnections
from actions.adapters.postgres_schema import schema_lines
from actions.backup.manifest import Fingerprint, Globals, Provenance
from actions.errors import UserError, VerificationError
from actions.ports import AdoptRequest, DumpRequest, LoadRequest, ProgressReport, no_progress
from actions.site import DatabaseRef, Invariant
from tests.dump_world import SERVER, DumpWorld, a_dump_world
from tests.fixtures.shared_s3 import S3
from tests.nasty_database import make_nasty_database

pytestmark = pytest.mark.integration

NASTY = 'Nästy "db" %s x'
MARK = "drbot:scratch:plan1"
COPY = DatabaseRef(SERVER, "copy of it")


def a_world(server: EmbeddedPostgres, s3: S3, bucket: str, directory: Path, database: str, **more: object) -> DumpWorld:
    return a_dump_world(
        directory,
        dsn=server.dsn(),
        endpoint=s3.endpoint,
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        bucket=bucket,
        database=database,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def world(pg_server: EmbeddedPostgres, s3: S3, bucket: str, tmp_path: Path) -> Iterator[DumpWorld]:
    make_nasty_database(pg_server.dsn(), NASTY)
    invariants = (Invariant(name="spent", sql="SELECT sum(total) FROM app.orders"),)
    made = a_world(pg_server, s3, bucket, tmp_path, NASTY, invariants=invariants, local=True)
    yield made
    made.objects.close()
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        for name in (NASTY, COPY.name):
            connection.execute(f'DROP DATABASE IF EXISTS "{name.replace(chr(34), chr(34) * 2)}" WITH (FORCE)'.encode())


def request(backup: str = "b1") -> DumpRequest:
    return DumpRequest(id=backup, database=NASTY, requested_by="U1")


def load(backup: str = "b1") -> LoadRequest:
    return LoadRequest(backup=backup, database=NASTY, into=COPY, mark=MARK, jobs=2)


async def measured(world: DumpWorld) -> Fingerprint:
    return await world.postgres.fingerprint(COPY, world.site.database(NASTY).invariants)


def roles_left(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(r"SELECT rolname FROM pg_roles WHERE rolname ~ '^drbot_(load|give)_'").fetchall()
    return [row[0] for row in rows]


async def test_nasty_database_comes_back_equal(world: DumpWorld, pg_server: EmbeddedPostgres) -> None:
    reports: list[ProgressReport] = []
    signed = await world.engine.dump(request(), reports.append)
    await world.engine.load(load(), reports.append)
    told: list[int] = []
    restored = await world.postgres.fingerprint(COPY, world.site.database(NASTY).invariants, counted=told.append)
    assert sum(told) == sum(restored.rows.values()) - restored.rows["large objects"]

    connections = ServerConnections(world.site, world.secrets)
    async with connections.session(*world.ref) as before, connections.session(*COPY) as after:
        assert await schema_lines(after) == await schema_lines(before)
    assert signed.manifest.fingerprint.differences(restored) == ()
    assert restored.invariants == {"spent": "368025.00"}
    assert restored.rows["app.orders_2025"] == 213
    assert restored.rows["large objects"] == 2
    assert {report.phase for report in reports} >= {"dump", "download", "restore"}
    assert roles_left(pg_server.dsn()) == []
    assert list((world.directory / "spool").iterdir()) == []
    assert list((world.directory / "private").iterdir()) == []


async def test_restored_copy_has_owners_rights_and_settings(world: DumpWorld, pg_server: EmbeddedPostgres) -> None:
    await world.engine.dump(request(), no_progress)
    await world.engine.load(load(), no_progress)
    with psycopg.connect(make_conninfo(pg_server.dsn(), dbname=COPY.name)) as connection:

        def one(query: str) -> object:
            row = connection.execute(query.encode()).fetchone()
            return row[0] if row else None

        assert one("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'by_superuser'") == "app"
        assert one("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'reports'") == "reporting"
        assert one("SHOW work_mem") == "7MB"
        assert one(
            'SELECT array_agg(item::text ORDER BY item::text COLLATE "C") FROM pg_database d, unnest(d.datacl) item'
            " WHERE datname = current_database()"
        ) == ["=T/app", "app=CTc/app", "reporting=c*/app"]
        assert one("SELECT convert_from(lo_get(424242), 'UTF8')") == "large object one"
        assert one("SELECT nextval('app.lonely')") == 44
        assert one("SELECT count(*) FROM pg_stats WHERE tablename = 'users'") != 0
        assert one("SELECT count(*) FROM pg_stats WHERE inherited") != 0  # of a partitioned table as a whole
        tables = "FROM pg_class WHERE relkind = 'r' AND relnamespace = 'app'::regnamespace"
        assert one(f"SELECT sum(relpages) {tables}") > 0  # type: ignore[operator]
        # Nobody has read or vacuumed it: the rows came in frozen.
        assert one(f"SELECT count(*) {tables} AND relallvisible < relpages") == 0


async def test_rerun_of_a_dump_returns_the_same_manifest(world: DumpWorld) -> None:
    first = await world.engine.dump(request(), no_progress)
    assert await world.engine.dump(request(), no_progress) == first
    assert [entry.manifest.id for entry in await world.engine.catalogue(NASTY)] == ["b1"]


@pytest.mark.parametrize("local", [True, False], ids=["with the local copy", "without"])
async def test_object_without_manifest_is_finished_from_the_copy_or_starts_over(
    world: DumpWorld, *, local: bool
) -> None:
    if not local:
        world = world.with_policy(local_directory=None)
    first = await world.engine.dump(request(), no_progress)
    await world.objects.delete(world.bucket, first.manifest.stored.key.replace("dump.age", "manifest.json"))
    assert await world.engine.find(NASTY, "b1") is None
    again = await world.engine.dump(request(), no_progress)
    assert (again.manifest.stored.sha256 == first.manifest.stored.sha256) is local
    assert (await world.engine.verify(NASTY, "b1", no_progress)).problem is None


async def test_verification_is_recorded_beside_the_backup(world: DumpWorld) -> None:
    await world.engine.dump(request(), no_progress)
    entry = await world.engine.find(NASTY, "b1")
    assert entry is not None
    assert entry.verified_at is None
    verified = await world.engine.verify(NASTY, "b1", no_progress)
    found = await world.engine.find(NASTY, "b1")
    assert found is not None
    assert found.verified_at == verified.verified_at is not None


async def test_local_copy_serves_while_the_bucket_is_silent(world: DumpWorld) -> None:
    signed = await world.engine.dump(request(), no_progress)
    deaf = world.site.model_copy(
        update={
            "buckets": {
                world.bucket: world.site.buckets[world.bucket].model_copy(update={"endpoint": "http://127.0.0.1:9"})
            }
        }
    )
    other = replace(world, site=deaf)
    await other.engine.load(load(), no_progress)
    restored = await measured(other)
    assert signed.manifest.fingerprint.differences(restored) == ()
    other.objects.close()


async def test_counts_are_those_of_the_snapshot_while_people_write(
    world: DumpWorld, pg_server: EmbeddedPostgres
) -> None:
    stop = asyncio.Event()

    async def write() -> None:
        dsn = make_conninfo(pg_server.dsn(), dbname=NASTY)
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            while not stop.is_set():
                await connection.execute("INSERT INTO app.orders (user_id, placed, total) VALUES (10, '2025-07-01', 1)")

    writer = asyncio.create_task(write())
    signed = await world.engine.dump(request(), no_progress)
    stop.set()
    await writer
    await world.engine.load(load(), no_progress)
    restored = await measured(world)
    assert signed.manifest.fingerprint.differences(restored) == ()


@pytest.mark.parametrize("options", [["-Fc"], ["-Fc", "--compress=none"]])
async def test_found_dump_is_adopted(world: DumpWorld, pg_server: EmbeddedPostgres, options: list[str]) -> None:
    dsn = make_conninfo(pg_server.dsn(), dbname=NASTY)
    plain = world.directory / "found.dump"
    await asyncio.to_thread(
        subprocess.run, [str(pg_server.tool("pg_dump")), *options, "-f", str(plain), "-d", dsn], check=True
    )
    await world.objects.put(world.bucket, "manual/found.dump", await asyncio.to_thread(plain.read_bytes))
    scratch = DatabaseRef(SERVER, "adopting")
    asked = AdoptRequest(id="found1", database=NASTY, source_key="manual/found.dump", scratch=scratch, mark=MARK)

    signed = await world.engine.adopt(asked, no_progress)
    assert signed.manifest.provenance is Provenance.ADOPTED
    assert signed.manifest.server_version == 180006
    assert await world.postgres.database(scratch) is None
    assert roles_left(pg_server.dsn()) == []
    assert await world.engine.adopt(asked, no_progress) == signed
    await world.engine.verify(NASTY, "found1", no_progress)
    await world.engine.load(load("found1"), no_progress)
    restored = await measured(world)
    assert signed.manifest.fingerprint.differences(restored) == ()


async def test_adopting_what_is_no_archive_leaves_nothing(world: DumpWorld) -> None:
    await world.objects.put(world.bucket, "manual/x.sql", b"CREATE TABLE x (i int);\n" * 100)
    scratch = DatabaseRef(SERVER, "adopting")
    asked = AdoptRequest(id="found1", database=NASTY, source_key="manual/x.sql", scratch=scratch, mark=MARK)
    with pytest.raises(VerificationError, match="no archive of `pg_dump -Fc`"):
        await world.engine.adopt(asked, no_progress)
    with pytest.raises(UserError, match="no object"):
        await world.engine.adopt(asked.model_copy(update={"source_key": "manual/none"}), no_progress)
    assert await world.postgres.database(scratch) is None


async def test_database_of_others_under_the_name_is_kept(world: DumpWorld) -> None:
    await world.engine.dump(request(), no_progress)
    await world.postgres.create(COPY, owner="app", cluster_globals=Globals(), mark="drbot:scratch:another")
    with pytest.raises(UserError, match="not made by this plan"):
        await world.engine.load(load(), no_progress)
    found = await world.postgres.database(COPY)
    assert found is not None
    assert found.mark == "drbot:scratch:another"


async def test_tiny_dump_is_refused(world: DumpWorld, pg_server: EmbeddedPostgres) -> None:
    with psycopg.connect(make_conninfo(pg_server.dsn(), dbname=NASTY), autocommit=True) as connection:
        connection.execute("CREATE TABLE app.bulk AS SELECT repeat(md5(g::text), 50) FROM generate_series(1, 3000) g")
        await world.engine.dump(request("big"), no_progress)
        connection.execute("DROP TABLE app.bulk")
    with pytest.raises(VerificationError, match="it was not kept"):
        await world.engine.dump(request("small"), no_progress)
    assert await world.engine.find(NASTY, "small") is None
