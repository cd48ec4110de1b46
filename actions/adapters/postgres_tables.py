"""Single tables over psycopg: looked at, compared row by row, copied, and taken back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from actions.adapters.postgres_connections import AsyncConnection, ServerConnections
from actions.adapters.postgres_fingerprint import TEXT_FORM, at_snapshot
from actions.adapters.postgres_rows import Side, compared, differing
from actions.adapters.postgres_table_script import TableScript, mark
from actions.adapters.postgres_tools import PostgresPrograms
from actions.backup.tables import (
    RESCUED,
    Column,
    Difference,
    ForeignKey,
    Rescued,
    RescueMode,
    RescueRequest,
    TableFacts,
    TableName,
    not_whole,
)
from actions.errors import UserError, VerificationError
from actions.ports import Progress, ProgressReport, Secrets, Tables
from actions.site import DatabaseRef, Site

LOCK_LIMIT = "10s"  # a rescue gives up rather than let production queue behind it

FACTS = """
    SELECT c.oid::int8, coalesce(pg_relation_filenode(c.oid), 0)::int8, pg_get_userbyid(c.relowner),
           coalesce(obj_description(c.oid, 'pg_class'), ''), c.relkind = 'p',
           pg_total_relation_size(c.oid)
           + coalesce((SELECT sum(pg_total_relation_size(p.relid)) FROM pg_partition_tree(c.oid) p
                        WHERE p.relid <> c.oid), 0)::int8
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
"""
COLUMNS = """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull FROM pg_attribute a
     WHERE a.attrelid = %s::oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum
"""
KEY = """
    SELECT a.attname FROM pg_constraint k, unnest(k.conkey) WITH ORDINALITY u(attnum, place)
      JOIN pg_attribute a ON a.attnum = u.attnum
     WHERE k.conrelid = %s::oid AND k.contype = 'p' AND a.attrelid = k.conrelid ORDER BY u.place
"""
INCOMING = """
    SELECT n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid)
      FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE k.confrelid = %s::oid AND k.contype = 'f' AND k.conrelid <> k.confrelid AND k.conparentid = 0
     ORDER BY 1, 2, 3
"""
VIEWS = """
    SELECT DISTINCT v.oid::regclass::text FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
      JOIN pg_class v ON v.oid = r.ev_class
     WHERE d.refobjid = %s::oid AND d.classid = 'pg_rewrite'::regclass AND v.oid <> d.refobjid ORDER BY 1
"""


# The table itself, and where it is partitioned whatever its rows lie in.
TRIGGERS = """
    SELECT n.nspname, c.relname, t.tgname, t.tgenabled::text
      FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE (c.oid = to_regclass(%s) OR c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass(%s))))
       AND t.tgconstraint = 0 AND (NOT t.tgisinternal OR t.tgparentid <> 0) AND t.tgenabled IN ('O', 'A')
     ORDER BY 1, 2, 3
"""
# What a column takes its next value from: an identity, or a default.
SEQUENCES = """
    SELECT DISTINCT s.oid::regclass::text, a.attname, q.seqincrement < 0
      FROM pg_attribute a
      JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass
       AND ((d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
             AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum)
         OR (d.classid = 'pg_attrdef'::regclass
             AND d.objid = (SELECT oid FROM pg_attrdef WHERE adrelid = a.attrelid AND adnum = a.attnum)))
      JOIN pg_class s ON s.oid = CASE WHEN d.classid = 'pg_class'::regclass THEN d.objid ELSE d.refobjid END
                     AND s.relkind = 'S'
      JOIN pg_sequence q ON q.seqrelid = s.oid
     WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
       AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
"""
# Foreign keys by which a row that goes takes others along, or changes them.
CASCADES = """
    SELECT k.conrelid::regclass::text, k.conname,
           ARRAY(SELECT ARRAY[t.attname, h.attname] FROM unnest(k.conkey, k.confkey) WITH ORDINALITY u(there, here, n)
                   JOIN pg_attribute t ON t.attrelid = k.conrelid AND t.attnum = u.there
                   JOIN pg_attribute h ON h.attrelid = k.confrelid AND h.attnum = u.here ORDER BY u.n)::text[]
      FROM pg_constraint k
     WHERE k.confrelid = to_regclass(%s) AND k.contype = 'f' AND k.conparentid = 0 AND k.confdeltype IN ('c', 'n', 'd')
     ORDER BY 1, 2
