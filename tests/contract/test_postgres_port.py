"""What every PostgresAdmin keeps: the adapter on a real server, and the fake."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import sql

from actions.adapters import postgres_fence
from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.postgres import PostgresServers
from actions.adapters.secrets import SecretReferences
from actions.backup.manifest import Globals, Role
from actions.errors import PermanentError, PreconditionError, TemporaryError, UserError
from actions.ports import Named, PostgresAdmin, RoleFacts
from actions.site import DatabaseRef, Server, Site
from tests.fakes.postgres import MemoryPostgres
from tests.fixtures.waiting import eventually

SERVER = "main"
GLOBALS = Globals()
LOAD_ROLE = "drbot_load_" + "c0" * 8
LOGINS = ("contract_application", "contract_report")
PASSWORD = "a password of the tests"
numbers = itertools.count(1)


@dataclass
class World:
    """An adapter, and how an application opens a session (it gives back whether the session still lives)."""

    port: PostgresAdmin
    connect: Callable[[DatabaseRef], Callable[[], bool]]
    real: bool
    load_role: Callable[[str, str], None]  # a short-lived role of a load, with its mark
    connect_as: Callable[[DatabaseRef, str], Callable[[], object]]  # gives back what ends the session

    async def a_database(self, mark: str = "drbot:scratch:p", owner: str = "contract_owner") -> DatabaseRef:
        ref = DatabaseRef(SERVER, f'Cöntract "{next(numbers)}"')
        await self.port.create(ref, owner=owner, cluster_globals=GLOBALS, mark=mark)
        return ref


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "fake":
        yield in_memory()
        return
    server: EmbeddedPostgres = request.getfixturevalue("pg_server")
    with on(server) as real:
        yield real


def in_memory() -> World:
    memory = MemoryPostgres(SERVER)
    memory.answers["AS one"] = [{"one": 1}]

    def connect(ref: DatabaseRef) -> Callable[[], bool]:
        number = memory.connect(ref, "postgres")
        database = memory.servers[ref.server].databases[ref.name]
        return lambda: number in database.sessions

    def remember(name: str, mark: str) -> None:
        memory.servers[SERVER].loading[name] = RoleFacts(name=name, mark=mark, sessions=0)

    def connect_as(ref: DatabaseRef, role: str) -> Callable[[], object]:
        number = memory.connect(ref, role)
        return lambda: memory.servers[ref.server].databases[ref.name].sessions.pop(number)

    return World(memory, connect, real=False, load_role=remember, connect_as=connect_as)


@contextmanager
def on(server: EmbeddedPostgres) -> Iterator[World]:
    opened: list[psycopg.Connection[tuple[object, ...]]] = []

    def connect(ref: DatabaseRef) -> Callable[[], bool]:
        try:
            connection = psycopg.connect(server.dsn(ref.name), autocommit=True)
        except psycopg.OperationalError as error:
            raise ConnectionRefusedError(str(error)) from error
        opened.append(connection)
        return partial(lives, connection)

    def connect_as(ref: DatabaseRef, role: str) -> Callable[[], object]:
        opened.append(psycopg.connect(server.dsn(ref.name, role=role, password=PASSWORD)))
        return opened[-1].close

    site = Site(servers={SERVER: Server(name=SERVER, admin_dsn="env:DSN")})
    port = PostgresServers(site, SecretReferences({"DSN": server.dsn()}))
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        for role in LOGINS:
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), PASSWORD))
    yield World(port, connect, real=True, load_role=partial(make_role, server.dsn()), connect_as=connect_as)
    for connection in opened:
        connection.close()
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        for role in (LOAD_ROLE, *LOGINS):
            admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))
        for (name,) in admin.execute("SELECT datname FROM pg_database WHERE datname LIKE 'Cöntract%'").fetchall():
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def lives(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def make_role(dsn: str, name: str, mark: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
        admin.execute(sql.SQL("COMMENT ON ROLE {} IS {}").format(sql.Identifier(name), sql.Literal(mark)))


async def test_created_database_has_owner_and_mark(world: World) -> None:
    ref = await world.a_database(mark="drbot:scratch:a'b")
    found = await world.port.database(ref)
    assert found is not None
    assert (found.name, found.owner, found.mark) == (ref.name, "contract_owner", "drbot:scratch:a'b")
    assert found.allows_connections
    assert found.sessions == 0
    assert found.bytes > 0
    assert ref.name in {facts.name for facts in await world.port.databases(SERVER)}


async def test_create_is_done_once_for_a_mark_and_refused_for_another(world: World) -> None:
    ref = await world.a_database()
    first = await world.port.database(ref)
    await world.port.create(ref, owner="contract_owner", cluster_globals=GLOBALS, mark="drbot:scratch:p")
    assert await world.port.database(ref) == first
    with pytest.raises(UserError, match="not made by this plan"):
        await world.port.create(ref, owner="contract_owner", cluster_globals=GLOBALS, mark="drbot:scratch:q")


async def test_superuser_must_not_own_and_long_names_are_refused(world: World) -> None:
    with pytest.raises(UserError, match="superuser"):
        await world.a_database(owner="postgres")
    for name in ("", "x" * 64, "ü" * 32):
        with pytest.raises(UserError, match="cannot name a database"):
            await world.port.create(DatabaseRef(SERVER, name), owner="o", cluster_globals=GLOBALS, mark="m")


async def test_roles_that_are_missing_are_made_without_rights(world: World) -> None:
    role = Role(
        name="contract_boss",
        superuser=True,
        create_role=True,
        create_database=True,
        login=True,
        replication=True,
        bypass_rls=True,
        connection_limit=-1,
        settings=('search_path="$user", public', "app.tenant=a'b"),
        member_of=("contract_owner", "nobody_knows"),
    )
    ref = DatabaseRef(SERVER, f'Cöntract "{next(numbers)}"')
    wanted = Globals(
        roles=(role,),
        database_owner="contract_owner",
        database_acl=("=T/contract_owner", "contract_boss=c*/contract_owner", '"gone ""x"""=c/contract_owner'),
        database_settings=("work_mem=7MB", 'search_path=app, "My Schema"'),
    )
    await world.port.create(ref, owner="contract_owner", cluster_globals=wanted, mark="drbot:scratch:p")
    # A role that became superuser after all must not be an owner; this one did not.
    other = DatabaseRef(SERVER, f'Cöntract "{next(numbers)}"')
    await world.port.create(other, owner="contract_boss", cluster_globals=GLOBALS, mark="drbot:scratch:p")
    if world.real:
        rows = await world.port.query(
            ref,
            "SELECT r.rolsuper, r.rolcanlogin, r.rolcreaterole, r.rolbypassrls, a.rolpassword IS NULL AS open,"
            " current_setting('work_mem') AS memory, current_setting('search_path') AS path"
            " FROM pg_roles r JOIN pg_authid a USING (rolname) WHERE rolname = 'contract_boss'",
        )
        assert list(rows[0].values()) == [False, False, False, False, True, "7MB", 'app, "My Schema"']


