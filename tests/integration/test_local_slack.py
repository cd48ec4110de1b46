"""The local Slack and the hand in it, against a bot of a few lines that speaks Socket Mode itself."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest

from bot.demo.local_slack import OPS, LocalSlack
from bot.demo.local_slack_control import LocalSlackControl, LocalSlackError
from bot.demo.people import DANIEL, OLIVIA
from tests.fixtures.waiting import until

pytestmark = pytest.mark.integration

BUTTON = {
    "type": "button",
    "action_id": "approve",
    "value": "token-1",
    "text": {"type": "plain_text", "text": "Approve"},
}
MODAL = {
    "type": "modal",
    "callback_id": "reason",
    "notify_on_close": True,
    "title": {"type": "plain_text", "text": "Sign"},
    "submit": {"type": "plain_text", "text": "Sign"},
    "blocks": [
        {
            "type": "input",
            "block_id": "why",
            "label": {"type": "plain_text", "text": "Why"},
            "element": {"type": "plain_text_input", "action_id": "text"},
        }
    ],
}


class TinyBot:
    """Answers `/dr` with a message and a button, the button with a modal, the modal with an error when it is empty."""

    def __init__(self, slack: LocalSlack) -> None:
        self._slack = slack
        self.heard: list[tuple[str, dict[str, Any]]] = []

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect((await self.api("apps.connections.open"))["url"])
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._socket.close()
        await self._session.close()

    async def api(self, method: str, **body: object) -> dict[str, Any]:
        token = self._slack.tokens.app if method.startswith("apps.") else self._slack.tokens.bot
        headers = {"Authorization": f"Bearer {token}"}
        async with self._session.post(self._slack.api_url + method, json=body, headers=headers) as answer:
            said: dict[str, Any] = await answer.json()
        assert said["ok"], said
        return said

    async def _serve(self) -> None:
        async for frame in self._socket:
            envelope = json.loads(frame.data)
            if "envelope_id" in envelope:
                payload = envelope["payload"]
                self.heard.append((payload.get("type", envelope["type"]), payload))
                answer = await self._answer(payload)
                await self._socket.send_json({"envelope_id": envelope["envelope_id"], "payload": answer})

    async def _answer(self, payload: dict[str, Any]) -> dict[str, Any]:
        if payload.get("command"):
            blocks = [{"type": "actions", "block_id": "plan", "elements": [BUTTON]}]
            await self.api("chat.postMessage", channel=payload["channel_id"], text="A plan", blocks=blocks)
        elif payload["type"] == "block_actions":
            await self.api("views.open", trigger_id=payload["trigger_id"], view=MODAL)
        elif payload["type"] == "view_submission" and not payload["view"]["state"]["values"]["why"]["text"]["value"]:
            return {"response_action": "errors", "errors": {"why": "Say why"}}
        elif payload["type"] == "event_callback" and payload["event"]["type"] == "app_home_opened":
            home = {"type": "home", "blocks": []}
            await self.api("views.publish", user_id=payload["event"]["user"], view=home)
        return {}


@pytest.fixture
async def tiny_bot(local_slack: LocalSlack) -> AsyncIterator[TinyBot]:
    async with TinyBot(local_slack) as bot:
        yield bot


@pytest.fixture
async def hand(local_slack: LocalSlack, tiny_bot: TinyBot) -> AsyncIterator[LocalSlackControl]:
    async with local_slack.control() as hand:
        await hand.wait_connected()
        yield hand


async def test_command_click_and_modal(hand: LocalSlackControl, tiny_bot: TinyBot) -> None:
    await hand.command(OLIVIA.slack_id, OPS.id, "/dr restore now")
    plan = await hand.wait_message(OPS.id, lambda message: message.text == "A plan")
    assert plan.user == LocalSlack.bot_user_id
    assert "Approve" in plan.all_text()
    with pytest.raises(LocalSlackError, match="only \\['approve'\\]"):
        plan.element("deny")

    await hand.click(DANIEL.slack_id, plan, "approve")
    view = await hand.wait_view()
    assert view["callback_id"] == "reason"
    refused = await hand.submit_view(DANIEL.slack_id, {})
    assert refused.errors == {"why": "Say why"}
    assert refused.open_views
    taken = await hand.submit_view(
        DANIEL.slack_id, {"why": {"text": {"type": "plain_text_input", "value": "table dropped"}}}
    )
    assert (taken.errors, taken.open_views) == ({}, ())

    kinds = [kind for kind, _ in tiny_bot.heard]
    assert kinds == ["slash_commands", "block_actions", "view_submission", "view_submission"]
    command, press = tiny_bot.heard[0][1], tiny_bot.heard[1][1]
    assert (command["command"], command["text"], command["user_id"]) == ("/dr", "restore now", OLIVIA.slack_id)
    assert press["user"]["id"] == DANIEL.slack_id
    assert (press["actions"][0]["block_id"], press["actions"][0]["value"]) == ("plan", "token-1")


async def test_closing_a_modal_is_heard(hand: LocalSlackControl, tiny_bot: TinyBot) -> None:
    await hand.command(OLIVIA.slack_id, OPS.id, "/dr")
    plan = await hand.wait_message(OPS.id, lambda message: message.text == "A plan")
    await hand.click(OLIVIA.slack_id, plan, "approve")
    await hand.wait_view()
    await hand.close_view(OLIVIA.slack_id)
    await until(lambda: tiny_bot.heard[-1][0] == "view_closed")
    assert hand.open_views == ()


async def test_messages_reactions_home_and_log(hand: LocalSlackControl, tiny_bot: TinyBot) -> None:
    said = await hand.message(OLIVIA.slack_id, OPS.id, "orders are gone")
    await hand.reaction(DANIEL.slack_id, said, "pushpin")
    await hand.open_home(OLIVIA.slack_id)
    events = [payload["event"]["type"] for kind, payload in tiny_bot.heard if kind == "event_callback"]
    assert events[0] == "message"
    assert events[-2:] == ["reaction_added", "app_home_opened"]
    await until(lambda: hand.home(OLIVIA.slack_id) is not None)
    assert await hand.channel_named("#ops") == OPS.id
    assert any("chat" in entry["summary"] or "views.publish" in entry["summary"] for entry in await hand.log())


async def test_two_workspaces_stand_side_by_side_with_tokens_of_their_own(
    local_slack: LocalSlack, server_directory: Path
) -> None:
    async with LocalSlack(server_directory / "second", port=local_slack.port) as second:
        assert second.port != local_slack.port
        assert second.tokens.bot != local_slack.tokens.bot
        assert second.tokens.bot not in repr(second.tokens)
        assert (second.directory / "workspace.json").stat().st_mode & 0o777 == 0o600
    assert second.pid is None
