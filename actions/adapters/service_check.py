"""What the application's users would see: its HTTP check, and its own connection to its database."""

from __future__ import annotations

from datetime import timedelta

import aiohttp
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from actions.errors import UserError
from actions.ports import DatabaseRefSeen, Secrets, ServiceCheck
from actions.site import SecretRef

LIMIT = timedelta(seconds=5)
OURS = "drbot"
"""So that a session of this check is never taken for one of the application."""


class ServiceProbe(ServiceCheck):
    """Asks once; waiting and repeating is the step's."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    async def http(self, url: str) -> str | None:
        timeout = aiohttp.ClientTimeout(total=LIMIT.total_seconds())
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
                if 200 <= answer.status < 300:
                    return None
                said = " ".join((await answer.content.read(400)).decode("utf-8", "replace").split())[:200]
                return f"`{url}` answered {answer.status}: {said or 'nothing'}"
        except TimeoutError:
            return f"`{url}` gave no answer within {LIMIT.total_seconds():g} s"
        except (aiohttp.ClientError, ValueError) as error:
            return f"`{url}` cannot be reached: {error}"

    async def connection(self, dsn: SecretRef, *, at: str = "") -> DatabaseRefSeen | str:
        try:
            text = moved(await self._secrets.resolve(dsn), at)
        except UserError as error:
            return str(error)
        except psycopg.ProgrammingError:
            return f"`{dsn}` holds no valid connection string"
        seconds = int(LIMIT.total_seconds())
        try:
            connection = await psycopg.AsyncConnection.connect(
                text, connect_timeout=seconds, autocommit=True, application_name=OURS
            )
        except psycopg.Error as error:
            return f"the application's connection `{dsn}` was refused: {_said(error)}"
        try:
            async with connection:
                await connection.execute(f"SET statement_timeout = '{seconds}s'".encode())
                # pg_control_system() may be called by everybody (PostgreSQL 9.6 and newer).
                row = await (
                    await connection.execute(
                        "SELECT d.datname, d.oid::int8, (SELECT system_identifier::text FROM pg_control_system()),"
                        " pg_is_in_recovery() FROM pg_database d WHERE d.datname = current_database()"
                    )
                ).fetchone()
        except psycopg.Error as error:
            return f"the application's connection `{dsn}` broke: {_said(error)}"
        if row is None:
            return f"the application's connection `{dsn}` reached a server that does not name its database"
        return DatabaseRefSeen(name=row[0], oid=row[1], system_id=row[2], in_recovery=row[3])

    async def login(self, dsn: SecretRef) -> str:
        try:
            return str(conninfo_to_dict(await self._secrets.resolve(dsn)).get("user") or "")
        except (UserError, psycopg.ProgrammingError):
            return ""


def moved(text: str, at: str) -> str:
    """The connection string, with this address instead of its own. Raises psycopg.ProgrammingError."""
    if not at:
        return text
    host, separator, port = at.rpartition(":")
    there = {"host": host, "port": port} if separator else {"host": at}
    kept = {name: str(value) for name, value in conninfo_to_dict(text).items() if name != "hostaddr"}
    return make_conninfo(**{**kept, **there})


def _said(error: psycopg.Error) -> str:
    """PostgreSQL's words without the connection string, which psycopg never puts there."""
    return " ".join(str(error).split())[:300]
