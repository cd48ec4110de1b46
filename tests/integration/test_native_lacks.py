"""What real servers lack for the native engine: found before the first base backup, and gone once it is put right."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.backup.native import NativeEngine
from tests.fakes.s3 import MemoryObjects
from tests.fixtures.needed import POSTGRES_15
from tests.physical_world import BUCKET, SERVER, PhysicalWorld

pytestmark = pytest.mark.integration

SMALL = {"shared_buffers": "16MB"}


def engine(server: EmbeddedPostgres, directory: Path, *, role: str = "", password: str = "") -> NativeEngine:
    """As the plan file asks for it: an incremental every quarter of an hour."""
    world = PhysicalWorld(
        server,
        MemoryObjects(BUCKET),
        directory,
        values={"DSN": server.dsn(role=role, password=password)} if role else {},
        policy_changes={"incremental_every": timedelta(minutes=15)},
    )
    return world.engine


async def told(made: NativeEngine) -> Mapping[str, str]:
    return {lack.what: lack.next for lack in await made.lacks(SERVER)}


async def test_settings_and_tablespaces_that_stop_it(server_directory: Path) -> None:
    settings = {**SMALL, "wal_level": "minimal", "max_wal_senders": "0", "max_replication_slots": "0"}
    async with EmbeddedPostgres(server_directory / "bare", settings=settings) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("SET allow_in_place_tablespaces = on")
            connection.execute("CREATE TABLESPACE fast LOCATION ''")
        found = " ".join(await told(engine(server, server_directory)))
    assert "has tablespaces of its own (`fast`)" in found
    assert "`wal_level = minimal`" in found
    assert "`max_replication_slots = 0`" in found
    assert "`summarize_wal = off`" in found


async def test_the_right_to_stream_and_the_rule_that_lets_in(server_directory: Path) -> None:
    settings = {**SMALL, "summarize_wal": "on", "wal_level": "replica", "max_wal_senders": "4"}
    async with EmbeddedPostgres(server_directory / "good", settings=settings) as server:
        assert await told(engine(server, server_directory)) == {}
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE ROLE keeper LOGIN PASSWORD 'canary-keeper' IN ROLE pg_monitor")
            asked = engine(server, server_directory / "keeper", role="keeper", password="canary-keeper")
            [(what, then)] = (await told(asked)).items()
            assert "login `keeper` of server `main` may not stream" in what
            assert then == "Run `ALTER ROLE keeper REPLICATION` there."
            connection.execute("ALTER ROLE keeper REPLICATION")
            assert await told(asked) == {}

            rules = server.data / "pg_hba.conf"
            rules.write_text(
                "host replication keeper all reject\nlocal replication keeper reject\n" + rules.read_text()
            )
            connection.execute("SELECT pg_reload_conf()")
            [(what, then)] = (await told(asked)).items()
            assert "refuses to stream" in what
            assert "pg_hba.conf" in then
            assert "canary-keeper" not in what + then


@pytest.mark.needs("postgresql-15")
async def test_a_version_without_summaries(server_directory: Path) -> None:
    async with EmbeddedPostgres(server_directory / "old", settings=SMALL, programs=POSTGRES_15) as server:
        found = await told(engine(server, server_directory))
    assert any("is PostgreSQL 15; the native engine needs 17 or newer" in what for what in found)
    assert any("does not fit server `main` (PostgreSQL 15)" in what for what in found)
