"""A dump from after the harm began holds the harm: whoever asks for a restore is shown one from before it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text

from actions import registry
from bot.ports import ReplyTo, RestoreOffer
from bot.router import Command, Router
from bot.services.cards import PlanCard
from storage.session import Database
from tests.fakes.world import a_world
from tests.fixtures.office import CHANNEL, OfficeForTests, shipped_plan
from tests.fixtures.waiting import eventually

pytestmark = pytest.mark.integration

ELSEWHERE = "C0OTHER"


@pytest_asyncio.fixture
async def office(memory: Database) -> AsyncIterator[OfficeForTests]:
    """The product's own actions on a world of fakes: it is 10:12, the dumps are of 02:00 and of the day before."""
    world = a_world()
    made = OfficeForTests(memory, shipped_plan(), catalogue=registry, clock=world.clock)
    made.ports = world
    yield made
    await made.close()


async def an_incident(office: OfficeForTests, impact: str, channel: str = CHANNEL) -> None:
    command = Command(name="incident.open", params={"title": "Orders are gone", "impact": impact})
    await office.desk.ask(office.who("olivia", channel), command, reply=ReplyTo(channel=channel))


async def planned(office: OfficeForTests, words: str) -> PlanCard:
    command = Router().parse_slash("/dr-restore", f'shop {words} --reason "gone" --target shop')
    request = await office.desk.ask(office.who("olivia"), command, reply=ReplyTo(channel=CHANNEL))
    return await office.planned(request or 0)


async def offered(office: OfficeForTests, **asked: Any) -> RestoreOffer:
    await office.desk.recommend(office.who("olivia"), "shop", "V1", **asked)
    found: list[RestoreOffer] = []

    async def filled() -> bool:
        async with office.memory.session() as session:
            rows = await session.execute(text("SELECT payload FROM outbox WHERE kind = 'view'"))
            found[:] = [RestoreOffer.model_validate(row.payload["restore"]) for row in rows]
        return bool(found)

    await eventually(filled)
    return found[0]


@pytest.mark.parametrize("channel", [CHANNEL, ELSEWHERE])
async def test_a_dump_of_the_damaged_state_is_not_recommended(office: OfficeForTests, channel: str) -> None:
    """Harm at 01:50, dump at 02:00, an incident opened at 10:12 in this channel or, as the only one, in another."""
    await an_incident(office, "01:50", channel)
    async with office.working():
        offer = await offered(office)
        card = await planned(office, "")
    assert offer.recommended is not None
    assert offer.recommended.backup == "b-old"
    assert "from before the impact, 2026-11-23 01:50 UTC" in offer.why
    assert [item.backup for item in offer.alternatives] == ["b-new"]
    assert "from `b-old`" in card.summary.replace("`shop` ", "")
    assert not [finding for finding in card.findings if finding.check == "damage"]


async def test_whoever_takes_a_later_dump_is_warned(office: OfficeForTests) -> None:
    await an_incident(office, "01:50")
    async with office.working():
        card = await planned(office, "--from b-new")
    assert "`b-new`" in card.summary
    [said] = [finding.detail for finding in card.findings if finding.check == "damage"]
    assert "taken at 2026-11-23 02:00 UTC, after the impact began at 2026-11-23 01:50 UTC" in said


async def test_what_is_said_goes_before_what_the_incident_says(office: OfficeForTests) -> None:
    await an_incident(office, "01:50")
    async with office.working():
        offer = await offered(office, before="02:30")
        card = await planned(office, "--before 2026-11-23 02:30 UTC")
    assert offer.recommended is not None
    assert (offer.recommended.backup, "`b-new`" in card.summary) == ("b-new", True)


async def test_of_two_open_incidents_elsewhere_none_is_meant(office: OfficeForTests) -> None:
    await an_incident(office, "01:50", ELSEWHERE)
    await an_incident(office, "01:40", "C0THIRD")
    async with office.working():
        offer = await offered(office)
    assert offer.before is None
    assert offer.recommended is not None
    assert offer.recommended.backup == "b-new"
