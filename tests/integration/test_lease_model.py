"""The lease protocol, interrupted after every single statement: by a death, and by a freeze that ends too late."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.util import await_only

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.contract import JournalEntry, JournalState, Lock
from actions.errors import TemporaryError
from storage import plans, runs
from storage.runs import LeaseLostError
from storage.session import Database
from storage.tables import PlanRow
from tests.fixtures.memory import KeptDatabase

pytestmark = pytest.mark.kill

NOW = datetime(2026, 2, 26, 10, 30, tzinfo=UTC)
LEASE = timedelta(seconds=1)
STEPS = 2
PATIENCE_S = 60.0


class DiedError(Exception):
    """What the interrupted worker meets instead of its next statement."""


Interruption = Callable[[], Awaitable[None]]


@dataclass
class World:
    """What the steps change. A name can be taken once, like that of a database or a job: the fence at the target."""

    names: set[str] = field(default_factory=set)
    attempts: Counter[str] = field(default_factory=Counter)

    def take(self, name: str) -> None:
        self.attempts[name] += 1
        self.names.add(name)


class Worker:
    """The protocol as the runner and the worker speak it, without the rest of both."""

    def __init__(self, database: Database, name: str, world: World) -> None:
        self._database, self._name, self._world = database, name, world

    async def claim(self, run: str) -> int | None:
        async with self._database.session() as session:
            return await runs.claim(session, run, owner=self._name, lease=LEASE, locks=[Lock(key=f"target:{run}")])

    async def work(self, run: str) -> None:
        epoch = await self.claim(run)
        assert epoch is not None
        await self.carry_out(run, epoch)

    async def carry_out(self, run: str, epoch: int) -> None:
        for step in range(STEPS):
            async with self._database.session() as session:
                last = {item.step: item.state for item in await runs.journal(session, run)}
            if last.get(step) == JournalState.VERIFIED:
                continue
            await self._renew(run, epoch)
            name = f"{run}-{step}"
            if name not in self._world.names:
                await self._append(run, epoch, step, JournalState.APPLYING)
                self._world.take(name)
            await self._append(run, epoch, step, JournalState.VERIFIED)
        async with self._database.session() as session:
            await runs.end(session, run, owner=self._name, epoch=epoch, state="succeeded", message="", at=NOW)

    async def _renew(self, run: str, epoch: int) -> None:
        async with self._database.session() as session:
            await runs.renew(session, run, owner=self._name, epoch=epoch, lease=LEASE)

    async def _append(self, run: str, epoch: int, step: int, state: JournalState) -> None:
        async with self._database.session() as session:
            entry = JournalEntry(step=step, state=state, at=NOW)
            await runs.append(session, run, owner=self._name, epoch=epoch, entry=entry)


@asynccontextmanager
async def interrupted(dsn: str, after: int, interruption: Interruption) -> AsyncIterator[tuple[Database, list[int]]]:
    """A connection pool of one worker, whose statement number `after` is followed by the interruption, and the count
    of its statements."""
    own, count = KeptDatabase(dsn, pool_size=1), [0]

    def counted(*_: Any) -> None:
        count[0] += 1
        if count[0] == after:
            await_only(interruption())

    event.listen(own.engine.sync_engine, "after_cursor_execute", counted)
    try:
        yield own, count
    finally:
        event.remove(own.engine.sync_engine, "after_cursor_execute", counted)
        await own.dispose()


async def a_run(memory: Database, name: str) -> str:
    async with memory.session() as session:
        row = PlanRow(
            id=name,
            action="toy.run",
            document={},
            digest="d" * 64,
            risk="DESTRUCTIVE",
            plan_schema=1,
            requester="olivia",
            reason="gone",
            channel="C1",
            token=f"token-{name}",
            created_at=NOW,
            expires_at=NOW + timedelta(minutes=15),
        )
        await plans.add(session, row)
    return name


async def statements(dsn: str, memory: Database) -> int:
    """How many the protocol has when nothing interrupts it."""

    async def never() -> None:
        raise AssertionError

    async with interrupted(dsn, 10**6, never) as (own, count):
        worker = Worker(own, "alone", World())
        run = await a_run(memory, "alone")
        await worker.work(run)
        return count[0]


async def taken_over(memory: Database, run: str, world: World) -> int:
    """Another worker claims the run as soon as it can, and carries it to its end; its epoch."""
    other = Worker(memory, "other", world)
    async with asyncio.timeout(PATIENCE_S):
        while (epoch := await other.claim(run)) is None:
            if await state(memory, run) == "succeeded":
                return 0
            await asyncio.sleep(0.2)
    await other.carry_out(run, epoch)
    return epoch


async def state(memory: Database, run: str) -> str:
    async with memory.session() as session:
        found = await runs.get(session, run)
        return "" if found is None else found.state


async def ended_once(memory: Database, run: str, world: World) -> None:
    async with memory.session() as session:
        journal = await runs.journal(session, run)
        locks = await session.execute(text("SELECT count(*) FROM run_lock WHERE run_id = :run"), {"run": run})
        assert locks.scalar_one() == 0
    assert await state(memory, run) == "succeeded"
    verified = Counter(item.step for item in journal if item.state == JournalState.VERIFIED)
    assert verified == dict.fromkeys(range(STEPS), 1), [(item.step, item.state, item.epoch) for item in journal]
    assert [item.epoch for item in journal] == sorted(item.epoch for item in journal)
    assert {f"{run}-{step}" for step in range(STEPS)} <= world.names


async def test_a_worker_may_die_after_any_statement(pg_server: EmbeddedPostgres, memory: Database) -> None:
    dsn = await address(pg_server, memory)
    total = await statements(dsn, memory)
    world = World()

    async def dies(after: int) -> None:
        run = await a_run(memory, f"dies-{after}")

        async def death() -> None:
            raise DiedError

        async with interrupted(dsn, after, death) as (own, _):
            worker = Worker(own, f"dies-{after}", world)
            with pytest.raises(DiedError):
                await worker.work(run)
        await taken_over(memory, run, world)
        await ended_once(memory, run, world)

    assert total > 4 * STEPS
    for after in range(1, total + 1):
        await dies(after)
    assert set(world.attempts.values()) == {1}


async def test_a_worker_may_freeze_after_any_statement(pg_server: EmbeddedPostgres, memory: Database) -> None:
    """It wakes up when another one has ended the run. What it then still wants to write is refused."""
    dsn = await address(pg_server, memory)
    total = await statements(dsn, memory)
    world = World()

    async def freezes(after: int) -> None:
        run = await a_run(memory, f"freezes-{after}")
        frozen, awake = asyncio.Event(), asyncio.Event()

        async def freeze() -> None:
            frozen.set()
            await awake.wait()

        async with interrupted(dsn, after, freeze) as (own, _):
            worker = Worker(own, f"freezes-{after}", world)
            working = asyncio.create_task(worker.work(run))
            await frozen.wait()
            await taken_over(memory, run, world)
            await ended_once(memory, run, world)
            awake.set()
            # LeaseLostError: refused by the epoch. TemporaryError: PostgreSQL ended its silent transaction.
            with pytest.raises((LeaseLostError, TemporaryError)):
                await working
        await ended_once(memory, run, world)

    # Together, since each waits until PostgreSQL ends a silent transaction.
    await asyncio.gather(*(freezes(after) for after in range(1, total + 1)))


async def address(server: EmbeddedPostgres, memory: Database) -> str:
    async with memory.session() as session:
        name = (await session.execute(text("SELECT current_database()"))).scalar_one()
    return server.dsn(name)
