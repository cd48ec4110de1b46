"""The policy on a real database: what voids signatures, what keeps them from counting, and what is refused at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from actions.approval import Act
from actions.errors import UserError
from bot.plan_file import DrPlan
from bot.services.cards import PlanCard, PlanState
from bot.services.quorum import warn_of_gaps
from storage.session import Database
from tests.fakes.toy import WORLD
from tests.fixtures.office import CHANNEL, OfficeForTests, shipped_plan
from tests.fixtures.waiting import eventually

Document = dict[str, Any]


def changed(change: Callable[[Document], object]) -> DrPlan:
    """The office's plan file with something changed in it."""
    document = shipped_plan().model_dump(mode="json")
    change(document)
    return DrPlan.model_validate(document)


def destructive(document: Document) -> Document:
    """The rule that the toy's plans are under."""
    return next(rule for rule in document["approval"]["rules"] if rule["risk"] == "DESTRUCTIVE")


async def act(office: OfficeForTests, person: str, card: PlanCard, what: Act, *, typed: str = "toy") -> str:
    return await office.desk.sign(
        office.who(person),
        card.token,
        act=what,
        digest=card.digest,
        typed=typed,
        reason="seen",
        channel=CHANNEL,
        ts="1.0",
    )


async def a_plan(office: OfficeForTests, **params: Any) -> PlanCard:
    """A plan that Olivia asked for; nobody works any more when it is returned."""
    async with office.working():
        card = await office.planned(await office.ask("olivia", "toy.run", **params))
    await office.posted(card)
    return card


async def an_incident(office: OfficeForTests) -> None:
    await office.ask("olivia", "incident.open", title="Orders are gone", severity="SEV1")


async def refusals(office: OfficeForTests) -> list[str]:
    async with office.memory.session() as session:
        return list((await session.execute(text("SELECT code FROM refusal ORDER BY id"))).scalars())


async def waits(office: OfficeForTests, card: PlanCard) -> PlanCard:
    """The plan is looked at by a worker and not started."""
    async with office.working():
        await asyncio.sleep(0.5)
    found = await office.desk.plan_card(card.token)
    assert found.state is PlanState.PENDING
    assert card.plan_id not in WORLD
    return found


# ------------------------------------------------------------ changes of policy and roster


def raise_expiry(document: Document) -> None:
    destructive(document)["execution_expiry"] = "1h"


def give_a_role(document: Document) -> None:
    document["roster"][1]["roles"].append("operator")


def give_an_account(document: Document) -> None:
    document["roster"][1]["slack_ids"].append("U0OTHER")


@pytest.mark.parametrize(
    ("change", "what"),
    [(raise_expiry, "approval policy has"), (give_a_role, "roster has"), (give_an_account, "roster has")],
)
async def test_a_changed_policy_voids_the_signatures_and_says_which(
    memory: Database, office: OfficeForTests, change: Callable[[Document], None], what: str
) -> None:
    card = await a_plan(office)
    await act(office, "daniel", card, Act.APPROVE)
    later = OfficeForTests(memory, changed(change))
    async with later.working():
        ended = await later.until(card, PlanState.VOID)
    await later.close()
    assert f"The {what} changed since this plan was asked for" in ended.message
    assert card.plan_id not in WORLD


async def test_a_corrected_phone_number_voids_nothing(memory: Database, office: OfficeForTests) -> None:
    card = await a_plan(office)
    await act(office, "daniel", card, Act.APPROVE)

    def correct(document: Document) -> None:
        document["roster"][1] |= {"name": "Daniel D. Dietrich", "phone": "+49 30 1"}

    later = OfficeForTests(memory, changed(correct))
    async with later.working():
        await later.until(card, PlanState.SUCCEEDED)
    await later.close()


