"""A dump through the whole bot (encrypted, counted, signed, with its local copy) against `pg_dump -Fc` and an upload.

SIZE=tiny|small|large|huge and DUMP_PAIRS=n in the environment.
"""

from __future__ import annotations

import os

import pytest

from benchmarks.by_hand import ByHand, settle
from benchmarks.table import pairs
from benchmarks.two_people import dump_through_the_bot
from bot.demo.world import World

pytestmark = [pytest.mark.bench, pytest.mark.asyncio(loop_scope="session")]

PAIRS = int(os.environ.get("DUMP_PAIRS", "3"))
LIMIT = 0.35


async def test_dump(demo: World) -> None:
    hand = ByHand(demo.servers, demo.running.directory)
    bot_took: list[float] = []
    hand_took: list[float] = []
    for _ in range(PAIRS):
        bot_took.append(await _through_the_bot(demo))
        await settle(demo.servers)
        hand_took.append(await hand.dump())
        load = os.getloadavg()[0]
        print(f"  bot {bot_took[-1]:.2f} s, hand {hand_took[-1]:.2f} s, load {load:.1f}", flush=True)
    assert pairs("dump to S3, from the command in Slack to the end of the run", bot_took, hand_took, LIMIT) <= LIMIT


async def _through_the_bot(demo: World) -> float:
    await settle(demo.servers)
    async with demo.servers.slack.control() as slack:
        return await dump_through_the_bot(slack, demo.running)
