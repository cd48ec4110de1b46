"""Connections of an administrator to the servers of the site and to scratch instances, and PostgreSQL's errors in our
words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from actions.adapters.postmaster import Postmaster, socket_directory
from actions.backup.physical import SCRATCH
from actions.backup.scratch_place import Claim, ScratchPlace
from actions.errors import UNKNOWN_NAME, PermanentError, RefusedError, TemporaryError, UserError
from actions.ports import Secrets
from actions.site import Server, Site

AsyncConnection = psycopg.AsyncConnection[TupleRow]

CONNECT_SECONDS = 5
# Ours alone: a database's or role's own settings must not change what we measure or stop what we do.
SESSION = (
    "-c application_name=drbot -c statement_timeout=0 -c lock_timeout=0 -c default_transaction_read_only=off "
    "-c idle_in_transaction_session_timeout=0 -c row_security=off -c client_encoding=UTF8"
)


class ServerConnections:
    """Opens connections to the servers of the site with the administrator's reference of each, and to the scratch
    instances in the directory `scratch`, which are servers called `scratch-<id>`."""

    def __init__(self, site: Site, secrets: Secrets, scratch: Path | None = None) -> None:
        self._site = site
        self._secrets = secrets
        self._scratch = scratch

    def server(self, name: str) -> Server:
        """Raise UserError when the plan file knows no such server, and there is no such scratch instance."""
        if self._scratch is not None and name.startswith(SCRATCH):
            source = self._site.servers.get(self._claimed(name)[1].server)
            return Server(name=name, admin_dsn="", tools=source.tools if source else "")
        if name not in self._site.servers:
            known = ", ".join(f"`{key}`" for key in sorted(self._site.servers)) or "none"
            raise RefusedError(f"The plan file knows no server `{name}`. Known: {known}.", code=UNKNOWN_NAME)
        return self._site.servers[name]

    async def parameters(self, server: str, database: str | None = None) -> dict[str, str]:
        """The libpq parameters, password included."""
        if self._scratch is not None and server.startswith(SCRATCH):
            return await asyncio.to_thread(self._of_scratch, server, database)
        entry = self.server(server)
        text = await self._secrets.resolve(entry.admin_dsn)
        try:
            parameters = {key: str(value) for key, value in conninfo_to_dict(text).items() if value is not None}
        except psycopg.ProgrammingError as error:
            raise UserError(f"`{entry.admin_dsn}` holds no valid connection string for server `{server}`.") from error
        parameters["dbname"] = database or parameters.get("dbname") or "postgres"
        parameters.setdefault("connect_timeout", str(CONNECT_SECONDS))
        return parameters

    def _claimed(self, server: str) -> tuple[ScratchPlace, Claim]:
        place = ScratchPlace(self._scratch or Path(), server.removeprefix(SCRATCH))
        claim = place.claim()
        if claim is None:
            raise UserError(f"There is no scratch instance `{place.folder.name}` on this machine. Restore it again.")
        return place, claim

    def _of_scratch(self, server: str, database: str | None) -> dict[str, str]:
        place, claim = self._claimed(server)
        found = Postmaster(place.data)
        port = found.port()
        if port is None or found.process() is None:
            raise TemporaryError(f"Scratch instance `{claim.id}` does not run. Start it first.")
        return {
            "host": str(socket_directory(place.folder.absolute())),
            "port": str(port),
            "user": claim.superuser,
            "dbname": database or "postgres",
            "connect_timeout": str(CONNECT_SECONDS),
        }

    @asynccontextmanager
    async def session(
        self, server: str, database: str | None = None, *, settings: str = "", autocommit: bool = True
    ) -> AsyncIterator[AsyncConnection]:
        """A session as administrator; errors inside the block leave it translated.

        Raises TemporaryError when the server does not answer, UserError when it refuses the login or the database.
        """
        parameters = await self.parameters(server, database)
        own = parameters.pop("options", "")
        parameters["options"] = " ".join(part for part in (own, SESSION, settings) if part)
        ref = self.server(server).admin_dsn
        try:
            connection = await psycopg.AsyncConnection.connect(make_conninfo(**parameters), autocommit=autocommit)
        except psycopg.OperationalError as error:
            raise _refused(server, database or parameters["dbname"], ref, error) from error
        try:
            yield connection
        except psycopg.Error as error:
            raise translated(server, error) from error
        finally:
            await connection.close()


def _refused(server: str, database: str, ref: str, error: psycopg.OperationalError) -> Exception:
    said = " ".join(str(error).split())
    if "starting up" in said or "shutting down" in said or "recovery mode" in said:
        return TemporaryError(f"Server `{server}` is starting or stopping. Try again in a moment.")
    if "not currently accepting connections" in said:
        return UserError(f"Database `{database}` on server `{server}` is closed: it does not accept connections.")
    if "database " in said and "does not exist" in said:
        return UserError(f"Server `{server}` has no database `{database}`.")
    if any(sign in said for sign in ("authentication failed", "no pg_hba.conf entry", "no password supplied", "role ")):
        return UserError(f"Server `{server}` refused the login of `{ref}`. Check the user and password behind it.")
    if "too many" in said or "remaining connection slots" in said:
        return TemporaryError(f"Server `{server}` has no free connection. Try again in a moment.")
    return TemporaryError(f"Server `{server}` does not answer. Check that it runs and can be reached from here.")


def translated(server: str, error: psycopg.Error) -> Exception:
    """The error of a statement in our tree. Text and SQLSTATE of PostgreSQL are kept, parameters are not in them."""
    said = (error.diag.message_primary or " ".join(str(error).split())).rstrip(".")
    code = error.sqlstate or ""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return UserError(f"The administrator of server `{server}` lacks a right: {said}.")
    if isinstance(error, psycopg.errors.LockNotAvailable | psycopg.errors.QueryCanceled | psycopg.errors.ObjectInUse):
        return TemporaryError(f"Server `{server}` could not do it in time: {said}. Try again in a moment.")
    if code[:2] == "53":  # out of disk, memory or connections
        return TemporaryError(f"Server `{server}` is out of resources: {said}.", retry_after=timedelta(seconds=30))
    if isinstance(error, psycopg.OperationalError) and (not code or code[:2] in ("57", "08")):
        return TemporaryError(f"Server `{server}` closed the connection: {said}. Check that it still runs.")
    return PermanentError(f"Server `{server}` answered {code or 'an error'}: {said}.")
