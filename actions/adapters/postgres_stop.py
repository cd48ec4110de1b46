"""Asking a server itself for a clean shutdown, over nothing but a connection of its administrator.

`COPY ... TO PROGRAM` runs a shell as a child of the backend, in the data directory. The shell sends SIGINT (a fast
shutdown) to the first line of `postmaster.pid`, and only when that process is the backend's own parent: so it can be no
other server, and no other program that has the number of a dead one. Nothing is put into its text.
"""

from __future__ import annotations

import asyncio
import re
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import make_conninfo

from actions.adapters.postgres_connections import AsyncConnection, ServerConnections
from actions.adapters.postgres_fence import fencing
from actions.errors import PermanentError, PreconditionError, TemporaryError, UserError
from actions.ports import Pulse, StopFacts

LIMIT = timedelta(seconds=30)

_SCRIPT = """
read -r first < postmaster.pid || exit 64
case $first in ""|*[!0-9]*) exit 64;; esac
parent=
if [ -r /proc/$PPID/status ]; then
  while read -r key value rest; do if [ "$key" = PPid: ]; then parent=$value; fi; done < /proc/$PPID/status
else
  parent=$(ps -o ppid= -p $PPID | tr -d " ")
fi
[ "$parent" = "$first" ] || exit 65
kill -INT "$first" || exit 66
"""
_SAID = {
    "64": "its `postmaster.pid` cannot be read",
    "65": "its `postmaster.pid` names another process than the one that answers here",
    "66": "its first process took no signal",
}

_FACTS = """
    SELECT coalesce((SELECT setting FROM pg_settings WHERE name = 'data_directory'), ''),
           coalesce(current_setting('shared_memory_type', true), '') = 'windows',
           pg_has_role(current_user, 'pg_execute_server_program', 'USAGE'),
           has_function_privilege('pg_ls_archive_statusdir()', 'EXECUTE')
             AND current_setting('archive_mode') <> 'off',
           ARRAY(SELECT coalesce(nullif(application_name, ''), 'pid ' || pid) FROM pg_stat_replication ORDER BY 1),
           (SELECT coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false)
              FROM pg_stat_archiver)
"""
_UNARCHIVED = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"


_WHERE = ("host", "hostaddr", "port", "connect_timeout")
# Whoever is there may see these: neither who we are nor what lets us in.
_NOBODY = {"sslmode": "prefer", "gssencmode": "disable", "dbname": "postgres", "user": "drbot", "password": "none"}


async def pulse(connections: ServerConnections, server: str) -> Pulse:
    """A server that knows us and one that refuses our login both answer."""
    parameters = await connections.parameters(server)
    anyhow = {key: parameters[key] for key in _WHERE if key in parameters} | _NOBODY
    return await asyncio.to_thread(
        _pulse, make_conninfo(**parameters).encode(), make_conninfo(**anyhow).encode(), server
    )


def _pulse(conninfo: bytes, anyhow: bytes, server: str) -> Pulse:
    said = pq.PGconn.ping(conninfo)
    if said == pq.Ping.OK:
        return Pulse.ANSWERS
    if said == pq.Ping.REJECT:
        return Pulse.REFUSES
    if said == pq.Ping.NO_ATTEMPT:
        raise UserError(
            f"The connection string of server `{server}` cannot be used. Correct what its `admin_dsn` names."
        )
    connection = pq.PGconn.connect(conninfo)
    try:
        if connection.status == pq.ConnStatus.OK:
            return Pulse.ANSWERS
        lines = [line for line in connection.error_message.decode(errors="replace").splitlines() if " failed: " in line]
    finally:
        connection.finish()
    # One line for each address that was tried. Only the machine itself says that nothing listens there.
    if lines and all("Connection refused" in line or "No such file or directory" in line for line in lines):
        return Pulse.SILENT
    # A certificate that is over, or TLS that only one side has, ends the way in before the server has said a word. It
    # takes writes all the same: whoever asks for no proof of who it is, and shows no password, is answered.
    return Pulse.REFUSES if pq.PGconn.ping(anyhow) in (pq.Ping.OK, pq.Ping.REJECT) else Pulse.UNREACHABLE


async def stopping(connection: AsyncConnection) -> StopFacts:
    row = await _row(connection, _FACTS)
    directory, windows, permitted, listed, followers, failing = row
    hindrance = ""
    if windows:
        hindrance = "it runs on Windows, where no signal can be sent to it"
    elif not permitted:
        hindrance = "the role of its `admin_dsn` is no superuser and has not `pg_execute_server_program`"
    return StopFacts(
        hindrance=hindrance,
        directory=directory,
        followers=tuple(followers),
        unarchived=int((await _row(connection, _UNARCHIVED))[0]) if listed else None,
        archiving_fails=failing,
    )


async def stop(connection: AsyncConnection, server: str, started_at: datetime) -> None:
    started, standby = await _row(connection, "SELECT pg_postmaster_start_time(), pg_is_in_recovery()")
    fence = await fencing(connection)
    wrong = [
        *([] if started == started_at else [f"`{server}` was started at {started}, looked at was one of {started_at}"]),
        *([f"`{server}` is a standby"] if standby else []),
        *([] if fence.read_only and not fence.open else [f"`{server}` is not closed"]),
    ]
    if wrong:
        raise PreconditionError(wrong)
    asked = sql.SQL("COPY (SELECT 1 WHERE false) TO PROGRAM {}").format(sql.Literal(_SCRIPT))
    try:
        async with asyncio.timeout(LIMIT.total_seconds()):
            await connection.execute(asked)
    except TimeoutError as error:
        raise TemporaryError(f"`{server}` did not carry out a program within {LIMIT.total_seconds():g} s.") from error
    except psycopg.errors.ExternalRoutineException as error:
        # Its own end may have taken the program along. One that lives on was not asked.
        if await _lives(connection):
            raise PermanentError(f"`{server}` could not be asked to shut down: {_why(error)}.") from error
    except psycopg.OperationalError:
        # The connection went with the server; what is found of it decides.
        if await _lives(connection):
            raise


async def _lives(connection: AsyncConnection) -> bool:
    try:
        async with asyncio.timeout(LIMIT.total_seconds()):
            await connection.execute("SELECT 1")
    except (psycopg.Error, TimeoutError):
        return False
    return True


def _why(error: psycopg.Error) -> str:
    said = (error.diag.message_detail or "its program failed").rstrip(".")
    number = re.search(r"\b(6[4-6])\b", said)
    return said if number is None else _SAID[number[1]]


async def _row(connection: AsyncConnection, query: str) -> tuple[Any, ...]:
    row = await (await connection.execute(query.encode())).fetchone()
    if row is None:
        raise PermanentError("PostgreSQL gave no row where there is always one")
    return row
