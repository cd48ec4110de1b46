"""The buttons of a plan and the modals behind them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

from slack_bolt.async_app import AsyncAck, AsyncApp

from actions.approval import Act
from actions.errors import UserError
from bot.ports import Who
from bot.services.cards import PlanCard
from bot.slack import deeds
from bot.slack.gateway import MessageGoneError
from bot.slack.middleware import Body, Counter, answered, click_key, who_of
from bot.slack.views import plan, signing
from bot.slack.views.blocks import View
from bot.slack.views.text import loading_modal, sentence, text_modal

ACK_LEAD_S = 0.3
"""Seconds from the ack of a form to the change of its window. Bolt sends an ack up to 10 ms after `ack()` returned, and
not on the connection of the Web API: a change that overtook it would be painted over by the ack's own window."""


def register(app: AsyncApp, counter: Counter) -> None:
    """Register Approve, Deny and Details, and what their modals send."""

    @app.action(plan.APPROVE)
    @answered(counter)
    async def approve(ack: AsyncAck, body: Body) -> None:
        await _open(counter, ack, body, "Approve", signing.approve_modal, signs=True)

    @app.action(plan.DENY)
    @answered(counter)
    async def deny(ack: AsyncAck, body: Body) -> None:
        await _open(counter, ack, body, "Deny", signing.deny_modal, signs=False)

    @app.action(plan.DETAILS)
    @answered(counter)
    async def details(ack: AsyncAck, body: Body) -> None:
        await _open(counter, ack, body, "Details", _details, signs=False)

    @app.action(plan.WITHDRAW)
    @answered(counter)
    async def withdraw(ack: AsyncAck, body: Body) -> None:
        await _open(counter, ack, body, "Withdraw", signing.withdraw_modal, signs=False)

    @app.view(signing.APPROVE)
    @answered(counter)
    async def approved(ack: AsyncAck, body: Body) -> None:
        await _sign(counter, ack, body, Act.APPROVE)

    @app.view(signing.DENY)
    @answered(counter)
    async def denied(ack: AsyncAck, body: Body) -> None:
        await _sign(counter, ack, body, Act.DENY)

    @app.view(signing.WITHDRAW)
    @answered(counter)
    async def withdrawn(ack: AsyncAck, body: Body) -> None:
        await _sign(counter, ack, body, Act.WITHDRAW)


def _details(card: PlanCard, *, now: datetime, **_: str) -> View:
    return signing.details_modal(card, now=now)


async def _open(
    counter: Counter, ack: AsyncAck, body: Body, title: str, modal: Callable[..., View], *, signs: bool
) -> None:
    """Open a modal at once, then fill it from the database; a refusal fills it as well."""
    fresh = await counter.first_time(click_key(body), f"click.{title.casefold()}", body)
    await ack()
    if not fresh:
        return
    who, token = who_of(body), pressed(body)
    view = await counter.gateway.open_view(str(body["trigger_id"]), loading_modal(title))
    try:
        card = await _card(counter, who, token, signs=signs)
    except UserError as error:
        await counter.gateway.update_view(view, text_modal("Refused" if signs else title, str(error)))
        return
    shown = modal(card, channel=who.channel, ts=message_of(body), now=counter.now())
    await counter.gateway.update_view(view, shown)


async def _card(counter: Counter, who: Who, token: str, *, signs: bool) -> PlanCard:
    if signs:
        await counter.desk.may_sign(who, token)
        await counter.refuse_unfit(who, token)
        await counter.refuse_shared(who, token)
    return await counter.desk.plan_card(token, who)


async def _sign(counter: Counter, ack: AsyncAck, body: Body, act: Act) -> None:
    metadata = signing.Metadata.model_validate_json(str(body["view"].get("private_metadata") or "{}"))
    typed = typed_value(body, signing.TYPED)
    if metadata.target and typed != metadata.target:
        # Nothing is lost by a slip of the finger: the form stays open, and nothing is recorded.
        await ack(response_action="errors", errors={signing.TYPED: f"Type exactly: {metadata.target}"[:150]})
        return
    who, key = who_of(body, channel=metadata.channel), click_key(body)
    deed = deeds.Sign(
        who=who,
        token=metadata.token,
        act=act,
        digest=metadata.digest,
        typed=typed,
        reason=typed_value(body, signing.REASON),
        ts=metadata.ts,
    )
    fresh = await deeds.store(counter, key, deed)
    await ack(response_action="update", view=loading_modal("Signature"))
    if not fresh:
        return
    acknowledged = asyncio.get_running_loop().time()
    try:
        title, told = "Recorded", await deeds.carry_out(counter, key, deed)
    except UserError as error:
        title, told = "Refused", str(error)
    await asyncio.sleep(max(0.0, acknowledged + ACK_LEAD_S - asyncio.get_running_loop().time()))
    try:
        await counter.gateway.update_view(str(body["view"]["id"]), text_modal(title, told))
    except MessageGoneError:  # the window was closed meanwhile
        await counter.gateway.whisper(who.channel, who.slack_user, sentence(told))


def pressed(body: Body) -> str:
    """What the button that was pressed carries."""
    return str(body["actions"][0].get("value") or "")


def message_of(body: Body) -> str:
    """The ts of the message the pressed button is on."""
    return str((body.get("container") or {}).get("message_ts") or (body.get("message") or {}).get("ts") or "")


def typed_value(body: Body, name: str) -> str:
    """What was typed or chosen in an input whose block and action have this name."""
    field: dict[str, Any] = body["view"].get("state", {}).get("values", {}).get(name, {}).get(name, {})
    chosen = field.get("selected_option") or next(iter(field.get("selected_options") or ()), None)
    return str((chosen or {}).get("value") or field.get("value") or "").strip()
