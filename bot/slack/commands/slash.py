"""Every slash command: stored, acknowledged, handed to the desk."""

from __future__ import annotations

from typing import Any

from slack_bolt.async_app import AsyncAck, AsyncApp

from actions.errors import UserError
from bot.ports import ReplyTo, Who
from bot.router import RESTORE_FORM, SLASHES, Command, CommandKind
from bot.slack.middleware import Body, Counter, answered, click_key, who_of
from bot.slack.views.blocks import Message
from bot.slack.views.help import help_message
from bot.slack.views.text import loading_modal, sentence, text_modal

IN_CHANNEL = {"incident.timeline", "incident.show"}
"""Queries whose answer is for everybody in the channel."""


def register(app: AsyncApp, counter: Counter) -> None:
    """Register the slash commands of the router."""

    @answered(counter)
    async def slash(ack: AsyncAck, body: Body) -> None:
        if not await counter.first_time(click_key(body), "slash", body):
            await ack()
            return
        try:
            command = counter.router.parse_slash(str(body["command"]), str(body.get("text") or ""))
        except UserError as error:
            await ack(**_private(sentence(str(error))))
            return
        if command.name == "help":
            await ack(**_private(help_message(counter.router, command.params.get("topic"))))
            return
        await ack(**_taken(counter, command))
        await _carry(counter, who_of(body), command, body)

    for name in SLASHES:
        app.command(f"/{name}")(slash)


async def _carry(counter: Counter, who: Who, command: Command, body: Body) -> None:
    if wants_form(command):
        await open_form(counter, who, command.params.get("database"), str(body["trigger_id"]))
        return
    entry = counter.router.entry(command.name)
    if entry is not None and entry.kind is CommandKind.PLAN:
        await counter.refuse_unfit(who)  # asking is signing
    reply = ReplyTo(
        channel=who.channel,
        user=who.slack_user,
        response_url=body.get("response_url"),
        ephemeral=command.name not in IN_CHANNEL,
    )
    await counter.desk.ask(who, command, reply=reply)


def wants_form(command: Command) -> bool:
    """A restore that is not signed yet is asked for in the form, unless it names a backup."""
    unsigned = not (command.reason and command.typed)
    return command.name == RESTORE_FORM or (
        command.name == "restore.dump" and unsigned and command.params.get("backup") is None
    )


async def open_form(counter: Counter, who: Who, database: str | None, trigger: str) -> None:
    """Open the restore form at once; the worker fills it with the recommendation."""
    view = await counter.gateway.open_view(trigger, loading_modal("Restore"))
    try:
        await counter.desk.recommend(who, database, view)
    except UserError as error:
        await counter.gateway.update_view(view, text_modal("Restore", str(error)))


def _taken(counter: Counter, command: Command) -> dict[str, Any]:
    """A plan takes a while to make, so the ack says that it is being made."""
    entry = counter.router.entry(command.name)
    if wants_form(command) or entry is None or entry.kind is not CommandKind.PLAN:
        return {}
    return _private(sentence(f"Planning `{command.name}`. The plan appears in this channel, with your request on it."))


def _private(message: Message) -> dict[str, Any]:
    return {"response_type": "ephemeral", "text": message["text"], "blocks": message["blocks"]}
