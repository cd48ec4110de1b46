"""Clicks and commands through the real Bolt, against a strict Slack and a desk in memory."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from slack_bolt.async_app import AsyncApp
from slack_bolt.response import BoltResponse

from actions.approval import Act
from actions.errors import DrError, PermanentError, TemporaryError, UserError
from bot.ports import ReplyTo, Watched, Who
from bot.router import Command, Router
from bot.services.cards import PlanState
from bot.slack import accounts, deeds
from bot.slack.app import build_app
from bot.slack.gateway import WebGateway
from bot.slack.middleware import Counter
from bot.slack.runtime import SlackRuntime
from bot.slack.views import run_control
from bot.slack.views.plan import plan_message
from bot.slack.views.restore import restore_modal
from tests.fakes.block_rules import check_message, check_view
from tests.fakes.cards import NOW, a_card, an_offer
from tests.fakes.desk import MemoryDesk, MemoryOutbox
from tests.fakes.slack import APP_TOKEN, BOT_TOKEN, SECRET, TEAM, FakeSlack, Fault, Message, signed, signed_http

TOKEN = "t" * 43


@pytest.fixture
async def slack() -> AsyncIterator[FakeSlack]:
    async with FakeSlack() as fake:
        yield fake


@pytest.fixture
def desk() -> MemoryDesk:
    return MemoryDesk(cards={TOKEN: a_card()})


@pytest.fixture
async def gateway(slack: FakeSlack) -> WebGateway:
    return WebGateway(token=BOT_TOKEN, base_url=slack.url)


@pytest.fixture
async def app(slack: FakeSlack, desk: MemoryDesk, gateway: WebGateway) -> AsyncApp:
    counter = Counter(desk=desk, gateway=gateway, router=Router(), identity=await gateway.identity(), now=lambda: NOW)
    return build_app(counter, token=BOT_TOKEN, base_url=slack.url, signing_secret=SECRET)


@pytest.fixture
async def plan(gateway: WebGateway, slack: FakeSlack) -> Message:
    await gateway.post("C0OPS", plan_message(a_card(), now=NOW), mark={"row": 1})
    return slack.messages[-1]


async def send(app: AsyncApp, body: dict[str, Any]) -> BoltResponse:
    start = time.monotonic()
    response: BoltResponse = await app.async_dispatch(signed(body))
    assert time.monotonic() - start < 1.0, "acknowledged too late"
    return response


def answer(response: BoltResponse) -> Any:
    assert response.status == 200
    return json.loads(response.body) if response.body else None


async def eventually(slack: FakeSlack, words: str) -> str:
    """The view or the whisper that says it."""
    await slack.until(lambda: words in json.dumps([list(slack.views.values()), slack.whispers], ensure_ascii=False))
    return words


# ------------------------------------------------------------ slash commands


async def test_a_command_reaches_the_desk_once(app: AsyncApp, slack: FakeSlack, desk: MemoryDesk) -> None:
    body = slack.slash("/dr-backup", "list superprismora")
    await send(app, body)
    await send(app, body)  # Slack's retry
    await desk.until(lambda: bool(desk.asked))
    assert len(desk.asked) == 1
    who, command, reply = desk.asked[0]
    assert (who.slack_user, who.team, who.channel) == ("U0ANA", "T0FAKE", "C0OPS")
    assert (command.name, command.params) == ("status.catalogue", {"database": "superprismora"})
    assert reply.response_url == body["response_url"]


async def test_help_and_wrong_words_are_answered_by_the_ack(app: AsyncApp, slack: FakeSlack, desk: MemoryDesk) -> None:
    told = answer(await send(app, slack.slash("/dr", "help")))
    check_message(told)
    assert told["response_type"] == "ephemeral"
    told = answer(await send(app, slack.slash("/dr-backup", "lst")))
    check_message(told)
    assert "did you mean `list`" in told["text"]
    assert desk.asked == []
    assert slack.count("chat.postEphemeral") == 0


async def test_a_plan_is_announced_and_asked_for(app: AsyncApp, slack: FakeSlack, desk: MemoryDesk) -> None:
    told = answer(await send(app, slack.slash("/dr-backup", "run superprismora --reason “before it”")))
    assert "Planning" in told["text"]
    await desk.until(lambda: bool(desk.asked))
    assert desk.asked[0][1].reason == "before it"


async def test_a_guest_cannot_ask_for_a_plan(app: AsyncApp, slack: FakeSlack, desk: MemoryDesk) -> None:
    await send(app, slack.slash("/dr-backup", "run superprismora", user="U0GUEST"))
    await eventually(slack, "is a guest")
    assert desk.asked == []


async def test_restore_without_arguments_opens_the_form(app: AsyncApp, slack: FakeSlack, desk: MemoryDesk) -> None:
    await send(app, slack.slash("/dr-restore", ""))
    await desk.until(lambda: len(desk.recommended) == 1)
    assert desk.recommended == [(None, next(iter(slack.views)), False)]
    await send(app, slack.slash("/dr-restore", "superprismora"))
    await desk.until(lambda: len(desk.recommended) == 2)
    assert desk.recommended[1][0] == "superprismora"
    await send(app, slack.slash("/dr-restore", "superprismora --before 01:50"))
    await desk.until(lambda: len(desk.recommended) == 3)
    assert desk.impacts == [None, None, "01:50"]


async def test_a_signed_restore_goes_straight_to_the_desk(app: AsyncApp, slack: FakeSlack, desk: MemoryDesk) -> None:
    text = "superprismora —from b-1 —reason “orders table dropped” —target superprismora"
    await send(app, slack.slash("/dr-restore", text))
    await desk.until(lambda: bool(desk.asked))
    command = desk.asked[0][1]
    assert (command.name, command.typed, command.params["backup"]) == ("restore.dump", "superprismora", "b-1")


# ------------------------------------------------------------ failures are told


async def test_a_refusal_is_shown_word_for_word(app: AsyncApp, slack: FakeSlack, desk: MemoryDesk) -> None:
    desk.problem = UserError("This channel has no open incident.")
    await send(app, slack.slash("/dr-incident", "note x"))
    await eventually(slack, "This channel has no open incident.")


@pytest.mark.parametrize("problem", [TemporaryError("The database is away."), PermanentError("Broken."), KeyError("x")])
async def test_a_failing_handler_answers_with_an_id(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, problem: Exception
) -> None:
    desk.problem = problem
    await send(app, slack.slash("/dr", "status"))
    await eventually(slack, "Not done")


async def test_a_click_that_cannot_be_stored_is_told_in_the_ack(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk
) -> None:
    desk.store_problem = TemporaryError("The bot's database does not answer.")
    told = answer(await send(app, slack.slash("/dr", "status")))
    assert "does not answer" in told["text"]
    assert desk.asked == []


# ------------------------------------------------------------ signing


async def open_approval(app: AsyncApp, slack: FakeSlack, plan: Message, *, user: str = "U0BEN") -> str:
    await send(app, slack.click("plan.approve", TOKEN, message=plan, user=user))
    await slack.until(lambda: slack.count("views.update") == 1)
    return next(iter(slack.views))


async def test_approving_shows_the_plan_afresh_and_signs_it(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message
) -> None:
    view = await open_approval(app, slack, plan)
    assert slack.views[view]["callback_id"] == "sign.approve"
    body = slack.submission(view, reason="checked the dump", typed="superprismora")
    told = answer(await send(app, body))
    check_view(told["view"])
    await eventually(slack, "Your signature is recorded.")
    assert desk.signed == [
        {
            "user": "U0BEN",
            "token": TOKEN,
            "act": Act.APPROVE,
            "digest": "0123abcd" * 8,
            "typed": "superprismora",
            "reason": "checked the dump",
            "channel": "C0OPS",
            "ts": plan.ts,
        }
    ]


async def test_a_signer_who_closed_the_window_is_told_in_the_channel(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message
) -> None:
    view = await open_approval(app, slack, plan)
    body = slack.submission(view, reason="ok", typed="superprismora")
    del slack.views[view]
    await send(app, body)
    await eventually(slack, "Your signature is recorded.")
    assert slack.whispers[-1]["channel"] == "C0OPS"


async def test_a_double_click_signs_once(app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message) -> None:
    view = await open_approval(app, slack, plan)
    body = slack.submission(view, reason="ok", typed="superprismora")
    await asyncio.gather(send(app, body), send(app, body))
    await eventually(slack, "Your signature is recorded.")
    assert len(desk.signed) == 1


async def test_a_wrong_name_keeps_the_form_open(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message
) -> None:
    view = await open_approval(app, slack, plan)
    told = answer(await send(app, slack.submission(view, reason="ok", typed="superprismorra")))
    assert told == {"response_action": "errors", "errors": {"typed": "Type exactly: superprismora"}}
    assert desk.signed == []
    await send(app, slack.submission(view, reason="ok", typed="superprismora"))
    await eventually(slack, "Your signature is recorded.")


async def test_events_nobody_subscribed_to_are_not_logged(
    app: AsyncApp, slack: FakeSlack, caplog: pytest.LogCaptureFixture
) -> None:
    body = slack.reaction("eyes", slack.said("a"))
    body["event"]["type"] = "member_joined_channel"
    with caplog.at_level(logging.DEBUG):
        await app.async_dispatch(signed(body))
    assert "member_joined_channel" not in caplog.text


async def test_the_requester_cannot_sign_again(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message
) -> None:
    view = await open_approval(app, slack, plan, user="U0ANA")
    assert "Your request is already your signature." in json.dumps(slack.views[view])
    assert desk.turned_away == [("U0ANA", TOKEN)]


@pytest.mark.parametrize("user", ["U0GUEST", "U0GONE", "U0ROBOT", "U0ALIEN"])
async def test_unfit_accounts_are_refused_and_recorded(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message, user: str
) -> None:
    view = await open_approval(app, slack, plan, user=user)
    assert "does not count" in json.dumps(slack.views[view])
    assert desk.turned_away == [(user, TOKEN)]


async def test_a_failed_look_up_refuses(app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message) -> None:
    slack.fail("users.info", *[Fault(error="internal_error")] * 3)
    view = await open_approval(app, slack, plan)
    assert "cannot sign now" in json.dumps(slack.views[view])
    assert desk.turned_away


async def test_a_plan_that_moved_on_offers_no_signature(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message
) -> None:
    desk.cards[TOKEN] = a_card(state=PlanState.RUNNING)
    view = await open_approval(app, slack, plan)
    assert "submit" not in slack.views[view]


async def test_denying_needs_a_reason_and_is_recorded(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message
) -> None:
    await send(app, slack.click("plan.deny", TOKEN, message=plan))
    await slack.until(lambda: slack.count("views.update") == 1)
    await send(app, slack.submission(next(iter(slack.views)), reason="wrong backup"))
    await eventually(slack, "Your signature is recorded.")
    assert (desk.signed[0]["act"], desk.signed[0]["reason"]) == (Act.DENY, "wrong backup")


async def test_withdrawing_is_recorded_and_told(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message
) -> None:
    await send(app, slack.click("plan.withdraw", TOKEN, message=plan))
    await slack.until(lambda: slack.count("views.update") == 1)
    await send(app, slack.submission(next(iter(slack.views)), reason="too early"))
    await eventually(slack, "Your signature is recorded.")
    assert (desk.signed[0]["act"], desk.signed[0]["reason"]) == (Act.WITHDRAW, "too early")


async def test_what_slack_says_of_a_signer_is_noted_for_the_workers(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message
) -> None:
    desk.watching = Watched(accounts=("U0BEN", "U0GONE"), groups=("S0DBA", "S0SRE"))
    slack.groups |= {"S0DBA": {"U0BEN"}, "S0SRE": {"U0ANA"}}
    await open_approval(app, slack, plan)
    assert desk.noted == {"U0BEN": ("", ("S0DBA",))}
    await send(app, slack.click("plan.approve", TOKEN, message=plan, user="U0GONE"))
    await slack.until(lambda: "U0GONE" in desk.noted)
    assert "deactivated" in desk.noted["U0GONE"][0]


async def test_a_group_that_cannot_be_read_refuses_and_notes_nothing(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message
) -> None:
    desk.watching = Watched(accounts=("U0BEN",), groups=("S0DBA",))
    slack.missing.add("usergroups.users.list")
    view = await open_approval(app, slack, plan)
    assert "cannot sign now" in json.dumps(slack.views[view])
    assert (desk.noted, bool(desk.turned_away)) == ({}, True)


async def test_every_account_of_the_roster_is_looked_at_without_a_click(slack: FakeSlack, gateway: WebGateway) -> None:
    desk = MemoryDesk(watching=Watched(accounts=("U0ANA", "U0GONE")))
    watching = asyncio.create_task(accounts.watch(gateway, desk, TEAM))
    try:
        await desk.until(lambda: len(desk.noted) == 2)
    finally:
        watching.cancel()
    assert [bool(problem) for problem, _ in desk.noted.values()] == [False, True]


async def test_the_round_asks_once_for_a_group_however_many_accounts_there_are(
    slack: FakeSlack, gateway: WebGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "BETWEEN_S", 0.0)
    slack.groups |= {"S0DBA": {"U0ANA"}, "S0SRE": {"U0ANA", "U0BEN"}}
    desk = MemoryDesk(watching=Watched(accounts=("U0ANA", "U0BEN"), groups=("S0DBA", "S0SRE")))
    watching = asyncio.create_task(accounts.watch(gateway, desk, TEAM))
    try:
        await desk.until(lambda: len(desk.noted) == 2)
    finally:
        watching.cancel()
    assert desk.noted == {"U0ANA": ("", ("S0DBA", "S0SRE")), "U0BEN": ("", ("S0SRE",))}
    assert slack.count("usergroups.users.list") == 2


async def test_a_group_is_looked_up_again_after_a_while_and_at_every_click(
    slack: FakeSlack, gateway: WebGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    slack.groups["S0DBA"] = {"U0BEN"}
    desk = MemoryDesk(watching=Watched(accounts=("U0BEN",), groups=("S0DBA",)))
    groups = accounts.Groups(gateway.group_members)
    assert await groups.members("S0DBA") == {"U0BEN"}
    slack.groups["S0DBA"] = set()
    assert await groups.members("S0DBA") == {"U0BEN"}
    assert await accounts.look(gateway, desk, TEAM, "U0BEN") is None
    assert desk.noted["U0BEN"] == ("", ())
    monkeypatch.setattr(accounts, "GROUP_LASTS_S", 0.0)
    assert await groups.members("S0DBA") == frozenset()


async def test_a_group_that_cannot_be_read_costs_the_round_one_look_up(slack: FakeSlack, gateway: WebGateway) -> None:
    groups = accounts.Groups(gateway.group_members)
    slack.missing.add("usergroups.users.list")
    for _ in range(3):
        with pytest.raises(DrError):
            await groups.members("S0DBA")
    assert slack.count("usergroups.users.list") == 1


@pytest.mark.parametrize("action", ["run.pause", "run.resume", "run.abort", "run.stop", "run.again"])
async def test_an_order_to_a_run_is_a_click(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message, action: str
) -> None:
    await send(app, slack.click(action, TOKEN, message=plan, user="U0BEN"))
    await desk.until(lambda: bool(desk.asked))
    [(who, command, reply)] = desk.asked
    assert (who.slack_user, command) == ("U0BEN", Command(name=action, params={"run": a_card().plan_id}))
    assert (reply.channel, reply.user) == (plan.channel, "U0BEN")


async def test_a_guest_orders_no_run(app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message) -> None:
    await send(app, slack.click("run.stop", TOKEN, message=plan, user="U0GUEST"))
    await eventually(slack, "does not count")
    assert desk.asked == []


@pytest.mark.parametrize("action", [*run_control.SIGNED])
async def test_an_answer_to_a_run_is_asked_for_in_a_form(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message, action: str
) -> None:
    desk.cards[TOKEN] = a_card(state=PlanState.ASKING, message="Has it <happened>?")
    await send(app, slack.click(action, TOKEN, message=plan))
    await slack.until(lambda: slack.count("views.update") == 1)
    view = next(iter(slack.views))
    assert "Has it &lt;happened&gt;?" in json.dumps(slack.views[view])
    wrong = answer(await send(app, slack.submission(view, reason="looked", typed="superprisma")))
    assert wrong["errors"] == {"typed": "Type exactly: superprismora"}
    await send(app, slack.submission(view, reason="looked", typed="superprismora"))
    await desk.until(lambda: bool(desk.asked))
    [(who, command, _)] = desk.asked
    assert command == Command(name=action, params={"run": a_card().plan_id}, reason="looked", typed="superprismora")
    assert who.channel == plan.channel


async def test_a_guest_answers_no_run(app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, plan: Message) -> None:
    await send(app, slack.click("run.happened", TOKEN, message=plan, user="U0GUEST"))
    await slack.until(lambda: bool(desk.turned_away))
    assert desk.asked == []


async def test_details_are_for_everybody(app: AsyncApp, slack: FakeSlack, plan: Message) -> None:
    await send(app, slack.click("plan.details", TOKEN, message=plan, user="U0GUEST"))
    await eventually(slack, "ALTER DATABASE db RENAME TO q")


async def test_a_late_click_is_told_to_click_again(app: AsyncApp, slack: FakeSlack, plan: Message) -> None:
    slack.fail("views.open", Fault(error="expired_trigger_id"))
    await send(app, slack.click("plan.approve", TOKEN, message=plan))
    await eventually(slack, "click again")


# ------------------------------------------------------------ the restore form


async def open_form(slack: FakeSlack, gateway: WebGateway) -> str:
    return await gateway.open_view(slack.trigger(), restore_modal(an_offer(), channel="C0OPS"))


async def test_sending_the_form_is_the_request(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, gateway: WebGateway
) -> None:
    view = await open_form(slack, gateway)
    told = answer(await send(app, slack.submission(view, user="U0ANA", reason="dropped", typed="superprismora")))
    assert told == {"response_action": "clear"}
    await desk.until(lambda: bool(desk.asked))
    who, command, reply = desk.asked[0]
    assert (who.channel, command.name) == ("C0OPS", "restore.dump")
    assert command.params == {"database": "superprismora", "backup": "db-8"}
    assert (command.reason, command.typed, reply.user) == ("dropped", "superprismora", "U0ANA")


@pytest.mark.parametrize(
    ("moment", "params"),
    [("10:29:58", {"at": "10:29:58"}), ("--before-drop documents", {"before_drop": "documents"})],
)
async def test_a_moment_in_the_form_asks_for_a_restore_to_it(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, gateway: WebGateway, moment: str, params: dict[str, str]
) -> None:
    form = restore_modal(an_offer(window="any moment from 08:00 to 10:30"), channel="C0OPS")
    view = await gateway.open_view(slack.trigger(), form)
    sent = slack.submission(view, user="U0ANA", reason="dropped", typed="superprismora", moment=moment)
    assert answer(await send(app, sent)) == {"response_action": "clear"}
    await desk.until(lambda: bool(desk.asked))
    command = desk.asked[0][1]
    assert (command.name, command.reason) == ("restore.point", "dropped")
    assert {name: value for name, value in command.params.items() if value} == {"database": "superprismora", **params}


async def test_what_is_no_moment_is_told_in_the_form(app: AsyncApp, slack: FakeSlack, gateway: WebGateway) -> None:
    form = restore_modal(an_offer(window="any moment from 08:00 to 10:30"), channel="C0OPS")
    view = await gateway.open_view(slack.trigger(), form)
    sent = slack.submission(view, user="U0ANA", reason="dropped", typed="superprismora", moment="--befor-drop x")
    told = answer(await send(app, sent))
    assert told["response_action"] == "errors"
    assert "There is no `--befor-drop`" in told["errors"]["moment"]


async def test_a_refused_request_is_told_in_the_channel_the_form_came_from(
    app: AsyncApp, slack: FakeSlack, gateway: WebGateway
) -> None:
    view = await open_form(slack, gateway)
    await send(app, slack.submission(view, user="U0GUEST", reason="dropped", typed="superprismora"))
    await slack.until(lambda: slack.count("chat.postEphemeral") == 1)
    assert slack.whispers[-1]["channel"] == "C0OPS"


async def test_a_ticked_box_calls_the_server_suspect(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, gateway: WebGateway
) -> None:
    view = await gateway.open_view(slack.trigger(), restore_modal(an_offer(spare="standby-2"), channel="C0OPS"))
    sent = slack.submission(view, user="U0ANA", reason="disk errors", typed="superprismora")
    ticked = {"type": "checkboxes", "selected_options": [{"value": "yes"}]}
    sent["view"]["state"]["values"]["suspect"] = {"suspect": ticked}
    await send(app, sent)
    await desk.until(lambda: bool(desk.asked))
    assert desk.asked[0][1].params["instance_suspect"] is True


async def test_alternatives_fill_the_same_form_or_one_on_top(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, gateway: WebGateway
) -> None:
    view = await open_form(slack, gateway)
    value = json.dumps({"database": "superprismora", "channel": "C0OPS"})
    await send(app, slack.click("restore.alternatives", value, view=view))
    await slack.until(lambda: slack.count("views.update") == 1)
    await send(app, slack.click("restore.alternatives", value))  # a client that does not name the modal
    await slack.until(lambda: slack.count("views.push") == 1)
    await send(app, slack.click("restore.database.1", value, view=view))
    await desk.until(lambda: len(desk.recommended) == 3)
    assert [(found[0], found[2]) for found in desk.recommended] == [
        ("superprismora", True),
        ("superprismora", True),
        ("superprismora", False),
    ]
    assert desk.recommended[0][1] == view


# ------------------------------------------------------------ messages for the timeline


async def test_shortcut_and_pushpin_add_a_message(app: AsyncApp, slack: FakeSlack, desk: MemoryDesk) -> None:
    message = slack.said("vendor says the disk is lost")
    await send(app, slack.shortcut("timeline.add", message))
    await eventually(slack, "Added to the timeline.")
    await send(app, slack.reaction("pushpin", message))
    await slack.until(lambda: slack.count("chat.getPermalink") == 2)
    await desk.until(lambda: bool(desk.pinned))
    entry = desk.pinned["C0OPS", message.ts]
    assert (entry["text"], entry["author"]) == ("vendor says the disk is lost", "ANA")
    assert entry["permalink"].endswith(message.ts)
    assert entry["occurred_at"].timestamp() == pytest.approx(float(message.ts))


async def test_other_reactions_are_nothing(app: AsyncApp, slack: FakeSlack, desk: MemoryDesk) -> None:
    await send(app, slack.reaction("eyes", slack.said("a")))
    assert desk.stored == {}


async def test_a_pushpin_elsewhere_bothers_nobody(app: AsyncApp, slack: FakeSlack, desk: MemoryDesk) -> None:
    desk.problem = UserError("This channel has no open incident.")
    await send(app, slack.reaction("pushpin", slack.said("a")))
    await slack.until(lambda: slack.count("chat.getPermalink") == 1)
    await asyncio.sleep(0.05)
    assert slack.whispers == []


# ------------------------------------------------------------ transport


async def test_bad_and_old_signatures_are_refused_and_not_logged(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, caplog: pytest.LogCaptureFixture
) -> None:
    body = slack.slash("/dr", "status words-of-a-person")
    with caplog.at_level(logging.DEBUG):
        assert (await app.async_dispatch(signed(body, secret="wrong"))).status == 401
        assert (await app.async_dispatch(signed(body, age=301))).status == 401
    assert "words-of-a-person" not in caplog.text
    assert desk.stored == {}


def a_runtime(slack: FakeSlack, desk: MemoryDesk, outbox: MemoryOutbox, **changes: Any) -> SlackRuntime:
    values: dict[str, Any] = {
        "bot_token": BOT_TOKEN,
        "app_token": APP_TOKEN,
        "signing_secret": SECRET,
        "api_url": slack.url,
        "socket_mode": True,
        "http_host": "127.0.0.1",
        "http_port": 0,
        "desk": desk,
        "outbox": outbox,
        "team": None,
    }
    return SlackRuntime(**(values | changes))


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_two_sockets_serve_and_survive_a_refresh(slack: FakeSlack, desk: MemoryDesk) -> None:
    runtime = a_runtime(slack, desk, MemoryOutbox())
    task = asyncio.create_task(runtime.run())
    try:
        await slack.connected(2)
        told = await slack.deliver("slash_commands", slack.slash("/dr", "help"), socket=1)
        check_message(told)
        await slack.drop_socket(1)
        body = slack.slash("/dr", "status")
        await slack.deliver("slash_commands", body, socket=0)
        await slack.deliver("slash_commands", body, socket=0, retry=1)
        await slack.connected(2)
        assert len(desk.asked) == 1
        assert runtime.last_seen is not None
    finally:
        await stop(task)


async def test_http_mode_serves_signed_requests_only(slack: FakeSlack, desk: MemoryDesk) -> None:
    runtime = a_runtime(slack, desk, MemoryOutbox(), socket_mode=False, app_token=None)
    task = asyncio.create_task(runtime.run())
    try:
        await asyncio.wait_for(runtime.ready.wait(), 5)
        address = f"http://127.0.0.1:{runtime.port}/slack/events"
        async with aiohttp.ClientSession() as session:
            raw, headers = signed_http({"type": "url_verification", "challenge": "c"})
            async with session.post(address, data=raw, headers=headers) as response:
                assert (response.status, "c" in await response.text()) == (200, True)
            raw, headers = signed_http(slack.slash("/dr", "status"), secret="wrong")
            async with session.post(address, data=raw, headers=headers) as response:
                assert response.status == 401
            raw, headers = signed_http(slack.slash("/dr", "status"))
            async with session.post(address, data=raw, headers=headers) as response:
                assert response.status == 200
        assert len(desk.asked) == 1
    finally:
        await stop(task)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"app_token": None}, "SLACK_APP_TOKEN"),
        ({"socket_mode": False, "signing_secret": None}, "SLACK_SIGNING_SECRET"),
    ],
)
async def test_settings_that_cannot_work_are_refused(
    slack: FakeSlack, desk: MemoryDesk, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        a_runtime(slack, desk, MemoryOutbox(), **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bot_token": "xoxb-wrong"}, "does not take the tokens"),
        ({"app_token": "xapp-wrong"}, "does not take the tokens"),
        ({"team": "T0OTHER"}, "belongs to workspace `T0FAKE`"),
    ],
)
async def test_tokens_that_do_not_work_end_the_start_loudly(
    slack: FakeSlack, desk: MemoryDesk, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        await asyncio.wait_for(a_runtime(slack, desk, MemoryOutbox(), **changes).run(), 5)


async def test_a_refused_token_is_told_and_tried_again_beside_other_roles(slack: FakeSlack, desk: MemoryDesk) -> None:
    revoked = [Fault(error="token_revoked")] * 1000
    slack.fail("auth.test", *revoked)
    runtime = a_runtime(slack, desk, MemoryOutbox(), again=timedelta(milliseconds=50))
    task = asyncio.create_task(runtime.run_beside_others())
    try:
        await slack.until(lambda: bool(runtime.trouble))
        assert "does not take the tokens" in runtime.trouble
        slack.heal("auth.test")
        await asyncio.wait_for(runtime.ready.wait(), 20)
        assert runtime.trouble == ""
        slack.fail("auth.test", *revoked)
        await slack.until(lambda: "any more" in runtime.trouble)
        slack.heal("auth.test")
        await slack.until(lambda: not runtime.trouble)
        assert not task.done()
    finally:
        await stop(task)


async def test_a_port_in_use_is_told_with_the_next_step(slack: FakeSlack, desk: MemoryDesk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        runtime = a_runtime(slack, desk, MemoryOutbox(), socket_mode=False, app_token=None, http_port=port)
        with pytest.raises(UserError, match=f"^Port {port} on `127.0.0.1` is used by another program.*DRBOT_HTTP_PORT"):
            await asyncio.wait_for(runtime.run(), 20)


async def test_an_address_of_another_machine_is_told_with_the_next_step(slack: FakeSlack, desk: MemoryDesk) -> None:
    runtime = a_runtime(slack, desk, MemoryOutbox(), socket_mode=False, app_token=None, http_host="192.0.2.1")
    with pytest.raises(UserError, match=r"^`192\.0\.2\.1` cannot be listened on.*DRBOT_HTTP_HOST"):
        await asyncio.wait_for(runtime.run(), 20)


async def test_what_a_dead_process_left_behind_is_carried_out_once_and_told(
    slack: FakeSlack, desk: MemoryDesk, gateway: WebGateway
) -> None:
    """The click was stored and acknowledged; then the process died."""
    counter = Counter(desk=desk, gateway=gateway, router=Router(), identity=await gateway.identity(), now=lambda: NOW)
    deed = deeds.Ask(
        who=Who(slack_user="U0BEN", team="T0TEAM", channel="C0OPS"),
        command=Command(name="backup.dump", params={"database": "a"}, reason="nightly"),
        reply=ReplyTo(channel="C0OPS", user="U0BEN"),
        signs=False,
    )
    await desk.store("trigger:1", deeds.STORED_AS, deed.model_dump(mode="json"))
    await desk.store("trigger:2", deeds.STORED_AS, {"kind": "of another version"})
    resuming = asyncio.create_task(deeds.resume(counter))
    try:
        await eventually(slack, "restarted before it could answer")
    finally:
        resuming.cancel()
        await asyncio.gather(resuming, return_exceptions=True)
    assert [command for _, command, _ in desk.asked] == [deed.command]
    assert desk.finished == {"trigger:1"}


@pytest.mark.parametrize("kind", [UserError, TemporaryError])
async def test_what_was_answered_is_not_carried_out_again(
    app: AsyncApp, slack: FakeSlack, desk: MemoryDesk, kind: type[Exception]
) -> None:
    desk.problem = kind("No backup fits.")
    await send(app, slack.slash("/dr-backup", "run superprismora"))
    await eventually(slack, "No backup fits.")
    assert await desk.unfinished(deeds.STORED_AS) == []
