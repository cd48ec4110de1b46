"""`drbot demo --script restore`: a database is restored, told by what each account does in Slack."""

from __future__ import annotations

import asyncio

from bot.demo import proof, record
from bot.demo.cast import Cast, rounded
from bot.demo.child import BotProcess
from bot.demo.choices import Damage
from bot.demo.damage import do_damage
from bot.demo.dataset import DATABASE
from bot.demo.local_slack_control import LocalSlackControl
from bot.demo.people import DANIEL, GUS, OLIVIA, SELMA
from bot.demo.running import RunningDemo
from bot.demo.watch import Answer, HealthWatch
from bot.demo.witnessed import verify
from bot.demo.world import say
from bot.slack.views import plan as plan_view


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


async def story(demo: RunningDemo, bot: BotProcess) -> dict[str, object]:
    before = await proof.prove(demo.production_dsn, demo.marks)
    async with LocalSlackControl(demo.slack_url) as slack, HealthWatch(demo.health_url) as watch:
        await watch.until(Answer.GOOD, within=10)
        for line in await do_damage(demo.production_dsn, Damage.CORRUPT):
            say(f"Damage: {line}")
        await watch.until(Answer.DAMAGED, within=15)
        say("The application answers 503: its users have no usable addresses.")
        cast = Cast(slack, demo)
        await cast.open_incident("Users cannot sign in", "database_corruption")
        asked = await cast.asks_for_signatures(
            f'/dr-restore {DATABASE} --target {DATABASE} --reason "addresses of users are scrambled"'
        )
        token = str(asked.element(plan_view.APPROVE)["value"])
        await cast.is_refused(OLIVIA, asked, token, count=1)
        await cast.is_refused(GUS, asked, token, count=2)
        await cast.forges(SELMA, asked)
        await cast.approves(DANIEL, asked, reason="dump of before the damage, checked")
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
        "takeover_s": rounded(takeover),
        "achieved_rto_s": rounded(end.achieved_rto_s),
        "downtime_s": rounded(downtime),
        "quarantine": await record.quarantined(demo.server_dsn, DATABASE),
        "record": "good" if verdict.good and verdict.witnessed else "bad",
    }
