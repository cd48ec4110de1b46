"""`drbot demo --script deletion`: a table is dropped, found in the WAL, and brought back; nothing else moves."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime, timedelta

import psycopg

from actions.errors import PermanentError
from bot.demo import proof, record
from bot.demo.cast import LIMIT, SELDOM_S, Cast, rounded, until
from bot.demo.child import BotProcess
from bot.demo.choices import Damage
from bot.demo.damage import do_damage
from bot.demo.dataset import DATABASE
from bot.demo.local_slack_control import LocalSlackControl
from bot.demo.people import DANIEL, OLIVIA
from bot.demo.running import RunningDemo
from bot.demo.watch import Answer, HealthWatch
from bot.demo.world import say
from bot.slack.views import plan as plan_view

TABLE = "documents"
BASE_WITHIN = timedelta(minutes=5)
ARCHIVED_WITHIN = timedelta(minutes=2)
LOOK_S = 3.0
LATER = "written after the drop"


def succeeded(result: dict[str, object]) -> bool:
    """Whether the story ended as it should."""
    return all(result[name] is True for name in ("restored", "rows_match", "others_untouched"))


async def story(demo: RunningDemo, bot: BotProcess) -> dict[str, object]:
    begun = time.monotonic()
    await bot.ask("backup", "base", person=OLIVIA.person, timeout=BASE_WITHIN)
    say(f"A base backup of the server is in the bucket after {time.monotonic() - begun:.0f} s; its WAL is archived.")
    async with LocalSlackControl(demo.slack_url) as slack, HealthWatch(demo.health_url) as watch:
        await watch.until(Answer.GOOD, within=10)
        lost = await proof.prove(demo.production_dsn, {TABLE: demo.marks[TABLE]})
        for line in await do_damage(demo.production_dsn, Damage.DROP_TABLE):
            say(f"Damage: {line}")
        dropped_at = datetime.now(UTC)
        await watch.until(Answer.DAMAGED, within=15)
        say("The application answers 503. Orders are still placed, and somebody writes a line to the audit log.")
        others = await _after_the_drop(demo.production_dsn)
        before = await proof.prove(demo.production_dsn, others)
        cast = Cast(slack, demo)
        await cast.open_incident("The documents are gone", "accidental_deletion")
        await _archived(cast)
        point = await _point(cast, demo)
        rescue, end = await _rescue(cast, point.plan)
        await watch.until(Answer.GOOD, within=15)
        after = await proof.prove(demo.production_dsn, others)
        rows = await proof.prove(demo.production_dsn, {TABLE: demo.marks[TABLE]})
        later = await _later(demo.production_dsn)
        await cast.asks(f"/dr-restore discard {point.plan}")
        await _ended(demo, "scratch.discard")
    say("\nTimeline")
    for entry in await record.timeline(demo.memory_dsn, rescue):
        say(f"  {entry.at}  {entry.actor:<20} {entry.text}")
    say("")
    return {
        "restored": end.state == "succeeded",
        "rows_match": rows == lost,
        "others_untouched": after == before and later,
        "signatures": end.signatures,
        "achieved_rto_s": rounded(end.achieved_rto_s),
        "moment": point.moment,
        "loses_s": rounded(_loses(point.moment, dropped_at)),
    }


async def _after_the_drop(dsn: str) -> proof.Marks:
    """Write something after the drop; the marks of every table that is left, so that all of it is proven later."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute("INSERT INTO audit_log (what, detail) VALUES (%s, '{}')", [LATER])
    return await proof.marks(dsn, without=TABLE)


async def _later(dsn: str) -> bool:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute("SELECT FROM audit_log WHERE what = %s", [LATER])
        return await cursor.fetchone() is not None


async def _archived(cast: Cast) -> None:
    """Ask the finder until the archive has the drop, as people would."""
    words = f"/dr-restore find {DATABASE} {TABLE}"

    async def told() -> bool | None:
        answer = await cast.is_answered(words, ("just before the DROP", "holds no DROP"))
        if "holds no DROP" in answer.all_text():
            await asyncio.sleep(LOOK_S)
            return None
        say(f"The bot answers: {answer.text}")
        return True

    await until(told, ARCHIVED_WITHIN, "drop in the archive")


async def _point(cast: Cast, demo: RunningDemo) -> record.PointPlan:
    await cast.asks(f'/dr-restore {DATABASE} --before-drop {TABLE} --reason "documents were dropped"')
    await _ended(demo, "restore.point")
    found = await record.point(demo.memory_dsn)
    say(f"A scratch instance shows the moment {found.moment}. {found.told}")
    return found


async def _rescue(cast: Cast, scratch: str) -> tuple[str, record.Outcome]:
    asked = await cast.asks_for_signatures(
        f'/dr-restore rescue {scratch} {TABLE} --target {DATABASE} --reason "documents were dropped"'
    )
    token = str(asked.element(plan_view.APPROVE)["value"])
    await cast.approves(DANIEL, asked, reason="the difference is the dropped table and nothing else")
    return token, await cast.ended(token)


async def _ended(demo: RunningDemo, action: str) -> record.Outcome:
    """How the newest run of this action ended. Raises PermanentError unless it succeeded."""

    async def over() -> record.Outcome | None:
        token = await record.newest(demo.memory_dsn, action)
        found = None if token is None else await record.outcome(demo.memory_dsn, token)
        return None if found is None or found.state in ("awaiting", "running") else found

    end = await until(over, LIMIT, f"end of `{action}`", every=SELDOM_S)
    say(f"`{action}` has {end.state}. {end.message}".rstrip())
    if end.state != "succeeded":
        raise PermanentError(f"`{action}` has {end.state}: {end.message}")
    return end


def _loses(moment: str, dropped_at: datetime) -> float | None:
    """Seconds between the moment and the end of the statement that dropped the table: nothing else was in between."""
    found = re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?", moment)
    if found is None:
        return None
    return max(0.0, (dropped_at - datetime.fromisoformat(found[0]).replace(tzinfo=UTC)).total_seconds())
