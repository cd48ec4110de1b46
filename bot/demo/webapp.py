"""The demo's application: a small web service over the production database.

    python -m bot.demo.webapp --port 8080           the pods of superprismora-api

It knows nothing of the bot. Its configuration is that of `bot.demo.shop`, whose processes are the others of the
application. It changes no row that somebody else made.
"""

from __future__ import annotations

import argparse
import asyncio
import html
import json
import os
from typing import Any

import psycopg
from aiohttp import web

from bot.demo.shop import Shop, dsn_of, say, stopping

_COUNTS = "SELECT (SELECT count(*) FROM users) AS users, (SELECT max(id) FROM orders) AS newest_order"
_NEWEST_ORDERS = """
    SELECT orders.id, users.name, users.email, orders.total_cents, orders.status, orders.placed_at
    FROM orders JOIN users ON users.id = orders.user_id ORDER BY orders.id DESC LIMIT 15
"""

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


async def _serve(port: int) -> None:
    stop = stopping()
    runner = web.AppRunner(application(Shop(dsn_of(os.environ))), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        say(f"serving on 127.0.0.1:{port}")
        await stop.wait()
    finally:
        await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(prog="superprismora")
    parser.add_argument("--port", type=int, default=8080)
    asyncio.run(_serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
