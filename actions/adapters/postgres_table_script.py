"""A table that is gone, brought back as `pg_dump` writes it, by `psql` in one transaction that ends with its mark."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
from psycopg import sql

from actions.adapters.postgres_connections import AsyncConnection, ServerConnections
from actions.adapters.postgres_fingerprint import TEXT_FORM, at_snapshot
from actions.adapters.postgres_roles import role_names
from actions.adapters.postgres_rows import Side
from actions.adapters.postgres_tools import LOCK_LIMIT, RESTORE_LIMIT, PostgresPrograms
from actions.adapters.programs import ProgramError, run
from actions.backup.tables import RescueRequest, TableFacts, TableName
from actions.backup.tools import RestoreOrder
from actions.errors import PermanentError, TemporaryError, UserError, VerificationError

FORM = [setting.strip().split("=", 1) for setting in TEXT_FORM.split("-c ") if setting]
TAIL_FACTS = "SELECT current_setting('search_path'), relforcerowsecurity FROM pg_class WHERE oid = to_regclass(%s)"
COMPARISON = sql.SQL("""
    DECLARE
        found text := ({found});
    BEGIN
        IF found <> {wanted} THEN
            RAISE EXCEPTION 'the rows that came are not those that were there (% instead of %)', found, {wanted};
        END IF;
    END
""")
# pg_dump takes every limit off. The same length, so that a script of any size is changed in its place: 9 s.
UNLIMITED, LIMITED = b"SET lock_timeout = 0;", b"SET lock_timeout=9e3;"


class TableScript:
    """Dumps and restores one table with all that is its own."""

    def __init__(self, connections: ServerConnections, tools: PostgresPrograms) -> None:
        self._connections, self._tools = connections, tools

    async def bring(self, request: RescueRequest, there: TableFacts) -> None:
        """Raises VerificationError when it does not fit into production any more, or does not come as it was; then
        nothing has changed."""
        async with self._connections.session(*request.target) as connection:
            owners = await _owners(connection)
        # What a superuser owns only a superuser has written, so an administrator may run it; everything else runs as
        # a role that has no more rights than the owners of tables.
        plain = there.owner in owners
        with self._tools.private_folder("table-") as folder:
            script, tail = folder / "table.sql", folder / "tail.sql"
            await self._dumped(request, script, keep_owner=plain)
            await asyncio.to_thread(_limit_locks, script)
            await asyncio.to_thread(tail.write_text, await self._tail(request, there), "utf-8")
            async with self._login(request, owners, plain=plain) as (dsn, env):
                await self._run(request, (script, tail), dsn, env)

    async def foreign_keys(self, request: RescueRequest) -> None:
        """Give other tables their foreign keys back. Those that are there are left."""
        for foreign in request.incoming:
            async with self._connections.session(*request.target) as connection:
                rows = await connection.execute(
                    "SELECT 1 FROM pg_constraint WHERE conname = %s AND conrelid = to_regclass(%s)",
                    [foreign.name, sql.Identifier(*foreign.table).as_string(connection)],
                )
                if await rows.fetchone() is not None:
                    continue
                await connection.execute(sql.SQL("SET lock_timeout = '9s'"))
                # As PostgreSQL itself has written it, all names with their schema.
                definition = sql.SQL(foreign.definition)
                try:
                    await connection.execute(
                        sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(
                            sql.Identifier(*foreign.table), sql.Identifier(foreign.name), definition
                        )
                    )
                except psycopg.errors.ForeignKeyViolation as error:
                    raise VerificationError(
                        f"Rows of `{foreign.table}` that were written since fit no row of `{request.table}` "
                        f"({error.diag.message_detail}). Delete them, or rescue it under another name with `--as`."
                    ) from error

    async def _dumped(self, request: RescueRequest, script: Path, *, keep_owner: bool) -> None:
        pattern = ".".join('"' + part.replace('"', '""') + '"' for part in request.table)
        with self._tools.access(await self._connections.parameters(*request.source)) as (dsn, env):
            try:
                await run(
                    [
                        self._tools.tool(request.source.server, "pg_dump"),
                        *(f"--table-and-children={pattern}", f"--file={script}", f"--lock-wait-timeout={LOCK_LIMIT}"),
                        *("--no-tablespaces", "--no-security-labels", "--no-publications", "--no-subscriptions"),
                        *([] if keep_owner else ["--no-owner"]),
                        *("--no-password", f"--dbname={dsn}"),
                    ],
                    env={**env, "PGAPPNAME": "drbot-rescue"},
                    timeout=RESTORE_LIMIT,
                )
            except ProgramError as error:
                said = " ".join(error.stderr.split())[-800:]
                raise PermanentError(f"`{request.table}` cannot be read from `{request.source}`: {said}") from error

    async def _tail(self, request: RescueRequest, there: TableFacts) -> str:
        """In the same transaction as the table: the comparison, and the mark after the table's own comment."""
        async with at_snapshot(self._connections, request.source) as connection:
            comment = await _comment(connection, request.table)
            names = [column.name for column in there.columns]
            row = await (await connection.execute(TAIL_FACTS, [sql.Identifier(*request.table).as_string()])).fetchone()
            search_path, forced = row or ("", False)
            total = await (await connection.execute(Side(connection, request.table, (), names).total)).fetchone()
            into = sql.Identifier(*request.into)
            body = COMPARISON.format(
                found=Side(connection, request.into, (), names).total, wanted=sql.Literal(total[0] if total else "")
            )
            table = sql.SQL("ALTER TABLE {} {} ROW LEVEL SECURITY;\n")
            parts = [
                *(sql.SQL("SET LOCAL {} = {};\n").format(sql.SQL(name), sql.Literal(value)) for name, value in FORM),
                sql.SQL("SELECT set_config('search_path', {}, true);\n").format(sql.Literal(search_path)),
                # Its owner sees all rows, unless the table forces its policies on the owner too.
                *([table.format(into, sql.SQL("NO FORCE"))] if forced else []),
                sql.SQL("DO {};\n").format(sql.Literal(body.as_string(connection))),
                *([table.format(into, sql.SQL("FORCE"))] if forced else []),
                sql.SQL("COMMENT ON TABLE {} IS {};\n").format(into, sql.Literal(marked(comment, request.mark))),
            ]
            return sql.Composed(parts).as_string(connection)

    @asynccontextmanager
    async def _login(
        self, request: RescueRequest, owners: list[str], *, plain: bool
    ) -> AsyncIterator[tuple[str, Mapping[str, str]]]:
        if not plain:
            with self._tools.access(await self._connections.parameters(*request.target)) as (dsn, env):
                yield dsn, env
            return
        order = RestoreOrder(
            into=request.target,
            mark=request.mark,
            owner=request.owner,
            extensions={},
            owners={name: name for name in owners},
            jobs=1,
        )
        async with self._tools.restoring_role(order) as (role, dsn, env):
            async with self._connections.session(*request.target) as connection:
                for name in (role, role_names(request.target)[1]):
                    await connection.execute(
                        sql.SQL("GRANT USAGE, CREATE ON SCHEMA {} TO {}").format(
                            sql.Identifier(request.into.schema), sql.Identifier(name)
                        )
                    )
            yield dsn, env

    async def _run(self, request: RescueRequest, scripts: tuple[Path, ...], dsn: str, env: Mapping[str, str]) -> None:
        files = [word for script in scripts for word in ("-f", str(script))]
        try:
            await run(
                [
                    self._tools.tool(request.target.server, "psql"),
                    *("-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", *files, "--no-password", "-d", dsn),
                ],
                env={**env, "PGAPPNAME": "drbot-rescue"},
                timeout=RESTORE_LIMIT,
            )
        except ProgramError as error:
            said = " ".join(error.stderr.split())[-800:]
            if "lock timeout" in said:
                text = f"Somebody holds a lock that `{request.table}` needs: {said}"
                raise TemporaryError(text, retry_after=timedelta(seconds=20)) from error
            if "No space left" in said:
                raise UserError(f"The disk of server `{request.target.server}` is full. Free space there.") from error
            if "connection to server" in said or "server closed" in said:
                raise TemporaryError(f"Server `{request.target.server}` broke off the rescue: {said}") from error
            raise VerificationError(
                f"`{request.table}` does not fit into `{request.target}` any more: {said} Nothing was changed. Rescue "
                "it under another name with `--as`."
            ) from error


