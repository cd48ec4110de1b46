"""The real worker, from claim to end with signatures, guard and beat, interrupted after its statements: by a death, and
by a freeze that ends too late. `test_lease_model.py` does the same to the bare statements of `storage.runs`.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.util import await_only

from actions.contract import JournalState
from bot.services.cards import PlanCard
from bot.worker import Worker
from storage import runs
from tests.fakes.toy import WORLD
from tests.fixtures.memory import KeptDatabase
from tests.fixtures.office import OfficeForTests, shipped_plan
from tests.fixtures.waiting import eventually
from tests.integration.test_answers import journal, signed

pytestmark = [
    pytest.mark.kill,
    pytest.mark.integration,
    pytest.mark.timeout(300),
    # Whoever dies in the middle of a statement closes no connection.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LEASE = timedelta(seconds=1)
STEPS = 2
DONE = [f"do {number}" for number in range(1, STEPS + 1)]


class DeadError(Exception):
    """What a statement of a process meets that is not there any more."""


class Mortal:
    """A worker on one connection, which stops after its statement number `after`: for ever, or until it is woken."""

    def __init__(self, dsn: str, after: int, *, lease: timedelta = LEASE) -> None:
        self.count = 0
        self.stopped, self.awake = asyncio.Event(), asyncio.Event()
        self.dead = False
        self._after = after
        self._database = KeptDatabase(dsn, pool_size=1)
        self.office = OfficeForTests(self._database, shipped_plan())
        self.office.at_work = self._database
        self.worker: Worker = self.office.worker(lease=lease)
        engine = self._database.engine.sync_engine
        self._heard = [
            (engine, "before_cursor_execute", self._before),
            (engine, "after_cursor_execute", self._counted),
        ]
        for heard in self._heard:
            event.listen(*heard)

    def _before(self, *_: Any) -> None:
        if self.dead:
            raise DeadError
        if self.stopped.is_set() and not self.awake.is_set():
            await_only(self.awake.wait())  # its beat stands still as well

    def _counted(self, *_: Any) -> None:
        self.count += 1
        if self.count == self._after:
            self.stopped.set()
            await_only(self.awake.wait())

    async def carries_out(self, card: PlanCard) -> None:
        """Consider the run, claim and drive it."""
        async with self._database.session() as session:
            run = await runs.get(session, card.plan_id)
        assert run is not None
        async with asyncio.TaskGroup() as tasks:
            await self.worker._consider(run, tasks)

    async def works_until_stopped(self, card: PlanCard) -> asyncio.Task[None]:
        """The task of its work, once it has stopped or ended."""
        work = asyncio.create_task(self.carries_out(card))
        stopped = asyncio.create_task(self.stopped.wait())
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        stopped.cancel()
        assert work.done() or self.stopped.is_set()
        return work

    async def die(self, work: asyncio.Task[None]) -> None:
        """As with `kill -9`: nothing more is said, and PostgreSQL rolls back what was open."""
        self.dead = True
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await self.close()

    async def close(self) -> None:
        for heard in self._heard:
            event.remove(*heard)
        await self.office.close()
        await self._database.dispose()


async def a_signed_run(office: OfficeForTests, key: str) -> PlanCard:
    request = await office.ask("olivia", "toy.run", steps=STEPS, key=key)
    assert await office.worker()._one_request()
    card = await office.planned(request)
    await signed(office, card)
    return card


async def statements(office: OfficeForTests) -> int:
    """How many a run has from claim to end when nothing interrupts it."""
    mortal = Mortal(office.memory.url, 10**6, lease=timedelta(minutes=10))  # so that no beat is counted with them
    card = await a_signed_run(office, "alone")
    await mortal.carries_out(card)
    await mortal.close()
    assert WORLD[card.plan_id] == DONE
    return mortal.count


async def ended_once(office: OfficeForTests, cards: Sequence[PlanCard]) -> None:
    """Another worker has ended every run, each step was verified once and done once, and no lock is left."""
    ids = [card.plan_id for card in cards]

    async def succeeded() -> bool:
        await asyncio.sleep(0.2)  # the workers need the processor themselves
        async with office.memory.session() as session:
            states = await session.execute(text("SELECT state FROM run WHERE id = ANY(:ids)"), {"ids": ids})
            return set(states.scalars()) == {"succeeded"}

    await eventually(succeeded, within=90)  # PostgreSQL ends a silent transaction after 10 s
    for card in cards:
        lines = await journal(office, card)
        assert Counter(step for step, state, _ in lines if state == JournalState.VERIFIED) == dict.fromkeys(
            range(STEPS), 1
        ), lines
        assert WORLD[card.plan_id] == DONE
    async with office.memory.session() as session:
        assert (await session.execute(text("SELECT count(*) FROM run_lock"))).scalar_one() == 0
        epochs = (
            "SELECT count(*) FROM journal a JOIN journal b USING (run_id) WHERE a.seq < b.seq AND a.epoch > b.epoch"
        )
        assert (await session.execute(text(epochs))).scalar_one() == 0


BEATS = 6
"""Statements of a beat, which may come in between and leave the last ones of the run for later numbers."""

PARTS = 3
"""Each part tries every third statement, beginning with another one; together, in `make soak`, they try them
all. `test_lease_model.py` tries every bare statement in every run."""


def numbers(total: int, *, part: int) -> range:
    assert total > 10 * STEPS
    return range(1 + part, total + 1 + BEATS, PARTS)


PART = [0, *(pytest.param(part, marks=pytest.mark.soak) for part in range(1, PARTS))]


@pytest.mark.parametrize("part", PART)
async def test_the_worker_may_die_after_any_statement(office: OfficeForTests, part: int) -> None:
    cards = []
    for after in numbers(await statements(office), part=part):
        card = await a_signed_run(office, f"dies-{after}")
        mortal = Mortal(office.memory.url, after)
        await mortal.die(await mortal.works_until_stopped(card))
        cards.append(card)
    gc.collect()  # what was left open is found here, and not in the next test
    async with office.working():
        await ended_once(office, cards)


@pytest.mark.parametrize("part", PART)
async def test_the_worker_may_freeze_after_any_statement(office: OfficeForTests, part: int) -> None:
    """It wakes up when another one has ended the run; then nothing of it is written any more."""
    frozen = []
    for after in numbers(await statements(office), part=part):  # each holds a connection
        card = await a_signed_run(office, f"freezes-{after}")
        mortal = Mortal(office.memory.url, after)
        frozen.append((card, mortal, await mortal.works_until_stopped(card)))
    cards = [card for card, _, _ in frozen]
    async with office.working():
        await ended_once(office, cards)
        before = [await journal(office, card) for card in cards]
        for _, mortal, _ in frozen:
            mortal.awake.set()
        await asyncio.gather(*(work for _, _, work in frozen), return_exceptions=True)
        await ended_once(office, cards)
        assert [await journal(office, card) for card in cards] == before
    for _, mortal, _ in frozen:
        await mortal.close()
    gc.collect()
