"""What the accounts of the demo do in Slack, and what they wait to see."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from actions.errors import PermanentError, TemporaryError
from bot.demo import record
from bot.demo.child import BotProcess
from bot.demo.dataset import DATABASE
from bot.demo.local_slack_control import Json, LocalSlackControl, Message, texts
from bot.demo.people import OLIVIA, Account
from bot.demo.running import RunningDemo
from bot.demo.world import say
from bot.services.cards import PlanState
from bot.services.refusals import Door
from bot.slack.views import plan as plan_view
from bot.slack.views import signing

LIMIT = timedelta(minutes=10)
SOON = timedelta(seconds=30)
OFTEN_S = 0.1
SELDOM_S = 0.5
"""Seconds between two looks: where the moment matters, and where it does not. Each is a new connection to a server."""
T = TypeVar("T")


class Cast:
    """What the accounts do, and what they wait to see."""

    def __init__(self, slack: LocalSlackControl, demo: RunningDemo) -> None:
        self._slack = slack
        self._demo = demo

    async def open_incident(self, title: str, scenario: str) -> None:
        await self._slack.command(
            OLIVIA.slack_id, self._demo.channel, f"/dr-incident open {title} --scenario {scenario}"
        )
        await self.sees(lambda message: title in message.all_text() and "RTO" in message.all_text(), "incident card")
        say(f"{OLIVIA.name} opens an incident; the RTO clock runs.")

    async def asks(self, words: str) -> None:
        """Type a command as Olivia."""
        await self._slack.command(OLIVIA.slack_id, self._demo.channel, words)
        say(f"{OLIVIA.name} types {words}")

    async def is_answered(self, words: str, wanted: tuple[str, ...]) -> Message:
        """Type a command as Olivia; the answer, which has one of the `wanted` in it."""
        before = {message.ts for message in await self._slack.messages(self._demo.channel)}
        await self.asks(words)

        def answers(message: Message) -> bool:
            return message.ts not in before and any(word in message.all_text() for word in wanted)

        return await self.sees(answers, "answer")

    async def asks_for_signatures(self, words: str) -> Message:
        """Type a command that needs others; the plan that they are asked to sign."""
        before = {message.ts for message in await self._slack.messages(self._demo.channel) if can_be_approved(message)}
        await self.asks(words)
        return await self.sees(lambda message: can_be_approved(message) and message.ts not in before, "plan to approve")

    async def is_refused(self, account: Account, asked: Message, token: str, *, count: int) -> None:
        await self._slack.click(account.slack_id, asked, plan_view.APPROVE)

        async def refused() -> bool | None:
            found = await record.outcome(self._demo.memory_dsn, token)
            return True if found is not None and found.refusals == count else None

        await until(refused, SOON, f"refusal of {account.name}'s signature")
        view = await self._slack.wait_view(lambda view: _title(view) == "Refused", within=SOON)
        say(f"{account.name} presses Approve and is refused: {' '.join(texts(view['blocks']))}")
        await self._slack.close_view(account.slack_id)

    async def forges(self, account: Account, asked: Message) -> None:
        """A click as somebody makes it who has an account and the address of the bot: no message has this button."""
        value = secrets.token_urlsafe(24)
        await self._slack.interact(account.slack_id, asked, {**asked.element(plan_view.APPROVE), "value": value})

        async def recorded() -> bool | None:
            return await record.refused(self._demo.memory_dsn, account.slack_id, Door.UNKNOWN_BUTTON) or None

        await until(recorded, SOON, "refusal of the forged click")
        view = await self._slack.wait_view(lambda view: _title(view) == "Refused", within=SOON)
        said = " ".join(texts(view["blocks"]))
        say(f"A forged click comes in under the name of {account.name}, with a value that no button has: {said}")
        await self._slack.close_view(account.slack_id)

    async def approves(self, account: Account, asked: Message, *, reason: str) -> None:
        await self._slack.click(account.slack_id, asked, plan_view.APPROVE)
        await self._slack.wait_view(lambda view: view.get("callback_id") == signing.APPROVE, within=SOON)
        values = {signing.REASON: reason, signing.TYPED: DATABASE}
        answer = await self._slack.submit_view(
            account.slack_id,
            {block: {block: {"type": "plain_text_input", "value": text}} for block, text in values.items()},
            within=SOON,
        )
        if answer.errors:
            raise PermanentError(f"The signature of {account.name} was not taken: {dict(answer.errors)}")
        view = await self._slack.wait_view(lambda view: _title(view) in ("Recorded", "Refused"), within=SOON)
        say(f"{account.name} approves with the typed target. {' '.join(texts(view['blocks']))}")
        await self._slack.close_view(account.slack_id)

    async def is_taken_over(self, bot: BotProcess, token: str) -> float:
        """Kill the bot while the dump is loaded; the seconds until another one has the run."""

        async def held(wanted: Callable[[record.Hold], bool]) -> record.Hold | None:
            found = await record.hold(self._demo.memory_dsn, self._demo.server_dsn, token, DATABASE)
            if found is not None and found.state not in ("awaiting", "running"):
                raise PermanentError(f"The run has {found.state}; nobody could take it over.")
            return found if found is not None and wanted(found) else None

        first = await until(lambda: held(lambda hold: hold.loading), LIMIT, "load of the dump")
        say(f"The dump is being loaded. Now kill -9 of the bot, process {bot.pid}.")
        begun = time.monotonic()
        bot.crash()
        await until(lambda: held(lambda hold: hold.epoch > first.epoch), LIMIT, "other bot that takes the run over")
        seconds = time.monotonic() - begun
        say(f"The run goes on after {seconds:.1f} s, in process {bot.pid}; what was loaded meanwhile counts.")
        return seconds

    async def ended(self, token: str) -> record.Outcome:
        """The outcome, once the run has ended and the report says so in Slack."""

        async def over() -> record.Outcome | None:
            found = await record.outcome(self._demo.memory_dsn, token)
            return None if found is None or found.state in ("awaiting", "running") else found

        end = await until(over, LIMIT, "end of the run", every=SELDOM_S)
        word = plan_view.STATE_WORDS[PlanState(end.state)]
        await self.sees(lambda message: word in message.text and DATABASE in message.text, "report")
        say(f"The run has {end.state}. {end.message}".rstrip())
        return end

    async def sees(self, wanted: Callable[[Message], bool], what: str) -> Message:
        return await self._slack.wait_message(self._demo.channel, wanted, within=SOON, what=what)


def _title(view: Json) -> str:
    return str((view.get("title") or {}).get("text", ""))


def can_be_approved(message: Message) -> bool:
    return any(
        element.get("action_id") == plan_view.APPROVE
        for block in message.blocks
        for element in block.get("elements", [])
        if isinstance(element, dict)
    )


async def until(look: Callable[[], Awaitable[T | None]], within: timedelta, what: str, *, every: float = OFTEN_S) -> T:
    """What `look` finds, asked again `every` so many seconds. Raises TemporaryError after `within`."""
    try:
        async with asyncio.timeout(within.total_seconds()):
            while True:
                found = await look()
                if found is not None:
                    return found
                await asyncio.sleep(every)
    except TimeoutError as error:
        raise TemporaryError(f"no {what} within {within.total_seconds():g} s") from error


def rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
