"""Our own figures and quoting against what PostgreSQL itself says."""

import random
import subprocess
from pathlib import Path

import psycopg
import pytest

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.steps import byhand, phrases
from tests.fixtures.postgres import Database

pytestmark = pytest.mark.integration


def test_sizes_read_as_pg_size_pretty_prints_them(pg_database: Database) -> None:
    chance = random.Random(7)
    edges = [
        value + delta for unit in (10, 20, 30, 40, 50) for value in (10 << unit, 5 << unit) for delta in range(-2, 3)
    ]
    counts = [0, 1, *edges, *(chance.randrange(1 << bits) for bits in range(1, 62) for _ in range(20))]

    with psycopg.connect(pg_database.dsn) as connection:
        rows = connection.execute("SELECT n, pg_size_pretty(n) FROM unnest(%s::int8[]) n", [counts]).fetchall()

    assert [(count, phrases.size(count)) for count, _ in rows] == rows


@pytest.mark.parametrize("name", ['a"b', "a'b", "größe ☃", "A B", "x" * 63])
def test_commands_by_hand_name_the_database_they_mean(pg_database: Database, name: str) -> None:
    with psycopg.connect(pg_database.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {byhand.identifier(name)}".encode())
        try:
            connection.execute(byhand.allow_connections(name, allowed=False).encode())
            connection.execute(byhand.end_sessions(name).encode())
            counted = connection.execute(byhand.count_sessions(name).encode()).fetchone()
            closed = connection.execute("SELECT datallowconn FROM pg_database WHERE datname = %s", [name]).fetchone()
            connection.execute(byhand.rename(name, "renamed").encode())
        finally:
            for left in (name, "renamed"):
                connection.execute(f"DROP DATABASE IF EXISTS {byhand.identifier(left)}".encode())

    assert counted == (0,)
    assert closed == (False,)


def test_rows_counted_by_hand_are_exact(pg_server: EmbeddedPostgres, pg_database: Database, tmp_path: Path) -> None:
    with psycopg.connect(pg_database.dsn, autocommit=True) as connection:
        connection.execute("""CREATE TABLE "it's" AS SELECT FROM generate_series(1, 3)""")
        connection.execute("""CREATE SCHEMA "a b"; CREATE TABLE "a b"."x.y" (i int) PARTITION BY RANGE (i)""")
        connection.execute("""CREATE TABLE "a b".part PARTITION OF "a b"."x.y" FOR VALUES FROM (0) TO (10)""")
        connection.execute("""INSERT INTO "a b"."x.y" SELECT generate_series(0, 6)""")
        connection.execute("SELECT pg_stat_reset()")  # as after a recovery
    # As people have it: each server of the plan file is a service of theirs.
    services = tmp_path / "services"
    settings = psycopg.conninfo.conninfo_to_dict(pg_database.dsn)
    services.write_text("[main]\n" + "".join(f"{name}={value}\n" for name, value in settings.items()))
    services.chmod(0o644)
    environment = {"PATH": f"{pg_server.tool('psql').parent}:/usr/bin:/bin", "PGSERVICEFILE": str(services)}

    command = ["sh", "-c", byhand.exact_rows("main", pg_database.name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    counts = dict(line.rsplit("|", 1) for line in done.stdout.splitlines())
    assert counts == {"a b.part": "7", "public.it's": "3", **({"a b.x.y": "0"} if "a b.x.y" in counts else {})}
