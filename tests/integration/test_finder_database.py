"""A whole database that was dropped: found by any of its tables, and there again just before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from actions.backup.physical import Change, FindRequest
from actions.ports import no_progress
from actions.site import DatabaseRef
from tests.fixtures.physical import standing
from tests.physical_world import MARK, SERVER, PhysicalWorld

pytestmark = pytest.mark.integration

SHOP = DatabaseRef("scratch-s1", "shop")


@pytest.fixture
async def dropped(run_directory: Path) -> AsyncIterator[PhysicalWorld]:
    """Backed up with rows 1; row 2 came afterwards, and another database wrote before and after the drop."""
    with standing(run_directory) as world:
        world.sql("CREATE DATABASE shop", "CREATE TABLE others (id int)")
        with psycopg.connect(world.server.dsn("shop"), autocommit=True) as shop:
            shop.execute("CREATE TABLE orders AS SELECT 1 AS id")
            await world.take("full")
            shop.execute("INSERT INTO orders VALUES (2)")
        world.sql("INSERT INTO others VALUES (1)", "DROP DATABASE shop", "INSERT INTO others VALUES (2)")
        yield world
        for facts in await world.scratch.instances():
            await world.scratch.discard(facts.id, mark=MARK)


@pytest.mark.parametrize("anew", [False, True])
async def test_a_database_that_was_dropped_is_found_and_there_again_before(dropped: PhysicalWorld, anew: bool) -> None:
    oid = None
    if anew:
        dropped.sql("CREATE DATABASE shop")
        oid = int(str(dropped.sql("SELECT oid FROM pg_database WHERE datname = 'shop'")[0][0]))
    await dropped.archive()
    request = FindRequest(
        server=SERVER, database="shop", table="orders", changes=(Change.DROP, Change.DELETE), database_oid=oid
    )

    (moment,) = await dropped.engine.find(request, no_progress)
    assert moment.change is Change.DROP
    assert moment.lock_lsn is not None
    assert moment.before_at is not None
    assert moment.before_at < moment.committed_at
    await dropped.restore(moment.target)
    await dropped.scratch.start("s1")
    assert await dropped.postgres.query(SHOP, "SELECT id FROM orders ORDER BY id") == [{"id": 1}, {"id": 2}]
