"""What each process may do in the bot's database: the table of rights against the server's own word, every forbidden
write tried, and the whole way of a plan with each process under a login of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text
from sqlmodel import SQLModel

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.errors import UserError
from storage import tables  # noqa: F401 - fills the metadata
from storage.roles import PROCESSES, RIGHTS, DatabaseRole, May
from storage.session import Database, NotAllowedError
from tests.fixtures.logins import make_logins
from tests.fixtures.office import OfficeForTests

pytestmark = pytest.mark.integration

RECORD = (
    "timeline_entry", "custody_event", "signature", "refusal", "journal", "plan_version", "leaf", "sealed_leaf",
    "checkpoint", "consumed_plan", "log_epoch",
)  # fmt: skip
"""Append-only: nobody but the owner has the right to change them, and a trigger refuses the owner too."""


async def test_every_table_has_a_decision(memory: Database) -> None:
    async with memory.session() as session:
        query = text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        found = set((await session.execute(query)).scalars())
    assert found == set(RIGHTS)
    assert {*SQLModel.metadata.tables, "alembic_version"} == found


async def test_the_server_says_what_the_table_of_rights_says(memory: Database) -> None:
    """Per table and per column, asked of the server; TRUNCATE, REFERENCES and TRIGGER are nobody's."""
    async with memory.session() as session:
        for table, roles in RIGHTS.items():
            columns = set(
                (
                    await session.execute(
                        text("SELECT column_name FROM information_schema.columns WHERE table_name = :table"),
                        {"table": table},
                    )
                ).scalars()
            )
            for role in PROCESSES:
                may = roles.get(role)
                wanted = set() if may is None else {"SELECT"}
                if may is not None:
                    wanted |= {"INSERT"} if may.insert else set()
                    wanted |= {"DELETE"} if may.delete else set()
                    assert set(may.update) <= columns, (table, role)
                held = set()
                for verb in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"):
                    query = text("SELECT has_table_privilege(:role, :table, :verb)")
                    if (await session.execute(query, {"role": role, "table": table, "verb": verb})).scalar_one():
                        held.add(verb)
                assert held == wanted, (table, role)
                changing = set()
                for column in columns:
                    query = text("SELECT has_column_privilege(:role, :table, :column, 'UPDATE')")
                    values = {"role": role, "table": table, "column": column}
                    if (await session.execute(query, values)).scalar_one():
                        changing.add(column)
                assert changing == (set() if may is None else set(may.update)), (table, role)


async def test_everybody_else_has_nothing(memory: Database) -> None:
    async with memory.session() as session:
        query = text("""
            SELECT table_name, grantee FROM information_schema.role_table_grants WHERE table_schema = 'public'
            UNION SELECT table_name, grantee FROM information_schema.column_privileges WHERE table_schema = 'public'
        """)
        held = {row.grantee for row in await session.execute(query) if row.table_name in RIGHTS}
        owners = text("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
        assert set((await session.execute(owners)).scalars()) == {DatabaseRole.OWNER}
        functions = text("""
            SELECT DISTINCT proowner::regrole::text FROM pg_proc p WHERE pronamespace = 'public'::regnamespace
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
        """)
        assert set((await session.execute(functions)).scalars()) == {DatabaseRole.OWNER}
        mighty = text("""
            SELECT rolname FROM pg_roles WHERE rolname = ANY(:roles) AND (rolcanlogin OR rolsuper OR rolbypassrls)
        """)
        assert (await session.execute(mighty, {"roles": list(DatabaseRole)})).all() == []
    assert held == {DatabaseRole.OWNER, *PROCESSES}


def forbidden() -> Iterator[tuple[DatabaseRole, str, str]]:
    """Every write that a role may not do, as a statement that would change nothing if it could."""
    for table in RIGHTS:
        for role in PROCESSES:
            may = RIGHTS[table].get(role, May())
            if not may.insert:
                yield role, table, "INSERT INTO {table} DEFAULT VALUES"
            if not may.delete:
                yield role, table, "DELETE FROM {table} WHERE false"
            yield role, table, "TRUNCATE {table}"
            yield role, table, "ALTER TABLE {table} DISABLE TRIGGER ALL"
            for column in COLUMNS[table] - set(may.update):
                yield role, table, f'UPDATE {{table}} SET "{column}" = DEFAULT WHERE false'


COLUMNS = {table.name: {column.name for column in table.columns} for table in SQLModel.metadata.sorted_tables}
COLUMNS["alembic_version"] = {"version_num"}


async def refused(connection: psycopg.AsyncConnection, role: DatabaseRole, statement: str, table: str) -> str:
    """What the server says when this role tries it; nothing of it stays."""
    become = sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role))
    tried = sql.SQL(statement).format(table=sql.Identifier(table))
    async with connection.transaction(force_rollback=True):
        await connection.execute(become)
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            await connection.execute(tried)
    return str(caught.value)


