"""Pages go out once, are kept while the pager is away, and hold nothing up."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import text

from actions.errors import PermanentError, TemporaryError
from bot.services.deliveries import Deliveries
from bot.services.paging import Paging, page
from storage.session import Database
from tests.fakes.pager import MemoryPager
from tests.fixtures.office import OfficeForTests


async def states(memory: Database) -> list[tuple[str, int]]:
    async with memory.session() as session:
        rows = await session.execute(text("SELECT state, attempts FROM outbox WHERE kind = 'page' ORDER BY id"))
        return [(row.state, row.attempts) for row in rows]


async def queue(memory: Database, key: str) -> None:
    async with memory.session() as session:
        await page(session, f"about {key}", key=key)


async def due_again(memory: Database) -> None:
    async with memory.session() as session:
        await session.execute(text("UPDATE outbox SET due_at = now()"))


async def test_pages_are_handed_over_in_order_and_once(memory: Database) -> None:
    pager = MemoryPager()
    paging = Paging(memory, pager)
    for key in ("a", "b"):
        await queue(memory, key)
    assert [await paging.once() for _ in range(3)] == [True, True, False]
    assert pager.pages == [("a", "about a"), ("b", "about b")]
    assert await states(memory) == [("sent", 1), ("sent", 1)]


async def test_a_pager_that_is_away_gets_the_page_later(memory: Database) -> None:
    pager = MemoryPager()
    pager.problem = TemporaryError("away", retry_after=timedelta(minutes=1))
    paging = Paging(memory, pager)
    await queue(memory, "a")
    assert await paging.once()
    assert not await paging.once()  # not due yet
    pager.problem = None
    await due_again(memory)
    assert await paging.once()
    assert [key for key, _ in pager.pages] == ["a"]


async def test_a_page_of_a_worker_that_died_goes_to_the_next(memory: Database) -> None:
    await queue(memory, "a")
    async with memory.session() as session:
        await session.execute(text("UPDATE outbox SET state = 'sending', attempts = 1"))
    pager = MemoryPager()
    assert await Paging(memory, pager).once()
    assert [key for key, _ in pager.pages] == ["a"]


async def test_what_the_pager_refuses_is_set_aside(memory: Database) -> None:
    pager = MemoryPager()
    pager.problem = PermanentError("no such hook")
    await queue(memory, "a")
    assert await Paging(memory, pager).once()
    assert await states(memory) == [("dead", 1)]


async def test_without_a_pager_nothing_is_left_to_try(memory: Database) -> None:
    await queue(memory, "a")
    paging = Paging(memory, None)
    assert await paging.once()
    assert not await paging.once()
    assert await states(memory) == [("skipped", 1)]


async def test_slack_is_never_sent_a_page(office: OfficeForTests) -> None:
    await queue(office.memory, "a")
    deliveries: Deliveries = office.deliveries
    assert await deliveries.due(10) == []