async def test_a_person_who_leaves_the_roster_in_mid_run_stops_it(memory: Database, office: OfficeForTests) -> None:
    card = await a_plan(office, steps=3, seconds=1)
    await act(office, "daniel", card, Act.APPROVE)
    async with office.working():
        await office.until(card, PlanState.RUNNING)

    def dismiss(document: Document) -> None:
        document["roster"][1] |= {"id": "dora", "slack_ids": ["U0DORA"]}

    later = OfficeForTests(memory, changed(dismiss))
    async with later.working():
        ended = await later.until(card, PlanState.FAILED, PlanState.ASKING)
    await later.close()
    assert "signatures no longer suffice" in ended.message
    assert "do 3" not in WORLD.get(card.plan_id, [])


# ------------------------------------------------------------ the state of accounts


async def test_an_account_deactivated_after_its_signature_takes_it_along(office: OfficeForTests) -> None:
    card = await a_plan(office)
    await act(office, "daniel", card, Act.APPROVE)
    await office.desk.note_account("U0DANIEL", problem="This account is deactivated.", groups=[])
    assert "1 of dba" in (await waits(office, card)).missing
    await office.desk.note_account("U0DANIEL", problem="", groups=[])
    async with office.working():
        await office.until(card, PlanState.SUCCEEDED)


async def test_an_account_deactivated_in_mid_run_stops_it_before_the_next_step(office: OfficeForTests) -> None:
    card = await a_plan(office, steps=4, seconds=0.5)
    await act(office, "daniel", card, Act.APPROVE)
    async with office.working():
        await office.until(card, PlanState.RUNNING)
        await office.desk.note_account("U0DANIEL", problem="This account is deactivated.", groups=[])
        ended = await office.until(card, PlanState.FAILED, PlanState.ASKING)
    assert "signatures no longer suffice" in ended.message
    assert "do 4" not in WORLD.get(card.plan_id, [])


async def test_a_group_takes_rights_away_and_gives_none(memory: Database) -> None:
    def in_group(document: Document) -> None:
        destructive(document)["slots"] = [{"role": "dba", "slack_group": "S0DBA"}]

    office = OfficeForTests(memory, changed(in_group))
    await office.desk.note_account("U0SAM", problem="", groups=["S0DBA"])
    card = await a_plan(office)
    for person in ("daniel", "sam"):  # the role without the group, the group without the role
        with pytest.raises(UserError):
            await act(office, person, card, Act.APPROVE)
    assert await refusals(office) == ["not_in_group", "no_role"]
    await office.desk.note_account("U0DANIEL", problem="", groups=["S0DBA"])
    await act(office, "daniel", card, Act.APPROVE)
    await office.desk.note_account("U0DANIEL", problem="", groups=[])
    await waits(office, card)
    await office.desk.note_account("U0DANIEL", problem="", groups=["S0DBA"])
    async with office.working():
        await office.until(card, PlanState.SUCCEEDED)
    await office.close()


async def test_while_slack_is_suspect_its_signatures_do_not_count(office: OfficeForTests) -> None:
    await an_incident(office)
    card = await a_plan(office)
    await act(office, "daniel", card, Act.APPROVE)
    await office.ask("sam", "incident.suspect_slack", reason="that was not me")
    assert "the requester's own signature" in (await waits(office, card)).missing
    with pytest.raises(UserError, match="drbot sign"):
        await act(office, "sam", card, Act.DENY)
    assert await refusals(office) == ["slack_suspect"]


# ------------------------------------------------------------ withdrawals and denials


async def test_a_signature_is_withdrawn_until_the_start(office: OfficeForTests) -> None:
    card = await a_plan(office)
    with pytest.raises(UserError, match="none to withdraw"):
        await act(office, "daniel", card, Act.WITHDRAW)
    await act(office, "daniel", card, Act.APPROVE)
    await act(office, "daniel", card, Act.WITHDRAW)
    await waits(office, card)
    await act(office, "daniel", card, Act.APPROVE)
    async with office.working():
        await office.until(card, PlanState.SUCCEEDED)
    with pytest.raises(UserError, match="has started"):
        await act(office, "daniel", card, Act.WITHDRAW)
    assert await refusals(office) == ["not_signed", "already_started"]


