"""How soon another worker goes on with a run whose worker is killed, with a lease of ten seconds."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from benchmarks.table import percentile
from bot.services.cards import PlanCard
from tests.fixtures.endings import ends_once
from tests.fixtures.world import LEDGER, FaultWorld

pytestmark = [pytest.mark.bench, pytest.mark.asyncio(loop_scope="session")]

LEASE_S = 10
RUNS = int(os.environ.get("RUNS", "2"))


async def test_takeover_after_kill(world: FaultWorld) -> None:
    """Killed with -9 as it writes that a step begins, at every step of a restore; until the journal has a line of
    another worker, by the clock of this process."""
    waits, left = [], []
    for _ in range(RUNS):
        await world.working(0)
        for _ in range(2):
            await world.worker(DRBOT_LEASE_S=str(LEASE_S))
        for worker in world.workers:
            await worker.started()
        oid = (await world.databases())[LEDGER]
        card = await world.restoring(LEDGER)
        for step in range(len(card.steps)):
            async with world.barrier(step, "applying") as barrier:
                await barrier.reached()
                owner = await world.owner(card)
                [[remaining]] = await world.remembered(
                    "SELECT extract(epoch FROM lease_until - clock_timestamp())::float8 FROM run WHERE id = %s",
                    card.plan_id,
                )
                lines = len(await world.journal(card))
                begun = time.monotonic()
                await owner.kill()
            await world.worker(DRBOT_LEASE_S=str(LEASE_S))
            await written(world, card, lines)
            waits.append(time.monotonic() - begun)
            left.append(float(remaining))
        await ends_once(world, card, oid, LEDGER)
    over = [wait - rest for wait, rest in zip(waits, left, strict=True)]
    print(
        f"takeover after kill -9, lease {LEASE_S} s: median {percentile(waits, 0.5):.2f} s, max {max(waits):.2f} s, "
        f"after the end of the lease max {max(over):.2f} s, n={len(waits)}, limit {LEASE_S + 2} s"
    )
    assert max(waits) <= LEASE_S + 2


async def written(world: FaultWorld, card: PlanCard, lines: int) -> None:
    """Return when the journal has more lines than it had."""
    async with asyncio.timeout(3 * LEASE_S):
        while True:
            if len(await world.journal(card)) > lines:
                return
            await asyncio.sleep(0.01)
