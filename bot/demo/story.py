"""`drbot demo --script restore`: the whole story without hands, told by what each account does in Slack."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from actions.errors import DrError, PermanentError, TemporaryError
from bot.demo import proof, record
from bot.demo.child import BotProcess
from bot.demo.damage import Damage, do_damage
from bot.demo.dataset import DATABASE, Size
from bot.demo.local_slack_control import Json, LocalSlackControl, Message, texts
from bot.demo.people import DANIEL, GUS, OLIVIA, SELMA, Account
from bot.demo.running import RunningDemo
from bot.demo.watch import Answer, HealthWatch
from bot.demo.witnessed import verify
from bot.demo.world import say, until_signal, world
from bot.services.cards import PlanState
from bot.services.refusals import Door
from bot.slack.views import plan as plan_view
from bot.slack.views import signing

LIMIT = timedelta(minutes=10)
SOON = timedelta(seconds=30)
T = TypeVar("T")


async def play(size: Size, *, own_cluster: Path | None = None) -> int:
    """Start a demo, play the story, end the demo. The exit code; the last line written is the result as JSON."""
    found: dict[str, object] | None = None

    async def work() -> None:
        nonlocal found
        async with world(size, own_cluster=own_cluster) as demo:
            say(f"\nReady after {demo.phases.total:.0f} s. The story begins.\n")
            try:
                async with asyncio.timeout(LIMIT.total_seconds()):
                    found = await _story(demo.running, demo.bot)
            except TimeoutError as error:
                raise PermanentError(f"The story has not ended within {LIMIT}; see {demo.bot.log}.") from error
            except DrError as error:
                said = demo.bot.log.read_text(errors="replace")[-1500:] if demo.bot.log.exists() else ""
                raise PermanentError(f"The story has stopped: {error}\nThe end of the bot's log:\n{said}") from error

    await until_signal(work())
    if found is None:
        return 130
    say(json.dumps(found))
    return 0 if succeeded(found) else 1


def succeeded(result: dict[str, object]) -> bool:
    """Whether the story ended as it should."""
    wanted = {
        "restored": True,
        "rows_match": True,
        "signatures": 2,
        "refusals": 2,
        "forged_click": "refused",
        "record": "good",
    }
    told = all(result[name] == value for name, value in wanted.items())
    return told and bool(result["quarantine"]) and result["takeover_s"] is not None


async def _story(demo: RunningDemo, bot: BotProcess) -> dict[str, object]:
    before = await proof.prove(demo.production_dsn, demo.marks)
    async with LocalSlackControl(demo.slack_url) as slack, HealthWatch(demo.health_url) as watch:
        await watch.until(Answer.GOOD, within=10)
        for line in await do_damage(demo.production_dsn, Damage.CORRUPT):
            say(f"Damage: {line}")
        await watch.until(Answer.DAMAGED, within=15)
        say("The application answers 503: its users have no usable addresses.")
        cast = _Cast(slack, demo)
        await cast.open_incident()
        asked = await cast.ask_for_restore()
        token = str(asked.element(plan_view.APPROVE)["value"])
        await cast.is_refused(OLIVIA, asked, token, count=1)
        await cast.is_refused(GUS, asked, token, count=2)
        await cast.forges(SELMA, asked)
        await cast.approves(DANIEL, asked)
        takeover = await cast.is_taken_over(bot, token)
        end = await cast.ended(token)
        await watch.until(Answer.GOOD, within=15)
    after = await proof.prove(demo.production_dsn, demo.marks)
    say("\nTimeline")
    for entry in await record.timeline(demo.memory_dsn, token):
        say(f"  {entry.at}  {entry.actor:<20} {entry.text}")
    say("")
    downtime = watch.downtime()
    verdict = await asyncio.to_thread(verify, demo)
    say("Record, checked without the bot against the witness")
    for line in verdict.lines():
        say(f"  {line}")
    say("")
    return {
        "restored": end.state == "succeeded",
        "rows_match": after == before,
        "signatures": end.signatures,
        "refusals": end.refusals,
        "forged_click": "refused",
        "takeover_s": _rounded(takeover),
        "achieved_rto_s": _rounded(end.achieved_rto_s),
        "downtime_s": _rounded(downtime),
        "quarantine": await record.quarantined(demo.server_dsn, DATABASE),
        "record": "good" if verdict.good and verdict.witnessed else "bad",
    }


class _Cast:
    """What the accounts do, and what they wait to see."""

    def __init__(self, slack: LocalSlackControl, demo: RunningDemo) -> None:
        self._slack = slack
        self._demo = demo

    async def open_incident(self) -> None:
        title = "Users cannot sign in"
        await self._slack.command(
            OLIVIA.slack_id, self._demo.channel, f"/dr-incident open {title} --scenario database_corruption"
        )
        await self._sees(lambda message: title in message.all_text() and "RTO" in message.all_text(), "incident card")
        say(f"{OLIVIA.name} opens an incident; the RTO clock runs.")

    async def ask_for_restore(self) -> Message:
        words = f'/dr-restore {DATABASE} --target {DATABASE} --reason "addresses of users are scrambled"'
        await self._slack.command(OLIVIA.slack_id, self._demo.channel, words)
        asked = await self._sees(_can_be_approved, "plan to approve")
        say(f"{OLIVIA.name} asks for the restore and so signs it.")
        return asked

    async def is_refused(self, account: Account, asked: Message, token: str, *, count: int) -> None:
        await self._slack.click(account.slack_id, asked, plan_view.APPROVE)

        async def refused() -> bool | None:
            found = await record.outcome(self._demo.memory_dsn, token)
            return True if found is not None and found.refusals == count else None

        await _until(refused, SOON, f"refusal of {account.name}'s signature")
        view = await self._slack.wait_view(lambda view: _title(view) == "Refused", within=SOON)
        say(f"{account.name} presses Approve and is refused: {' '.join(texts(view['blocks']))}")
        await self._slack.close_view(account.slack_id)

    async def forges(self, account: Account, asked: Message) -> None:
        """A click as somebody makes it who has an account and the address of the bot: no message has this button."""
        value = secrets.token_urlsafe(24)
        await self._slack.interact(account.slack_id, asked, {**asked.element(plan_view.APPROVE), "value": value})

        async def recorded() -> bool | None:
            return await record.refused(self._demo.memory_dsn, account.slack_id, Door.UNKNOWN_BUTTON) or None

        await _until(recorded, SOON, "refusal of the forged click")
        view = await self._slack.wait_view(lambda view: _title(view) == "Refused", within=SOON)
        said = " ".join(texts(view["blocks"]))
        say(f"A forged click comes in under the name of {account.name}, with a value that no button has: {said}")
        await self._slack.close_view(account.slack_id)

    async def approves(self, account: Account, asked: Message) -> None:
        await self._slack.click(account.slack_id, asked, plan_view.APPROVE)
        await self._slack.wait_view(lambda view: view.get("callback_id") == signing.APPROVE, within=SOON)
        values = {signing.REASON: "dump of before the damage, checked", signing.TYPED: DATABASE}
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

        first = await _until(lambda: held(lambda hold: hold.loading), LIMIT, "load of the dump")
        say(f"The dump is being loaded. Now kill -9 of the bot, process {bot.pid}.")
        begun = time.monotonic()
        bot.crash()
        await _until(lambda: held(lambda hold: hold.epoch > first.epoch), LIMIT, "other bot that takes the run over")
        seconds = time.monotonic() - begun
        say(f"The run goes on after {seconds:.1f} s, in process {bot.pid}; what was loaded meanwhile counts.")
        return seconds

    async def ended(self, token: str) -> record.Outcome:
        """The outcome, once the run has ended and the report says so in Slack."""

        async def over() -> record.Outcome | None:
            found = await record.outcome(self._demo.memory_dsn, token)
            return None if found is None or found.state in ("awaiting", "running") else found

        end = await _until(over, LIMIT, "end of the run")
        word = plan_view.STATE_WORDS[PlanState(end.state)]
        await self._sees(lambda message: word in message.text and DATABASE in message.text, "report")
        say(f"The run has {end.state}. {end.message}".rstrip())
        return end

    async def _sees(self, wanted: Callable[[Message], bool], what: str) -> Message:
        return await self._slack.wait_message(self._demo.channel, wanted, within=SOON, what=what)


def _title(view: Json) -> str:
    return str((view.get("title") or {}).get("text", ""))


def _can_be_approved(message: Message) -> bool:
    return any(
        element.get("action_id") == plan_view.APPROVE
        for block in message.blocks
        for element in block.get("elements", [])
        if isinstance(element, dict)
    )


async def _until(look: Callable[[], Awaitable[T | None]], within: timedelta, what: str) -> T:
    try:
        async with asyncio.timeout(within.total_seconds()):
            while True:
                found = await look()
                if found is not None:
                    return found
                await asyncio.sleep(0.1)
    except TimeoutError as error:
        raise TemporaryError(f"no {what} within {within.total_seconds():g} s") from error


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
