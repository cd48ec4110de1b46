"""Our own figures and quoting against what PostgreSQL itself says."""

import random

import psycopg
import pytest

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
