"""Single tables: the fake and PostgreSQL itself promise the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from actions.adapters.postgres_tables import PostgresTables
from actions.adapters.postgres_tools import PostgresPrograms
from actions.backup.tables import Difference, RescueMode, RescueRequest, TableName
from actions.errors import UserError, VerificationError
from actions.ports import Tables, no_progress
from actions.site import DatabaseRef, Server, Site
from tests.fakes.postgres import MemoryPostgres
from tests.fakes.secrets import MemorySecrets
from tests.fakes.tables import MemoryTables
from tests.fixtures.postgres import Database

THERE, HERE = "there", "here"
ORDERS = TableName("public", "orders")
MARK = "drbot:rescue:k7m2n3p4q5"


@dataclass
class World:
    """Two databases, and what a test does to them behind the port."""

    port: Tables
    source: DatabaseRef
    target: DatabaseRef
    make: Callable[[DatabaseRef, str, Mapping[int, str]], None]
    rows: Callable[[DatabaseRef, str], Mapping[int, str]]
    write: Callable[[DatabaseRef, str, Mapping[int, str]], None]  # what an application does

    def asked(self, mode: RescueMode, *, into: str = "orders", keys: str | None = None) -> RescueRequest:
        return RescueRequest(
            mode=mode,
            source=self.source,
            target=self.target,
            table=ORDERS,
            into=TableName("public", into),
            keys=None if keys is None else TableName("public", keys),
            mark=MARK,
            owner="postgres",
        )


@pytest.fixture(params=["fake", pytest.param("postgres", marks=pytest.mark.integration)])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "fake":
        yield _fake()
        return
    database: Database = request.getfixturevalue("pg_database")
    made = _postgres(database, tmp_path)
    yield made
    with psycopg.connect(database.server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(made.source.name)))


def _fake() -> World:
    postgres = MemoryPostgres(THERE, HERE)
    tables = MemoryTables(postgres)
    source, target = DatabaseRef(THERE, "shop"), DatabaseRef(HERE, "shop")
    for ref in (source, target):
        postgres.add(ref)

    def make(ref: DatabaseRef, name: str, rows: Mapping[int, str]) -> None:
        tables.give(ref, name, dict(rows))

    def rows(ref: DatabaseRef, name: str) -> Mapping[int, str]:
        return tables.content(ref, name)

    def write(ref: DatabaseRef, name: str, rows: Mapping[int, str]) -> None:
        tables.write(ref, name, dict(rows))

    return World(tables, source, target, make, rows, write)


def _postgres(database: Database, directory: Path) -> World:
    """The same server under two names; the second database is a schema-less twin of the first."""
    twin = f"{database.name}_twin"
    with psycopg.connect(database.server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(twin)))
    site = Site(servers={name: Server(name=name, admin_dsn="env:DSN") for name in (THERE, HERE)})
    secrets = MemorySecrets({"env:DSN": database.server.dsn()})
    port = PostgresTables(site, secrets, PostgresPrograms(site, secrets, private_directory=directory / "private"))
    source, target = DatabaseRef(THERE, twin), DatabaseRef(HERE, database.name)

    def make(ref: DatabaseRef, name: str, rows: Mapping[int, str]) -> None:
        with psycopg.connect(database.server.dsn(ref.name), autocommit=True) as connection:
            table = sql.Identifier(name)
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table))
            connection.execute(sql.SQL("CREATE TABLE {} (id int PRIMARY KEY, body text)").format(table))
            with connection.cursor() as cursor:
                cursor.executemany(sql.SQL("INSERT INTO {} VALUES (%s, %s)").format(table), list(rows.items()))

    def rows(ref: DatabaseRef, name: str) -> Mapping[int, str]:
        with psycopg.connect(database.server.dsn(ref.name), autocommit=True) as connection:
            return dict(connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(name))).fetchall())

    def write(ref: DatabaseRef, name: str, rows: Mapping[int, str]) -> None:
        put = sql.SQL("INSERT INTO {} VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET body = EXCLUDED.body")
        with psycopg.connect(database.server.dsn(ref.name), autocommit=True) as connection:
            connection.cursor().executemany(put.format(sql.Identifier(name)), list(rows.items()))

    return World(port, source, target, make, rows, write)


FIVE = {number: f"row {number}" for number in range(1, 6)}


async def test_a_table_that_is_not_there_is_none(world: World) -> None:
    assert await world.port.facts(world.source, ORDERS) is None
    with pytest.raises(UserError, match=r"has no table `public.orders`"):
        await world.port.difference(world.source, ORDERS, world.target, ORDERS)


async def test_tables_are_compared_row_by_row(world: World) -> None:
    world.make(world.source, "orders", FIVE)
    world.make(world.target, "orders", {2: "row 2", 3: "changed", 7: "new", 8: "new"})

    found = await world.port.difference(world.source, ORDERS, world.target, ORDERS)

    assert (found.same, found.different, found.only_source, found.only_target) == (1, 1, 3, 2)
    assert (await world.port.difference(world.source, ORDERS, world.source, ORDERS)).none


async def test_a_table_that_is_gone_comes_back_whole_once(world: World) -> None:
    world.make(world.source, "orders", FIVE)
    asked = world.asked(RescueMode.TABLE)

    assert (await world.port.rescue(asked, no_progress)).rows == 5
    assert (await world.port.rescue(asked, no_progress)).rows == 0

    facts = await world.port.facts(world.target, ORDERS)
    assert facts is not None
    assert (facts.rows, facts.mark) == (5, MARK)
    assert facts.bytes > 0
    assert world.rows(world.target, "orders") == FIVE


async def test_a_copy_stands_beside_the_table(world: World) -> None:
    world.make(world.source, "orders", FIVE)
    world.make(world.target, "orders", {1: "mine"})

    assert (await world.port.rescue(world.asked(RescueMode.COPY, into="orders_old"), no_progress)).rows == 5

    assert world.rows(world.target, "orders_old") == FIVE
    assert world.rows(world.target, "orders") == {1: "mine"}


async def test_missing_rows_are_put_in_and_nothing_else_is_changed(world: World) -> None:
    world.make(world.source, "orders", FIVE)
    world.make(world.target, "orders", {2: "row 2", 3: "changed", 7: "new"})
    asked = world.asked(RescueMode.ROWS, keys="orders_kept")

    assert (await world.port.rescue(asked, no_progress)).rows == 3
    assert (await world.port.rescue(asked, no_progress)).rows == 0

    assert world.rows(world.target, "orders") == {**FIVE, 3: "changed", 7: "new"}
    kept = await world.port.facts(world.target, TableName("public", "orders_kept"))
    assert kept is not None
    assert (kept.rows, kept.mark) == (3, MARK)


@pytest.mark.parametrize("mode", list(RescueMode))
async def test_what_a_rescue_brought_can_be_taken_back(world: World, mode: RescueMode) -> None:
    world.make(world.source, "orders", FIVE)
    before = {2: "row 2", 7: "new"}
    if mode is not RescueMode.TABLE:
        world.make(world.target, "orders", before)
    into, keys = ("orders_old" if mode is RescueMode.COPY else "orders"), "kept" if mode is RescueMode.ROWS else None
    asked = world.asked(mode, into=into, keys=keys)
    await world.port.withdraw(asked)  # before it began
    await world.port.rescue(asked, no_progress)

    for _ in range(2):
        await world.port.withdraw(asked)

    assert await world.port.facts(world.target, asked.made) is None
    if mode is not RescueMode.TABLE:
        assert world.rows(world.target, "orders") == before


@pytest.mark.parametrize("mode", [RescueMode.TABLE, RescueMode.COPY])
async def test_a_table_that_was_written_to_since_is_never_dropped(world: World, mode: RescueMode) -> None:
    world.make(world.source, "orders", FIVE)
    into = "orders_old" if mode is RescueMode.COPY else "orders"
    asked = world.asked(mode, into=into)
    found = await world.port.rescue(asked, no_progress)
    assert (found.rows, found.difference) == (5, Difference(same=5, only_source=0, only_target=0))
    world.write(world.target, into, {1: "changed", 6: "new"})

    with pytest.raises(UserError, match=r"2 row.*written since"):
        await world.port.withdraw(asked)

    assert world.rows(world.target, into) == {**FIVE, 1: "changed", 6: "new"}


async def test_the_work_of_others_is_neither_taken_nor_removed(world: World) -> None:
    world.make(world.source, "orders", FIVE)
    world.make(world.target, "orders", {1: "theirs"})
    asked = world.asked(RescueMode.TABLE)

    with pytest.raises(VerificationError, match="was not made by this plan"):
        await world.port.rescue(asked, no_progress)
    await world.port.withdraw(asked)

    assert world.rows(world.target, "orders") == {1: "theirs"}
