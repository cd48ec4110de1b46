"""What the demo's application does with its database, and those of its processes that serve nobody.

    python -m bot.demo.shop work                    the pod of superprismora-worker: an order every few seconds
    python -m bot.demo.shop close-day               the CronJob: a line in the audit log

They know nothing of the bot. Their configuration are DATABASE_HOST (also as host:port), DATABASE_PORT, DATABASE_NAME,
DATABASE_USER and DATABASE_PASSWORD. They change no row that somebody else made. Without the web server, which takes
half of a start to import: the pods of the demo start often.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

PATIENCE_S = 3
WORK_EVERY_S = 2.0

_NEWEST = """
    SELECT count(*) AS seen, count(*) FILTER (WHERE position('@' IN email) = 0) AS unusable,
        max(id) - min(id) + 1 AS ids, (SELECT max(id) FROM orders), (SELECT max(id) FROM documents)
    FROM (SELECT id, email FROM users ORDER BY id DESC LIMIT 2000) AS newest
"""
_PLACE = """
    WITH placed AS (
        INSERT INTO orders (user_id, total_cents, note) VALUES (%(user)s, %(cents)s, %(note)s) RETURNING id, placed_at
    ), item AS (
        INSERT INTO order_items (order_id, line, placed_at, product_id, quantity, price_cents)
        SELECT id, 1, placed_at, %(product)s, 1, %(cents)s FROM placed
    )
    SELECT id FROM placed
"""


def dsn_of(environment: Mapping[str, str]) -> str:
    """The connection string out of the DATABASE_ variables. Raises KeyError when one is missing."""
    host, _, port = environment["DATABASE_HOST"].partition(":")
    return make_conninfo(
        host=host,
        port=port or environment.get("DATABASE_PORT", "5432"),
        dbname=environment["DATABASE_NAME"],
        user=environment["DATABASE_USER"],
        password=environment["DATABASE_PASSWORD"],
        connect_timeout=PATIENCE_S,
        application_name="superprismora",
        # A session that hangs would keep the page hanging.
        options=f"-c statement_timeout={PATIENCE_S}s",
    )


class Shop:
    """What the application does with its database, one connection for each question."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    async def rows(self, query: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        async with (
            await psycopg.AsyncConnection.connect(self._dsn, row_factory=dict_row) as connection,
            connection.cursor() as cursor,
        ):
            await cursor.execute(query, values)
            return await cursor.fetchall()

    async def trouble(self) -> str | None:
        """One sentence saying why the application cannot work, or None."""
        try:
            (newest,) = await self.rows(_NEWEST)
        except psycopg.Error as error:
            reason = str(error).strip().partition("\n")[0]
            return f"the database does not answer: {reason}"
        if newest["unusable"]:
            return f"{newest['unusable']} of the {newest['seen']} newest users have no usable e-mail address"
        # Of the newest alone, too: it is asked several times a second, and the users are many.
        if not newest["seen"]:
            return "there are no users"
        if newest["seen"] < 0.9 * newest["ids"]:
            return f"only {newest['seen']} of the {newest['ids']} newest users are left"
        return None

    async def place_order(self, *, user: int, cents: int, product: int = 1, note: str | None = None) -> int:
        placed = await self.rows(_PLACE, {"user": user, "cents": cents, "product": product, "note": note})
        return int(placed[0]["id"])


async def _work(shop: Shop, stop: asyncio.Event) -> None:
    """An order every `WORK_EVERY_S` seconds; a database that is away is waited for."""
    while not stop.is_set():
        try:
            placed = await shop.place_order(
                user=random.randint(1, 1000),  # noqa: S311 - no secret
                cents=random.randint(500, 90000),  # noqa: S311
                product=random.randint(1, 1000),  # noqa: S311
                note="placed by the worker",
            )
            say(f"placed order {placed}")
        except psycopg.Error as error:
            say(f"no order placed: {str(error).strip()}")
        try:
            async with asyncio.timeout(WORK_EVERY_S):
                await stop.wait()
        except TimeoutError:
            continue


async def _close_day(shop: Shop) -> None:
    (row,) = await shop.rows(
        "INSERT INTO audit_log (what, detail) SELECT 'closed the day', jsonb_build_object('newest order', max(id)) "
        "FROM orders RETURNING id"
    )
    say(f"closed the day, audit line {row['id']}")


def stopping() -> asyncio.Event:
    """What is set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def _main(what: str) -> None:
    shop = Shop(dsn_of(os.environ))
    if what == "work":
        await _work(shop, stopping())
    else:
        await _close_day(shop)


def main() -> None:
    parser = argparse.ArgumentParser(prog="superprismora")
    parser.add_argument("what", choices=("work", "close-day"))
    asyncio.run(_main(parser.parse_args().what))


if __name__ == "__main__":
    main()
