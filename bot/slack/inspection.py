"""The look at every payload before any handler sees it, whichever way it came: is it Slack's, is it ours, is it one
thing, and may this account ask again already. What is refused here is recorded, answered once, and never retried.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import structlog
from slack_bolt.async_app import AsyncApp
from slack_bolt.error import BoltUnhandledRequestError
from slack_bolt.middleware.async_middleware import AsyncMiddleware
from slack_bolt.request.async_request import AsyncBoltRequest
from slack_bolt.response import BoltResponse

from actions.errors import DrError, UserError
from bot.ports import Who
from bot.services.refusals import CREDENTIAL, Door, holds_credential, storable
from bot.slack.gateway import Identity
from bot.slack.middleware import Body, Counter, ack_with, tell, who_of
from bot.slack.views import plan, signing

log = structlog.get_logger()

LARGEST = 1_000_000
"""Bytes. A click carries its whole message, which has at most some 13,000 characters; nothing of Slack's is larger."""

SIGNING = frozenset(
    {plan.APPROVE, plan.DENY, plan.WITHDRAW, signing.APPROVE, signing.DENY, signing.WITHDRAW},
)
"""Buttons and forms that are never counted: no limit may cost a signature."""


def register(app: AsyncApp, counter: Counter) -> None:
    """Put the inspection in front of all handlers, and record what no handler takes."""

    app.middleware(Inspection(counter))

    @app.error
    async def nobody_took_it(error: Exception, body: Body) -> BoltResponse:
        if isinstance(error, BoltUnhandledRequestError):
            # Events nobody subscribed to: local workspaces send them all.
            if is_event(body):
                return BoltResponse(status=200)
            return await _refused(counter, body, Door.UNKNOWN_CONTROL, UNKNOWN_CONTROL)
        log.error("not_handled", error=type(error).__name__)
        return BoltResponse(status=500)


class Inspection(AsyncMiddleware):
    """As a class: what Bolt hands to a function it has taken apart before, and a click without a button breaks it."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    async def async_process(
        self,
        *,
        req: AsyncBoltRequest,
        resp: BoltResponse,  # noqa: ARG002
        next: Callable[[], Awaitable[BoltResponse]],  # noqa: A002 - Bolt's word
    ) -> BoltResponse:
        fault = fault_of(req.body, self._counter.identity)
        if fault is not None:
            return await _refused(self._counter, req.body, *fault)
        return await (next() if is_event(req.body) else _in_turn(self._counter, req.body, next))


UNKNOWN_CONTROL = "This version of the bot does not know this button; ask for the plan or the form again."


def fault_of(body: Mapping[str, Any], identity: Identity) -> tuple[Door, str] | None:
    """What is wrong with a payload, and the sentence for whoever sent it."""
    misfit = _misfit(body)
    if misfit is not None:
        return misfit
    if body.get("type") == "block_actions" and len(body.get("actions") or ()) != 1:
        return Door.MALFORMED, "This click holds more or less than one button, so nothing was done; click again."
    if identity.app and str(body.get("api_app_id") or identity.app) != identity.app:
        return Door.WRONG_APP, "This request was made for another app, so nothing was done."
    team = _team(body)
    if team and team not in (identity.team, identity.enterprise):
        return Door.WRONG_WORKSPACE, "This request comes from another workspace, so nothing was done. Ask a member."
    if not is_event(body) and not who_of(body).slack_user:
        return Door.MALFORMED, "This request names no account, so nothing was done."
    return None


def _misfit(body: Mapping[str, Any]) -> tuple[Door, str] | None:
    """What is wrong with its texts, whoever sent them."""
    try:
        texts = list(_texts(body))
    except RecursionError:
        return Door.MALFORMED, "This request is nested deeper than anything Slack sends, so nothing was done."
    if sum(map(len, texts)) > LARGEST:
        return Door.TOO_LARGE, "This request is larger than anything Slack sends, so nothing was done."
    if not all(map(storable, texts)):
        return Door.MALFORMED, "This request holds characters that are no text, so nothing was done; type it again."
    if any(map(holds_credential, _texts(typed_in(body)))):
        return Door.CREDENTIAL, CREDENTIAL
    return None


def is_event(body: Mapping[str, Any]) -> bool:
    """Whether it reports something of the workspace, which nobody waits to be answered for."""
    return body.get("type") == "event_callback" or "event" in body


def typed_in(body: Mapping[str, Any]) -> object:
    """What a person has typed into a command or a form. It is looked at before it is stored."""
    view = body.get("view") if body.get("type") == "view_submission" else None
    return (view.get("state") if isinstance(view, Mapping) else None) or body.get("text")


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _team(body: Mapping[str, Any]) -> str:
    team = body.get("team")
    return str((team.get("id") if isinstance(team, Mapping) else body.get("team_id")) or "")


async def _in_turn(counter: Counter, body: Body, go_on: Callable[[], Awaitable[BoltResponse]]) -> BoltResponse:
    if not _signs(body):
        try:
            await counter.desk.take_turn(who_of(body))
        except UserError as error:
            return await _answered(counter, body, str(error))
        except DrError as error:
            # The database is away; the handler will find out and say so.
            log.warning("turn_not_counted", error=type(error).__name__)
    return await go_on()


def _signs(body: Mapping[str, Any]) -> bool:
    if body.get("type") == "view_submission":
        return (body.get("view") or {}).get("callback_id") in SIGNING
    actions = body.get("actions") or [{}]
    return actions[0].get("action_id") in SIGNING


async def _refused(counter: Counter, body: Body, code: Door, text: str) -> BoltResponse:
    who = _plain(who_of(body))
    log.warning("request_refused", code=code, user=who.slack_user, kind=str(body.get("type") or "command")[:40])
    try:
        await counter.desk.turn_away(who, code, text)
    except UserError:
        pass
    except DrError as error:
        log.warning("refusal_not_recorded", code=code, error=type(error).__name__)
    if code in (Door.TOO_LARGE, Door.WRONG_APP):
        return BoltResponse(status=200)  # whoever sent this is not one of ours to answer
    return await _answered(counter, body, text)


def _plain(who: Who) -> Who:
    """An account as it may be stored: what was malformed may be anything."""
    kept = {
        name: "".join(sign for sign in getattr(who, name)[:40] if sign.isascii() and sign.isprintable())
        for name in ("slack_user", "team", "channel")
    }
    return who.model_copy(update=kept)


async def _answered(counter: Counter, body: Body, text: str) -> BoltResponse:
    payload = ack_with(body, text)
    if payload is not None:
        return BoltResponse(status=200, body=json.dumps(payload), headers={"content-type": ["application/json"]})
    await tell(counter, body, text)
    return BoltResponse(status=200)
