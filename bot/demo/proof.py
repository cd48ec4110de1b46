"""Whether the data of a moment is there again, asked of PostgreSQL itself and not of the bot.

The application goes on writing, but it changes no row it did not make. So every table has a mark (its highest key
at the moment), and what lies up to the mark must be the same for ever: as many rows, with the same content.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import psycopg
from psycopg import sql

KEYS: Mapping[str, str] = {
    "users": "id",
    "products": "id",
    "orders": "id",
    "order_items": "order_id",
    "documents": "id",
    "audit_log": "id",
}

Marks = Mapping[str, int]
Proof = Mapping[str, str]
"""Of each table "rows:hash", or the sentence why it cannot be read."""


async def marks(dsn: str, *, without: str = "") -> Marks:
    """The highest key of every table but this one."""
    found: dict[str, int] = {}
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        for table, key in ((table, key) for table, key in KEYS.items() if table != without):
            query = sql.SQL("SELECT coalesce(max({key}), 0) FROM {table}")
            cursor = await connection.execute(query.format(key=sql.Identifier(key), table=sql.Identifier(table)))
            row = await cursor.fetchone()
            found[table] = int(row[0]) if row else 0
    return found


async def prove(dsn: str, upto: Marks) -> Proof:
    """Rows and content of every table up to its mark. Reads everything: seconds for a gigabyte."""
    names = list(upto)
    values = await asyncio.gather(*(_table(dsn, name, upto[name]) for name in names))
    return dict(zip(names, values, strict=True))


async def _table(dsn: str, table: str, mark: int) -> str:
    # A sum does not depend on the order the rows are read in, so PostgreSQL may read with several workers.
    query = sql.SQL(
        "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) FROM {table} AS t WHERE {key} <= %s"
    )
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute("SET timezone = 'UTC'")
        try:
            statement = query.format(table=sql.Identifier(table), key=sql.Identifier(KEYS[table]))
            cursor = await connection.execute(statement, [mark])
        except psycopg.errors.UndefinedTable:
            return "there is no such table"
        row = await cursor.fetchone()
    return f"{row[0]}:{row[1]}" if row else ""
