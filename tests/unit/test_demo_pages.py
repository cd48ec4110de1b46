"""The pager of the demo really receives what the bot's own pager sends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actions.adapters.pager import WebhookPager
from actions.errors import PermanentError
from bot.demo.pages import PAGES, receiver
from tests.fakes.secrets import MemorySecrets


def webhook(url: str) -> WebhookPager:
    return WebhookPager("env:PAGER", MemorySecrets({"env:PAGER": url}))


async def test_it_takes_what_the_webhook_sends_and_nothing_at_another_address(tmp_path: Path) -> None:
    async with receiver(tmp_path) as url:
        await webhook(url).page("Somebody acts alone.", key="break-glass/p-1")
        with pytest.raises(PermanentError):
            await webhook(url + "x").page("not for us", key="k")
    [line] = (tmp_path / PAGES).read_text().splitlines()
    found = json.loads(line)
    assert (found["key"], found["text"]) == ("break-glass/p-1", "Somebody acts alone.")
