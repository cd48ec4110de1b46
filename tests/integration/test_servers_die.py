"""PostgreSQL, production's and the bot's own, and the bucket, killed in the middle of the work."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import psycopg
import pytest

from actions.adapters.clock import SystemClock
from actions.backup.leftovers import QUIET
from bot.clock import DrClock
from bot.demo.dataset import DATABASE
from bot.services.leftovers import Leftovers
from storage.roles import DatabaseRole
from storage.session import Database
from tests.fakes.clock import MemoryClock
from tests.fixtures.endings import ends_once, in_the_load
from tests.fixtures.world import LEDGER, End, FaultWorld

pytestmark = [
    pytest.mark.kill,
    pytest.mark.xdist_group("faults"),
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="session"),
]

SWAP = 4  # its place in the plan with the application, from 0


async def test_production_dies_while_a_dump_is_loaded_and_comes_back(world: FaultWorld) -> None:
    oid = (await world.databases())[LEDGER]
    async with await psycopg.AsyncConnection.connect(world.production.dsn(), autocommit=True) as connection:
        card = await world.restoring(LEDGER)
        await in_the_load(connection, card)
    await world.production.kill()
    await world.production.start()
    await ends_once(world, card, oid, LEDGER)


async def test_production_dies_before_the_swap_and_comes_back(world: FaultWorld) -> None:
    await world.damage()
    oid = (await world.databases())[DATABASE]
    card = await world.restoring()
    async with world.barrier(SWAP, "applying") as barrier:
        await barrier.reached()
        await world.production.kill()
    await asyncio.sleep(1)
    await world.production.start()
    await ends_once(world, card, oid)


async def test_production_dies_while_a_dump_is_loaded_and_stays_away(world: FaultWorld) -> None:
    before = await world.databases()
    async with await psycopg.AsyncConnection.connect(world.production.dsn(), autocommit=True) as connection:
        card = await world.restoring(LEDGER)
        await in_the_load(connection, card)
    await world.production.kill()
    end = await world.ended(card)
    assert end.state == "failed"
    assert "`primary`" in end.message
    await world.production.start()
    after = await world.databases()
    assert {name: after[name] for name in before} == before
    assert await world.set_aside(card) == []
    # Nobody could tidy up on a dead server: half the copy and the roles of the load are still there.
    left = await world.leftovers()
    assert any(name.startswith("role drbot_load_") for name in left)
    assert any(name.startswith(f"{LEDGER}_restore_") for name in left)
    clock = MemoryClock(datetime.now(UTC))
    at_work = Database(world.memory.dsn(), role=DatabaseRole.WORKER)
    janitor = Leftovers(at_work, replace(await world.ports(), clock=clock))
    assert await janitor.sweep() == []
    clock.advance(QUIET)
    assert len(await janitor.sweep()) == 3
    await at_work.dispose()
    assert await world.leftovers() == []
    assert await world.databases() == before


async def test_production_dies_before_the_swap_and_stays_away(world: FaultWorld) -> None:
    """Nothing can be put back on a dead server: people are asked, and nothing is claimed."""
    oid = (await world.databases())[DATABASE]
    card = await world.restoring()
    async with world.barrier(SWAP, "applying") as barrier:
        await barrier.reached()
        await world.production.kill()
    end = await world.ended(card)
    assert end.state == "asking"
    assert "Server `primary` does not answer" in end.message
    assert "Putting it back stopped at step 5" in end.message
    await world.production.start()
    assert (await world.databases())[DATABASE] == oid
    assert await world.set_aside(card) == []
    # Asked again, it puts the rest back.
    await world.again(card)
    end = await world.ended(card)
    assert end.state == "failed"
    await world.answering()
    assert await world.rows() == world.baseline
    assert world.counts() == world.replicas


async def test_the_bots_own_database_dies_and_comes_back(world: FaultWorld) -> None:
    await world.damage()
    oid = (await world.databases())[DATABASE]
    card = await world.restoring()
    await world.journalled(card, 0, "applying")
    await world.memory.kill()
    await asyncio.sleep(0.5)
    await world.memory.start()
    await world.journalled(card, 2, "applying")
    await world.memory.kill()
    await world.memory.start()
    await ends_once(world, card, oid)


async def test_bucket_dies_in_the_middle_of_a_dump(world: FaultWorld) -> None:
    async with await psycopg.AsyncConnection.connect(world.production.dsn(LEDGER)) as holder:
        # pg_dump waits for this table, and with it the dump in the middle.
        await holder.execute("LOCK TABLE books.entry IN ACCESS EXCLUSIVE MODE")
        card = await world.planned("backup.dump", database=LEDGER)
        async with await psycopg.AsyncConnection.connect(world.production.dsn(), autocommit=True) as connection:
            await waits_for_the_lock(connection)
        await world.objects.kill()
    end = await world.ended(card)
    assert end.state == "failed"
    assert "The local copy `" in end.message
    assert "is complete" in end.message
    await world.objects.start()
    [backup] = [
        row[0]
        for row in await world.remembered(
            "SELECT document->'steps'->0->>'backup' FROM plan WHERE id = %s", card.plan_id
        )
    ]
    assert not any(f"/{backup}/manifest" in key for key in world.stored(LEDGER))
    assert await world.leftovers() == []
    await world.dumped(LEDGER)
    assert world.half_uploads() == 0


async def test_dump_while_the_bucket_is_away_is_uploaded_when_it_is_back(world: FaultWorld) -> None:
    await world.objects.kill()
    card = await world.planned("backup.dump", database=LEDGER)
    [warned] = [finding for finding in card.findings if finding.check == "bucket"]
    assert "into the local copy alone" in warned.detail
    assert await world.ended(card) == End("succeeded", "")
    await world.objects.start()
    [backup] = [
        row[0]
        for row in await world.remembered(
            "SELECT document->'steps'->0->>'backup' FROM plan WHERE id = %s", card.plan_id
        )
    ]
    assert not any(f"/{backup}/" in key for key in world.stored(LEDGER))
    at_clock = Database(world.memory.dsn(), role=DatabaseRole.CLOCK)
    await DrClock(at_clock, world.plan, SystemClock()).catch_up(datetime.now(UTC))
    await at_clock.dispose()
    uploads = "SELECT r.state FROM plan p JOIN run r USING (id) WHERE p.document #>> '{params,backup}' = %s"
    async with asyncio.timeout(60):
        while True:
            if await world.remembered(uploads, backup) == [("succeeded",)]:
                break
            await asyncio.sleep(0.2)
    verified = await world.planned("backup.verify", database=LEDGER, backup=backup)
    assert await world.ended(verified) == End("succeeded", "")
    again = await world.refused("backup.upload", database=LEDGER, backup=backup)
    assert f"holds no whole dump `{backup}` that the bucket lacks" in again
    assert await world.leftovers() == []


async def test_bucket_freezes_in_the_middle_of_a_dump_and_thaws(world: FaultWorld) -> None:
    async with await psycopg.AsyncConnection.connect(world.production.dsn(LEDGER)) as holder:
        await holder.execute("LOCK TABLE books.entry IN ACCESS EXCLUSIVE MODE")
        card = await world.planned("backup.dump", database=LEDGER)
        async with await psycopg.AsyncConnection.connect(world.production.dsn(), autocommit=True) as connection:
            await waits_for_the_lock(connection)
        world.objects.freeze()
    await asyncio.sleep(2)
    world.objects.thaw()
    assert await world.ended(card) == End("succeeded", "")
    assert world.half_uploads() == 0


async def waits_for_the_lock(connection: psycopg.AsyncConnection) -> None:
    """Return while the dump waits for a table; all it asks the bucket at its beginning is answered by then."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
    async with asyncio.timeout(40):
        while True:
            row = await (await connection.execute(query, [LEDGER])).fetchone()
            if row is not None and row[0]:
                return
            await asyncio.sleep(0.02)
