"""Connections to the bot's own PostgreSQL: sessions, migrations, and the NOTIFY that wakes the other processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import psycopg
from psycopg import sql
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import QueuePool

from actions.errors import PermanentError, TemporaryError, UserError
from storage import migrations, roles
from storage.roles import DatabaseRole

CHANNEL = "drbot"
"""One NOTIFY channel; the payload says which queue has something: request, signature, run, outbox."""


SILENT = "10s"
"""How long a transaction may hold its locks without a word. They would outlive any lease: a process that is frozen in
the middle of one would keep everybody else from taking its work over."""


class Mask(Protocol):
    """Takes secrets out of what is stored for people to read."""

    def tree(self, value: Any, /) -> Any: ...


class NotAllowedError(PermanentError):
    """The process wanted something that its database role may not do."""


class Database:
    """The bot's own database. `url` is any PostgreSQL URL or libpq connection string. With a `role` every connection
    works as that role, whatever its login may do besides. Sentences go through the `mask` (`readable`)."""

    def __init__(
        self, url: str, *, role: DatabaseRole | None = None, pool_size: int = 10, mask: Mask | None = None
    ) -> None:
        self.role = role
        self._mask = mask
        self.url = url
        self._conninfo = psycopg.conninfo.make_conninfo(_plain(url))
        self.engine: AsyncEngine = create_async_engine(
            "postgresql+psycopg://",
            pool_size=pool_size,
            max_overflow=10,
            pool_pre_ping=True,
            async_creator=self._connect,
        )

    async def _connect(self) -> psycopg.AsyncConnection[tuple[object, ...]]:
        connection = await psycopg.AsyncConnection.connect(self._conninfo, connect_timeout=5, autocommit=True)
        try:
            await connection.execute(
                sql.SQL("SET idle_in_transaction_session_timeout = {}").format(sql.Literal(SILENT))
            )
            if self.role is not None:
                await self._become(connection, self.role)
            await connection.set_autocommit(False)
        except BaseException:  # who was cancelled here would leave it open: the pool does not know it yet
            await connection.close()
            raise
        return connection

    async def _become(self, connection: psycopg.AsyncConnection[tuple[object, ...]], role: DatabaseRole) -> None:
        try:
            await connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue) as error:
            login = connection.info.user
            raise UserError(
                f"The login `{login}` of the bot's own database is no member of `{role}`; "
                f"run `drbot migrate` as the owner, then `GRANT {role} TO {login}`."
            ) from error

    def acting_as(self, role: DatabaseRole, *, pool_size: int = 10) -> Database:
        """The same database with the rights of one process."""
        return Database(self.url, role=role, pool_size=pool_size, mask=self._mask)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """One transaction: committed at the end, rolled back on any error. Raises TemporaryError when the database is
        away; then nothing of the transaction has happened, unless it was cut in its COMMIT. Raises NotAllowedError for
        what the role may not do."""
        try:
            async with AsyncSession(self.engine, expire_on_commit=False) as session, session.begin():
                session.info["mask"] = self._mask
                yield session
        except (OperationalError, InterfaceError, psycopg.OperationalError, OSError) as error:
            raise TemporaryError("The bot's own database does not answer.") from error
        except InternalError as error:
            if not isinstance(error.orig, psycopg.errors.IdleInTransactionSessionTimeout):
                raise
            raise TemporaryError(f"This process said nothing for {SILENT}, and its transaction was ended.") from error
        except ProgrammingError as error:
            if self.role is None or not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
                raise
            said = error.orig.diag.message_primary
            raise NotAllowedError(f"The database role `{self.role}` may not do this: {said}.") from error

    async def migrate(self) -> None:
        """Bring the schema and the rights of the processes to this version of the bot. Raises UserError when the login
        may not."""
        try:
            async with self.engine.begin() as connection:
                # One migrating process at a time; the others wait here and then find nothing to do.
                await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('drbot migrate'))"))
                if await connection.run_sync(_revision) != migrations.NEWEST:
                    await connection.run_sync(_upgrade)
                await connection.run_sync(roles.bring)
        except ProgrammingError as error:
            if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
                raise
            said = error.orig.diag.message_primary
            raise UserError(
                f"The login of DATABASE_URL may not migrate the bot's own database ({said}); "
                "use one that owns the database and has CREATEROLE, or give the process its own URL "
                "(docs/howto/database-logins.md)."
            ) from error

    async def require_newest(self) -> None:
        """Raise UserError when the schema is not this version's; a process that does not own it cannot migrate it."""
        async with self.session() as session:
            connection = await session.connection()
            found = await connection.run_sync(_revision)
        if found != migrations.NEWEST:
            raise UserError(
                f"The schema of the bot's own database is at revision {found}, this version needs {migrations.NEWEST}; "
                "run `drbot migrate` with the owner's DATABASE_URL."
            )

    async def listen(self, wake: Callable[[str], None]) -> None:
        """Call `wake(queue)` at each NOTIFY, and `wake("")` after each (re)connection: some may have been lost."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
                    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
                    wake("")
                    async for notification in connection.notifies():
                        wake(notification.payload)
            except psycopg.OperationalError:
                await asyncio.sleep(1)

    async def ready(self) -> None:
        """Raise TemporaryError when the database does not answer within 5 s."""
        try:
            async with asyncio.timeout(5), self.engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        except (OperationalError, InterfaceError, OSError, TimeoutError) as error:
            raise TemporaryError("The bot's own database does not answer; start it or correct DATABASE_URL.") from error

    async def dispose(self) -> None:
        """Close every connection. One of somebody who was cancelled may still be on its way back to the pool, where
        nobody would close it any more: it is waited for, a second at most."""
        pool = self.engine.pool
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while isinstance(pool, QueuePool) and pool.checkedout():  # noqa: ASYNC110 - the pool tells nobody
                    await asyncio.sleep(0.01)
        await self.engine.dispose()


def readable(session: AsyncSession, value: Any) -> Any:
    """A text, or a structure of texts, as it is stored for people: without the secrets of this process."""
    mask: Mask | None = session.info.get("mask")
    return value if mask is None else mask.tree(value)


async def notify(session: AsyncSession, queue: str) -> None:
    """Wake the others when this transaction commits."""
    await session.execute(text("SELECT pg_notify(:channel, :queue)"), {"channel": CHANNEL, "queue": queue})


def _plain(url: str) -> str:
    if "://" not in url:
        return url
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _upgrade(connection: Connection) -> None:
    # Only now: its import takes a tenth of a start, and hardly any start has something to migrate.
    from alembic import command

    config = migrations.config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return found
