"""The demo's application: a small web service over the production database, and the worker beside it.

    python -m bot.demo.webapp serve --port 8080     the pods of superprismora-api
    python -m bot.demo.webapp work                  the pod of superprismora-worker: an order every few seconds
    python -m bot.demo.webapp close-day             the CronJob: a line in the audit log

It knows nothing of the bot. Its configuration are DATABASE_HOST (also as host:port), DATABASE_PORT, DATABASE_NAME,
DATABASE_USER and DATABASE_PASSWORD. It changes no row that somebody else made.
"""

from __future__ import annotations

import argparse
import asyncio
import html
import json
import os
import random
import signal
import sys
from collections.abc import Mapping
from typing import Any

import psycopg
from aiohttp import web
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

PATIENCE_S = 3
WORK_EVERY_S = 2.0

_NEWEST = """
    SELECT count(*) AS seen, count(*) FILTER (WHERE position('@' IN email) = 0) AS unusable,
        max(id) - min(id) + 1 AS ids, (SELECT max(id) FROM orders), (SELECT max(id) FROM documents)
    FROM (SELECT id, email FROM users ORDER BY id DESC LIMIT 2000) AS newest
"""
_COUNTS = "SELECT (SELECT count(*) FROM users) AS users, (SELECT max(id) FROM orders) AS newest_order"
_NEWEST_ORDERS = """
    SELECT orders.id, users.name, users.email, orders.total_cents, orders.status, orders.placed_at
    FROM orders JOIN users ON users.id = orders.user_id ORDER BY orders.id DESC LIMIT 15
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


SHOP: web.AppKey[Shop] = web.AppKey("shop", Shop)


def application(shop: Shop) -> web.Application:
    """The routes of the web service."""
    app = web.Application()
    app[SHOP] = shop
    app.router.add_get("/", _page)
    app.router.add_get("/readyz", _ready)
    app.router.add_get("/healthz", _health)
    app.router.add_get("/orders", _orders)
    app.router.add_post("/orders", _new_order)
    app.router.add_get("/users/{id:[0-9]+}", _user)
    app.router.add_post("/users", _new_user)
    return app


async def _ready(_: web.Request) -> web.Response:
    # Of this process alone: a pod that is taken away for its database's trouble could not tell people of it.
    return web.Response(text="ready\n")


async def _health(request: web.Request) -> web.Response:
    trouble = await request.app[SHOP].trouble()
    if trouble is None:
        return web.Response(text="ok\n")
    return web.Response(status=503, text=f"superprismora does not work: {trouble}\n")


async def _orders(request: web.Request) -> web.Response:
    return web.json_response(await request.app[SHOP].rows(_NEWEST_ORDERS), dumps=_dumps)


async def _new_order(request: web.Request) -> web.Response:
    body = await _body(request, user=int, total_cents=int)
    placed = await request.app[SHOP].place_order(user=body["user"], cents=body["total_cents"])
    return web.json_response({"id": placed}, status=201)


async def _user(request: web.Request) -> web.Response:
    query = "SELECT id, email, name, country, created_at FROM users WHERE id = %(id)s"
    found = await request.app[SHOP].rows(query, {"id": int(request.match_info["id"])})
    if not found:
        raise web.HTTPNotFound(text="there is no such user\n")
    return web.json_response(found[0], dumps=_dumps)


async def _new_user(request: web.Request) -> web.Response:
    body = await _body(request, email=str, name=str)
    query = "INSERT INTO users (email, name, country) VALUES (%(email)s, %(name)s, 'SE') RETURNING id"
    try:
        (made,) = await request.app[SHOP].rows(query, body)
    except psycopg.errors.UniqueViolation as error:
        raise web.HTTPConflict(text="somebody has this address already\n") from error
    return web.json_response(made, status=201)


async def _page(request: web.Request) -> web.Response:
    shop = request.app[SHOP]
    trouble = await shop.trouble()
    if trouble is not None:
        content = f"<p class=bad>{html.escape(trouble)}</p>"
    else:
        (counts,) = await shop.rows(_COUNTS)
        lines = "".join(
            f"<tr><td>{order['id']}<td>{html.escape(order['name'])}<td>{html.escape(order['email'])}"
            f"<td class=n>{order['total_cents'] / 100:,.2f}<td>{order['status']}"
            f"<td>{order['placed_at']:%Y-%m-%d %H:%M:%S} UTC"
            for order in await shop.rows(_NEWEST_ORDERS)
        )
        content = (
            f"<p>{counts['users']:,} users, newest order {counts['newest_order']:,}</p>"
            f"<table><tr><th>Order<th>Customer<th>Address<th>Total<th>State<th>Placed{lines}</table>"
        )
    return web.Response(
        text=_FRAME.format(content=content), content_type="text/html", status=200 if not trouble else 503
    )


_FRAME = """<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=2>
<title>superprismora</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}td,th{{text-align:left;
padding:.2rem .8rem .2rem 0}}.n{{text-align:right}}.bad{{background:#b00020;color:#fff;padding:1rem}}</style>
<h1>superprismora</h1>{content}"""


async def _body(request: web.Request, **wanted: type) -> dict[str, Any]:
    try:
        body = await request.json()
        return {name: kind(body[name]) for name, kind in wanted.items()}
    except (ValueError, KeyError, TypeError) as error:
        names = ", ".join(f"`{name}`" for name in wanted)
        raise web.HTTPBadRequest(text=f"send JSON with {names}\n") from error


def _dumps(value: Any) -> str:
    return json.dumps(value, default=str)


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
            _say(f"placed order {placed}")
        except psycopg.Error as error:
            _say(f"no order placed: {str(error).strip()}")
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
    _say(f"closed the day, audit line {row['id']}")


async def _serve(shop: Shop, port: int, stop: asyncio.Event) -> None:
    runner = web.AppRunner(application(shop), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        _say(f"serving on 127.0.0.1:{port}")
        await stop.wait()
    finally:
        await runner.cleanup()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def _main(arguments: argparse.Namespace) -> None:
    shop = Shop(dsn_of(os.environ))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    match arguments.what:
        case "serve":
            await _serve(shop, arguments.port, stop)
        case "work":
            await _work(shop, stop)
        case _:
            await _close_day(shop)


def main() -> None:
    parser = argparse.ArgumentParser(prog="superprismora")
    parser.add_argument("what", choices=("serve", "work", "close-day"))
    parser.add_argument("--port", type=int, default=8080)
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
