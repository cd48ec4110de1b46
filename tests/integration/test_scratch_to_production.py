"""Out of a real scratch instance into production: found, restored to just before the harm, brought back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from actions.adapters.postgres_tables import PostgresTables
from actions.backup.logical import LogicalEngine
from actions.backup.physical import Change, FindRequest, Moment
from actions.backup.tables import RescueMode, RescueRequest, TableName
from actions.errors import UserError
from actions.ports import CopyRequest, no_progress
from actions.site import Database, DatabaseRef
from tests.fixtures.apart import run_apart
from tests.fixtures.physical import standing
from tests.physical_world import MARK, SERVER, PhysicalWorld

pytestmark = pytest.mark.integration

HOME = DatabaseRef(SERVER, "postgres")
DOC = TableName("public", "doc")


@dataclass(frozen=True)
class Harmed:
    """A server whose table `doc` was dropped in a transaction that took its time, and what was written meanwhile."""

    world: PhysicalWorld
    tables: PostgresTables
    engine: LogicalEngine
    doc: list[tuple[object, ...]]  # just before the drop


@pytest.fixture(scope="module")
def harmed(run_directory: Path) -> Iterator[Harmed]:
    with standing(run_directory) as world:
        yield _harmed(world)


def _harmed(world: PhysicalWorld) -> Harmed:
    world.sql(
        "CREATE ROLE app",
        "ALTER DATABASE postgres OWNER TO app",
        "CREATE TABLE doc (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)",
        "ALTER TABLE doc OWNER TO app",
        "INSERT INTO doc (body) SELECT md5(g::text) FROM generate_series(1, 500) g",
        "CREATE TABLE other (id int PRIMARY KEY)",
        "CREATE UNLOGGED TABLE cache (id int)",
        "INSERT INTO cache VALUES (1)",
        "CHECKPOINT",
    )
    run_apart(world.take("base"))
    world.sql("DELETE FROM doc WHERE id <= 20", "UPDATE doc SET body = 'after the base' WHERE id = 30")
    doc = world.sql("SELECT * FROM doc ORDER BY id")
    with psycopg.connect(world.server.dsn()) as slow:
        slow.execute("DROP TABLE doc")
        world.sql("INSERT INTO other VALUES (1)")  # committed between its lock and its commit
    world.sql("INSERT INTO other VALUES (2)")
    run_apart(world.archive())
    site = world.site.model_copy(
        update={"databases": {"postgres": Database(name="postgres", server=SERVER, owner="app")}}
    )
    engine, tables = world.logical(site, world.directory)
    return Harmed(world, tables, engine, doc)


async def found(world: PhysicalWorld, change: Change) -> Moment:
    request = FindRequest(server=SERVER, database="postgres", table="public.doc", changes=(change,))
    moments = await world.engine.find(request, no_progress)
    return moments[0]


@pytest.fixture
async def scratch(harmed: Harmed) -> AsyncIterator[DatabaseRef]:
    """Just before the drop."""
    await harmed.world.restore((await found(harmed.world, Change.DROP)).target)
    facts = await harmed.world.scratch.start("s1")
    yield DatabaseRef(facts.name, "postgres")
    await harmed.world.scratch.discard("s1", mark=MARK)


async def test_deletes_before_the_drop_are_found_as_well(harmed: Harmed) -> None:
    moment = await found(harmed.world, Change.DELETE)
    assert (moment.change, moment.rows) == (Change.DELETE, 20)


async def test_what_a_scratch_instance_shows_can_be_read_and_brought_back(harmed: Harmed, scratch: DatabaseRef) -> None:
    world = harmed.world
    # The drop's own lock is not in it, or this would wait for ever.
    fingerprint = await world.postgres.fingerprint(scratch, ())
    assert fingerprint.rows == {"public.cache": 0, "public.doc": 480, "public.other": 0}
    request = RescueRequest(
        mode=RescueMode.TABLE,
        source=scratch,
        target=HOME,
        table=DOC,
        into=DOC,
        mark="drbot:rescue:k7m2n3p4q5",
        owner="app",
    )

    assert (await harmed.tables.rescue(request, no_progress)).rows == 480

    assert world.sql("SELECT * FROM doc ORDER BY id") == harmed.doc
    assert world.sql("SELECT count(*) FROM other") == [(2,)]
    assert world.sql("INSERT INTO doc (body) VALUES ('next') RETURNING id") == [(501,)]
    with pytest.raises(UserError, match=r"1 row\(s\) of `public.doc` .* were written since it came back"):
        await harmed.tables.withdraw(request)
    world.sql("DELETE FROM doc WHERE id = 501")
    await harmed.tables.withdraw(request)
    assert await harmed.tables.facts(HOME, DOC) is None


async def test_a_database_is_copied_out_of_a_scratch_instance(harmed: Harmed, scratch: DatabaseRef) -> None:
    into = DatabaseRef(SERVER, "copy")
    request = CopyRequest(source=scratch, database="postgres", into=into, mark="drbot:scratch:k7m2", jobs=2)

    await harmed.engine.copy(request, no_progress)

    wanted = await harmed.world.postgres.fingerprint(scratch, ())
    assert wanted.differences(await harmed.world.postgres.fingerprint(into, ())) == ()
    await harmed.world.postgres.discard(into, mark="drbot:scratch:k7m2")
    assert harmed.world.clean() == [str(harmed.world.scratch_directory / "s1")]
