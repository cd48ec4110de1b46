"""A run that asks people can be answered: look again, or leave everything as it stands."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from actions.approval import Act
from actions.errors import UserError
from bot.services.cards import PlanCard, PlanState
from tests.fakes.toy import WORLD
from tests.fixtures.office import OfficeForTests

pytestmark = pytest.mark.integration


async def asked(office: OfficeForTests, key: str) -> PlanCard:
    """A run that has stopped at its unclear second step."""
    card = await office.planned(await office.ask("olivia", "toy.run", steps=2, unclear=2, key=key))
    await signed(office, card)
    return await office.until(card, PlanState.ASKING)


async def signed(office: OfficeForTests, card: PlanCard) -> None:
    await office.posted(card)
    who = office.who("daniel")
    await office.desk.sign(
        who,
        card.token,
        act=Act.APPROVE,
        digest=card.digest,
        typed="toy",
        reason="ok",
        channel=who.channel,
        ts="1.0",
    )


async def test_left_as_it_is_the_locks_are_given_back(office: OfficeForTests) -> None:
    async with office.working():
        card = await asked(office, "leave")
        waiting = await office.planned(await office.ask("olivia", "toy.run", key="leave"))
        await signed(office, waiting)
        told = await office.desk.answer(office.who("daniel"), card.token, again=False)
        assert told == "The run has ended; everything is as it stands."
        await office.until(waiting, PlanState.SUCCEEDED)
        ended = await office.desk.plan_card(card.token)
    assert ended.state is PlanState.FAILED
    assert ended.message.endswith("Daniel Dietrich has left everything as it stands.")
    assert WORLD[card.plan_id] == ["do 1"]


async def test_looking_again_probes_the_unclear_step_and_repeats_nothing(office: OfficeForTests) -> None:
    async with office.working():
        card = await asked(office, "again")
        await office.desk.answer(office.who("daniel"), card.token, again=True)
        await office.until(card, PlanState.RUNNING, PlanState.ASKING)
        again = await office.until(card, PlanState.ASKING)
    assert "it cannot be told" in again.message
    assert WORLD[card.plan_id] == ["do 1"]
    async with office.memory.session() as session:
        rows = await session.execute(text("SELECT state FROM journal WHERE step = 1 ORDER BY seq"))
        assert set(rows.scalars()) == {"asking"}


async def test_only_the_roster_may_answer_and_only_a_run_that_asks(office: OfficeForTests) -> None:
    async with office.working():
        card = await asked(office, "who")
        with pytest.raises(UserError, match="not on the roster"):
            await office.desk.answer(office.who("U0STRANGER"), card.token, again=False)
        await office.desk.answer(office.who("daniel"), card.token, again=False)
        with pytest.raises(UserError, match="does not ask"):
            await office.desk.answer(office.who("daniel"), card.token, again=True)
    async with office.memory.session() as session:
        codes = (await session.execute(text("SELECT code FROM refusal"))).scalars().all()
    assert list(codes) == ["not_on_roster"]
