"""What a database holds, measured: exact row counts, sequences, invariants and a hash of its schema.

All parts read at one exported snapshot, over several connections, so that a dump and its counts show the same moment.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import psycopg
from psycopg import sql

from actions.adapters.postgres_connections import AsyncConnection, ServerConnections
from actions.adapters.postgres_schema import schema_lines
from actions.backup.archive import readable
from actions.backup.manifest import Fingerprint
from actions.backup.manifest import Sequence as SequenceState
from actions.backup.physical import SCRATCH
from actions.errors import PermanentError, UserError
from actions.site import DatabaseRef, Invariant

INVARIANT_LIMIT = timedelta(minutes=5)
SCRATCH_LOCKS = "10s"
LARGE_OBJECTS = "large objects"  # the key of their number among the rows

OURS = """
    n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    AND NOT EXISTS (SELECT FROM pg_depend e
                     WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')
"""
# Materialised views are left out: a restore computes them anew from the restored rows.
TABLES = """
    SELECT n.nspname, c.relname, pg_relation_filenode(c.oid)::int8, c.relpersistence = 'u' AND pg_is_in_recovery()
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND {OURS}
     ORDER BY c.relpages DESC, 1, 2
""".replace("{OURS}", OURS)
SEQUENCES = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND {OURS} ORDER BY 1, 2
""".replace("{OURS}", OURS)
# Values as text must not depend on the server's or the role's settings.
TEXT_FORM = "-c timezone=UTC -c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=1 -c bytea_output=hex"


@asynccontextmanager
async def at_snapshot(
    connections: ServerConnections, database: DatabaseRef, snapshot: str | None = None
) -> AsyncIterator[AsyncConnection]:
    """A session in one read-only REPEATABLE READ transaction, at `snapshot` when given."""
    # In a scratch instance a lock may be held by a transaction that was not over at its moment, for ever.
    limit = f" -c lock_timeout={SCRATCH_LOCKS}" if database.server.startswith(SCRATCH) else ""
    async with connections.session(
        database.server, database.name, settings=TEXT_FORM + limit, autocommit=False
    ) as connection:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        if snapshot is not None:
            await connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        yield connection
        await connection.rollback()


async def measure(
    connections: ServerConnections,
    database: DatabaseRef,
    invariants: Sequence[Invariant],
    *,
    workers: int,
    snapshot: str | None = None,
    counted: Callable[[int], None] | None = None,
) -> Fingerprint:
    """Measure at `snapshot`, or at one of its own. `counted` is told the number of rows as tables are done."""
    async with at_snapshot(connections, database, snapshot) as connection:
        shared = snapshot or await exported(connection)
        lines = await schema_lines(connection)
        found = await (await connection.execute(TABLES.encode())).fetchall()
        tables = [(row[0], row[1]) for row in found if not row[3]]
        work = iter(tables)
        # Unlogged tables cannot be read during recovery, and are empty after it.
        rows = {readable(row[0], row[1]): 0 for row in found if row[3]}
        async with asyncio.TaskGroup() as group:
            for _ in range(min(workers, len(tables)) - 1):
                group.create_task(_count_apart(connections, database, shared, work, rows, counted))
            group.create_task(_count(connection, work, rows, counted))
        return Fingerprint(
            rows={**dict(sorted(rows.items())), **await _large_objects(connection)},
            sequences=await _sequences(connection),
            schema_hash=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
            invariants={entry.name: await _invariant(connection, entry) for entry in invariants},
            extensions=await _extensions(connection),
        )


async def exported(connection: AsyncConnection) -> str:
    """Export the snapshot of the connection's transaction."""
    row = await (await connection.execute("SELECT pg_export_snapshot()")).fetchone()
    if row is None:
        raise PermanentError("PostgreSQL exported no snapshot")
    return str(row[0])


async def relfilenodes(connection: AsyncConnection) -> dict[str, int]:
    """The file of every table, which is all that WAL knows of a table that was dropped later."""
    rows = await (await connection.execute(TABLES.encode())).fetchall()
    return {readable(row[0], row[1]): row[2] for row in rows if row[2] is not None}


async def _count_apart(
    connections: ServerConnections,
    database: DatabaseRef,
    snapshot: str,
    work: Iterator[tuple[str, str]],
    rows: dict[str, int],
    counted: Callable[[int], None] | None,
) -> None:
    async with at_snapshot(connections, database, snapshot) as connection:
        await _count(connection, work, rows, counted)


async def _count(
    connection: AsyncConnection,
    work: Iterator[tuple[str, str]],
    rows: dict[str, int],
    counted: Callable[[int], None] | None,
) -> None:
    for schema, name in work:
        # ONLY: a parent of old-style inheritance has rows of its own beside its children's.
        statement = sql.SQL("SELECT count(*) FROM ONLY {}").format(sql.Identifier(schema, name))
        row = await (await connection.execute(statement)).fetchone()
        rows[readable(schema, name)] = int(row[0]) if row else 0
        if counted is not None:
            counted(rows[readable(schema, name)])


async def _large_objects(connection: AsyncConnection) -> Mapping[str, int]:
    row = await (await connection.execute("SELECT count(*) FROM pg_largeobject_metadata")).fetchone()
    return {LARGE_OBJECTS: row[0]} if row and row[0] else {}


async def _sequences(connection: AsyncConnection) -> dict[str, SequenceState]:
    found: dict[str, SequenceState] = {}
    for schema, name in await (await connection.execute(SEQUENCES.encode())).fetchall():
        statement = sql.SQL("SELECT last_value, is_called FROM {}").format(sql.Identifier(schema, name))
        row = await (await connection.execute(statement)).fetchone()
        if row:
            found[readable(schema, name)] = SequenceState(last_value=row[0], is_called=row[1])
    return found


async def _extensions(connection: AsyncConnection) -> dict[str, str]:
    rows = await (await connection.execute("SELECT extname, extversion FROM pg_extension ORDER BY 1")).fetchall()
    return dict(rows)


async def _invariant(connection: AsyncConnection, invariant: Invariant) -> str:
    """The scalar as PostgreSQL writes it. Raises UserError when the statement fails or gives no single value."""
    limit = int(INVARIANT_LIMIT.total_seconds() * 1000)
    try:
        async with connection.transaction():
            await connection.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(limit)))
            # Prepared: the extended protocol takes one statement only.
            cursor = await connection.execute(invariant.sql.encode(), prepare=True)
            result = cursor.pgresult
            if result is None or (result.ntuples, result.nfields) != (1, 1):
                raise UserError(f"The invariant `{invariant.name}` must give one row with one value. Correct its SQL.")
            value = result.get_value(0, 0)
            await connection.execute("SET LOCAL statement_timeout = 0")
    except (psycopg.errors.SyntaxErrorOrAccessRuleViolation, psycopg.errors.ReadOnlySqlTransaction) as error:
        said = error.diag.message_primary
        raise UserError(f"The invariant `{invariant.name}` cannot be measured: {said}. Correct its SQL.") from error
    except psycopg.errors.QueryCanceled as error:
        seconds = INVARIANT_LIMIT.total_seconds()
        raise UserError(f"The invariant `{invariant.name}` took more than {seconds:g} s. Make it cheaper.") from error
    return "null" if value is None else value.decode()
