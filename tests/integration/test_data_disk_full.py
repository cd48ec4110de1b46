"""The disk of production's data runs full while a dump is loaded beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.errors import UserError
from actions.ports import DumpRequest, LoadRequest, no_progress
from actions.site import DatabaseRef
from tests.dump_world import SERVER, DumpWorld, a_dump_world
from tests.fixtures.shared_s3 import S3
from tests.fixtures.small_disk import small_disk

pytestmark = [pytest.mark.integration, pytest.mark.corruption, pytest.mark.timeout(240)]

MB = 1024 * 1024
DISK, RESERVE = 480 * MB, 128 * MB
MARK = "drbot:scratch:plan1"
COPY = DatabaseRef(SERVER, "shop_restore_plan1")
ROWS = 220_000


@pytest.fixture
def disk(server_directory: Path) -> Iterator[Path]:
    """For one server."""
    with small_disk(server_directory / "disk", DISK) as place:
        yield place


@pytest_asyncio.fixture
async def server(disk: Path) -> AsyncIterator[EmbeddedPostgres]:
    settings = {"shared_buffers": "32MB", "fsync": "off", "max_wal_size": "64MB", "min_wal_size": "32MB"}
    async with EmbeddedPostgres(disk / "data", settings=settings) as started:
        async with await psycopg.AsyncConnection.connect(started.dsn(), autocommit=True) as connection:
            await connection.execute("CREATE ROLE app LOGIN")
            await connection.execute("CREATE DATABASE shop OWNER app")
        async with await psycopg.AsyncConnection.connect(started.dsn("shop"), autocommit=True) as connection:
            await connection.execute("SET ROLE app")
            await connection.execute("CREATE SCHEMA s CREATE TABLE doc (id int PRIMARY KEY, body text)")
            await connection.execute(
                "INSERT INTO s.doc SELECT g, repeat(md5(g::text), 12) FROM generate_series(1, %s) g", [ROWS]
            )
        yield started


@pytest.fixture
def world(server: EmbeddedPostgres, s3: S3, bucket: str, tmp_path: Path) -> DumpWorld:
    return a_dump_world(
        tmp_path,
        dsn=server.dsn(),
        endpoint=s3.endpoint,
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        bucket=bucket,
        database="shop",
    )


async def test_load_ends_before_it_stops_production(world: DumpWorld, server: EmbeddedPostgres, disk: Path) -> None:
    await world.engine.dump(DumpRequest(id="b1", database="shop"), no_progress)
    before, facts = await world.postgres.database(world.ref), await world.postgres.server(SERVER)
    assert before is not None
    assert facts.free_bytes is not None
    room = before.bytes // 2  # the copy needs all of it, and its log as much again
    (disk / "ballast").write_bytes(bytes(facts.free_bytes - RESERVE - room))
    asked = LoadRequest(backup="b1", database="shop", into=COPY, mark=MARK, jobs=2)
    engine = world.engine_over(world.objects, disk_reserve=RESERVE)
    async with await psycopg.AsyncConnection.connect(server.dsn("shop"), autocommit=True) as customer:
        with pytest.raises(UserError, match=r"The disk of server `main` has \d+ MB left.* Free space there"):
            await engine.load(asked, no_progress)
        # The same session goes on: the server was up all the time, and takes what people write.
        row = await (await customer.execute("SELECT count(*) FROM s.doc")).fetchone()
        assert row == (ROWS,)
        await customer.execute("INSERT INTO s.doc VALUES (0, 'written on a nearly full disk')")
    assert await world.postgres.database(COPY) is None
    assert await world.postgres.loading_roles(SERVER) == []
    assert list((world.directory / "spool").iterdir()) == []
    (disk / "ballast").unlink()
    await engine.load(asked, no_progress)
    assert (await world.postgres.fingerprint(COPY, ())).rows == {"s.doc": ROWS}
