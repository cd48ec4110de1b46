"""A dump through the whole bot (encrypted, counted, signed, with its local copy) against `pg_dump -Fc` and an upload.

SIZE=tiny|small|large and PAIRS=n in the environment.
"""

from __future__ import annotations

import os
import time

import pytest

from benchmarks.by_hand import ByHand, checkpoint
from benchmarks.table import pairs
from bot.demo.dataset import DATABASE, Size
from bot.demo.people import OLIVIA
from bot.demo.world import FIRST_DUMP_WITHIN, World, world

pytestmark = pytest.mark.bench

SIZE = Size(os.environ.get("SIZE", "large"))
PAIRS = int(os.environ.get("PAIRS", "3"))
LIMIT = 0.35


async def test_dump(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        async with world(SIZE) as demo:
            hand = ByHand(demo.servers, demo.running.directory)
            bot_took, hand_took = [], []
            for _ in range(PAIRS):
                bot_took.append(await _through_the_bot(demo))
                await checkpoint(demo.servers)
                hand_took.append(await hand.dump())
                print(f"  bot {bot_took[-1]:.2f} s, hand {hand_took[-1]:.2f} s, load {os.getloadavg()[0]:.1f}")
            ratio = pairs("dump to S3, from the command to its answer", bot_took, hand_took, LIMIT)
    assert ratio <= LIMIT


async def _through_the_bot(demo: World) -> float:
    """From the start of `drbot backup run` to its end."""
    await checkpoint(demo.servers)
    begun = time.monotonic()
    await demo.bot.ask("backup", "run", DATABASE, person=OLIVIA.person, timeout=FIRST_DUMP_WITHIN)
    return time.monotonic() - begun
