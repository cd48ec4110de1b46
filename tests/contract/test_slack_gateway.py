"""The gateway keeps its promises on a Slack that is stricter than Slack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from actions.approval import Code
from actions.errors import PermanentError, TemporaryError, UserError
from bot.ports import ChannelWish
from bot.slack.gateway import MessageGoneError, TokenRefusedError, WebGateway, problem_of
from bot.slack.scopes import WITHOUT
from bot.slack.views.text import loading_modal, sentence, text_modal
from tests.fakes.slack import BOT_TOKEN, TEAM, FakeSlack, Fault


@pytest.fixture
async def slack() -> AsyncIterator[FakeSlack]:
    async with FakeSlack() as fake:
        yield fake


@pytest.fixture
def gateway(slack: FakeSlack) -> WebGateway:
    return WebGateway(token=BOT_TOKEN, base_url=slack.url)


async def test_it_knows_itself(gateway: WebGateway) -> None:
    assert (await gateway.identity()).team == TEAM


async def test_a_refused_token_is_a_permanent_error(slack: FakeSlack) -> None:
    with pytest.raises(TokenRefusedError):
        await WebGateway(token="xoxb-wrong", base_url=slack.url).identity()


async def test_a_post_is_found_again_by_its_mark(gateway: WebGateway) -> None:
    ts = await gateway.post("C0OPS", sentence("a"), mark={"row": 7, "card": "plan:x"})
    assert await gateway.find("C0OPS", {"row": 7}) == ts
    assert await gateway.find("C0OPS", {"row": 8, "card": "plan:x"}) == ts
    assert await gateway.find("C0OPS", {"row": 8}) is None


async def test_an_update_changes_the_message_and_an_unknown_one_is_gone(slack: FakeSlack, gateway: WebGateway) -> None:
    ts = await gateway.post("C0OPS", sentence("a"), mark={"row": 1})
    await gateway.update("C0OPS", ts, sentence("b"))
    assert slack.messages[-1].text == "b"
    with pytest.raises(MessageGoneError):
        await gateway.update("C0OPS", "1.2", sentence("c"))


async def test_a_post_is_never_repeated_below_the_outbox(slack: FakeSlack, gateway: WebGateway) -> None:
    slack.fail("chat.postMessage", Fault(status=500, lost=True))
    with pytest.raises(TemporaryError):
        await gateway.post("C0OPS", sentence("a"), mark={"row": 1})
    assert len(slack.messages) == 1


async def test_a_rate_limit_names_its_time(slack: FakeSlack, gateway: WebGateway) -> None:
    slack.fail("chat.postMessage", Fault(error="ratelimited", status=429, retry_after=17))
    with pytest.raises(TemporaryError) as caught:
        await gateway.post("C0OPS", sentence("a"), mark={"row": 1})
    assert caught.value.retry_after == timedelta(seconds=17)


async def test_reading_waits_out_a_rate_limit(slack: FakeSlack, gateway: WebGateway) -> None:
    slack.fail("users.info", Fault(error="ratelimited", status=429, retry_after=1))
    assert await gateway.account_problem("U0ANA", TEAM) is None
    assert slack.count("users.info") == 2


@pytest.mark.parametrize("code", ["internal_error", "service_unavailable"])
async def test_slack_s_own_trouble_is_temporary(slack: FakeSlack, gateway: WebGateway, code: str) -> None:
    slack.fail("chat.update", Fault(error=code))
    with pytest.raises(TemporaryError):
        await gateway.update("C0OPS", "1.2", sentence("a"))


async def test_other_refusals_are_permanent(gateway: WebGateway) -> None:
    with pytest.raises(PermanentError, match="channel_not_found"):
        await gateway.post("C0NONE", sentence("a"), mark={"row": 1})


async def test_a_window_opens_once_for_a_click(slack: FakeSlack, gateway: WebGateway) -> None:
    trigger = slack.trigger()
    view = await gateway.open_view(trigger, loading_modal("Approve"))
    await gateway.update_view(view, text_modal("Approve", "ready"))
    assert "ready" in str(slack.views[view])
    with pytest.raises(UserError, match="click again"):
        await gateway.open_view(trigger, loading_modal("Approve"))


async def test_a_closed_window_is_gone(gateway: WebGateway) -> None:
    with pytest.raises(MessageGoneError):
        await gateway.update_view("V0", loading_modal("Approve"))


async def test_a_spent_response_url_gives_way_to_an_ephemeral(slack: FakeSlack, gateway: WebGateway) -> None:
    url = slack.response_url()
    for _ in range(6):
        await gateway.whisper("C0OPS", "U0ANA", sentence("a"), response_url=url)
    assert len(slack.whispers) == 6
    assert slack.count("chat.postEphemeral") == 1


async def test_messages_are_read_in_channels_and_threads(slack: FakeSlack, gateway: WebGateway) -> None:
    top = slack.said("disk is lost")
    slack.said("later")
    reply = slack.said("in a thread", thread_ts=top.ts)
    assert (await gateway.message("C0OPS", top.ts)).text == "disk is lost"
    found = await gateway.message("C0OPS", reply.ts)
    assert (found.text, found.author) == ("in a thread", "ANA")
    with pytest.raises(UserError):
        await gateway.message("C0OPS", "1.2")


@pytest.mark.parametrize(
    ("user", "code"),
    [
        ("U0ANA", None),
        ("U0GUEST", Code.GUEST),
        ("U0GONE", Code.DEACTIVATED),
        ("U0ROBOT", Code.BOT),
        ("U0ALIEN", Code.FOREIGN),
        ("U0NOBODY", Code.LOOKUP_FAILED),
    ],
)
async def test_accounts_that_may_not_sign(gateway: WebGateway, user: str, code: Code | None) -> None:
    problem = await gateway.account_problem(user, TEAM)
    assert (None if problem is None else problem.code) is code


@pytest.mark.parametrize(
    ("channel", "how", "code"),
    [
        ("C0OPS", "", None),
        ("C0OPS", "is_ext_shared", Code.SHARED_CHANNEL),
        ("C0OPS", "is_pending_ext_shared", Code.SHARED_CHANNEL),
        ("C0OPS", "is_org_shared", Code.SHARED_CHANNEL),
        ("C0GENERAL", "is_ext_shared", None),  # the plan file says so
        ("C0NOTHERE", "", Code.LOOKUP_FAILED),
        ("D0ANA", "", None),  # one other member, whose account is looked at
    ],
)
async def test_channels_that_others_read(slack: FakeSlack, channel: str, how: str, code: Code | None) -> None:
    slack.shared |= {channel: how} if how else {}
    gateway = WebGateway(token=BOT_TOKEN, base_url=slack.url, shared=["C0GENERAL"])
    problem = await gateway.channel_problem(channel)
    assert (None if problem is None else problem.code) is code


async def test_a_scope_that_is_missing_for_channels_is_told_to_the_doctor(
    slack: FakeSlack, gateway: WebGateway
) -> None:
    slack.missing.add("conversations.info")
    problem = await gateway.channel_problem("C0OPS")
    assert problem is not None
    assert "`drbot doctor` says whether a scope is missing" in problem.text
    assert [lost.method for lost in gateway.lost] == ["conversations.info"]


async def test_a_group_is_its_accounts_and_nobody_when_it_is_gone(slack: FakeSlack, gateway: WebGateway) -> None:
    slack.groups["S0DBA"] = {"U0ANA"}
    assert await gateway.group_members("S0DBA") == {"U0ANA"}
    assert await gateway.group_members("S0GONE") == frozenset()


async def test_a_group_that_slack_does_not_tell_is_no_empty_one(slack: FakeSlack, gateway: WebGateway) -> None:
    slack.groups["S0DBA"] = {"U0ANA"}
    slack.missing.add("usergroups.users.list")
    with pytest.raises(PermanentError):
        await gateway.group_members("S0DBA")
    assert [(item.method, item.error) for item in gateway.lost] == [("usergroups.users.list", "unknown_method")]
    slack.missing.clear()
    assert await gateway.group_members("S0DBA") == {"U0ANA"}
    assert gateway.lost == ()


async def test_scopes_that_were_not_granted_are_told_before_somebody_needs_them(
    slack: FakeSlack, gateway: WebGateway
) -> None:
    slack.scopes = ",".join(scope for scope in WITHOUT if scope not in ("pins:write", "files:write"))
    await gateway.identity()
    assert [item.method for item in gateway.lost] == ["files:write", "pins:write"]
    assert all(item.without for item in gateway.lost)
    slack.scopes = ",".join(WITHOUT)
    await gateway.identity()
    assert gateway.lost == ()


def test_an_account_of_another_workspace_may_not_sign() -> None:
    refusal = problem_of({"id": "U1", "team_id": "T0OTHER"}, TEAM)
    assert refusal is not None
    assert (refusal.code, "another workspace" in refusal.text) == (Code.FOREIGN, True)
    assert problem_of({"id": "U1", "team_id": TEAM, "is_restricted": False}, TEAM) is None


async def test_a_channel_is_made_and_furnished(slack: FakeSlack, gateway: WebGateway) -> None:
    wish = ChannelWish(name="inc-7", topic="Orders", invite=("U0ANA",))
    made = await gateway.make_channel(wish)
    again = await gateway.make_channel(ChannelWish(name="inc-7"))
    assert made is not None
    await gateway.furnish(made, wish)
    assert again is not None
    assert slack.channels[again] == "inc-7-2"
    assert (slack.count("conversations.setTopic"), slack.count("conversations.invite")) == (1, 1)
    assert gateway.lost == ()


async def test_what_a_workspace_lacks_is_told_and_survived(slack: FakeSlack, gateway: WebGateway) -> None:
    slack.missing |= {"conversations.create", "pins.add", "chat.getPermalink", "files.getUploadURLExternal"}
    assert await gateway.make_channel(ChannelWish(name="inc-7")) is None
    await gateway.pin("C0OPS", "1.2")
    assert await gateway.permalink("C0OPS", "1.2") is None
    assert not await gateway.upload("C0OPS", filename="a.md", title="A", content="x", comment="")
    assert {item.method for item in gateway.lost} == {
        "conversations.create",
        "pins.add",
        "chat.getPermalink",
        "files.upload",
    }
    assert all(item.without for item in gateway.lost)


async def test_a_file_arrives_whole(slack: FakeSlack, gateway: WebGateway) -> None:
    assert await gateway.upload("C0OPS", filename="a.html", title="A", content="<é>", comment="here")
    assert slack.files[0]["content"] == "<é>".encode()


async def test_an_outage_is_temporary() -> None:
    gateway = WebGateway(token=BOT_TOKEN, base_url="http://127.0.0.1:9/api/")
    with pytest.raises(TemporaryError):
        await gateway.post("C0OPS", sentence("a"), mark={"row": 1})


async def test_a_channel_that_was_looked_at_lately_costs_no_look_up_before_a_post(
    slack: FakeSlack, gateway: WebGateway
) -> None:
    for _ in range(3):
        assert await gateway.channel_problem("C0OPS", lately=60) is None
    assert slack.count("conversations.info") == 1
    assert await gateway.channel_problem("C0OPS") is None  # for a signature it is looked at anew
    assert slack.count("conversations.info") == 2
