"""A dump through the whole bot (encrypted, counted, signed, with its local copy) against `pg_dump -Fc` and an upload.

SIZE=tiny|small|large and DUMP_PAIRS=n in the environment.
"""

from __future__ import annotations

import os
import time

import pytest

from benchmarks.by_hand import ByHand, settle
from benchmarks.table import pairs
from bot.demo.dataset import DATABASE
from bot.demo.people import OLIVIA
from bot.demo.world import FIRST_DUMP_WITHIN, World

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
    assert pairs("dump to S3, from the command to its answer", bot_took, hand_took, LIMIT) <= LIMIT


async def _through_the_bot(demo: World) -> float:
    """From the start of `drbot backup run` to its end."""
    await settle(demo.servers)
    begun = time.monotonic()
    await demo.bot.ask("backup", "run", DATABASE, person=OLIVIA.person, timeout=FIRST_DUMP_WITHIN)
    return time.monotonic() - begun
