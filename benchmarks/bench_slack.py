"""How fast a slash command is acknowledged under load, measured on Slack's side of the socket.

The local Slack sends each command over Socket Mode and answers its caller when the bot's acknowledgement is there, so
its own share is inside the figures. Bot, worker, clock and database are those of the demo, on the same two cores.
"""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from benchmarks.table import milliseconds, percentile
from bot.demo.choices import Size
from bot.demo.local_slack_control import LocalSlackControl
from bot.demo.people import ACCOUNTS
from bot.demo.world import World, world

pytestmark = pytest.mark.bench

A_SECOND = 50
SECONDS = int(os.environ.get("SECONDS_OF_LOAD", "30"))
WORDS = ("/dr status", "/dr-backup list superprismora", "/dr-incident list", "/dr help")
P99_MS, WORST_S = 250.0, 3.0


async def test_acknowledgement_under_load() -> None:
    async with world(Size.TINY) as demo, demo.servers.slack.control() as slack:
        took = await _load(demo, slack)
    p99 = percentile(took, 0.99) * 1000
    milliseconds(f"ack of a slash command at {A_SECOND} a second (p99 {p99:.1f} ms)", took, P99_MS)
    print(f"  load {os.getloadavg()[0]:.1f}")
    assert p99 < P99_MS
    assert max(took) < WORST_S


async def _load(demo: World, slack: LocalSlackControl) -> list[float]:
    """Seconds from the moment each command was due, so that a late start counts as well."""
    begun = time.monotonic() + 0.5

    async def one(number: int) -> float:
        due = begun + number / A_SECOND
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        account = ACCOUNTS[number % len(ACCOUNTS)]
        await slack.command(account.slack_id, demo.running.channel, WORDS[number % len(WORDS)])
        return time.monotonic() - due

    return list(await asyncio.gather(*(one(number) for number in range(A_SECOND * SECONDS))))
