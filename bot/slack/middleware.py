"""What stands around every handler: who it was, the click stored first, and an answer whatever fails."""

from __future__ import annotations

import json
import logging
import secrets
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from slack_bolt.async_app import AsyncAck

from actions.approval import Refusal
from actions.errors import DrError, TemporaryError, UserError
from bot.ports import Desk, Who
from bot.router import Router
from bot.slack import accounts
from bot.slack.gateway import Identity, SlackGateway
from bot.slack.views.text import sentence, text_modal

log = structlog.get_logger()

Body = dict[str, Any]
Handler = Callable[[AsyncAck, Body], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Counter:
    """What handlers work with."""

    desk: Desk
    gateway: SlackGateway
    router: Router
    identity: Identity
    now: Callable[[], datetime]

    async def first_time(self, key: str, kind: str, body: Mapping[str, Any]) -> bool:
        """Store a click before its ack. False for one of Slack's retries: nothing is left to do."""
        return await self.desk.store(key, kind, _kept(body))

    async def refuse_unfit(self, who: Who, token: str | None = None) -> None:
        """Raise UserError, after recording it, for guests, bots, foreign and deactivated accounts."""
        refusal = await accounts.look(self.gateway, self.desk, self.identity.team, who.slack_user)
        if refusal is not None:
            await self._turn_away(who, token, refusal)

    async def refuse_shared(self, who: Who, token: str | None = None) -> None:
        """Raise UserError, after recording it, where people of another organisation read along."""
        refusal = await self.gateway.channel_problem(who.channel)
        if refusal is not None:
            await self._turn_away(who, token, refusal)

    async def _turn_away(self, who: Who, token: str | None, refusal: Refusal) -> None:
        log.info("turned_away", user=who.slack_user, channel=who.channel, code=refusal.code)
        if token is not None:
            await self.desk.refuse_account(who, token, refusal)
        await self.desk.turn_away(who, refusal.code, refusal.text)


def who_of(body: Mapping[str, Any], *, channel: str = "") -> Who:
    """The account of a slash command, a click, a shortcut or a submission. `channel` where the body has none."""
    user = body.get("user")
    if isinstance(user, Mapping):
        team = user.get("team_id") or (body.get("team") or {}).get("id") or ""
        return Who(slack_user=str(user.get("id") or ""), team=str(team), channel=channel or channel_of(body))
    team = str(body.get("team_id") or "")
    return Who(slack_user=str(body.get("user_id") or ""), team=team, channel=channel or channel_of(body))


def channel_of(body: Mapping[str, Any]) -> str:
    """The channel a body came from, empty for modals."""
    channel = body.get("channel")
    found = channel.get("id") if isinstance(channel, Mapping) else body.get("channel_id")
    return str(found or (body.get("container") or {}).get("channel_id") or "")


def click_key(body: Mapping[str, Any]) -> str:
    """One key for one click, the same when Slack sends it again."""
    view = body.get("view")
    if body.get("type") == "view_submission" and isinstance(view, Mapping):
        return f"view:{view.get('id')}:{view.get('hash')}"
    actions = body.get("actions") or [{}]
    return f"trigger:{body.get('trigger_id')}:{actions[0].get('action_ts', '')}"


def _kept(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the inbox keeps: no verification token, no whole message or view."""
    names = ("type", "command", "text", "trigger_id", "callback_id", "event_id", "event", "actions", "container")
    kept = {name: body[name] for name in names if name in body}
    who = who_of(body)
    return kept | {"who": who.model_dump(mode="json")}


def answered(counter: Counter) -> Callable[[Handler], Handler]:
    """Decorator of handlers. One that fails tells the person: a UserError word for word, anything else with an id that
    is in the log.

    Bolt has a hook for errors, but forgets the ack of a handler that acknowledges and fails within ten milliseconds,
    and then reports the request as unhandled (slack-bolt 1.30, listener/asyncio_runner.py).
    """

    def around(handler: Handler) -> Handler:
        async def guarded(ack: AsyncAck, body: Body) -> None:
            try:
                await handler(ack, body)
            except Exception as error:  # noqa: BLE001 - the person is told, and the log has the cause
                await _answer(counter, ack, body, _sentence(error, body))

        return guarded

    return around


async def _answer(counter: Counter, ack: AsyncAck, body: Body, text: str) -> None:
    if ack.response is not None:
        await tell(counter, body, text)
        return
    # Not acknowledged: the answer goes with the ack, so that the person is told even without the Web API.
    payload = ack_with(body, text)
    if payload is None:
        await ack()
        await tell(counter, body, text)
    else:
        await ack(**payload)


def _sentence(error: Exception, body: Mapping[str, Any]) -> str:
    if isinstance(error, UserError):
        return str(error)
    number = secrets.token_hex(4)
    kind = body.get("type") or body.get("command")
    # Formatted here: a renderer that shows local variables would show tokens and people's words.
    trace = "".join(traceback.format_exception(error))
    log.error("handler_failed", id=number, kind=kind, error=type(error).__name__, traceback=trace)
    if isinstance(error, TemporaryError):
        return f"Not done: {error} Try again in {error.retry_after.total_seconds():.0f} s (error {number})."
    if isinstance(error, DrError):
        return f"Not done: {error} An operator must put this right (error {number})."
    return f"Not done: the bot failed at this. An operator finds the cause in its log under {number}."


def ack_with(body: Mapping[str, Any], text: str) -> dict[str, Any] | None:
    """What an ack carries to say this; None for a click, whose ack says nothing."""
    if "command" in body:
        return {"response_type": "ephemeral"} | sentence(text)
    if body.get("type") == "view_submission":
        return {"response_action": "update", "view": text_modal("Not done", text)}
    return None


async def tell(counter: Counter, body: Mapping[str, Any], text: str) -> None:
    """Say it to the person alone. A failure is logged: there is nobody else to tell."""
    who = who_of(body)
    channel = who.channel or private_channel(body)
    if not channel or not who.slack_user:
        log.info("nobody_to_tell", text=text)
        return
    try:
        await counter.gateway.whisper(channel, who.slack_user, sentence(text), response_url=body.get("response_url"))
    except DrError as error:
        log.warning("person_not_told", user=who.slack_user, text=text, error=str(error))


def private_channel(body: Mapping[str, Any]) -> str:
    """The channel a modal was opened from, as its metadata remembers it."""
    view = body.get("view")
    raw = view.get("private_metadata") if isinstance(view, Mapping) else None
    try:
        held = json.loads(raw) if raw else {}
    except ValueError:
        return ""
    return str(held.get("channel") or "") if isinstance(held, Mapping) else ""


class WithoutBodies(logging.Filter):
    """Bolt writes whole requests into its log, tokens and people's text included. Only the first words stay."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith("Unhandled request") and "event_callback" in message:
            return False  # an event nobody subscribed to; local workspaces send them all
        head = message.partition("(signature")[0] if "signature" in message else message.partition("\n")[0][:200]
        record.msg, record.args = head.strip(), ()
        return True


def bolt_logger() -> logging.Logger:
    """The logger all of Bolt's loggers copy their filter from."""
    logger = logging.getLogger("drbot.slack.bolt")
    if not any(isinstance(item, WithoutBodies) for item in logger.filters):
        logger.addFilter(WithoutBodies())
    logger.setLevel(logging.INFO)
    return logger
