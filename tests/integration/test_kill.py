"""`kill -9` and SIGSTOP of a worker, at every place of a restore and of a dump: another one ends the run, once."""

from __future__ import annotations

import asyncio
import random
import signal

import psutil
import psycopg
import pytest

from bot.demo.dataset import DATABASE
from bot.services.cards import PlanCard
from tests.fixtures.endings import LONG, ends_once, in_the_load
from tests.fixtures.world import LEDGER, End, FaultWorld

pytestmark = [
    pytest.mark.kill,
    pytest.mark.xdist_group("faults"),
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="session"),
]

SEED = 20261123


@pytest.mark.parametrize("line", [pytest.param("applying", marks=pytest.mark.soak), "verified"])
async def test_killed_at_every_step(world: FaultWorld, line: str) -> None:
    """`applying`: between two steps. `verified`: when the step's effect is there and its record is not, which is the
    harder of the two, and is tried in every run."""
    await world.working(2)
    await world.damage()
    oid, generation = (await world.databases())[DATABASE], world.generation()
    card = await world.restoring()
    for step in range(len(card.steps)):
        async with world.barrier(step, line) as barrier:
            await barrier.reached()
            await (await world.owner(card)).kill()
        await world.worker()
    await ends_once(world, card, oid)
    assert world.generation() == generation + 2  # stopped once, started once


async def killed_at_random(world: FaultWorld, seed: int, kills: int) -> None:
    """Kill the owner, and in one of three cases the job with it, a moment after a step has begun."""
    chance = random.Random(seed)
    await world.working(2)
    await world.damage()
    oid = (await world.databases())[DATABASE]
    card = await world.restoring()
    steps = sorted(chance.sample(range(len(card.steps)), kills))
    for step in steps:
        moment, job_too = chance.uniform(0, 0.5), chance.random() < 1 / 3
        await world.journalled(card, step, "applying")
        await asyncio.sleep(moment)
        if (await world.remembered("SELECT state FROM run WHERE id = %s", card.plan_id))[0][0] != "running":
            break
        await (await world.owner(card)).kill()
        if job_too:
            world.kill_jobs()
        await world.worker()
    await ends_once(world, card, oid)


async def test_killed_in_the_middle_of_steps(world: FaultWorld) -> None:
    await killed_at_random(world, SEED, kills=3)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(SEED, SEED + 20))
async def test_killed_in_the_middle_of_steps_again_and_again(world: FaultWorld, seed: int) -> None:
    await killed_at_random(world, seed, kills=1 + seed % 6)


async def test_killed_with_its_job_while_a_dump_is_loaded(world: FaultWorld) -> None:
    """As when the machine's memory runs out: worker, job and `pg_restore` are gone at once."""
    await world.working(2)
    oid = (await world.databases())[LEDGER]
    async with await psycopg.AsyncConnection.connect(world.production.dsn(), autocommit=True) as connection:
        card = await world.restoring(LEDGER)
        await in_the_load(connection, card)
        await (await world.owner(card)).kill()
        world.kill_jobs()
    await ends_once(world, card, oid, LEDGER)


async def test_killed_around_a_dump(world: FaultWorld) -> None:
    await world.working(2)
    async with world.barrier(0, "applying") as barrier:  # before it is asked for: it needs no second signature
        card = await world.planned("backup.dump", database=LEDGER)
        await barrier.reached()
        await (await world.owner(card)).kill()
    await world.worker()
    async with world.barrier(0, "verified") as barrier:
        await world.job_runs()
        await (await world.owner(card)).kill()
        await world.worker()
        world.kill_jobs()
        await barrier.reached(within=60)
        await (await world.owner(card)).kill()
    await world.worker()
    assert await world.ended(card, within=LONG) == End("succeeded", ""), await world.story(card)
    [backup] = [
        row[0]
        for row in await world.remembered(
            "SELECT document->'steps'->0->>'backup' FROM plan WHERE id = %s", card.plan_id
        )
    ]
    kept = sorted(key.rpartition("/")[2] for key in world.stored(LEDGER) if f"/{backup}/" in key)
    assert kept == ["dump.age", "manifest.json"]
    assert [item.state for item in await world.journal(card)].count("verified") == 1
    assert world.half_uploads() == 0
    assert await world.leftovers() == []


async def test_frozen_worker_that_wakes_up_writes_nothing(world: FaultWorld) -> None:
    await world.working(2)
    await world.damage()
    oid = (await world.databases())[DATABASE]
    card = await world.restoring()
    await world.journalled(card, 2, "applying")  # stopping the application, which takes a moment
    frozen = await world.owner(card)
    frozen.send(signal.SIGSTOP)
    await ends_once(world, card, oid)
    await wakes_up(world, card, frozen.pid)


async def test_worker_frozen_in_the_middle_of_a_record_holds_nobody_up(world: FaultWorld) -> None:
    """It has the run's row locked in an open transaction, which nobody can take from it but PostgreSQL."""
    await world.working(2)
    oid = (await world.databases())[LEDGER]
    card = await world.restoring(LEDGER)
    async with world.barrier(1, "verified") as barrier:
        await barrier.reached()
        frozen = await world.owner(card)
        frozen.send(signal.SIGSTOP)
    await ends_once(world, card, oid, LEDGER)
    await wakes_up(world, card, frozen.pid)


async def wakes_up(world: FaultWorld, card: PlanCard, pid: int) -> None:
    journal, databases = await world.journal(card), await world.databases()
    assert len({item.epoch for item in journal}) == 2
    psutil.Process(pid).resume()
    await asyncio.sleep(2.5)
    assert await world.journal(card) == journal
    assert await world.databases() == databases
    assert world.jobs() == []