async def test_close_ends_and_counts_sessions_and_open_lets_in_again(world: World) -> None:
    ref = await world.a_database()
    alive = [world.connect(ref) for _ in range(3)]
    before = await world.port.database(ref)
    assert before is not None
    assert before.sessions == 3
    assert await world.port.close(ref) == 3
    assert [lives() for lives in alive] == [False] * 3
    with pytest.raises(ConnectionRefusedError):
        world.connect(ref)
    assert await world.port.close(ref) == 0
    await world.port.open(ref)
    assert world.connect(ref)()


async def test_the_sessions_of_a_role_are_counted_where_they_are(world: World) -> None:
    application, report = LOGINS
    ref, other = await world.a_database(), await world.a_database()
    assert await world.port.clients(ref, application) == 0
    leave = world.connect_as(ref, application)
    for place, role in ((ref, application), (ref, report), (other, application)):
        world.connect_as(place, role)
    world.connect(ref)  # of a superuser

    assert await world.port.clients(ref, application, within=timedelta(hours=1)) == 2
    assert await world.port.clients(other, application) == 1
    assert await world.port.clients(ref, "") == 3
    assert await world.port.clients(DatabaseRef(SERVER, "none such"), application) == 0
    leave()

    async def one_left() -> bool:
        return await world.port.clients(ref, application) == 1

    await eventually(one_left)