async def test_a_requester_who_withdraws_ends_the_plan(office: OfficeForTests) -> None:
    card = await a_plan(office)
    await act(office, "olivia", card, Act.WITHDRAW)
    async with office.working():
        ended = await office.until(card, PlanState.VOID)
    assert ended.message == "Olivia Ortega has withdrawn the request."
    with pytest.raises(UserError, match="withdrawn"):
        await act(office, "daniel", card, Act.APPROVE)


@pytest.mark.parametrize("incident", [True, False])
async def test_a_denial_is_overruled_only_by_a_new_plan_that_shows_it(office: OfficeForTests, incident: bool) -> None:
    if incident:
        await an_incident(office)
    first = await a_plan(office)
    await act(office, "sam", first, Act.DENY)
    second = await a_plan(office)
    assert second.demands is not None
    assert second.demands.overrules == f"Overrules the denial of plan {first.plan_id} by Sam Sato"
    assert second.demands.overruled_reason == "seen"
    await act(office, "daniel", second, Act.APPROVE)
    async with office.working():
        await office.until(second, PlanState.SUCCEEDED)
    assert first.plan_id not in WORLD


@pytest.mark.attack
async def test_a_denial_in_one_incident_is_not_evaded_in_another_or_outside(office: OfficeForTests) -> None:
    await an_incident(office)
    first = await a_plan(office)
    await act(office, "sam", first, Act.DENY)
    await office.ask("olivia", "incident.close", summary="we ask elsewhere")
    outside = await a_plan(office)
    await an_incident(office)
    for card in (outside, await a_plan(office)):
        assert card.demands is not None
        assert card.demands.overrules == f"Overrules the denial of plan {first.plan_id} by Sam Sato"


@pytest.mark.attack
async def test_a_denial_in_one_incident_stops_a_plan_that_waits_outside(office: OfficeForTests) -> None:
    outside = await a_plan(office)
    await an_incident(office)
    first = await a_plan(office)
    await act(office, "daniel", outside, Act.APPROVE)
    await act(office, "sam", first, Act.DENY)

    async def told() -> bool:
        return await refusals(office) == ["denied"]

    async with office.working():
        ended = await office.until(outside, PlanState.VOID)
        await eventually(told)
    assert f"Plan {first.plan_id} for the same was denied meanwhile" in ended.message
    assert outside.plan_id not in WORLD


async def test_a_plan_made_before_the_denial_of_another_cannot_hide_it(office: OfficeForTests) -> None:
    await an_incident(office)
    first, second = await a_plan(office), await a_plan(office)
    await act(office, "daniel", second, Act.APPROVE)
    await act(office, "sam", first, Act.DENY)
    async with office.working():
        ended = await office.until(second, PlanState.VOID)
    assert f"Plan {first.plan_id} for the same was denied meanwhile" in ended.message
    assert second.plan_id not in WORLD


# ------------------------------------------------------------ what is refused when it is asked for


def nobody_for_the_slot(document: Document) -> None:
    document["roster"][1]["slack_ids"] = []


def freeze_now(document: Document) -> None:
    destructive(document)["freezes"] = [
        {"reason": "holidays", "since": "2020-01-01 00:00 UTC", "until": "2999-01-01 00:00 UTC"}
    ]


def elsewhere(document: Document) -> None:
    destructive(document)["channels"] = ["on_call", "C0ELSEWHERE"]


def in_incidents(document: Document) -> None:
    destructive(document)["channels"] = ["incident"]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (nobody_for_the_slot, "unreachable", "the roster lacks 1 of dba"),
        (freeze_now, "frozen", "the freeze (holidays) at 2999-01-01 00:00 UTC"),
        (elsewhere, "wrong_channel", "ask for it in on_call or C0ELSEWHERE"),
        (in_incidents, "wrong_channel", "ask for it in incident"),
    ],
)
async def test_what_cannot_come_to_an_end_is_refused_when_it_is_asked_for(
    memory: Database, change: Callable[[Document], None], code: str, words: str
) -> None:
    office = OfficeForTests(memory, changed(change))
    async with office.working():
        told = await office.refused(await office.ask("olivia", "toy.run"))
    assert words in told
    assert await refusals(office) == [code]
    await office.close()