async def test_every_forbidden_write_is_refused(memory: Database) -> None:
    tried = list(forbidden())
    async with await psycopg.AsyncConnection.connect(memory.url) as connection:
        for role, table, statement in tried:
            await refused(connection, role, statement, table)
    assert len(tried) > 500


async def test_the_tables_of_the_record_are_changed_by_nobody(memory: Database) -> None:
    async with await psycopg.AsyncConnection.connect(memory.url) as connection:
        for table in RECORD:
            assert not any(may.update or may.delete for may in RIGHTS[table].values()), table
            column = sorted(COLUMNS[table])[0]
            for statement in ("DELETE FROM {table}", "TRUNCATE {table}", f'UPDATE {{table}} SET "{column}" = DEFAULT'):
                said = await refused(connection, DatabaseRole.OWNER, statement, table)
                assert "append-only" in said, (table, statement)


def test_the_slack_role_writes_no_run_and_the_clock_signs_nothing() -> None:
    """The sentences of the issue, read off the table that the tests above compare with the server."""
    assert RIGHTS["run"][DatabaseRole.SLACK] == May()
    assert RIGHTS["journal"][DatabaseRole.SLACK] == May()
    assert DatabaseRole.SLACK not in RIGHTS["run_lock"]
    assert RIGHTS["signature"][DatabaseRole.CLOCK] == May()
    assert RIGHTS["plan"][DatabaseRole.SLACK] == May()


SIGNATURE = """
    INSERT INTO signature (plan_id, person, act, digest, reason, typed, source, account, at)
    VALUES ('none', 'daniel', '{act}', '', '', '', '{source}', '', clock_timestamp())
"""
CLICK = "INSERT INTO inbox (key, kind) VALUES ('k', '{kind}')"
REQUEST = """
    INSERT INTO request (kind, name, person, slack_user, channel, reply, reason, typed, state, error, plan_id)
    VALUES ('command', 'backup.dump', '{person}', '', '', '{{"who": {{"source": "{source}"}}}}', '', '', 'new', '', '')
"""
CUSTODY = """
    INSERT INTO custody_event (item, seq, incident_id, action, actor, holder, occurred_at, reason, location, sha256)
    VALUES (1, 1, 'inc1', 'collected', '{actor}', '', clock_timestamp(), '', '', '')
"""


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        (DatabaseRole.SLACK, CUSTODY.format(actor="drbot")),
        (DatabaseRole.CLI, CUSTODY.format(actor="drbot")),
        (DatabaseRole.WORKER, CUSTODY.format(actor="Olivia Ortega")),
        (DatabaseRole.SLACK, SIGNATURE.format(act="approve", source="key")),
        (DatabaseRole.SLACK, SIGNATURE.format(act="request", source="cli")),
        (DatabaseRole.CLI, SIGNATURE.format(act="approve", source="slack")),
        (DatabaseRole.CLI, SIGNATURE.format(act="deny", source="slack")),
        (DatabaseRole.WORKER, SIGNATURE.format(act="approve", source="slack")),
        (DatabaseRole.WORKER, SIGNATURE.format(act="approve", source="key")),
        (DatabaseRole.CLOCK, CLICK.format(kind="deed")),
        (DatabaseRole.CLI, CLICK.format(kind="deed")),
        (DatabaseRole.SLACK, CLICK.format(kind="schedule")),
        (DatabaseRole.SLACK, CLICK.format(kind="desk.cli")),
        (DatabaseRole.CLOCK, REQUEST.format(person="olivia", source="slack")),
        (DatabaseRole.CLOCK, REQUEST.format(person="olivia", source="clock")),
        (DatabaseRole.SLACK, REQUEST.format(person="schedule", source="clock")),
        (DatabaseRole.SLACK, REQUEST.format(person="olivia", source="cli")),
        (DatabaseRole.CLI, REQUEST.format(person="olivia", source="slack")),
    ],
)
async def test_no_process_writes_in_the_name_of_another(memory: Database, role: DatabaseRole, statement: str) -> None:
    database = memory.acting_as(role, pool_size=1)
    try:
        with pytest.raises(NotAllowedError, match="row-level security"):
            async with database.session() as session:
                await session.execute(text(statement.replace(":", r"\:")))
    finally:
        await database.dispose()


