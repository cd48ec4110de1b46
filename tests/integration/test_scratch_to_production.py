"""Out of a real scratch instance into production: found, restored to just before the harm, brought back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psycopg
import pytest

from actions.adapters.postgres_tables import PostgresTables
from actions.backup.logical import LogicalEngine
from actions.backup.physical import Change, FindRequest, Moment
from actions.backup.tables import RescueMode, RescueRequest, TableName
from actions.errors import UserError, VerificationError
from actions.ports import CopyRequest, Ports, no_progress
from actions.site import Database, DatabaseRef, Invariant
from actions.steps.scratch import CheckScratch
from tests.fakes.world import a_world
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


async def test_what_must_hold_is_judged_by_what_the_server_itself_answers(harmed: Harmed, scratch: DatabaseRef) -> None:
    memory = a_world()
    parts: dict[str, Any] = {part.name: getattr(memory, part.name) for part in fields(Ports)}
    parts |= {"postgres": harmed.world.postgres, "scratch": harmed.world.scratch, "clock": harmed.world.clock}
    ports = Ports(**parts)

    def checking(**invariants: tuple[str, str]) -> CheckScratch:
        return CheckScratch(
            scratch="s1",
            database="shop",
            name="postgres",
            production=HOME,
            invariants=tuple(
                Invariant(name=name, sql=statement, expect=expect) for name, (statement, expect) in invariants.items()
            ),
            table="",
        )

    async def problem(**invariants: tuple[str, str]) -> str:
        with pytest.raises(VerificationError) as raised:
            await checking(**invariants).apply(ports, no_progress)
        facts = await ports.scratch.find("s1")
        assert facts is not None
        assert facts.problem == str(raised.value)
        return facts.problem

    assert "invariant `docs` is 480, the plan file expects 500" in await problem(
        docs=("SELECT count(*) FROM doc", "500")
    )
    assert "invariant `most` has no answer" in await problem(most=("SELECT max(id) FROM other", ""))
    assert 'relation "later" does not exist' in await problem(later=("SELECT count(*) FROM later", ""))
    assert "division by zero" in await problem(odd=("SELECT 1 / count(*) FROM other", ""))

    good = checking(docs=("SELECT count(*) FROM doc", "480"), most=("SELECT max(id) FROM other", "null"))
    await good.apply(ports, no_progress)
    told = await good.outcome(ports)
    facts = await ports.scratch.find("s1")
    assert facts is not None
    assert facts.problem == ""
    # In production the table of one of them is gone: what is left of it is compared all the same.
    assert facts.checks["shop"].compared in told
    assert facts.checks["shop"].compared.startswith(
        "Different: invariant `docs` is 480 here and cannot be measured in production; invariant `most` is null here"
    )
    assert "`public.doc` has 480 rows here and is gone in production" in told
