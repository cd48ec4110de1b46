"""Who signs. Rows I1 to I13 of docs/reference/attacks.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from bot.ports import ReplyTo
from bot.router import Command
from bot.services.cards import PlanCard, PlanState
from storage import outbox
from tests.attack.conftest import Setting
from tests.attack.launch import TARGET
from tests.attack.stage import DANIEL, OLIVIA, SAM, STRANGER, Stage
from tests.fakes.slack import TEAM, Fault
from tests.fixtures.office import CHANNEL

pytestmark = [pytest.mark.attack, pytest.mark.integration]


def person(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in document["roster"] if item["id"] == name)
    return found


def rule(document: dict[str, Any], risk: str) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in document["approval"]["rules"] if item["risk"] == risk)
    return found


async def test_nobody_attacks_and_the_executor_is_called_once(stage: Stage) -> None:
    """What all other tests of this folder must not see."""
    plan = await stage.plan()
    assert "is recorded" in await stage.sign(plan)
    await stage.until(plan, PlanState.SUCCEEDED)
    assert len(stage.executor.starts) == 1
    assert await stage.codes() == []


async def test_i1_the_requester_cannot_approve(stage: Stage) -> None:
    plan = await stage.plan()
    view = await stage.window(plan, user=OLIVIA)
    assert "already your signature" in json.dumps(stage.slack.views[view])
    await stage.refused("self_approval", plan)


async def test_i1_the_requester_cannot_approve_through_a_form_of_another(stage: Stage) -> None:
    plan = await stage.plan()
    view = await stage.window(plan)
    await stage.submit(view, user=OLIVIA)
    await stage.refused("self_approval", plan)


async def test_i2_two_accounts_are_one_person(setting: Setting) -> None:
    def twice(document: dict[str, Any]) -> None:
        person(document, "olivia")["slack_ids"].append("U0OLIVIA2")

    async with setting(change=twice) as stage:
        stage.slack.users["U0OLIVIA2"] = {"id": "U0OLIVIA2", "team_id": TEAM, "name": "other"}
        plan = await stage.plan()
        await stage.window(plan, user="U0OLIVIA2")
        await stage.refused("self_approval", plan)


async def test_i2_the_second_account_of_a_signer_adds_nothing(setting: Setting) -> None:
    def twice(document: dict[str, Any]) -> None:
        person(document, "daniel")["slack_ids"].append("U0DANIEL2")
        rule(document, "DESTRUCTIVE")["persons_besides_requester"] = 2

    async with setting(change=twice) as stage:
        stage.slack.users["U0DANIEL2"] = {"id": "U0DANIEL2", "team_id": TEAM, "name": "other"}
        plan = await stage.plan()
        assert "still missing" in await stage.sign(plan)
        assert "already recorded" in await stage.sign(plan, user="U0DANIEL2")
        await stage.refused("already_signed", plan)
        assert await stage.signers(plan) == [("olivia", "request"), ("daniel", "approve")]


def in_one_rule(document: dict[str, Any]) -> None:
    person(document, "daniel")["roles"] = ["dba", "security"]
    rule(document, "DESTRUCTIVE")["slots"] = [{"role": "dba"}, {"role": "security"}]


def in_two_rules(document: dict[str, Any]) -> None:
    person(document, "daniel")["roles"] = ["dba", "security"]
    general = rule(document, "DESTRUCTIVE")
    narrow = {**general, "targets": [TARGET], "slots": [{"role": "security"}]}
    document["approval"]["rules"].append(narrow)


@pytest.mark.parametrize("rules", [in_one_rule, in_two_rules])
@pytest.mark.parametrize("order", [(DANIEL, SAM), (SAM, DANIEL)])
async def test_i3_one_person_of_two_roles_fills_one_seat(
    setting: Setting, order: tuple[str, str], rules: Callable[[dict[str, Any]], None]
) -> None:
    async with setting(change=rules) as stage:
        plan = await stage.plan()
        assert "still missing: 1 of" in await stage.sign(plan, user=order[0])
        assert await stage.state(plan) is PlanState.PENDING
        await stage.untouched()
        await stage.sign(plan, user=order[0])
        await stage.refused("already_signed", plan)
        assert "starts now" in await stage.sign(plan, user=order[1])
        await stage.until(plan, PlanState.SUCCEEDED)


@pytest.mark.parametrize("flag", ["is_restricted", "is_ultra_restricted"])
async def test_i4_a_guest_of_the_roster_cannot_sign(stage: Stage, flag: str) -> None:
    plan = await stage.plan()
    stage.slack.users[DANIEL][flag] = True
    assert "guest" in json.dumps(stage.slack.views[await stage.window(plan)])
    await stage.refused("guest", plan)


@pytest.mark.parametrize("change", [{"is_stranger": True}, {"team_id": "T0OTHER"}])
async def test_i5_an_account_of_another_organisation_cannot_sign(stage: Stage, change: dict[str, Any]) -> None:
    plan = await stage.plan()
    stage.slack.users[DANIEL] |= change
    assert "belongs to another" in json.dumps(stage.slack.views[await stage.window(plan)])
    await stage.refused("foreign", plan)


async def test_i5_a_click_from_another_workspace_reaches_nothing(stage: Stage) -> None:
    plan = await stage.plan()
    click = stage.slack.click("plan.approve", plan.card.token, message=plan.message, user=DANIEL)
    assert (await stage.send(click | {"team": {"id": "T0OTHER"}}))[0] == 200
    await stage.refused("wrong_workspace")
    assert stage.slack.views == {}


@pytest.mark.parametrize("flag", ["deleted", "is_invited_user"])
async def test_i6_a_deactivated_or_unconfirmed_account_cannot_sign(stage: Stage, flag: str) -> None:
    plan = await stage.plan()
    view = await stage.window(plan)
    stage.slack.users[DANIEL][flag] = True  # between the form and its sending
    assert "does not count" in await stage.submit(view)
    await stage.refused("deactivated", plan)
    assert await stage.signers(plan) == [("olivia", "request")]


@pytest.mark.parametrize("flag", ["is_bot", "is_workflow_bot", "is_connector_bot"])
async def test_i7_a_bot_cannot_sign(stage: Stage, flag: str) -> None:
    plan = await stage.plan()
    stage.slack.users[DANIEL][flag] = True
    assert "is a bot" in json.dumps(stage.slack.views[await stage.window(plan)])
    await stage.refused("bot", plan)


async def test_i7_our_own_bot_cannot_sign(stage: Stage) -> None:
    plan = await stage.plan()
    stage.slack.users["U0BOT"] = {"id": "U0BOT", "team_id": TEAM, "is_bot": True}
    await stage.window(plan, user="U0BOT")
    await stage.refused("not_on_roster", plan)


@pytest.mark.parametrize(
    "fault",
    [
        [Fault(status=429, error="ratelimited", retry_after=1)] * 60,
        [Fault(error="internal_error")] * 60,
        [Fault(status=503)] * 60,
        [Fault(error="missing_scope")] * 60,
        [Fault(error="user_not_found")] * 60,
    ],
    ids=["limited", "broken", "away", "not allowed", "unknown"],
)
async def test_i9_a_failed_look_up_refuses(stage: Stage, fault: list[Fault]) -> None:
    plan = await stage.plan()
    view = await stage.window(plan)
    stage.slack.fail("users.info", *fault)  # so many that the round of look-ups beside it does not use them up
    assert "cannot sign now" in await stage.submit(view)
    assert await stage.signers(plan) == [("olivia", "request")]
    await stage.refused("lookup_failed", plan)


async def test_i11_being_in_the_channel_is_no_authority(stage: Stage) -> None:
    plan = await stage.plan()
    await stage.window(plan, user=STRANGER)
    await stage.refused("not_on_roster", plan)


async def test_i11_a_member_who_is_not_on_the_roster_cannot_ask(stage: Stage) -> None:
    await stage.ask(user=STRANGER)
    await stage.refused("not_on_roster")
    assert await stage.value("SELECT count(*) FROM request") == 0


@pytest.mark.parametrize("how", ["is_ext_shared", "is_pending_ext_shared", "is_org_shared"])
async def test_i15_in_a_channel_that_others_read_nothing_is_asked_for(stage: Stage, how: str) -> None:
    stage.slack.shared[CHANNEL] = how
    await stage.ask()
    await stage.refused("shared_channel")
    assert await stage.value("SELECT count(*) FROM request") == 0
    assert "shared with another organisation" in json.dumps(stage.slack.whispers)


async def test_i15_in_a_channel_that_others_read_no_incident_is_opened(stage: Stage) -> None:
    stage.slack.shared[CHANNEL] = "is_ext_shared"
    await stage.send(stage.slack.slash("/dr-incident", "open Orders are gone", user=OLIVIA, channel=CHANNEL))
    await stage.refused("shared_channel")
    assert await stage.value("SELECT count(*) FROM incident") == 0


async def test_i15_a_channel_that_was_shared_meanwhile_takes_no_signature(stage: Stage) -> None:
    plan = await stage.plan()
    view = await stage.window(plan)
    stage.slack.shared[CHANNEL] = "is_ext_shared"
    assert "of your own" in await stage.submit(view)
    assert await stage.signers(plan) == [("olivia", "request")]
    await stage.refused("shared_channel", plan)
    # What makes nothing happen is taken there all the same.
    await stage.sign(plan, user=SAM, action="plan.deny")
    await stage.until(plan, PlanState.DENIED)


async def test_i15_a_channel_slack_tells_nothing_of_takes_no_signature(stage: Stage) -> None:
    plan = await stage.plan()
    stage.slack.missing.add("conversations.info")
    view = await stage.window(plan)
    assert "does not tell whether this channel is shared" in json.dumps(stage.slack.views[view])
    await stage.refused("lookup_failed", plan)


async def test_i15_a_channel_of_the_plan_file_may_be_shared(setting: Setting) -> None:
    def allowed(document: dict[str, Any]) -> None:
        document["channels"]["shared"] = [CHANNEL]

    async with setting(change=allowed) as stage:
        stage.slack.shared[CHANNEL] = "is_ext_shared"
        plan = await stage.plan()
        assert "is recorded" in await stage.sign(plan)
        await stage.until(plan, PlanState.SUCCEEDED)
        assert await stage.codes() == []


async def test_i15_a_plan_asked_for_elsewhere_is_not_shown_there(stage: Stage) -> None:
    """By the command line or the schedule, of a channel that is shared."""
    stage.slack.shared[CHANNEL] = "is_ext_shared"
    async with stage.office.memory.session() as session:
        await outbox.add(session, "plan", CHANNEL, ref=(await planned_in_silence(stage)).plan_id)
    await stage.refused("shared_channel")
    assert not [message for message in stage.slack.messages if message.channel == CHANNEL]


async def planned_in_silence(stage: Stage) -> PlanCard:
    command = Command(name="restore.dump", params={"database": TARGET}, reason="it is gone", typed=TARGET)
    who = stage.office.who("olivia", channel="")
    return await stage.office.planned(await stage.office.desk.ask(who, command, reply=ReplyTo()) or 0)


async def test_i12_a_name_is_nobody(stage: Stage) -> None:
    stage.slack.users["U0FAKE"] = stage.slack.users[DANIEL] | {
        "id": "U0FAKE",
        "profile": {"display_name": "Daniel Dietrich", "email": "daniel@superprismora.com"},
    }
    plan = await stage.plan()
    await stage.window(plan, user="U0FAKE")
    await stage.refused("not_on_roster", plan)


def by_group(document: dict[str, Any]) -> None:
    rule(document, "DESTRUCTIVE")["slots"] = [{"role": "dba", "slack_group": "S0DBA"}]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=429, error="ratelimited", retry_after=1),
        Fault(error="internal_error"),
        Fault(status=503),
        Fault(error="missing_scope"),
    ],
    ids=["limited", "broken", "away", "not allowed"],
)
async def test_i9_a_group_that_slack_does_not_tell_of_refuses(setting: Setting, fault: Fault) -> None:
    async with setting(change=by_group) as stage:
        stage.slack.groups["S0DBA"] = {DANIEL}
        plan = await stage.plan()
        view = await stage.window(plan)
        stage.slack.fail("usergroups.users.list", *[fault] * 60)
        assert "cannot sign now" in await stage.submit(view)
        assert await stage.signers(plan) == [("olivia", "request")]
        await stage.refused("lookup_failed", plan)


@pytest.mark.parametrize("now", [{"S0DBA": {SAM}}, {}], ids=["without him", "switched off"])
async def test_i9_who_is_in_the_group_no_more_fills_no_seat(setting: Setting, now: dict[str, set[str]]) -> None:
    async with setting(change=by_group) as stage:
        stage.slack.groups["S0DBA"] = {DANIEL}
        plan = await stage.plan()
        view = await stage.window(plan)
        stage.slack.groups = now
        assert "not in the Slack group" in await stage.submit(view)
        await stage.refused("not_in_group", plan)


async def test_i10_a_slack_group_gives_no_right(setting: Setting) -> None:
    """Whoever administers Slack can put anybody into a group; the roster is not Slack's."""
    async with setting(change=by_group) as stage:
        stage.slack.users[STRANGER]["is_admin"] = True
        stage.slack.groups["S0DBA"] = {DANIEL, STRANGER}
        plan = await stage.plan()
        await stage.window(plan, user=STRANGER)
        await stage.refused("not_on_roster", plan)
