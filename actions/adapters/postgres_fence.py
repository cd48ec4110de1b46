"""Keeping everybody but administrators from writing to a server, durably, without touching its data."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta

from psycopg import sql

from actions.adapters.postgres_connections import AsyncConnection
from actions.errors import PermanentError, TemporaryError, UserError
from actions.ports import COMES_BACK, FenceFacts

LIMIT = timedelta(seconds=30)
CLIENT = "client backend"

# Whatever is in a database can write, a worker of a subscription too. Standbys and archivers are in none or only read.
_OTHERS = """
    SELECT a.pid, a.datname, a.backend_type FROM pg_stat_activity a
     WHERE a.datid IS NOT NULL AND a.pid <> pg_backend_pid()
       AND a.backend_type NOT IN ('autovacuum worker', 'walsender', 'parallel worker')
       AND NOT (a.application_name = 'drbot' AND a.usesysid IN (SELECT oid FROM pg_roles WHERE rolsuper))
"""
_STATE = """
    SELECT current_database(), (SELECT datconnlimit FROM pg_database WHERE datname = current_database()),
           ARRAY(SELECT datname::text FROM pg_database WHERE NOT datistemplate AND datname <> current_database()
                    AND datallowconn ORDER BY datname),
           (SELECT setting FROM pg_file_settings WHERE name = 'default_transaction_read_only' AND applied
             ORDER BY seqno DESC LIMIT 1)
"""


async def fencing(connection: AsyncConnection) -> FenceFacts:
    row = await (await connection.execute(_STATE.encode())).fetchone()
    if row is None:
        raise PermanentError("PostgreSQL gave no row where there is always one")
    home, limit, opened, read_only = row
    others = await _others(connection)
    return FenceFacts(
        read_only=read_only == "on",
        open=tuple(opened) if limit == 0 else (home, *opened),
        sessions=len(others),
        workers=tuple(sorted({_shown(kind, name) for _, name, kind in others if kind != CLIENT})),
        home=home,
        limit=limit,
    )


async def fence(connection: AsyncConnection, server: str) -> int:
    await _writable(connection, server)
    facts = await fencing(connection)
    await connection.execute("ALTER SYSTEM SET default_transaction_read_only = 'on'")
    await connection.execute("SELECT pg_reload_conf()")
    for name in facts.open:
        # An administrator must still get in somewhere, to take it back; the limit does not hold for superusers.
        words = "CONNECTION LIMIT 0" if name == facts.home else "ALLOW_CONNECTIONS false"
        await connection.execute(sql.SQL("ALTER DATABASE {} " + words).format(sql.Identifier(name)))
    ended: set[int] = set()
    first = {pid for pid, _, _ in await _others(connection)}
    until = time.monotonic() + LIMIT.total_seconds()
    while left := await _others(connection):
        if time.monotonic() > until:
            raise does_not_hold(server, left, first)
        pids = [pid for pid, _, _ in left]
        ended |= set(pids)
        await connection.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) pid", [pids])
        await asyncio.sleep(0.05)
    return len(ended)


def does_not_hold(server: str, left: list[tuple[int, str, str]], first: set[int]) -> PermanentError | TemporaryError:
    """Why it is not fenced, and what to do. `left`: pid, database and kind of those that are there; `first`: pids that
    were there from the beginning."""
    back = sorted({_shown(kind, name) for pid, name, kind in left if pid not in first})
    stayed = sorted(f"{_shown(kind, name)} (pid {pid})" for pid, name, kind in left if pid in first)
    parts = [f"{', '.join(back)} came back each time it was ended"] if back else []
    parts += [f"{', '.join(stayed)} did not end within {LIMIT.total_seconds():g} s"] if stayed else []
    said = f"`{server}` is closed to people, and not fenced: {', and '.join(parts)}."
    if any(kind != CLIENT for _, _, kind in left):
        said = f"{said} {COMES_BACK}"
    else:
        said = f"{said} It is a superuser's: find its program in `pg_stat_activity`, and stop it."
    # What comes back would do so at every further try, and applications are stopped meanwhile.
    return PermanentError(said) if back else TemporaryError(said)


def _shown(kind: str, database: str) -> str:
    return f"`{kind}` in `{database}`"


async def unfence(connection: AsyncConnection, server: str, *, closed: Sequence[str], limit: int) -> None:
    await _writable(connection, server)
    facts = await fencing(connection)
    rows = await (
        await connection.execute(
            "SELECT datname::text FROM pg_database WHERE NOT datistemplate AND NOT datallowconn ORDER BY datname"
        )
    ).fetchall()
    for (name,) in rows:
        if name not in closed:
            await connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(name)))
    if facts.limit != limit:
        await connection.execute(
            sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(sql.Identifier(facts.home), sql.Literal(limit))
        )
    if facts.read_only:
        await connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await connection.execute("SELECT pg_reload_conf()")


async def _writable(connection: AsyncConnection, server: str) -> None:
    row = await (await connection.execute("SELECT pg_is_in_recovery()")).fetchone()
    if row is None or row[0]:
        raise UserError(f"`{server}` is a standby: it cannot be closed there. Find the primary that it follows.")


async def _others(connection: AsyncConnection) -> list[tuple[int, str, str]]:
    return [(pid, name, kind) for pid, name, kind in await (await connection.execute(_OTHERS.encode())).fetchall()]
