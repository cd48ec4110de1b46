"""What every Pager keeps: the webhook over real HTTP, and the fake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from actions.adapters.pager import WebhookPager
from actions.errors import PermanentError, TemporaryError
from actions.ports import Pager
from tests.fakes.pager import MemoryPager
from tests.fakes.secrets import MemorySecrets

CANARY = "canary-webhook-token"


@dataclass
class Receiver:
    """The other side of the webhook."""

    url: str = ""
    status: int = 200
    slow_s: float = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self.slow_s)
        self.bodies.append(await request.json())
        return web.Response(status=self.status, headers={"Location": f"{self.url}/elsewhere"})


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    taker = Receiver()
    app = web.Application()
    app.router.add_post(f"/{CANARY}", taker.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)  # a request that hangs does not hold the test up
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    taker.url = f"http://{host}:{port}"
    yield taker
    await runner.cleanup()


def webhook(url: str, *, limit: timedelta = timedelta(seconds=5)) -> WebhookPager:
    return WebhookPager("env:PAGER", MemorySecrets({"env:PAGER": url}), limit=limit)


@pytest.mark.parametrize("kind", ["fake", "real"])
async def test_a_page_arrives_with_its_text_and_key(kind: str, receiver: Receiver) -> None:
    fake = MemoryPager()
    port: Pager = fake if kind == "fake" else webhook(f"{receiver.url}/{CANARY}")
    await port.page("Break-glass: look now", key="break-glass/p1")
    if kind == "fake":
        assert fake.pages == [("break-glass/p1", "Break-glass: look now")]
    else:
        assert receiver.bodies == [{"text": "Break-glass: look now", "key": "break-glass/p1", "source": "drbot"}]


@pytest.mark.parametrize(("status", "error"), [(503, TemporaryError), (429, TemporaryError), (404, PermanentError)])
async def test_a_refusal_is_told_apart_and_never_shows_the_address(
    receiver: Receiver, status: int, error: type[Exception]
) -> None:
    receiver.status = status
    with pytest.raises(error) as caught:
        await webhook(f"{receiver.url}/{CANARY}").page("x", key="k")
    assert CANARY not in str(caught.value)
    assert str(status) in str(caught.value)


async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.status = 302
    with pytest.raises(PermanentError, match="302"):
        await webhook(f"{receiver.url}/{CANARY}").page("x", key="k")
    assert len(receiver.bodies) == 1


async def test_a_receiver_that_hangs_costs_bounded_time(receiver: Receiver) -> None:
    receiver.slow_s = 30
    pager = webhook(f"{receiver.url}/{CANARY}", limit=timedelta(milliseconds=300))
    async with asyncio.timeout(10):
        with pytest.raises(TemporaryError) as caught:
            await pager.page("x", key="k")
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("url", ["http://pager.example/x", "ftp://127.0.0.1/x", "no url"])
async def test_words_leave_the_machine_only_encrypted(url: str) -> None:
    with pytest.raises(PermanentError, match="https"):
        await webhook(url).page("x", key="k")


async def test_nobody_listening_is_a_passing_trouble() -> None:
    with pytest.raises(TemporaryError, match="env:PAGER"):
        await webhook(f"http://127.0.0.1:1/{CANARY}").page("x", key="k")
