"""Several runs on three workers while processes are killed, frozen and stopped and the bot's database crashes.

What has happened is counted in PostgreSQL and in the bucket. `make soak` runs all seeds, more than 200 faults.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from actions.errors import TemporaryError
from bot.demo.dataset import DATABASE
from bot.demo.plan import BUCKET
from bot.services.cards import PlanCard
from tests.fixtures.endings import LONG
from tests.fixtures.world import LEASE_S, LEDGER, LONGEST, End, FaultWorld
from tests.nasty_database import NAME as NASTY

pytestmark = [
    pytest.mark.kill,
    pytest.mark.xdist_group("faults"),
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="session"),
]

SEED = 20261124
WORKERS = 3
FAULTS = 10
SEEDS = 21
PAUSE_S = 2.0
"""The longest pause between two faults: about as long as two steps take."""


class Storm:
    """The faults of one seed. Every one prints itself, so that a failure can be played again."""

    def __init__(self, world: FaultWorld, seed: int) -> None:
        self._world = world
        self._chance = random.Random(seed)
        self._faults: dict[str, Callable[[], Awaitable[None]]] = {
            "kill -9 of a worker": self._kill,
            "freeze of a worker": self._freeze,
            "SIGTERM of a worker": self._stop,
            "kill -9 of every job": self._kill_jobs,
            "crash of the bot's database": self._crash,
        }
        self._deck: list[str] = []  # every fault comes once before one comes again
        self._thaws: list[asyncio.Task[None]] = []
        self.seen: Counter[str] = Counter()

    async def fault(self) -> None:
        self._deck = self._deck or self._chance.sample(sorted(self._faults), len(self._faults))
        name = self._deck.pop()
        await asyncio.sleep(self._chance.uniform(0, PAUSE_S))
        print(f"  {name}", flush=True)
        await self._faults[name]()
        self.seen[name] += 1

    async def over(self) -> None:
        """Every frozen worker is awake again."""
        await asyncio.gather(*self._thaws)

    async def _kill(self) -> None:
        await self._chance.choice(self._world.workers).kill()
        await self._replace()

    async def _stop(self) -> None:
        self._chance.choice(self._world.workers).send(signal.SIGTERM)
        await self._world.worker()

    async def _freeze(self) -> None:
        worker = self._chance.choice(self._world.workers)
        worker.send(signal.SIGSTOP)
        seconds = self._chance.uniform(0.2, 3) * LEASE_S

        async def thaw() -> None:
            await asyncio.sleep(seconds)
            worker.send(signal.SIGCONT)

        self._thaws.append(asyncio.create_task(thaw()))

    async def _kill_jobs(self) -> None:
        self._world.kill_jobs()

    async def _crash(self) -> None:
        await self._world.memory.kill()
        await asyncio.sleep(self._chance.uniform(0, LEASE_S))
        await self._world.memory.start()
        await self._replace()

    async def _replace(self) -> None:
        self._world.workers = [worker for worker in self._world.workers if worker.alive]
        while len(self._world.workers) < WORKERS:
            await self._world.worker()


async def patiently(ask: Callable[[], Awaitable[PlanCard]]) -> PlanCard:
    """Ask again while the bot's database is away, as a person would."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await ask()
            except TemporaryError:
                await asyncio.sleep(0.5)


async def weathered(world: FaultWorld, seed: int, faults: int) -> None:
    print(f"seed {seed}", flush=True)
    await world.working(WORKERS)
    await world.damage()
    before = await world.databases()
    restores = {
        DATABASE: await patiently(lambda: world.restoring(DATABASE)),
        LEDGER: await patiently(lambda: world.restoring(LEDGER)),
    }
    dumps = {
        NASTY: await patiently(lambda: world.planned("backup.dump", database=NASTY)),
        LONGEST: await patiently(lambda: world.planned("backup.dump", database=LONGEST)),
    }
    storm = Storm(world, seed)
    for _ in range(faults):
        await storm.fault()
    await storm.over()
    assert storm.seen.total() == faults
    for card in (*restores.values(), *dumps.values()):
        assert await world.ended(card, within=LONG) == End("succeeded", ""), await world.story(card)
        verified = Counter(item.step for item in await world.journal(card) if item.state == "verified")
        assert verified == dict.fromkeys(range(len(card.steps)), 1), await world.story(card)
    after = await world.databases()
    for name, card in restores.items():
        [aside] = await world.set_aside(card)
        assert after[aside] == before[name], f"{name} was set aside more than once"
    await world.answering()
    assert await world.rows() == world.baseline
    assert world.counts() == world.replicas
    for name, card in dumps.items():
        await stored_once(world, name, card)
    assert world.half_uploads() == 0
    assert await world.leftovers() == []


async def stored_once(world: FaultWorld, name: str, card: PlanCard) -> None:
    rows = await world.remembered("SELECT document->'steps'->0->>'backup' FROM plan WHERE id = %s", card.plan_id)
    [backup] = [row[0] for row in rows]
    listed = await asyncio.to_thread(world.objects.client().list_objects_v2, Bucket=BUCKET)
    kept = sorted(item["Key"].rpartition("/")[2] for item in listed["Contents"] if f"/{backup}/" in item["Key"])
    assert kept == ["dump.age", "manifest.json"], name


async def test_storm(world: FaultWorld) -> None:
    """Every kind of fault once."""
    await weathered(world, SEED, faults=5)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(SEED + 1, SEED + 1 + SEEDS))
async def test_many_storms(world: FaultWorld, seed: int) -> None:
    await weathered(world, seed, FAULTS)