"""


class PostgresTables(Tables):
    """All tables of the site's servers. `tools` dumps a table that comes back whole."""

    def __init__(self, site: Site, secrets: Secrets, tools: PostgresPrograms, *, scratch: Path | None = None) -> None:
        self._connections = ServerConnections(site, secrets, scratch)
        self._script = TableScript(self._connections, tools)

    async def facts(self, database: DatabaseRef, table: TableName) -> TableFacts | None:
        async with at_snapshot(self._connections, database) as connection:
            return await _facts(connection, table)

    # ------------------------------------------------------------ comparing

    async def difference(
        self, source: DatabaseRef, table: TableName, target: DatabaseRef, other: TableName
    ) -> Difference:
        async with at_snapshot(self._connections, source) as there, at_snapshot(self._connections, target) as here:
            first, second = await _existing(there, table, source), await _existing(here, other, target)
            names = {column.name for column in second.columns}
            columns = [column.name for column in first.columns if column.name in names]
            key = first.key if first.key and set(first.key) <= set(columns) else tuple(columns)
            return await compared(Side(there, table, key, columns), Side(here, other, key, columns))

    # ------------------------------------------------------------ bringing back

    async def rescue(self, request: RescueRequest, progress: Progress) -> Rescued:
        made = await self.facts(request.target, request.made)
        if made is not None:
            if made.mark == request.mark:
                await self._script.foreign_keys(request)
                return Rescued(rows=0)
            raise VerificationError(f"`{request.made}` of `{request.target}` was not made by this plan.")
        progress(ProgressReport(phase="copy", unit="rows"))
        if request.mode is RescueMode.TABLE:
            async with at_snapshot(self._connections, request.source) as connection:
                there = await _existing(connection, request.table, request.source)
            await self._script.bring(request, there)
            await self._script.foreign_keys(request)
            return Rescued(rows=there.rows, difference=Difference(same=there.rows, only_source=0, only_target=0))
        async with (
            at_snapshot(self._connections, request.source) as there_connection,
            self._connections.session(*request.target, settings=TEXT_FORM, autocommit=False) as here,
        ):
            there = await _existing(there_connection, request.table, request.source)
            await here.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_LIMIT)))
            work = self._copied if request.mode is RescueMode.COPY else self._inserted
            rows = await work(request, there, there_connection, here)
            # Before anybody else can write to it: what they do later is no fault of the rescue.
            columns = [column.name for column in there.columns]
            key = there.key if there.key and set(there.key) <= set(columns) else columns
            found = await compared(
                Side(there_connection, request.table, key, columns), Side(here, request.into, key, columns)
            )
            if wrong := not_whole(request, found):
                raise VerificationError(wrong)
            await here.commit()
        progress(ProgressReport(done=rows, total=rows, phase="copy", unit="rows"))
        return Rescued(rows=rows, difference=found)

    async def _copied(
        self, request: RescueRequest, there: TableFacts, source: AsyncConnection, here: AsyncConnection
    ) -> int:
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}{}").format(
                sql.Identifier(column.name),
                # As `format_type` of the source wrote it: quoted where it has to be.
                sql.SQL(column.type),
                sql.SQL(" NOT NULL") if column.not_null else sql.SQL(""),
            )
            for column in there.columns
        )
        into = sql.Identifier(*request.into)
        try:
            await here.execute(sql.SQL("CREATE TABLE {} ({})").format(into, columns))
        except psycopg.errors.UndefinedObject as error:
            said = error.diag.message_primary
            raise UserError(f"`{request.table}` cannot be copied into `{request.target}`: {said}.") from error
        names = [column.name for column in there.columns]
        rows = await _poured(source, Side(source, request.table, (), names).all_rows, here, request.into, names)
        if there.key and set(there.key) <= set(names):  # one over a generated column cannot be had without it
            key = sql.SQL(", ").join(map(sql.Identifier, there.key))
            await here.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY ({})").format(into, key))
        owner = await _plain_owner(here, there.owner, request.owner)
        await here.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(into, sql.Identifier(owner)))
        await mark(here, request.into, request.mark)
        return rows

    async def _inserted(
        self, request: RescueRequest, there: TableFacts, source: AsyncConnection, here: AsyncConnection
    ) -> int:
        if request.keys is None or not there.key:
            raise UserError(f"`{request.table}` has no primary key, so its missing rows cannot be told.")
        into, names = sql.Identifier(*request.into), [column.name for column in there.columns]
        # Nobody writes to it from here to the end, so what is missing is what will have been missing.
        await here.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(into))
        side = Side(source, request.table, there.key, names)
        wanted = await differing(side, Side(here, request.into, there.key, names))
        await here.execute(
            sql.SQL("CREATE TEMPORARY TABLE drbot_fetched ON COMMIT DROP AS SELECT {} FROM {} LIMIT 0").format(
                sql.SQL(", ").join(map(sql.Identifier, names)), into
            )
        )
        fetched = TableName("pg_temp", "drbot_fetched")
        await _poured(source, side.rows_of(wanted), here, fetched, names)
        triggers = await _silenced(here, request.into)
        columns, key = (sql.SQL(", ").join(map(sql.Identifier, parts)) for parts in (names, there.key))
        kept = sql.Identifier(*request.keys)
        await here.execute(sql.SQL("CREATE TABLE {} AS SELECT {} FROM {} LIMIT 0").format(kept, key, into))
        inserted = await here.execute(
            sql.SQL(
                "WITH put AS (INSERT INTO {into} ({columns}) OVERRIDING SYSTEM VALUE"
                " SELECT {columns} FROM pg_temp.drbot_fetched ON CONFLICT ({key}) DO NOTHING RETURNING {key})"
                " INSERT INTO {kept} SELECT * FROM put"
            ).format(into=into, columns=columns, key=key, kept=kept)
        )
        await _heard(here, triggers)
        await _sequences_ahead(here, request.into)
        await mark(here, request.keys, request.mark)
        return inserted.rowcount

    # ------------------------------------------------------------ taking back

    async def withdraw(self, request: RescueRequest) -> None:
        async with self._connections.session(*request.target, autocommit=False) as connection:
            await connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_LIMIT)))
            made = await _facts(connection, request.made)
            if made is None or made.mark != request.mark:
                return
            if request.keys is not None:
                await _rows_taken_back(connection, request.into, request.keys)
            table = sql.Identifier(*(request.made))
            if request.keys is None:
                await connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
                if written := await _written_since(connection, made.oid, request.made):
                    raise UserError(
                        f"{written} row(s) of `{request.made}` in `{request.target}` were written since it came back, "
                        "so it is not dropped. Keep it; or save them, then drop the table by hand."
                    )
            for foreign in request.incoming:
                await connection.execute(
                    sql.SQL("ALTER TABLE IF EXISTS {} DROP CONSTRAINT IF EXISTS {}").format(
                        sql.Identifier(*foreign.table), sql.Identifier(foreign.name)
                    )
                )
            await connection.execute(sql.SQL("DROP TABLE {}").format(table))
            await connection.commit()