async def test_a_rule_for_incidents_is_met_in_the_channel_of_one(memory: Database) -> None:
    office = OfficeForTests(memory, changed(in_incidents))
    await an_incident(office)
    card = await a_plan(office)
    assert card.state is PlanState.PENDING
    await office.close()


async def test_a_rule_for_one_target_adds_to_the_rule_for_all(memory: Database) -> None:
    def add(document: Document) -> None:
        extra = {**destructive(document), "targets": ["toy"], "persons_besides_requester": 1}
        document["approval"]["rules"].append(extra | {"slots": [{"role": "security"}]})

    office = OfficeForTests(memory, changed(add))
    card = await a_plan(office)
    assert card.demands is not None
    assert card.demands.slots == "1 of dba AND 1 of security"
    await act(office, "daniel", card, Act.APPROVE)
    assert (await waits(office, card)).missing == ("1 of security",)
    await act(office, "sam", card, Act.APPROVE)
    async with office.working():
        await office.until(card, PlanState.SUCCEEDED)
    await office.close()


# ------------------------------------------------------------ the daily look


async def test_hours_without_a_quorum_are_told_once_a_day(memory: Database) -> None:
    def by_day(document: Document) -> None:
        document["rota"] = [{"persons": ["olivia", "daniel", "sam"], "since": "08:00", "until": "20:00"}]

    office = OfficeForTests(memory, changed(by_day))
    now = office.clock.now()
    assert await warn_of_gaps(office.on_time, office.plan, now)
    assert not await warn_of_gaps(office.on_time, office.plan, now)
    assert await warn_of_gaps(office.on_time, office.plan, now + timedelta(days=1))
    async with office.memory.session() as session:
        told = (await session.execute(text("SELECT payload->>'text' FROM outbox WHERE kind = 'text'"))).scalars().all()
    assert len(told) == 2
    assert "DESTRUCTIVE plans cannot be signed in 84 of 168 hours" in told[0]
    await office.close()


async def test_a_roster_that_can_sign_everything_is_not_told_about(office: OfficeForTests) -> None:
    assert not await warn_of_gaps(office.on_time, office.plan, office.clock.now())


async def test_a_look_at_the_signers_lets_a_run_start_that_waits_for_one(memory: Database) -> None:
    """Slack was away after the signatures and is back."""
    plan = shipped_plan()
    brief = plan.approval.model_copy(update={"seen_within": timedelta(seconds=2)})
    office = OfficeForTests(memory, plan.model_copy(update={"approval": brief}))
    card = await a_plan(office)
    await act(office, "daniel", card, Act.APPROVE)
    await asyncio.sleep(2.1)
    async with office.working():
        await eventually(lambda: said_once(office))
        assert "a fresh look at the Slack account" in " ".join((await office.desk.plan_card(card.token)).missing)

        async def looked_at() -> bool:
            for account in ("U0OLIVIA", "U0DANIEL"):
                await office.desk.note_account(account, problem="", groups=[])
            return (await office.desk.plan_card(card.token)).state is PlanState.SUCCEEDED

        await eventually(looked_at)
    assert await refusals(office) == ["unseen"]
    await office.close()


async def said_once(office: OfficeForTests) -> bool:
    async with office.memory.session() as session:
        pages = await session.execute(text("SELECT payload->>'key' FROM outbox WHERE kind = 'page'"))
        return [key.rpartition("/")[2] for key in pages.scalars()] == ["unseen"]


async def test_those_whose_signature_waits_are_looked_at_first(office: OfficeForTests) -> None:
    card = await a_plan(office)
    await act(office, "daniel", card, Act.APPROVE)
    assert (await office.desk.watched()).waiting == ("U0DANIEL", "U0OLIVIA")  # noted by nobody yet
    await office.desk.note_account("U0DANIEL", problem="", groups=[])
    assert (await office.desk.watched()).waiting == ("U0OLIVIA",)
    async with office.working():
        await office.until(card, PlanState.SUCCEEDED)
    assert (await office.desk.watched()).waiting == ()
