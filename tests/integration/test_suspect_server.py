"""A request that calls the database's own server suspect ends on the spare one, between two real servers."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.fixtures.world import FaultWorld
from tests.nasty_database import NAME as NASTY

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("faults"),
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="session"),
]

COUNT = b"SELECT count(*) FROM app.orders"


def orders(dsn: str) -> int:
    with psycopg.connect(make_conninfo(dsn, dbname=NASTY)) as connection:
        row = connection.execute(COUNT).fetchone()
        assert row is not None
        return int(row[0])


async def test_a_suspect_server_is_left_alone_and_its_spare_gets_the_database(world: FaultWorld) -> None:
    before = (await world.databases())[NASTY]
    card = await world.planned("restore.dump", typed=NASTY, database=NASTY, instance_suspect=True)
    try:
        assert "on spare server `secondary`" in card.summary
        assert any("is suspect, as the request says" in finding.detail for finding in card.findings)
        await world.approve(card)
        end = await world.ended(card)
        assert end.state == "succeeded", end
        assert orders(world.memory.dsn()) == orders(world.production.dsn()) > 0
        assert (await world.databases())[NASTY] == before
    finally:
        with psycopg.connect(world.memory.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(NASTY)))
