"""The restore form: its alternatives, its other databases, and its submission, which is the request."""

from __future__ import annotations

import re
from typing import Any

from slack_bolt.async_app import AsyncAck, AsyncApp

from actions.errors import UserError
from bot.ports import ReplyTo
from bot.router import Command
from bot.slack import deeds
from bot.slack.interactions.plan import typed_value
from bot.slack.middleware import Body, Counter, answered, click_key, who_of
from bot.slack.views import restore
from bot.slack.views.signing import REASON, TYPED
from bot.slack.views.text import loading_modal, text_modal
from bot.words import Token, tokens


def register(app: AsyncApp, counter: Counter) -> None:
    """Register the form's buttons and its submission."""

    @app.action(restore.ALTERNATIVES)
    @answered(counter)
    async def alternatives(ack: AsyncAck, body: Body) -> None:
        await _refill(counter, ack, body, alternatives=True)

    @app.action(re.compile(rf"^{re.escape(restore.DATABASE)}\.\d+$"))
    @answered(counter)
    async def other_database(ack: AsyncAck, body: Body) -> None:
        await _refill(counter, ack, body, alternatives=False)

    @app.view(restore.SUBMIT)
    @answered(counter)
    async def request(ack: AsyncAck, body: Body) -> None:
        await _request(counter, ack, body)


async def _refill(counter: Counter, ack: AsyncAck, body: Body, *, alternatives: bool) -> None:
    fresh = await counter.first_time(click_key(body), "click.restore", body)
    await ack()
    if not fresh:
        return
    asked = restore.Asked.model_validate_json(str(body["actions"][0].get("value") or "{}"))
    who = who_of(body, channel=asked.channel)
    view = str((body.get("view") or {}).get("id") or (body.get("container") or {}).get("view_id") or "")
    if view:
        await counter.gateway.update_view(view, loading_modal("Restore"))
    else:  # a client that does not say which modal it was gets a second one on top
        view = await counter.gateway.push_view(str(body["trigger_id"]), loading_modal("Restore"))
    try:
        await counter.desk.recommend(who, asked.database, view, alternatives=alternatives, before=asked.before)
    except UserError as error:
        await counter.gateway.update_view(view, text_modal("Restore", str(error)))


async def _request(counter: Counter, ack: AsyncAck, body: Body) -> None:
    metadata = restore.Metadata.model_validate_json(str(body["view"].get("private_metadata") or "{}"))
    typed = typed_value(body, TYPED)
    if typed != metadata.target:
        await ack(response_action="errors", errors={TYPED: f"Type exactly: {metadata.target}"[:150]})
        return
    who, key = who_of(body, channel=metadata.channel), click_key(body)
    try:
        command = _command(counter, body, metadata)
    except UserError as error:
        await ack(response_action="errors", errors={restore.MOMENT: str(error)[:150]})
        return
    reply = ReplyTo(channel=who.channel, user=who.slack_user)
    deed = deeds.Ask(who=who, command=command, reply=reply, signs=True)
    fresh = await deeds.store(counter, key, deed)
    await ack(response_action="clear")
    if fresh:
        await deeds.carry_out(counter, key, deed)


def _command(counter: Counter, body: Body, metadata: restore.Metadata) -> Command:
    """The restore to a moment where one was given, else that of the dump. Raises UserError for what is no moment."""
    reason, typed = typed_value(body, REASON), typed_value(body, TYPED)
    moment = typed_value(body, restore.MOMENT).strip()
    if not moment:
        backup = typed_value(body, restore.BACKUP) or metadata.backup
        known: dict[str, Any] = {} if metadata.before is None else {"before": metadata.before}
        if typed_value(body, restore.SUSPECT):
            known["instance_suspect"] = True
        params = {"database": metadata.database, "backup": backup, **known}
        return Command(name="restore.dump", params=params, reason=reason, typed=typed)
    words = tokens(moment)
    option = [] if words[0].option else [Token("at", "--at", "--")]
    asked = counter.router.parse(
        [*tokens("restore point"), Token(metadata.database, metadata.database), *option, *words]
    )
    return asked.model_copy(update={"reason": reason, "typed": typed})