# ---------------------------------------------------------------- parts


async def _facts(connection: AsyncConnection, table: TableName) -> TableFacts | None:
    row = await (await connection.execute(FACTS.encode(), [table.schema, table.name])).fetchone()
    if row is None:
        return None
    oid, file, owner, comment, partitioned, size = row
    found = re.search(rf"{re.escape(RESCUED)}[a-z0-9]+(?=\]$)", comment)
    counted = await (
        await connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(*table)))
    ).fetchone()
    incoming = await _rows(connection, INCOMING, oid)
    return TableFacts(
        oid=oid,
        relfilenode=file,
        owner=owner,
        rows=counted[0] if counted else 0,
        bytes=size,
        columns=tuple(
            Column(name=name, type=kind, not_null=required)
            for name, kind, required in await _rows(connection, COLUMNS, oid)
        ),
        key=tuple(name for (name,) in await _rows(connection, KEY, oid)),
        mark=found[0] if found else "",
        incoming=tuple(
            ForeignKey(table=TableName(schema, name), name=constraint, definition=definition)
            for schema, name, constraint, definition in incoming
        ),
        views=tuple(name for (name,) in await _rows(connection, VIEWS, oid)),
        partitioned=partitioned,
    )


async def _rows(connection: AsyncConnection, query: str, oid: int) -> Sequence[tuple[Any, ...]]:
    return await (await connection.execute(query.encode(), [oid])).fetchall()


async def _existing(connection: AsyncConnection, table: TableName, database: DatabaseRef) -> TableFacts:
    found = await _facts(connection, table)
    if found is None:
        raise UserError(f"`{database}` has no table `{table}`.")
    return found


async def _poured(
    source: AsyncConnection, query: sql.Composable, target: AsyncConnection, table: TableName, columns: Sequence[str]
) -> int:
    """COPY what the query gives into the table; text, since binary would need the same oids of types on both sides."""
    out = sql.SQL("COPY ({}) TO STDOUT").format(query)
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    into = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(*table), names)
    reader, writer = source.cursor(), target.cursor()
    async with reader.copy(out) as read, writer.copy(into) as write:
        async for block in read:
            await write.write(block)
    return writer.rowcount


async def _plain_owner(connection: AsyncConnection, owner: str, otherwise: str) -> str:
    """The owner, unless it is a superuser, or missing here."""
    rows = await connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [owner])
    row = await rows.fetchone()
    return owner if row is not None and not row[0] else otherwise


async def _silenced(connection: AsyncConnection, table: TableName) -> list[tuple[TableName, str, str]]:
    """Disable the triggers of people until `_heard`, those of each partition as well, where they may be others or stand
    differently; those of constraints go on. Returns them with their table and state."""
    rows = await connection.execute(TRIGGERS.encode(), [sql.Identifier(*table).as_string(connection)] * 2)
    found = [(TableName(schema, name), trigger, state) for schema, name, trigger, state in await rows.fetchall()]
    for where, trigger, _ in found:
        await _alter(connection, where, "DISABLE TRIGGER {}", trigger)
    return found


