"""What a command or a form asks for, complete: stored before the ack, carried out after it, and carried out by the next
process when this one dies in between.

Doing a deed twice changes nothing: requests and timeline entries carry the key it was stored under, and a person's
second signature is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import structlog
from pydantic import Field, TypeAdapter, ValidationError

from actions.approval import Act
from actions.errors import DrError
from actions.site import Frozen
from bot.ports import ReplyTo, Who
from bot.router import Command, CommandKind
from bot.slack.middleware import Counter
from bot.slack.views.text import sentence

log = structlog.get_logger()

STORED_AS = "deed"
LOOK_EVERY_S = 10.0
OPENING = "incident.open"


class Ask(Frozen):
    """A command. `signs` says that asking is signing, so the account is looked at first."""

    kind: Literal["ask"] = "ask"
    who: Who
    command: Command
    reply: ReplyTo
    signs: bool


class Sign(Frozen):
    """A signature or a denial out of its form."""

    kind: Literal["sign"] = "sign"
    who: Who
    token: str
    act: Act
    digest: str
    typed: str
    reason: str
    ts: str


Deed = Annotated[Ask | Sign, Field(discriminator="kind")]
_DEED: TypeAdapter[Ask | Sign] = TypeAdapter(Deed)


async def store(counter: Counter, key: str, deed: Ask | Sign) -> bool:
    """Keep it. False when it was kept before: one of Slack's retries."""
    return await counter.desk.store(key, STORED_AS, deed.model_dump(mode="json"))


async def carry_out(counter: Counter, key: str, deed: Ask | Sign) -> str:
    """Do it, and mark it as settled. Raises DrError, which the person is told: what was told as not done must not be
    done later by itself, when the person has perhaps asked again."""
    try:
        told = await _do(counter, key, deed)
    except DrError:
        await counter.desk.finish(key)
        raise
    await counter.desk.finish(key)
    return told


async def _do(counter: Counter, key: str, deed: Ask | Sign) -> str:
    if isinstance(deed, Ask):
        if deed.signs:
            await counter.refuse_unfit(deed.who)
        if _shows(counter, deed):
            await counter.refuse_shared(deed.who)
        if elsewhere := deed.command.params.get("channel") if deed.command.name == OPENING else None:
            await counter.refuse_shared(deed.who.model_copy(update={"channel": str(elsewhere)}))
        await counter.desk.ask(deed.who, deed.command, reply=deed.reply, key=key)
        return f"`{deed.command.name}` is taken."
    await counter.refuse_unfit(deed.who, deed.token)
    if deed.act is Act.APPROVE:  # a denial makes nothing happen, and is taken anywhere
        await counter.refuse_shared(deed.who, deed.token)
    return await counter.desk.sign(
        deed.who,
        deed.token,
        act=deed.act,
        digest=deed.digest,
        typed=deed.typed,
        reason=deed.reason,
        channel=deed.who.channel,
        ts=deed.ts,
        key=key,
    )


def _shows(counter: Counter, deed: Ask) -> bool:
    """Whether it puts a plan, an incident or an answer into the channel. What only stops a run, or suspects Slack, is
    taken anywhere."""
    entry = counter.router.entry(deed.command.name)
    plans = entry is not None and entry.kind is CommandKind.PLAN
    return plans or deed.command.name == OPENING or not deed.reply.ephemeral


async def resume(counter: Counter) -> None:
    """Carry out, for ever, what processes left behind when they died."""
    while True:
        try:
            for key, payload in await counter.desk.unfinished(STORED_AS):
                await _again(counter, key, payload)
        except DrError as error:
            log.warning("deeds_not_readable", error=str(error))
        await asyncio.sleep(LOOK_EVERY_S)


async def _again(counter: Counter, key: str, payload: Mapping[str, Any]) -> None:
    try:
        deed = _DEED.validate_python(payload)
    except ValidationError:
        # Written by another version of the bot, which knows what to do with it.
        log.warning("deed_of_another_version", key=key)
        return
    log.info("deed_resumed", key=key, deed=deed.kind)
    try:
        told = await carry_out(counter, key, deed)
    except DrError as error:
        told = str(error)
    text = f"The bot was restarted before it could answer you. {told}"
    try:
        await counter.gateway.whisper(deed.who.channel, deed.who.slack_user, sentence(text))
    except DrError as error:
        log.warning("person_not_told", user=deed.who.slack_user, error=str(error))
