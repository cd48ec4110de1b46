"""A worker that loses the connection to its database for many leases: nothing is done twice, nothing stays undone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import psycopg.conninfo
import pytest
import pytest_asyncio

from bot.services.cards import PlanState
from storage.session import Database
from tests.fakes.toy import HELD, WORLD
from tests.fixtures.office import OfficeForTests, shipped_plan
from tests.fixtures.proxy import Proxy
from tests.integration.test_answers import a_run, journal
from tests.integration.test_orders import begun

pytestmark = [pytest.mark.integration, pytest.mark.kill]

LEASE = timedelta(seconds=2)
LONG = [6.0, pytest.param(60.0, marks=pytest.mark.soak)]
"""Seconds without the database: three leases and thirty."""


@pytest_asyncio.fixture
async def proxy(memory: Database) -> AsyncIterator[Proxy]:
    parts = psycopg.conninfo.conninfo_to_dict(memory.url.replace("postgresql+psycopg://", "postgresql://"))
    async with Proxy(str(parts["host"]), int(parts.get("port") or 5432)) as proxy:
        yield proxy


@pytest_asyncio.fixture
async def far(memory: Database, proxy: Proxy) -> AsyncIterator[OfficeForTests]:
    """An office whose only way to its database is the proxy."""
    plain = memory.url.replace("postgresql+psycopg://", "postgresql://")
    database = Database(psycopg.conninfo.make_conninfo(plain, host="127.0.0.1", port=proxy.port))
    made = OfficeForTests(database, shipped_plan())
    yield made
    proxy.heal()
    await made.close()
    await database.dispose()


async def lose(proxy: Proxy, how: str) -> None:
    if how == "silent":
        proxy.silence()
    else:
        await proxy.cut()


@pytest.mark.parametrize("how", ["silent", "cut"])
@pytest.mark.parametrize("seconds", LONG)
@pytest.mark.timeout(180)
async def test_a_lone_worker_goes_on_when_the_connection_is_back(
    office: OfficeForTests, far: OfficeForTests, proxy: Proxy, how: str, seconds: float
) -> None:
    HELD.add(1)
    async with far.working():
        try:
            card = await a_run(office, PlanState.RUNNING, steps=3, key="alone")
            await begun(office, card, 0)
            await lose(proxy, how)
        finally:
            HELD.clear()
        await asyncio.sleep(seconds)
        assert WORLD[card.plan_id] == ["do 1"]  # the step it was in; the next one needs the journal
        proxy.heal()
        await office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 2", "do 3"]
    verified = [step for step, state, _ in await journal(office, card) if state == "verified"]
    assert verified == [0, 1, 2]


@pytest.mark.parametrize("how", ["silent", "cut"])
@pytest.mark.timeout(180)
async def test_another_worker_takes_over_and_the_lost_one_does_nothing_more(
    office: OfficeForTests, far: OfficeForTests, proxy: Proxy, how: str
) -> None:
    async with far.working():
        card = await a_run(office, PlanState.RUNNING, steps=3, seconds=1.0, key="two")
        await begun(office, card, 0)
        await lose(proxy, how)
        async with office.working():
            await office.until(card, PlanState.SUCCEEDED)
        before = await journal(office, card)
        proxy.heal()
        await asyncio.sleep(3 * LEASE.total_seconds())
    assert sorted(WORLD[card.plan_id]) == ["do 1", "do 2", "do 3"]
    assert await journal(office, card) == before
    verified = [step for step, state, _ in before if state == "verified"]
    assert verified == [0, 1, 2]
