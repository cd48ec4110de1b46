"""The administrator's view of the PostgreSQL servers of the site, over psycopg 3."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from actions.adapters.postgres_connections import AsyncConnection, ServerConnections
from actions.adapters.postgres_fence import fence, fencing, unfence
from actions.adapters.postgres_fingerprint import measure
from actions.adapters.postgres_globals import apply_to_database, create_roles, created_as
from actions.adapters.postgres_roles import discard_loading_role, loading_roles
from actions.adapters.postgres_stop import pulse, stop, stopping
from actions.backup.manifest import Fingerprint, Globals
from actions.errors import PermanentError, PreconditionError, TemporaryError, UserError
from actions.ports import (
    DatabaseFacts,
    FenceFacts,
    Named,
    PostgresAdmin,
    Pulse,
    RoleFacts,
    Secrets,
    ServerFacts,
    StopFacts,
)
from actions.site import DatabaseRef, Invariant, Site

SCRATCH = "drbot:scratch:"
NAME_LIMIT = 63  # NAMEDATALEN - 1, bytes; PostgreSQL would cut a longer name without a word
CLOSE_LIMIT = timedelta(seconds=30)
COUNTERS = 4  # connections that count rows side by side

FACTS = """
    SELECT d.datname, d.oid::int8, pg_get_userbyid(d.datdba), pg_database_size(d.oid), d.datallowconn,
           (SELECT count(*) FROM pg_stat_activity a
             WHERE a.datid = d.oid AND a.pid <> pg_backend_pid() AND a.backend_type <> 'autovacuum worker'),
           coalesce(shobj_description(d.oid, 'pg_database'), '')
      FROM pg_database d
     WHERE NOT d.datistemplate AND (%(name)s::text IS NULL OR d.datname = %(name)s)
     ORDER BY d.datname
"""

# Whoever may not see what others do is shown neither kind nor name of their sessions.
CLIENTS = """
    SELECT count(*) FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid
     WHERE a.datname = %(name)s AND coalesce(a.backend_type, 'client backend') = 'client backend'
       AND a.pid <> pg_backend_pid() AND a.application_name IS DISTINCT FROM 'drbot'
       AND CASE WHEN %(role)s = '' THEN NOT r.rolsuper ELSE a.usename = %(role)s END
