"""The steps that rename databases, on a real PostgreSQL and broken at every call, as the doubles were."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.postgres import PostgresServers
from actions.contract import Plan, Probe, Risk, Step
from actions.errors import PreconditionError
from actions.ports import Ports, no_progress
from actions.runner import Outcome, Runner
from actions.site import DatabaseRef, Server, Site
from actions.steps.databases import CloseDatabase, GiveName, SwapDatabases
from actions.steps.naming import live_mark, placeholder_mark, quarantine_mark, scratch_mark
from tests.contract.kit import PLAN_ID, Died, Fault, MemoryJournal, Moment, fragile
from tests.fakes.secrets import MemorySecrets
from tests.fakes.world import START, a_world

pytestmark = [pytest.mark.integration, pytest.mark.kill]

NAME, COPY, ASIDE = 'sh"öp', 'sh"öp_restore', 'sh"öp_quarantine'


@pytest.fixture
def ports(pg_server: EmbeddedPostgres) -> Iterator[Ports]:
    """A world in memory but for its PostgreSQL, with a role to own databases."""
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE ROLE steps_owner")
    site = Site(servers={"primary": Server(name="primary", admin_dsn="env:DSN")})
    made = a_world()
    parts: dict[str, Any] = {part.name: getattr(made, part.name) for part in dataclasses.fields(Ports)}
    yield Ports(
        **{**parts, "site": site, "postgres": PostgresServers(site, MemorySecrets({"env:DSN": pg_server.dsn()}))}
    )
    remove(pg_server)
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        connection.execute("DROP ROLE steps_owner")


def remove(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        for name in (NAME, COPY, ASIDE):
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def make(server: EmbeddedPostgres, name: str, mark: str) -> int:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER steps_owner").format(sql.Identifier(name)))
        connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(mark)))
        row = connection.execute("SELECT oid FROM pg_database WHERE datname = %s", [name]).fetchone()
    assert row is not None
    return int(row[0])


def names(server: EmbeddedPostgres) -> dict[str, tuple[int, bool]]:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        rows = connection.execute("SELECT datname, oid::int8, datallowconn FROM pg_database").fetchall()
    return {name: (oid, connections) for name, oid, connections in rows if name in (NAME, COPY, ASIDE)}


def steps(server: EmbeddedPostgres, *, missing: bool) -> tuple[tuple[Step, ...], int | None, int]:
    """Begin afresh; the steps of a restore that touch names, the oid of production, and that of the copy."""
    remove(server)
    old = None if missing else make(server, NAME, "")
    copy = make(server, COPY, scratch_mark(PLAN_ID))
    if old is None:
        give = GiveName(
            server="primary",
            current=NAME,
            copy_name=COPY,
            aside=ASIDE,
            owner="steps_owner",
            placeholder_mark=placeholder_mark(PLAN_ID),
            copy_mark=scratch_mark(PLAN_ID),
            live_mark=live_mark(PLAN_ID),
        )
        return (give,), old, copy
    swap = SwapDatabases(
        server="primary",
        current=NAME,
        copy_name=COPY,
        aside=ASIDE,
        old_oid=old,
        mark=quarantine_mark(PLAN_ID),
        copy_mark=scratch_mark(PLAN_ID),
        live_mark=live_mark(PLAN_ID),
    )
    return (CloseDatabase(target=DatabaseRef("primary", NAME), oid=old, was_open=True), swap), old, copy


def a_plan(made: tuple[Step, ...]) -> Plan:
    return Plan(
        id=PLAN_ID,
        action="restore.dump",
        summary="Swap",
        risk=Risk.DESTRUCTIVE,
        target="shop",
        params={},
        steps=made,
        made_at=START,
    )


@pytest.mark.parametrize("moment", list(Moment))
@pytest.mark.parametrize("missing", [False, True])
async def test_dying_at_any_call_still_gives_the_copy_its_name(
    ports: Ports, pg_server: EmbeddedPostgres, missing: bool, moment: Moment
) -> None:
    at = 0
    while True:
        at += 1
        made, old, copy = steps(pg_server, missing=missing)
        fault, journal = Fault(at=at, moment=moment), MemoryJournal()
        try:
            result = await Runner(a_plan(made), fragile(ports, fault), journal).run()
        except Died:
            result = await Runner(a_plan(made), ports, journal).run()
        assert result.outcome is Outcome.SUCCEEDED, result.message
        expected = {NAME: (copy, True)} if old is None else {NAME: (copy, True), ASIDE: (old, False)}
        assert names(pg_server) == expected
        if len(fault.calls) < at:
            return


@pytest.mark.parametrize("missing", [False, True])
async def test_putting_back_gives_production_its_name(ports: Ports, pg_server: EmbeddedPostgres, missing: bool) -> None:
    made, old, copy = steps(pg_server, missing=missing)
    result = await Runner(a_plan(made), ports, MemoryJournal()).run()
    assert result.outcome is Outcome.SUCCEEDED, result.message

    for _ in range(2):
        for step in reversed(made):
            await step.undo(ports)

    found = names(pg_server)
    assert found.pop(COPY)[0] == copy  # kept, and under its own name again
    assert found == ({} if old is None else {NAME: (old, True)})


async def test_one_that_got_productions_name_after_it_was_looked_at_is_left_alone(
    ports: Ports, pg_server: EmbeddedPostgres
) -> None:
    made, _, _ = steps(pg_server, missing=False)
    swap = next(step for step in made if isinstance(step, SwapDatabases))
    assert await swap.probe(ports) is Probe.TODO
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(NAME)))
    make(pg_server, NAME, "")
    found = names(pg_server)
    with pytest.raises(PreconditionError, match="is another database now"):
        await swap.apply(ports, no_progress)
    assert {name: oid for name, (oid, _) in names(pg_server).items()} == {name: oid for name, (oid, _) in found.items()}
