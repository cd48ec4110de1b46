"""Break-glass: one person starts a recovery alone; others may veto, are told at once, and must look at it later."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from actions.approval import Act
from actions.errors import UserError
from bot.plan_file import DrPlan
from bot.ports import ReplyTo
from bot.router import Command
from bot.services.cards import PlanCard, PlanState
from bot.services.reviews import Reviews
from storage.session import Database
from tests.fakes.clock import TravellingClock
from tests.fakes.toy import WORLD
from tests.fixtures.keyed import PERSONS, KeyedOffice, keyed_plan
from tests.fixtures.office import CHANNEL, OfficeForTests
from tests.fixtures.ssh_keys import MakeKey

pytestmark = pytest.mark.integration

DELAY, REVIEW_WITHIN = timedelta(minutes=5), timedelta(hours=24)
"""As the shipped plan has them."""


async def alone(keyed: KeyedOffice, person: str = "daniel") -> PlanCard:
    card = await keyed.ask(person, break_glass=True)
    await keyed.sign(person, card)
    return card


async def told(keyed: KeyedOffice, words: str) -> list[tuple[str, str]]:
    """Kind and channel of what was said with these words."""
    async with keyed.office.memory.session() as session:
        rows = await session.execute(text("SELECT kind, channel, payload FROM outbox ORDER BY id"))
        return [(kind, channel) for kind, channel, payload in rows.all() if words in str(payload.get("text"))]


async def review(keyed: KeyedOffice, person: str, card: PlanCard, words: str = "right backup") -> None:
    command = Command(name="review", params={"plan": card.plan_id, "text": words})
    await keyed.office.desk.ask(keyed.office.who(person), command, reply=ReplyTo(channel=CHANNEL, user=person))


def reviews(keyed: KeyedOffice) -> Reviews:
    approvals, _, _ = keyed.office.services(keyed.office.on_time)
    return Reviews(keyed.office.on_time, approvals, keyed.clock)


async def test_one_key_starts_a_recovery_after_the_delay_and_two_others_review_it(keyed: KeyedOffice) -> None:
    office, on_call = keyed.office, keyed.office.plan.channels.on_call
    async with office.working():
        card = await alone(keyed)
        assert await told(keyed, "BREAK-GLASS: Daniel Dietrich alone") == [
            ("page", ""),
            ("text", CHANNEL),
            ("text", on_call),
        ]
        assert "veto" in " ".join((await office.desk.plan_card(card.token)).missing)
        with pytest.raises(UserError, match="once it has started"):
            await review(keyed, "sam", card)
        assert card.plan_id not in WORLD
        await keyed.pass_by(DELAY)
        await office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 2"]

    # nagged until two others have looked at it
    nag = reviews(keyed)
    now = keyed.clock.now()
    assert await nag.remind(now) == [card.plan_id]
    assert await nag.remind(now) == []
    assert await nag.remind(now + timedelta(hours=5)) == [card.plan_id]
    assert await told(keyed, "must be reviewed by 2 more person(s) until") == [("text", on_call)] * 2
    await review(keyed, "sam", card)
    with pytest.raises(UserError, match="already recorded"):
        await review(keyed, "sam", card)
    with pytest.raises(UserError, match="two other persons"):
        await review(keyed, "daniel", card)
    late = now + REVIEW_WITHIN + timedelta(minutes=1)
    assert await nag.remind(late) == [card.plan_id]
    assert await nag.remind(late + timedelta(hours=1)) == [card.plan_id]
    assert [kind for kind, _ in await told(keyed, "OVERDUE")] == ["text", "page", "text"]
    await keyed.sign("erik", card, Act.REVIEW, target="", reason="I would have done the same")
    assert await nag.remind(late + timedelta(hours=2)) == []
    assert await told(keyed, "Review complete") == [("text", on_call)]
    assert await nag.remind(late + timedelta(days=9)) == []
    assert (await office.desk.plan_card(card.token)).state is PlanState.SUCCEEDED


async def test_a_plan_file_without_break_glass_ends_no_review(keyed: KeyedOffice) -> None:
    async with keyed.office.working():
        card = await alone(keyed)
        await keyed.pass_by(DELAY)
        await keyed.office.until(card, PlanState.SUCCEEDED)

    def without(document: dict[str, Any]) -> None:
        document["approval"]["break_glass"] = None

    async with under_another_plan_file(keyed, without) as later:
        nag, now = reviews(later), keyed.clock.now()
        assert await nag.remind(now) == [card.plan_id]
        assert await nag.remind(now + timedelta(hours=23, minutes=50)) == [card.plan_id]
        assert await told(later, "OVERDUE") == []
        assert await nag.remind(now + timedelta(hours=24)) == [card.plan_id]
        assert ("page", "") in await told(later, "OVERDUE: the run that Daniel Dietrich started alone")
        with pytest.raises(UserError, match="two other persons must review"):
            await review(later, "daniel", card)
        await review(later, "sam", card)
        assert await nag.remind(now + timedelta(hours=25)) == [card.plan_id]
        await later.sign("olivia", card, Act.REVIEW, target="", reason="read it")
        assert await nag.remind(now + timedelta(hours=26)) == []
        assert len(await told(later, "Review complete")) == 1


@asynccontextmanager
async def under_another_plan_file(
    keyed: KeyedOffice, change: Callable[[dict[str, Any]], None]
) -> AsyncIterator[KeyedOffice]:
    document = keyed.office.plan.model_dump(mode="json")
    change(document)
    office = OfficeForTests(keyed.office.memory, DrPlan.model_validate(document), clock=keyed.clock)
    yield KeyedOffice(office, keyed.keys, keyed.clock)
    await office.close()


async def test_rules_that_are_lowered_afterwards_end_no_review(keyed: KeyedOffice) -> None:
    """What would be enough today was not enough when one person started it."""

    def rule_of(document: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = next(rule for rule in document["approval"]["rules"] if rule["risk"] == "DESTRUCTIVE")
        return found

    def raised(document: dict[str, Any]) -> None:
        rule_of(document)["persons_besides_requester"] = 2

    async with under_another_plan_file(keyed, raised) as strict, strict.office.working():
        card = await alone(strict)
        await strict.sign("erik", card)
        await strict.pass_by(DELAY)
        await strict.office.until(card, PlanState.SUCCEEDED)

    assert await reviews(keyed).remind(keyed.clock.now()) == [card.plan_id]


async def test_with_all_signatures_it_starts_at_once_and_needs_no_review(keyed: KeyedOffice) -> None:
    async with keyed.office.working():
        card = await alone(keyed, "olivia")
        await keyed.sign("daniel", card)
        await keyed.office.until(card, PlanState.SUCCEEDED)
    nag = reviews(keyed)
    assert await nag.remind(keyed.clock.now()) == []
    assert await nag.remind(keyed.clock.now() + timedelta(days=9)) == []
    assert await told(keyed, "must be reviewed") == []


async def test_a_veto_of_anybody_ends_it(keyed: KeyedOffice) -> None:
    async with keyed.office.working():
        card = await alone(keyed)
        await keyed.sign("sam", card, Act.DENY, target="", reason="the backup is from before the migration")
        await keyed.office.until(card, PlanState.DENIED)
        await keyed.pass_by(DELAY * 2)
        assert (await keyed.office.desk.plan_card(card.token)).state is PlanState.DENIED
    assert card.plan_id not in WORLD
    assert ("page", "") in await told(keyed, "Sam Sato has vetoed")


async def test_the_incident_commander_may_in_slack_and_nobody_else(keyed: KeyedOffice) -> None:
    office = keyed.office
    opened = Command(name="incident.open", params={"title": "Orders are gone", "commander": "olivia"})
    await office.desk.ask(office.who("olivia"), opened, reply=ReplyTo(channel=CHANNEL))
    toy = Command(name="toy.run", reason="nobody answers", typed="toy", break_glass=True)
    async with office.working():
        other = await office.desk.ask(office.who("sam"), toy, reply=ReplyTo(channel=CHANNEL))
        assert "incident commander" in await office.refused(other or 0)
        request = await office.desk.ask(office.who("olivia"), toy, reply=ReplyTo(channel=CHANNEL))
        card = await office.planned(request or 0)
        await keyed.pass_by(DELAY)
        await office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 2"]


async def test_a_flag_that_nobody_asked_for_voids_the_plan(keyed: KeyedOffice) -> None:
    office = keyed.office
    opened = Command(name="incident.open", params={"title": "Orders are gone", "commander": "olivia"})
    await office.desk.ask(office.who("olivia"), opened, reply=ReplyTo(channel=CHANNEL))
    async with office.working():
        card = await office.planned(await office.ask("olivia", "toy.run"))
        async with office.memory.session() as session:
            await session.execute(text("UPDATE plan SET break_glass = true"))
        await keyed.pass_by(DELAY)
        await office.until(card, PlanState.VOID)
    assert card.plan_id not in WORLD


async def test_without_a_pager_nobody_acts_alone(memory: Database, make_key: MakeKey) -> None:
    """A version of the plan file that was activated before `plan check` asked for one."""
    keys = {person: make_key(person) for person in PERSONS}
    office = OfficeForTests(memory, keyed_plan(keys).model_copy(update={"pager": None}))
    keyed = KeyedOffice(office, keys, TravellingClock())
    try:
        async with office.working():
            with pytest.raises(UserError, match="names no `pager`; ask for it with all signatures"):
                await alone(keyed)
        async with memory.session() as session:
            rows = await session.execute(text("SELECT code, person FROM refusal"))
            assert [tuple(row) for row in rows] == [("no_pager", "daniel")]
            assert not (await session.execute(text("SELECT 1 FROM run"))).first()
    finally:
        await office.close()