async def test_bringing_the_rights_twice_changes_nothing_and_a_lost_mark_brings_them_back(memory: Database) -> None:
    async with memory.session() as session:
        await session.execute(text("GRANT ALL ON signature TO drbot_clock"))
        await session.execute(text("COMMENT ON TABLE alembic_version IS NULL"))
    await memory.migrate()
    async with memory.session() as session:
        query = text("SELECT has_table_privilege('drbot_clock', 'signature', 'INSERT')")
        assert (await session.execute(query)).scalar_one() is False


async def test_a_login_without_the_role_is_told_what_to_grant(memory: Database) -> None:
    async with memory.session() as session:
        await session.execute(text("DROP ROLE IF EXISTS outsider"))
        await session.execute(text("CREATE ROLE outsider LOGIN PASSWORD 'secret'"))
    parts = psycopg.conninfo.conninfo_to_dict(memory.url)
    url = psycopg.conninfo.make_conninfo("", **{**parts, "user": "outsider", "password": "secret"})
    database = Database(url, role=DatabaseRole.SLACK)
    with pytest.raises(UserError, match="GRANT drbot_slack TO outsider"):
        await database.ready()
    await database.dispose()


async def test_a_process_refuses_a_schema_of_another_version(memory: Database) -> None:
    database = memory.acting_as(DatabaseRole.WORKER, pool_size=1)
    await database.require_newest()
    async with memory.session() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(UserError, match="run `drbot migrate`"):
        await database.require_newest()
    await database.dispose()


async def test_the_sentence_for_what_a_role_may_not_do(office: OfficeForTests) -> None:
    with pytest.raises(NotAllowedError, match="`drbot_slack` may not do this: permission denied for table run"):
        async with office.in_front.session() as session:
            await session.execute(text("UPDATE run SET state = 'running'"))


async def test_an_owner_that_is_no_superuser_migrates_and_every_login_works(run_directory: Path) -> None:
    """As docs/howto/database-logins.md has it, on a server where the roles are not yet known."""
    server = EmbeddedPostgres(run_directory / "fresh", durable=False)
    async with server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE ROLE drbot_admin LOGIN CREATEROLE PASSWORD 'secret'")
            connection.execute("CREATE DATABASE drbot OWNER drbot_admin")
        owner = Database(server.dsn("drbot", role="drbot_admin", password="secret"))
        await owner.migrate()
        await owner.migrate()
        # On one machine, this login gives its rights up at each connection.
        for role in PROCESSES:
            await ready(owner.acting_as(role, pool_size=1))
        await owner.dispose()
        stranger = Database((await make_logins(server, "drbot"))[DatabaseRole.SLACK], pool_size=1)
        with psycopg.connect(server.dsn("drbot"), autocommit=True) as connection:
            connection.execute("COMMENT ON TABLE alembic_version IS NULL")  # as if there were something to do
        with pytest.raises(UserError, match=r"may not migrate .* use one that owns the database"):
            await stranger.migrate()
        await stranger.dispose()
        for role, url in (await make_logins(server, "drbot")).items():
            await ready(Database(url, role=role, pool_size=1))
            other = next(item for item in PROCESSES if item != role)
            with pytest.raises(UserError, match="is no member of"):
                await ready(Database(url, role=other, pool_size=1))


async def ready(database: Database) -> None:
    try:
        await database.ready()
        await database.require_newest()
    finally:
        await database.dispose()
