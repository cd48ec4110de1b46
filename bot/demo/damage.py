"""Real harm to the demo's production database, of three kinds."""

from __future__ import annotations

from collections.abc import Mapping

import psycopg

from bot.demo.choices import Damage

# `replica` switches triggers and foreign keys off, as a broken migration run by an administrator would.
_UNGUARDED = "SET LOCAL session_replication_role = replica"
_SCRAMBLE_USERS = "UPDATE users SET email = md5(email), name = reverse(name)"
_SCRAMBLE_ORDERS = """
    UPDATE orders SET total_cents = 0, note = md5(note)
    WHERE placed_at > (SELECT max(placed_at) FROM orders) - interval '31 days'
"""

_STATEMENTS: Mapping[Damage, tuple[tuple[str, str], ...]] = {
    Damage.CORRUPT: (
        (_SCRAMBLE_USERS, "{rows:,} rows of `users`: e-mail addresses replaced by hashes, names reversed"),
        (_SCRAMBLE_ORDERS, "{rows:,} rows of `orders` (the newest 31 days): totals set to 0"),
    ),
    Damage.DROP_TABLE: (
        ("DROP TABLE documents CASCADE", "the table `documents` is dropped, with all that depended on it"),
    ),
    Damage.DELETE_ROWS: (
        ("DELETE FROM users WHERE id % 5 <> 0", "{rows:,} rows of `users` deleted, their orders point at nobody"),
    ),
}


async def do_damage(dsn: str, kind: Damage) -> tuple[str, ...]:
    """Harm the database that `dsn` (an administrator's) leads to; one sentence for each thing that was done.

    All of it or nothing is committed. Raises psycopg.Error, for example when the harm is done already.
    """
    done = []
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute(_UNGUARDED)
        for statement, sentence in _STATEMENTS[kind]:
            cursor = await connection.execute(statement.encode())
            done.append(sentence.format(rows=cursor.rowcount))
    return tuple(done)
