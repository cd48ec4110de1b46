"""The demo's pager: a receiver on this machine that writes down what people would be called with."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

PAGES = "pages.jsonl"
"""One JSON object a page: when it came, `key` and `text`."""

LARGEST = 100_000


@asynccontextmanager
async def receiver(folder: Path) -> AsyncIterator[str]:
    """Take pages into `folder` while it is open; yields the address of the webhook, which is a secret."""
    path = f"/{secrets.token_urlsafe(24)}"

    async def take(request: web.Request) -> web.Response:
        try:
            body = await request.json()
            page = {"at": datetime.now(UTC).isoformat(), "key": str(body["key"]), "text": str(body["text"])}
        except (ValueError, KeyError, TypeError):
            return web.Response(status=400)
        with (folder / PAGES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(page) + "\n")
        return web.Response(status=204)

    served = web.Application(client_max_size=LARGEST)
    served.router.add_post(path, take)
    runner = web.AppRunner(served, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{int(runner.addresses[0][1])}{path}"
    finally:
        await runner.cleanup()
