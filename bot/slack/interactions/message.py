"""Messages that become timeline entries: by a shortcut or by a pushpin."""

from __future__ import annotations

from datetime import UTC, datetime

import structlog
from slack_bolt.async_app import AsyncAck, AsyncApp

from actions.errors import UserError
from bot.ports import Who
from bot.slack.middleware import Body, Counter, answered, click_key, who_of
from bot.slack.views.text import sentence

log = structlog.get_logger()

SHORTCUT = "timeline.add"
REACTION = "pushpin"


def register(app: AsyncApp, counter: Counter) -> None:
    """Register the message shortcut and the reaction."""

    @app.message_shortcut(SHORTCUT)
    @answered(counter)
    async def shortcut(ack: AsyncAck, body: Body) -> None:
        fresh = await counter.first_time(click_key(body), "shortcut", body)
        await ack()
        if not fresh:
            return
        who = who_of(body)
        await _pin(counter, who, str(body["message"]["ts"]))
        told = sentence("Added to the timeline.")
        await counter.gateway.whisper(who.channel, who.slack_user, told, response_url=body.get("response_url"))

    @app.event("reaction_added")
    @answered(counter)
    async def reaction(ack: AsyncAck, body: Body) -> None:
        event = body["event"]
        item = event.get("item") or {}
        # Every reaction of the workspace comes by here; only ours is worth a row.
        if event.get("reaction") != REACTION or item.get("type") != "message":
            await ack()
            return
        fresh = await counter.first_time(f"event:{body.get('event_id')}", "reaction", body)
        await ack()
        if not fresh:
            return
        who = Who(slack_user=str(event["user"]), team=str(body.get("team_id") or ""), channel=str(item["channel"]))
        try:
            await _pin(counter, who, str(item["ts"]))
        except UserError as error:
            # A pushpin is an everyday sign: elsewhere it means nothing to us, and nobody wants to be told so.
            log.info("reaction_not_taken", user=who.slack_user, channel=who.channel, why=str(error))


async def _pin(counter: Counter, who: Who, ts: str) -> None:
    message = await counter.gateway.message(who.channel, ts)
    await counter.desk.pin(
        who,
        channel=who.channel,
        ts=ts,
        text=message.text,
        author=message.author,
        permalink=await counter.gateway.permalink(who.channel, ts),
        occurred_at=datetime.fromtimestamp(float(ts), tz=UTC),
    )
