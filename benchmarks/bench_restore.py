"""A restore through the whole bot against section 4.1 by hand, in pairs, on durable PostgreSQL.

SIZE=tiny|small|large|huge and PAIRS=n in the environment.
"""

from __future__ import annotations

import os

import pytest

from benchmarks.by_hand import ByHand, drop_quarantine, settle
from benchmarks.table import pairs
from benchmarks.two_people import restore_through_the_bot
from bot.demo.watch import Answer, HealthWatch
from bot.demo.world import World

pytestmark = [pytest.mark.bench, pytest.mark.asyncio(loop_scope="session")]

PAIRS = int(os.environ.get("PAIRS", "10"))
TUNED = 3
TOTAL, DOWNTIME = 1.1, 0.25


class Sides:
    """Seconds of one side: as a whole, and with the application away."""

    def __init__(self) -> None:
        self.total: list[float] = []
        self.downtime: list[float] = []

    def add(self, total: float, watch: HealthWatch, what: str) -> None:
        away = watch.downtime()
        assert away is not None, f"{what}: the application was never away, or has not come back"
        self.total.append(total)
        self.downtime.append(away)
        load = " ".join(f"{value:.1f}" for value in os.getloadavg())
        print(f"  {what}: total {total:.2f} s, application away {away:.2f} s, load {load}", flush=True)


async def test_restore(demo: World) -> None:
    hand = ByHand(demo.servers, demo.running.directory)
    print(f"  dump by hand {await hand.dump():.2f} s", flush=True)
    bot, single, tuned = Sides(), Sides(), Sides()
    for number in range(PAIRS):
        # Each side goes first as often as the other: what the one leaves in the caches is the other's.
        for side in ("bot", "hand") if number % 2 == 0 else ("hand", "bot"):
            if side == "bot":
                await _through_the_bot(demo, bot)
            else:
                await _by_hand(demo, hand, single, tuned=False)
        if number < TUNED:
            await _by_hand(demo, hand, tuned, tuned=True)
    total = pairs("restore, total, by hand with one job", bot.total, single.total, TOTAL)
    away = pairs("restore, application away, by hand with one job", bot.downtime, single.downtime, DOWNTIME)
    some = len(tuned.total)
    pairs("restore, total, by hand with -j 4", bot.total[:some], tuned.total, None)
    pairs("restore, application away, by hand with -j 4", bot.downtime[:some], tuned.downtime, None)
    assert total <= TOTAL
    assert away <= DOWNTIME


async def _through_the_bot(demo: World, side: Sides) -> None:
    await settle(demo.servers)
    async with demo.servers.slack.control() as slack, HealthWatch(demo.running.health_url) as watch:
        await watch.until(Answer.GOOD, within=30)
        ended = await restore_through_the_bot(slack, demo.running)
        await watch.until(Answer.GOOD, within=30)
    side.add(ended.seconds, watch, "bot")
    print("    " + ", ".join(f"{kind} {took:.1f}" for kind, took in ended.steps))
    await drop_quarantine(demo.servers)


async def _by_hand(demo: World, hand: ByHand, side: Sides, *, tuned: bool) -> None:
    await settle(demo.servers)
    async with HealthWatch(demo.running.health_url) as watch:
        await watch.until(Answer.GOOD, within=30)
        total = await hand.restore(watch, tuned=tuned)
    side.add(total, watch, "hand, -j 4" if tuned else "hand")
