"""Too much of everything: floods of commands, of clicks, of what is not Slack's."""

from __future__ import annotations

import asyncio
import json

import pytest

from actions.errors import UserError
from bot.counter import Counter
from bot.ports import Who
from bot.router import Command
from bot.services.cards import PlanState
from bot.services.rate_limits import TURNS
from tests.attack.launch import TARGET
from tests.attack.stage import DANIEL, OLIVIA, SAM, STRANGER, Stage
from tests.fakes.slack import signed_http
from tests.fixtures.office import CHANNEL, OfficeForTests

pytestmark = [pytest.mark.attack, pytest.mark.integration]


async def spend(stage: Stage, user: str) -> None:
    """Take every turn of this minute."""
    bodies = [stage.slack.slash("/dr", "help", user=user, channel=CHANNEL) for _ in range(TURNS)]
    answers = await asyncio.gather(*(stage.post(*signed_http(body)) for body in bodies))
    assert {status for status, _ in answers} == {200}


async def test_who_asks_too_often_is_told_when_to_ask_again(stage: Stage) -> None:
    await spend(stage, OLIVIA)
    status, told = await stage.ask()
    assert status == 200
    assert "Try again at" in told
    assert "UTC" in told
    await stage.refused("rate_limited")
    assert await stage.value("SELECT count(*) FROM request") == 0
    _, told = await stage.ask()
    assert "Try again at" in told
    await stage.refused("rate_limited", times=2)
    copies = "SELECT count(*) FROM outbox WHERE payload->>'text' LIKE '%rate_limited%'"
    assert await stage.value(copies) == 1, "a flood is told once, and every refusal of it is on the record"


async def test_a_flood_of_one_account_costs_nobody_else_anything(stage: Stage) -> None:
    await spend(stage, STRANGER)
    await stage.plan()
    assert await stage.codes() == []


@pytest.mark.parametrize(("action", "state"), [("plan.approve", PlanState.SUCCEEDED), ("plan.deny", PlanState.DENIED)])
async def test_no_limit_costs_a_signature(stage: Stage, action: str, state: PlanState) -> None:
    plan = await stage.plan()
    signer = DANIEL if action == "plan.approve" else SAM
    await spend(stage, signer)
    view = stage.slack.click("plan.details", plan.card.token, message=plan.message, user=signer)
    assert (await stage.send(view))[0] == 200
    await stage.slack.until(lambda: "Try again at" in json.dumps(stage.slack.whispers))
    await stage.sign(plan, user=signer, action=action)
    await stage.until(plan, state)
    assert await stage.codes() == ["rate_limited"]


async def test_a_flood_at_the_door_is_one_row(stage: Stage) -> None:
    raw, headers = signed_http(stage.slack.slash("/dr", "help"), secret="wrong")
    answers = await asyncio.gather(*(stage.post(raw, headers) for _ in range(200)))
    assert {status for status, _ in answers} == {401}
    door = stage.runtime._door
    assert door is not None
    await door.tell()
    await door.tell()
    await stage.refused("bad_signature")
    assert (await stage.value("SELECT text FROM refusal")).startswith("200 request(s)")


async def test_a_second_process_grants_no_further_turns(stage: Stage) -> None:
    await spend(stage, OLIVIA)
    office = OfficeForTests(stage.memory, stage.office.plan, catalogue=stage.catalogue)
    try:
        async with stage.serving(office=office) as second:
            raw, headers = signed_http(stage.slack.slash("/dr", "help", user=OLIVIA, channel=CHANNEL))
            _, told = await stage.post(raw, headers, runtime=second)
            assert "Try again at" in told
            await stage.refused("rate_limited")
    finally:
        await office.close()


async def test_a_flood_in_slack_takes_no_turn_at_a_terminal_and_no_key(stage: Stage) -> None:
    """A stolen account must not keep its owner from asking by key, nor from saying that Slack is not to be trusted."""
    await spend(stage, OLIVIA)
    office = stage.office
    counter = Counter(office.at_terminal, office.terminal, office.deliveries, person="olivia", channel=CHANNEL)
    asked = Command(name="restore.dump", params={"database": TARGET}, reason="it is gone", typed=TARGET)
    assert await counter.ask_by_key(asked)
    for _ in range(TURNS):
        await office.terminal.take_turn(Who(source="cli", person="olivia"))
    with pytest.raises(UserError, match="Try again at"):
        await counter.ask("incident", ["list"])
    await stage.refused("rate_limited")
    assert await counter.ask_by_key(asked)
