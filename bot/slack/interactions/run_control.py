"""The buttons of a run: orders go to the desk at once; an answer is asked for in a form, and is a plan of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from slack_bolt.async_app import AsyncAck, AsyncApp

from actions.errors import UserError
from bot.ports import ReplyTo
from bot.router import Command
from bot.slack import deeds
from bot.slack.interactions.plan import message_of, pressed, typed_value
from bot.slack.middleware import Body, Counter, answered, click_key, who_of
from bot.slack.views import run_control, run_form
from bot.slack.views.signing import REASON, TYPED
from bot.slack.views.text import loading_modal, text_modal


def register(app: AsyncApp, counter: Counter) -> None:
    """Register every button of a run, and the form behind some of them."""
    for name in run_control.ORDERS:
        app.action(name)(answered(counter)(_order(counter, name)))
    for name in run_control.SIGNED:
        app.action(name)(answered(counter)(_opens(counter, name)))

    @app.view(run_form.FORM)
    @answered(counter)
    async def asked(ack: AsyncAck, body: Body) -> None:
        await _asked(counter, ack, body)


def _order(counter: Counter, name: str) -> Callable[[AsyncAck, Body], Awaitable[None]]:
    async def order(ack: AsyncAck, body: Body) -> None:
        who, key = who_of(body), click_key(body)
        card = await counter.desk.pressed(who, pressed(body), channel=who.channel, ts=message_of(body))
        deed = deeds.Ask(
            who=who,
            command=Command(name=name, params={"run": card.plan_id}),
            reply=ReplyTo(channel=who.channel, user=who.slack_user),
            signs=True,
        )
        fresh = await deeds.store(counter, key, deed)
        await ack()
        if fresh:
            await deeds.carry_out(counter, key, deed)

    return order


def _opens(counter: Counter, name: str) -> Callable[[AsyncAck, Body], Awaitable[None]]:
    async def opens(ack: AsyncAck, body: Body) -> None:
        fresh = await counter.first_time(click_key(body), "click.run", body)
        await ack()
        if not fresh:
            return
        who, token = who_of(body), pressed(body)
        title = run_control.TITLES[name]
        view = await counter.gateway.open_view(str(body["trigger_id"]), loading_modal(title))
        try:
            await counter.refuse_unfit(who, token)
            card = await counter.desk.pressed(who, token, channel=who.channel, ts=message_of(body))
        except UserError as error:
            await counter.gateway.update_view(view, text_modal("Refused", str(error)))
            return
        await counter.gateway.update_view(view, run_form.form(card, name, channel=who.channel))

    return opens


async def _asked(counter: Counter, ack: AsyncAck, body: Body) -> None:
    metadata = run_form.Metadata.model_validate_json(str(body["view"].get("private_metadata") or "{}"))
    typed = typed_value(body, TYPED)
    if metadata.command not in run_control.SIGNED or (metadata.target and typed != metadata.target):
        await ack(response_action="errors", errors={TYPED: f"Type exactly: {metadata.target}"[:150]})
        return
    who, key = who_of(body, channel=metadata.channel), click_key(body)
    deed = deeds.Ask(
        who=who,
        command=Command(
            name=metadata.command, params={"run": metadata.run}, reason=typed_value(body, REASON), typed=typed
        ),
        reply=ReplyTo(channel=who.channel, user=who.slack_user),
        signs=True,
    )
    fresh = await deeds.store(counter, key, deed)
    await ack(response_action="clear")
    if fresh:
        await deeds.carry_out(counter, key, deed)