async def test_close_names_prepared_transactions_and_changes_nothing(world: World) -> None:
    ref = await world.a_database()
    if not isinstance(world.port, MemoryPostgres):
        pytest.skip("the tests' server takes no prepared transactions (max_prepared_transactions = 0)")
    world.port.servers[SERVER].databases[ref.name].prepared.append("tx 1")
    with pytest.raises(UserError, match="tx 1"):
        await world.port.close(ref)
    found = await world.port.database(ref)
    assert found is not None
    assert found.allows_connections


async def named(world: World, ref: DatabaseRef) -> Named:
    found = await world.port.database(ref)
    assert found is not None
    return Named(ref.name, found.oid)


async def test_swap_renames_both_closes_the_old_and_keeps_oids(world: World) -> None:
    current, copy = await world.a_database(mark="live"), await world.a_database()
    aside = DatabaseRef(SERVER, current.name + " aside")
    before = {ref: await named(world, ref) for ref in (current, copy)}
    await world.port.close(current)
    await world.port.swap(
        SERVER,
        current=before[current],
        replacement=before[copy],
        aside=aside.name,
        mark="drbot:kept:1",
        live_mark="drbot:live:1",
    )
    now, old = await world.port.database(current), await world.port.database(aside)
    assert now is not None
    assert old is not None
    assert await world.port.database(copy) is None
    assert (now.oid, old.oid) == (before[copy].oid, before[current].oid)
    assert (now.allows_connections, old.allows_connections) == (True, False)
    assert (now.mark, old.mark) == ("drbot:live:1", "drbot:kept:1")


async def test_refused_swap_changes_nothing(world: World) -> None:
    first, second = await world.a_database(), await world.a_database()
    current, copy = await named(world, first), await named(world, second)
    taken = await world.a_database()
    names = {facts.name: facts.oid for facts in await world.port.databases(SERVER)}

    async def refused(match: str, **given: Any) -> None:
        wanted: dict[str, Any] = {"current": current, "replacement": copy, "aside": "aside", **given}
        with pytest.raises(PreconditionError, match=match):
            await world.port.swap(SERVER, **wanted, mark="m", live_mark="l")

    await refused("already a database", aside=taken.name)
    await refused("no database", replacement=Named("none such", copy.oid))
    # Somebody has renamed them since they were looked at: the names are right, and the databases are not.
    await refused("another database now", current=Named(current.name, copy.oid))
    await refused("another database now", replacement=Named(copy.name, current.oid))
    world.connect(second)
    await refused("1 sessions")
    assert {facts.name: facts.oid for facts in await world.port.databases(SERVER)} == names


async def test_discard_wants_exactly_the_scratch_mark(world: World) -> None:
    ref = await world.a_database(mark="drbot:scratch:p")
    world.connect(ref)
    for mark in ("drbot:scratch:q", "drbot:quarantine:p", ""):
        with pytest.raises(UserError, match="not discarded"):
            await world.port.discard(ref, mark=mark)
    assert await world.port.database(ref) is not None
    await world.port.discard(ref, mark="drbot:scratch:p")
    assert await world.port.database(ref) is None
    await world.port.discard(ref, mark="drbot:scratch:p")
    kept = await world.a_database(mark="drbot:quarantine:p")
    with pytest.raises(UserError, match="not discarded"):
        await world.port.discard(kept, mark="drbot:quarantine:p")


async def test_discard_of_an_idle_database_spares_one_with_sessions(world: World) -> None:
    ref = await world.a_database(mark="drbot:scratch:p")
    lives = world.connect(ref)
    with pytest.raises(TemporaryError):
        await world.port.discard(ref, mark="drbot:scratch:p", idle=True)
    assert lives()
    await world.port.close(ref)
    await world.port.discard(ref, mark="drbot:scratch:p", idle=True)
    assert await world.port.database(ref) is None


async def test_relabel_wants_the_mark_it_was_told(world: World) -> None:
    ref = await world.a_database(mark="drbot:scratch:p")
    with pytest.raises(PreconditionError, match="drbot:scratch:p"):
        await world.port.relabel(ref, before="drbot:scratch:q", after="drbot:live:q")
    for _ in range(2):
        await world.port.relabel(ref, before="drbot:scratch:p", after="drbot:live:p")
        found = await world.port.database(ref)
        assert found is not None
        assert found.mark == "drbot:live:p"
    with pytest.raises(UserError, match="no database"):
        await world.port.relabel(DatabaseRef(SERVER, "none such"), before="a", after="b")


