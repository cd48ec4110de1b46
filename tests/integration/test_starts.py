"""What may not start at the moment that the database notes does not start, and what has started goes on when that time
is over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text

from bot.services.cards import PlanState
from storage.session import Database
from tests.fakes.clock import TravellingClock
from tests.fakes.toy import CLEAR, WORLD
from tests.fixtures.keyed import KeyedOffice
from tests.fixtures.memory import put_forward
from tests.fixtures.office import OfficeForTests, put_in_force, shipped_plan
from tests.fixtures.waiting import eventually
from tests.integration.test_answers import asked, signed
from tests.integration.test_break_glass import DELAY, alone
from tests.integration.test_newer_version import killed_in_the_middle
from tests.integration.test_policy import changed, destructive

pytestmark = [pytest.mark.integration, pytest.mark.kill]

DAY = timedelta(days=1)


@pytest_asyncio.fixture
async def moving(memory: Database) -> AsyncIterator[OfficeForTests]:
    """An office whose plan file is in force, and whose clock can be put forward."""
    made = OfficeForTests(memory, shipped_plan(), clock=TravellingClock())
    await put_in_force(memory, made.plan)
    yield made
    await made.close()


async def a_day_goes_by(office: OfficeForTests) -> None:
    assert isinstance(office.clock, TravellingClock)
    office.clock.ahead += DAY
    await put_forward(office.memory, office.clock.ahead)


def stricter(document: dict[str, Any]) -> None:
    """Nothing could be signed or started under it, the day after."""
    since, until = (datetime.now(UTC) + timedelta(hours=hours) for hours in (20, 30))
    times = {"since": f"{since:%Y-%m-%d %H:%M} UTC", "until": f"{until:%Y-%m-%d %H:%M} UTC"}
    destructive(document)["freezes"] = [{"reason": "Black Friday", **times}]
    destructive(document)["channels"] = ["C0ELSEWHERE"]
    document["roster"][2]["roles"].append("operator")


async def test_a_run_that_was_killed_goes_on_a_day_later_under_another_plan_file(
    moving: OfficeForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = await killed_in_the_middle(moving, monkeypatch, "next day")
    await a_day_goes_by(moving)
    later = OfficeForTests(moving.memory, changed(stricter), clock=moving.clock)
    await put_in_force(moving.memory, later.plan)
    try:
        async with later.working():
            ended = await later.until(card, PlanState.SUCCEEDED, PlanState.FAILED, PlanState.ASKING)
    finally:
        await later.close()
    assert ended.state is PlanState.SUCCEEDED, ended.message
    assert WORLD[card.plan_id] == ["do 1", "do 2", "do 3"]


async def test_a_run_that_asks_goes_on_when_it_is_told_to_a_day_later(moving: OfficeForTests) -> None:
    async with moving.working():
        card = await asked(moving, key="a day")
        await a_day_goes_by(moving)
        CLEAR.add(card.plan_id)
        WORLD[card.plan_id].append("do 2")  # it had happened, as is seen now
        assert "looked at again" in await moving.ordered("sam", "run.again", card)
        ended = await moving.until(card, PlanState.SUCCEEDED, PlanState.FAILED)
    assert ended.state is PlanState.SUCCEEDED, ended.message


async def test_a_veto_period_ends_when_it_does_by_the_clock_of_the_database_too(keyed: KeyedOffice) -> None:
    """Whoever sets the clock of the bot forward gains nothing by it."""
    office = keyed.office
    async with office.working():
        card = await alone(keyed)
        keyed.clock.ahead += DELAY

        async def says_so() -> bool:
            return "set the clocks of the bot and of its database" in (await office.desk.plan_card(card.token)).message

        await eventually(says_so, within=20)
        assert card.plan_id not in WORLD
        assert await runs(office) == [("awaiting", None, 0)]
        await put_forward(office.memory, DELAY)
        ended = await office.until(card, PlanState.SUCCEEDED)
    assert ended.message == ""


async def test_what_was_signed_under_a_plan_file_that_is_no_longer_in_force_is_not_started(
    moving: OfficeForTests,
) -> None:
    """Not even by a worker that has not gone over to the new version yet."""
    async with moving.working():
        card = await moving.planned(await moving.ask("olivia", "toy.run", key="late"))
    later = OfficeForTests(moving.memory, changed(stricter))
    await put_in_force(moving.memory, later.plan)
    await signed(moving, card)

    async def says_so() -> bool:
        return "has just come into force" in (await moving.desk.plan_card(card.token)).message

    async with moving.working():
        await eventually(says_so, within=20)
    assert card.plan_id not in WORLD
    assert await runs(moving) == [("awaiting", None, 0)]

    async def void() -> bool:
        ended = await later.desk.plan_card(card.token)
        return ended.state is PlanState.VOID and "changed since this plan was asked for" in ended.message

    try:
        async with later.working():
            await eventually(void, within=20)
    finally:
        await later.close()


async def runs(office: OfficeForTests) -> list[tuple[Any, ...]]:
    async with office.memory.session() as session:
        found = await session.execute(
            text("SELECT state, started_at, (SELECT count(*) FROM run_lock) FROM run"),
        )
        return [tuple(row) for row in found]