async def _heard(connection: AsyncConnection, triggers: Sequence[tuple[TableName, str, str]]) -> None:
    for table, trigger, state in triggers:
        await _alter(connection, table, "ENABLE ALWAYS TRIGGER {}" if state == "A" else "ENABLE TRIGGER {}", trigger)


async def _alter(connection: AsyncConnection, table: TableName, change: LiteralString, name: str) -> None:
    what = sql.SQL(change).format(sql.Identifier(name))
    # ONLY: what a partition was given of its own stays as it is.
    await connection.execute(sql.SQL("ALTER TABLE ONLY {} {}").format(sql.Identifier(*table), what))


async def _written_since(connection: AsyncConnection, oid: int, table: TableName) -> int:
    """Rows that another transaction has written than the one that made the table, which is the one of its mark."""
    query = sql.SQL(
        "SELECT count(*) FROM {} AS row, pg_description d WHERE d.objoid = {}::oid AND d.objsubid = 0"
        " AND d.classoid = 'pg_class'::regclass AND row.xmin <> d.xmin"
    ).format(sql.Identifier(*table), sql.Literal(oid))
    found = await (await connection.execute(query)).fetchone()
    return int(found[0]) if found else 0


async def _sequences_ahead(connection: AsyncConnection, table: TableName) -> None:
    """After a `TRUNCATE ... RESTART IDENTITY` they stand before the keys of the rows that came back, and the next rows
    of the application would meet them. A sequence that is ahead is left."""
    name = sql.Identifier(*table)
    rows = await connection.execute(SEQUENCES.encode(), [name.as_string(connection)])
    for sequence, column, falling in await rows.fetchall():
        # As `regclass` writes it: quoted where it has to be.
        await connection.execute(
            sql.SQL(
                "SELECT setval({sequence}::regclass, held.most)"
                " FROM (SELECT {most}({column}) AS most FROM {table}) held, {relation} now, pg_sequence q"
                " WHERE q.seqrelid = {sequence}::regclass"
                " AND held.most {beyond} now.last_value AND held.most BETWEEN q.seqmin AND q.seqmax"
            ).format(
                sequence=sql.Literal(sequence),
                relation=sql.SQL(sequence),
                column=sql.Identifier(column),
                table=name,
                most=sql.SQL("min" if falling else "max"),
                beyond=sql.SQL("<" if falling else ">"),
            )
        )


async def _refuse_cascades(
    connection: AsyncConnection, table: TableName, keys: TableName, equal: sql.Composable
) -> None:
    """What others have written since and hung on to a row must not go, or lose its place, along with it."""
    rows = await connection.execute(CASCADES.encode(), [sql.Identifier(*table).as_string(connection)])
    for other, constraint, columns in await rows.fetchall():
        hanging = sql.SQL(" AND ").join(
            sql.SQL("hung.{} = gone.{}").format(sql.Identifier(there), sql.Identifier(here)) for there, here in columns
        )
        found = await connection.execute(
            sql.SQL(
                "SELECT count(*) FROM {} hung, {} gone, {} kept WHERE {} AND gone.xmin = kept.xmin AND {}"
                " AND hung.xmin <> kept.xmin"  # rows of the rescue point at one another, and go together
            ).format(sql.SQL(other), sql.Identifier(*table), sql.Identifier(*keys), equal, hanging)
        )
        row = await found.fetchone()
        if row is not None and row[0]:
            raise UserError(
                f"{row[0]} row(s) of `{other}` point at rows of `{table}` that came back (`{constraint}`) and would go "
                "or change with them, so none is taken away. Keep them; or look to those first."
            )


async def _rows_taken_back(connection: AsyncConnection, table: TableName, keys: TableName) -> None:
    """Delete the rows that were put in, unless somebody has changed them since: those carry another xmin."""
    rows = await connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 ORDER BY attnum",
        [sql.Identifier(*keys).as_string(connection)],
    )
    names = [name for (name,) in await rows.fetchall()]
    equal = sql.SQL(" AND ").join(sql.SQL("gone.{0} = kept.{0}").format(sql.Identifier(name)) for name in names)
    await connection.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(sql.Identifier(*table)))
    await _refuse_cascades(connection, table, keys, equal)
    triggers = await _silenced(connection, table)
    await connection.execute(
        sql.SQL("DELETE FROM {} gone USING {} kept WHERE {} AND gone.xmin = kept.xmin").format(
            sql.Identifier(*table), sql.Identifier(*keys), equal
        )
    )
    await _heard(connection, triggers)