"""
CLIENTS_PAUSE = timedelta(milliseconds=5)


class PostgresServers(PostgresAdmin):
    """All servers of the site, and instances in the directory `scratch`. Every call opens its own connection: after a
    crash of a server nothing is stale."""

    def __init__(self, site: Site, secrets: Secrets, *, scratch: Path | None = None) -> None:
        self._connections = ServerConnections(site, secrets, scratch)

    # ------------------------------------------------------------ reading

    async def server(self, server: str) -> ServerFacts:
        async with self._connections.session(server) as connection:
            row = await _row(
                connection,
                "SELECT current_setting('server_version_num')::int, system_identifier::text, pg_is_in_recovery(),"
                " (SELECT setting FROM pg_settings WHERE name = 'data_directory'),"
                " CASE WHEN pg_is_in_recovery() THEN 0 ELSE"
                " ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END,"
                " pg_postmaster_start_time(), current_setting('data_checksums')::bool"
                " FROM pg_control_system()",
            )
            info = connection.info
            version, system_id, in_recovery, directory, timeline_id, started_at, checksums = row
            return ServerFacts(
                name=server,
                version=version,
                system_id=system_id,
                in_recovery=in_recovery,
                free_bytes=await asyncio.to_thread(_free_bytes, directory, int(system_id)) if directory else None,
                address=f"{info.host}:{info.port}",
                timeline_id=timeline_id,
                started_at=started_at.astimezone(UTC),
                checksums=checksums,
            )

    async def database(self, database: DatabaseRef) -> DatabaseFacts | None:
        async with self._connections.session(database.server) as connection:
            return await _facts(connection, database.name)

    async def databases(self, server: str) -> Sequence[DatabaseFacts]:
        async with self._connections.session(server) as connection:
            return await _all_facts(connection, None)

    async def fingerprint(
        self, database: DatabaseRef, invariants: Sequence[Invariant], *, counted: Callable[[int], None] | None = None
    ) -> Fingerprint:
        return await measure(self._connections, database, invariants, workers=COUNTERS, counted=counted)

    async def query(self, database: DatabaseRef, sql: str) -> Sequence[Mapping[str, Any]]:
        limits = "-c default_transaction_read_only=on -c statement_timeout=10s"
        async with self._connections.session(database.server, database.name, settings=limits) as connection:
            cursor = connection.cursor(row_factory=dict_row)
            # Prepared: the extended protocol takes one statement, so nothing can follow a semicolon.
            await cursor.execute(sql.encode(), prepare=True)
            return await cursor.fetchall()

    # ------------------------------------------------------------ making

    async def create(self, database: DatabaseRef, *, owner: str, cluster_globals: Globals, mark: str) -> None:
        _check_name(database.name)
        async with self._connections.session(database.server) as connection:
            await create_roles(connection, cluster_globals, extra=(owner,))
            await _check_owner(connection, owner)
            found = await _facts(connection, database.name)
            if found is not None:
                if found.mark == mark:
                    return
                raise UserError(
                    f"Server `{database.server}` already has a database `{database.name}` that was not made by this"
                    f" plan (its mark is `{found.mark or 'none'}`). Rename it or choose another name."
                )
            # Built under a name that only this mark gives, and renamed when complete: whatever carries the wanted
            # name also carries the mark, even after a crash between two statements.
            unfinished = f"drbot_new_{hashlib.sha256(f'{mark}/{database.name}'.encode()).hexdigest()[:24]}"
            await connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(unfinished)))
            await self._create_from_template(connection, database, unfinished, owner, cluster_globals)
            await apply_to_database(connection, unfinished, cluster_globals)
            await _comment(connection, unfinished, mark)
            await connection.execute(_rename(unfinished, database.name))

    async def _create_from_template(
        self, connection: AsyncConnection, database: DatabaseRef, name: str, owner: str, wanted: Globals
    ) -> None:
        try:
            await connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE template0 OWNER {} {}").format(
                    sql.Identifier(name), sql.Identifier(owner), created_as(wanted, connection.info.server_version)
                )
            )
        except (
            psycopg.errors.InvalidParameterValue,
            psycopg.errors.WrongObjectType,
            psycopg.errors.UndefinedObject,
            psycopg.errors.FeatureNotSupported,
        ) as error:
            said = error.diag.message_primary or "unknown locale"
            raise UserError(
                f"Server `{database.server}` cannot hold `{database.name}` with encoding "
                f"`{wanted.encoding}` and locale `{wanted.locale or wanted.collate}` ({said}). "
                "Install that locale there or choose another server."
            ) from error

    async def relabel(self, database: DatabaseRef, *, before: str, after: str) -> None:
        async with self._connections.session(database.server, autocommit=False) as connection:
            found = await _existing(connection, database)
            if found.mark == after:
                return
            if found.mark != before:
                raise PreconditionError([f"`{database}` carries the mark `{found.mark or 'none'}`, not `{before}`"])
            await _comment(connection, database.name, after)
            await connection.commit()

    async def discard(self, database: DatabaseRef, *, mark: str, idle: bool = False) -> None:
        if not mark.startswith(SCRATCH):
            raise UserError(f"`{database}` is not discarded: the mark `{mark}` is not one of a scratch database.")
        async with self._connections.session(database.server) as connection:
            found = await _facts(connection, database.name)
            if found is None:
                return
            if found.mark != mark:
                raise UserError(
                    f"`{database}` is not discarded: its mark is `{found.mark or 'none'}`, not `{mark}`. "
                    "Look at it before you drop it by hand."
                )
            force = sql.SQL("") if idle else sql.SQL(" WITH (FORCE)")
            await connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {}{}").format(sql.Identifier(database.name), force)
            )

    async def loading_roles(self, server: str) -> Sequence[RoleFacts]:
        async with self._connections.session(server) as connection:
            return await loading_roles(connection)

    async def discard_role(self, server: str, name: str, *, mark: str) -> None:
        await discard_loading_role(self._connections, server, name, mark=mark)

    # ------------------------------------------------------------ closing, opening, swapping

    async def close(self, database: DatabaseRef) -> int:
        async with self._connections.session(database.server) as connection:
            await _existing(connection, database)
            await _refuse_prepared(connection, database)
            await _allow(connection, database.name, allowed=False)
            ended: set[int] = set()
            limit = time.monotonic() + CLOSE_LIMIT.total_seconds()
            while left := await _sessions(connection, database.name):
                if time.monotonic() > limit:
                    raise TemporaryError(
                        f"`{database}` is closed to new connections, but {len(left)} sessions did not end within "
                        f"{CLOSE_LIMIT.total_seconds():g} s: {', '.join(map(str, sorted(left)))}. Try again."
                    )
                ended |= left
                await connection.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) pid", [sorted(left)])
                await asyncio.sleep(0.05)
            return len(ended)

    async def open(self, database: DatabaseRef) -> None:
        async with self._connections.session(database.server) as connection:
            await _existing(connection, database)
            await _allow(connection, database.name, allowed=True)

    async def fencing(self, server: str) -> FenceFacts:
        async with self._connections.session(server) as connection:
            return await fencing(connection)

    async def fence(self, server: str) -> int:
        async with self._connections.session(server) as connection:
            return await fence(connection, server)

    async def unfence(self, server: str, *, closed: Sequence[str], limit: int) -> None:
        async with self._connections.session(server) as connection:
            await unfence(connection, server, closed=closed, limit=limit)

    async def pulse(self, server: str) -> Pulse:
        return await pulse(self._connections, server)

    async def clients(self, database: DatabaseRef, role: str, *, within: timedelta = timedelta(0)) -> int:
        async with self._connections.session(database.server) as connection:
            until = time.monotonic() + within.total_seconds()
            while True:
                (found,) = await _row(connection, CLIENTS, {"name": database.name, "role": role})
                if found or time.monotonic() >= until:
                    return int(found)
                await asyncio.sleep(CLIENTS_PAUSE.total_seconds())

    async def stopping(self, server: str) -> StopFacts:
        async with self._connections.session(server) as connection:
            return await stopping(connection)

    async def stop(self, server: str, *, started_at: datetime) -> None:
        async with self._connections.session(server) as connection:
            await stop(connection, server, started_at)

    async def swap(
        self, server: str, *, current: Named, replacement: Named, aside: str, mark: str, live_mark: str
    ) -> None:
        _check_name(aside)
        async with self._connections.session(server, autocommit=False) as connection:
            await connection.execute("SET LOCAL lock_timeout = '5s'")
            before = {facts.name: facts for facts in await _all_facts(connection, None)}
            _check_swap(before, current=current, replacement=replacement, aside=aside)
            try:
                await connection.execute(_rename(current.name, aside))
                await _allow(connection, aside, allowed=False)
                await _comment(connection, aside, mark)
                await connection.execute(_rename(replacement.name, current.name))
                await _allow(connection, current.name, allowed=True)
                await _comment(connection, current.name, live_mark)
            except psycopg.errors.ObjectInUse as error:
                raise PreconditionError([f"a session is in `{current.name}` or `{replacement.name}`"]) from error
            except (psycopg.errors.InvalidCatalogName, psycopg.errors.DuplicateDatabase) as error:
                raise PreconditionError(
                    [f"the databases were renamed meanwhile: {error.diag.message_primary}"]
                ) from error
            # Nobody else renames either of them before the end of this transaction.
            after = {facts.name: facts.oid for facts in await _all_facts(connection, None)}
            if after.get(aside) != current.oid or after.get(current.name) != replacement.oid:
                raise PreconditionError(["the databases were renamed by somebody else during the swap"])
            await connection.commit()


# ---------------------------------------------------------------- statements


async def _row(connection: AsyncConnection, query: str, values: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
    row = await (await connection.execute(query.encode(), values)).fetchone()
    if row is None:
        raise PermanentError("PostgreSQL gave no row where there is always one")
    return row


async def _all_facts(connection: AsyncConnection, name: str | None) -> list[DatabaseFacts]:
    rows = await (await connection.execute(FACTS, {"name": name})).fetchall()
    fields = ("name", "oid", "owner", "bytes", "allows_connections", "sessions", "mark")
    return [DatabaseFacts(**dict(zip(fields, row, strict=True))) for row in rows]


async def _facts(connection: AsyncConnection, name: str) -> DatabaseFacts | None:
    found = await _all_facts(connection, name)
    return found[0] if found else None


async def _existing(connection: AsyncConnection, database: DatabaseRef) -> DatabaseFacts:
    found = await _facts(connection, database.name)
    if found is None:
        raise UserError(f"Server `{database.server}` has no database `{database.name}`.")
    return found


async def _sessions(connection: AsyncConnection, name: str) -> set[int]:
    rows = await (
        await connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
            " AND backend_type <> 'autovacuum worker'",
            [name],
        )
    ).fetchall()
    return {row[0] for row in rows}


async def _refuse_prepared(connection: AsyncConnection, database: DatabaseRef) -> None:
    rows = await (
        await connection.execute("SELECT gid FROM pg_prepared_xacts WHERE database = %s ORDER BY 1", [database.name])
    ).fetchall()
    if rows:
        names = ", ".join(f"`{row[0]}`" for row in rows)
        raise UserError(
            f"`{database}` has prepared transactions that nothing ends by itself: {names}. "
            "Commit or roll them back (COMMIT PREPARED, ROLLBACK PREPARED), then try again."
        )


async def _check_owner(connection: AsyncConnection, owner: str) -> None:
    row = await (await connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [owner])).fetchone()
    if row is not None and row[0]:
        raise UserError(
            f"Role `{owner}` is a superuser and must not own a restored database. "
            "Name an unprivileged owner in the plan file."
        )


async def _allow(connection: AsyncConnection, name: str, *, allowed: bool) -> None:
    await connection.execute(
        sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(sql.Identifier(name), sql.Literal(allowed))
    )


async def _comment(connection: AsyncConnection, name: str, mark: str) -> None:
    await connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(mark)))


def _rename(name: str, new: str) -> sql.Composed:
    return sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(name), sql.Identifier(new))


def _check_name(name: str) -> None:
    size = len(name.encode())
    if not name or size > NAME_LIMIT or "\0" in name:
        raise UserError(f"`{name}` cannot name a database: {size} bytes, PostgreSQL takes 1 to {NAME_LIMIT}.")


def _check_swap(before: Mapping[str, DatabaseFacts], *, current: Named, replacement: Named, aside: str) -> None:
    both = (current, replacement)
    wrong = [f"there is no database `{name}`" for name, _ in both if name not in before]
    wrong += [
        f"`{name}` is another database now (oid {before[name].oid}, not {oid})"
        for name, oid in both
        if name in before and before[name].oid != oid
    ]
    if aside in before:
        wrong.append(f"there is already a database `{aside}`")
    wrong += [
        f"`{name}` has {before[name].sessions} sessions" for name, _ in both if name in before and before[name].sessions
    ]
    if wrong:
        raise PreconditionError(wrong)


def _free_bytes(directory: str, system_id: int) -> int | None:
    """Free bytes of the data directory's disk; None unless the directory on this machine is this very server's."""
    try:
        with (Path(directory) / "global" / "pg_control").open("rb") as stream:
            # A path alone proves nothing: the server may be elsewhere. pg_control begins with the system identifier.
            if struct.unpack("=Q", stream.read(8))[0] != system_id:
                return None
        return shutil.disk_usage(directory).free
    except (OSError, struct.error):
        return None