async def test_role_of_a_load_is_found_and_dropped_by_its_mark(world: World) -> None:
    world.load_role(LOAD_ROLE, "drbot:scratch:p")
    found = [role for role in await world.port.loading_roles(SERVER) if role.name == LOAD_ROLE]
    assert found == [RoleFacts(name=LOAD_ROLE, mark="drbot:scratch:p", sessions=0)]
    for mark in ("drbot:scratch:q", ""):
        with pytest.raises(UserError, match="not dropped"):
            await world.port.discard_role(SERVER, LOAD_ROLE, mark=mark)
    for _ in range(2):
        await world.port.discard_role(SERVER, LOAD_ROLE, mark="drbot:scratch:p")
        assert LOAD_ROLE not in {role.name for role in await world.port.loading_roles(SERVER)}
    await world.port.discard_role(SERVER, "contract_owner", mark="")


async def test_query_reads_and_cannot_write(world: World) -> None:
    ref = await world.a_database()
    assert await world.port.query(ref, "SELECT 1 AS one") == [{"one": 1}]
    if world.real:
        for statement in ("CREATE TABLE x (i int)", "SELECT 1; DROP TABLE x", "COMMIT; CREATE TABLE x (i int)"):
            with pytest.raises((UserError, Exception), match=r"read-only|multiple commands"):
                await world.port.query(ref, statement)


async def test_unknown_names_are_told(world: World) -> None:
    with pytest.raises(UserError, match="knows no server `nowhere`"):
        await world.port.server("nowhere")
    none = DatabaseRef(SERVER, "none such")
    assert await world.port.database(none) is None
    for call in (world.port.close(none), world.port.open(none), world.port.fingerprint(none, [])):
        with pytest.raises(UserError, match="has no database `none such`"):
            await call


async def test_server_tells_version_and_identity(world: World) -> None:
    facts = await world.port.server(SERVER)
    assert facts.checksums is True
    assert facts.version >= 150000
    assert int(facts.system_id) > 0
    assert not facts.in_recovery
    assert facts.free_bytes is None or facts.free_bytes > 0


async def test_a_fenced_server_refuses_everybody_and_can_be_given_back(world: World) -> None:
    before = await world.port.fencing(SERVER)
    opened, closed = await world.a_database(), await world.a_database()
    await world.port.close(closed)
    lives = world.connect(opened)
    assert not (await world.port.fencing(SERVER)).holds
    try:
        assert await world.port.fence(SERVER) >= 1

        assert (await world.port.fencing(SERVER)).holds
        assert not lives()
        with pytest.raises(ConnectionRefusedError):
            world.connect(opened)
        assert await world.port.fence(SERVER) == 0
    finally:
        was_closed = [item.name for item in await world.port.databases(SERVER) if item.name == closed.name]
        await world.port.unfence(SERVER, closed=was_closed, limit=before.limit)

    facts = await world.port.fencing(SERVER)
    assert not facts.read_only
    assert opened.name in facts.open
    assert closed.name not in facts.open
    assert (facts.home, facts.limit) == (before.home, before.limit)
    world.connect(opened)


@pytest.mark.integration
async def test_who_comes_back_each_time_keeps_a_fence_from_holding(
    pg_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the launcher of pg_cron does, which the server starts again."""
    monkeypatch.setattr(postgres_fence, "LIMIT", timedelta(milliseconds=500))

    async def again() -> None:
        while True:
            with suppress(psycopg.OperationalError):
                async with await psycopg.AsyncConnection.connect(pg_server.dsn(), autocommit=True) as connection:
                    await connection.execute("SELECT pg_sleep(100)")

    with on(pg_server) as world:
        before = await world.port.fencing(SERVER)
        coming = asyncio.create_task(again())
        try:
            with pytest.raises(PermanentError, match="`client backend` in `postgres` came back each time it was ended"):
                await world.port.fence(SERVER)
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
            await world.port.unfence(SERVER, closed=(), limit=before.limit)