async def mark(connection: AsyncConnection, table: TableName, value: str) -> None:
    """Set our mark on a table, after the comment it has."""
    comment = marked(await _comment(connection, table), value)
    await connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(sql.Identifier(*table), sql.Literal(comment)))


def marked(comment: str, value: str) -> str:
    return f"{comment} [{value}]" if comment else f"[{value}]"


async def _comment(connection: AsyncConnection, table: TableName) -> str:
    rows = await connection.execute(
        "SELECT coalesce(obj_description(to_regclass(%s), 'pg_class'), '')",
        [sql.Identifier(*table).as_string(connection)],
    )
    row = await rows.fetchone()
    return str(row[0]) if row else ""


async def _owners(connection: AsyncConnection) -> list[str]:
    """The roles that own relations here and are no superusers."""
    rows = await connection.execute(
        "SELECT DISTINCT r.rolname FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner"
        " WHERE NOT r.rolsuper AND r.rolname !~ '^pg_' ORDER BY 1"
    )
    return [name for (name,) in await rows.fetchall()]


def _limit_locks(script: Path) -> None:
    """A table that others hold must not make production queue behind us."""
    with script.open("r+b") as stream:
        place = stream.read(8192).find(UNLIMITED)
        if place >= 0:
            stream.seek(place)
            stream.write(LIMITED)
