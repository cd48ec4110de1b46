"""The demo's production database: users, orders by month, documents with text, an audit log.

Made by the server itself, table by table in two sessions. With `wal_level = minimal` what is written to a table in
the transaction that made it needs no WAL (PostgreSQL 18 documentation, section 14.4.7), which is most of the speed.
The content follows from the row numbers, so two data sets of one size and one `until` are equal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources

import psycopg
from psycopg import sql

from bot.demo.choices import Size

DATABASE = "superprismora"
OWNER = "superprismora_owner"
APPLICATION = "superprismora_app"
REPORTING = "superprismora_reporting"
LOADING = {"wal_level": "minimal", "max_wal_senders": "0", "summarize_wal": "off"}
"""Settings of the server while `fill` runs."""

# A session's share: order_items is as much work as everything beside it.
_SESSIONS = (("users", "orders", "audit_log"), ("documents", "order_items"))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How many rows the tables get at first."""

    users: int
    orders: int
    documents: int
    audit: int

    @classmethod
    def of(cls, size: Size) -> Rows:
        thousands = {Size.TINY: 1, Size.SMALL: 270, Size.LARGE: 810, Size.HUGE: 2700}[size]
        return cls(
            users=1000 * thousands,
            orders=6000 * thousands,
            documents=1000 * thousands,
            audit=2000 * thousands,
        )


async def make_roles(dsn: str, *, password: str) -> None:
    """The roles of the application on a server: owner (may not log in), application with its password, reporting.

    `dsn` is an administrator's. Roles that exist are kept; the application's password is set in any case.
    """
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute("SELECT rolname FROM pg_roles")
        known = {row[0] for row in await cursor.fetchall()}
        for role in (OWNER, APPLICATION, REPORTING):
            if role not in known:
                await connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(role)))
        # PostgreSQL takes no parameters here; the client hashes, so that the password itself is in no server log.
        hashed = connection.pgconn.encrypt_password(password.encode(), APPLICATION.encode(), b"scram-sha-256").decode()
        statement = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(APPLICATION), sql.Literal(hashed))
        await connection.execute(statement)


async def fill(dsn: str, target: str, *, size: Size, until: datetime | None = None) -> None:
    """Create the database and all its rows. `dsn` is an administrator's, to any database; `target` to the new one.

    `until` is the moment of the newest order, by default now. The roles must exist (`make_roles`).
    """
    rows = Rows.of(size)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        names = {"name": sql.Identifier(DATABASE), "owner": sql.Identifier(OWNER)}
        await connection.execute(sql.SQL("CREATE DATABASE {name} OWNER {owner} TEMPLATE template0").format(**names))
        await connection.execute(sql.SQL("ALTER DATABASE {name} SET timezone = 'UTC'").format(**names))
        for statement in ("REVOKE ALL ON DATABASE {name} FROM PUBLIC", "GRANT CONNECT ON DATABASE {name} TO {role}"):
            for role in (APPLICATION, REPORTING):
                await connection.execute(sql.SQL(statement).format(name=names["name"], role=sql.Identifier(role)))
        # `orders` has its rows spread over about a year.
        settings = {
            "demo.until": (until or datetime.now(UTC)).isoformat(),
            "demo.order_every": f"{timedelta(days=360) / timedelta(milliseconds=rows.orders)} milliseconds",
            **{f"demo.{name}": str(value) for name, value in vars(rows).items()},
        }
    await asyncio.gather(*(_session(target, files, settings) for files in _SESSIONS))
    await _session(target, ("finish",), settings)
    async with await psycopg.AsyncConnection.connect(target, autocommit=True) as connection:
        await connection.execute("VACUUM (ANALYZE)")


async def _session(dsn: str, files: Sequence[str], settings: dict[str, str]) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(OWNER)))
        await connection.execute("SELECT setseed(0.42)")
        await connection.execute("SET maintenance_work_mem = '256MB'")
        for name, value in settings.items():
            await connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        for name in files:
            text = resources.files("bot.demo").joinpath("sql", f"{name}.sql").read_bytes()
            async with connection.transaction():
                # Bytes are taken as they are; the files hold `%` and no parameters.
                await connection.execute(text)
