"""Every slash command: stored, acknowledged, handed to the desk."""

from __future__ import annotations

from typing import Any

from slack_bolt.async_app import AsyncAck, AsyncApp

from actions.errors import UserError
from bot.ports import ReplyTo, Who
from bot.router import RESTORE_FORM, SLASHES, Command, CommandKind
from bot.slack import deeds
from bot.slack.middleware import Body, Counter, answered, click_key, who_of
from bot.slack.views.blocks import Message
from bot.slack.views.help import help_message
from bot.slack.views.text import loading_modal, sentence, text_modal

IN_CHANNEL = {"incident.timeline", "incident.show"}
"""Queries whose answer is for everybody in the channel."""


SIGNED = (CommandKind.PLAN, CommandKind.ORDER, CommandKind.SIGN, CommandKind.CUSTODY)
"""Commands that are a signature, or as good as one, so the account is looked at first."""


def register(app: AsyncApp, counter: Counter) -> None:
    """Register the slash commands of the router."""

    @answered(counter)
    async def slash(ack: AsyncAck, body: Body) -> None:
        try:
            command = counter.router.parse_slash(str(body["command"]), str(body.get("text") or ""))
        except UserError as error:
            await ack(**_private(sentence(str(error))))
            return
        if command.name == "help":
            await ack(**_private(help_message(counter.router, command.params.get("topic"))))
        elif wants_form(command):
            fresh = await counter.first_time(click_key(body), "form", body)
            await ack()
            if fresh:
                await open_form(counter, who_of(body), command, str(body["trigger_id"]))
        else:
            await _carry(counter, ack, command, body)

    for name in SLASHES:
        app.command(f"/{name}")(slash)


async def _carry(counter: Counter, ack: AsyncAck, command: Command, body: Body) -> None:
    who, entry = who_of(body), counter.router.entry(command.name)
    deed = deeds.Ask(
        who=who,
        command=command,
        reply=ReplyTo(
            channel=who.channel,
            user=who.slack_user,
            response_url=body.get("response_url"),
            ephemeral=command.name not in IN_CHANNEL,
        ),
        signs=entry is not None and entry.kind in SIGNED,
    )
    key = click_key(body)
    fresh = await deeds.store(counter, key, deed)
    await ack(**_taken(counter, command))
    if fresh:
        await deeds.carry_out(counter, key, deed)


def wants_form(command: Command) -> bool:
    """A restore that is not signed yet is asked for in the form, unless it names a backup or its server suspect."""
    unsigned = not (command.reason and command.typed) and not command.break_glass
    return command.name == RESTORE_FORM or (
        command.name == "restore.dump"
        and unsigned
        and command.params.get("backup") is None
        and not command.params.get("instance_suspect")
    )


async def open_form(counter: Counter, who: Who, command: Command, trigger: str) -> None:
    """Open the restore form of a command at once; the worker fills it with the recommendation."""
    view = await counter.gateway.open_view(trigger, loading_modal("Restore"))
    try:
        await counter.desk.recommend(who, command.params.get("database"), view, before=command.params.get("before"))
    except UserError as error:
        await counter.gateway.update_view(view, text_modal("Restore", str(error)))


def _taken(counter: Counter, command: Command) -> dict[str, Any]:
    """A plan takes a while to make, so the ack says that it is being made."""
    entry = counter.router.entry(command.name)
    if entry is None or entry.kind is not CommandKind.PLAN:
        return {}
    return _private(sentence(f"Planning `{command.name}`. The plan appears in this channel, with your request on it."))


def _private(message: Message) -> dict[str, Any]:
    return {"response_type": "ephemeral", "text": message["text"], "blocks": message["blocks"]}
