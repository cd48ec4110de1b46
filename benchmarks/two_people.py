"""A restore as two people ask for it and sign it in the local Slack, a dump as one asks for it, and what they took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import psycopg

from bot.demo.dataset import DATABASE
from bot.demo.local_slack_control import LocalSlackControl, Message, element_in
from bot.demo.people import DANIEL, OLIVIA
from bot.demo.running import RunningDemo
from bot.slack.views import plan as plan_view
from bot.slack.views import signing

SOON = timedelta(seconds=30)
LIMIT_S = 600

_ENDED = """
    SELECT run.state, run.message, extract(epoch FROM run.ended_at - max(signature.at))::float8
    FROM plan JOIN run ON run.id = plan.id JOIN signature ON signature.plan_id = plan.id
    WHERE plan.token = %s AND signature.act = 'approve' AND run.ended_at IS NOT NULL
    GROUP BY run.id
"""
_STEPS = """
    SELECT plan.document->'steps'->journal.step->>'kind', max(journal.elapsed_ms) / 1000.0
    FROM journal JOIN plan ON plan.id = journal.run_id WHERE plan.token = %s GROUP BY 1, journal.step
    ORDER BY journal.step
"""
_DUMPS = """
    SELECT run.id, run.state, run.message FROM plan JOIN run ON run.id = plan.id
    WHERE plan.action = 'backup.dump' AND run.ended_at IS NOT NULL
"""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """`seconds` from the second signature to the end of the run, by the clock of the bot's database."""

    seconds: float
    steps: Sequence[tuple[str, float]]


async def restore_through_the_bot(slack: LocalSlackControl, demo: RunningDemo) -> Ended:
    """Olivia asks, Daniel signs, the bot restores the newest dump. Fails unless the run succeeds."""
    words = f'/dr-restore {DATABASE} --target {DATABASE} --reason "measured"'
    await slack.command(OLIVIA.slack_id, demo.channel, words)
    asked = await slack.wait_message(demo.channel, _to_be_signed, within=SOON, what="plan to approve")
    token = str(asked.element(plan_view.APPROVE)["value"])
    await slack.click(DANIEL.slack_id, asked, plan_view.APPROVE)
    await slack.wait_view(lambda view: view.get("callback_id") == signing.APPROVE, within=SOON)
    values = {signing.REASON: "measured", signing.TYPED: DATABASE}
    answer = await slack.submit_view(
        DANIEL.slack_id,
        {block: {block: {"type": "plain_text_input", "value": text}} for block, text in values.items()},
        within=SOON,
    )
    assert not answer.errors, dict(answer.errors)
    ended = await _ended(demo, token)
    for _ in slack.open_views:
        await slack.close_view(DANIEL.slack_id)
    return ended


async def dump_through_the_bot(slack: LocalSlackControl, demo: RunningDemo) -> float:
    """Olivia asks for a dump; seconds from her command to the end of the run. Fails unless the run succeeds."""
    async with (
        asyncio.timeout(LIMIT_S),
        await psycopg.AsyncConnection.connect(demo.memory_dsn, autocommit=True) as connection,
    ):
        known = {row[0] for row in await (await connection.execute(_DUMPS)).fetchall()}
        begun = time.monotonic()
        await slack.command(OLIVIA.slack_id, demo.channel, f"/dr-backup run {DATABASE}")
        while True:
            for run, state, message in await (await connection.execute(_DUMPS)).fetchall():
                if run not in known:
                    assert state == "succeeded", message
                    return time.monotonic() - begun
            await asyncio.sleep(0.1)


def _to_be_signed(message: Message) -> bool:
    return element_in(message.blocks, plan_view.APPROVE) is not None


async def _ended(demo: RunningDemo, token: str) -> Ended:
    async with (
        asyncio.timeout(LIMIT_S),
        await psycopg.AsyncConnection.connect(demo.memory_dsn, autocommit=True) as connection,
    ):
        while True:
            row = await (await connection.execute(_ENDED, [token])).fetchone()
            if row is not None:
                state, message, seconds = row
                assert state == "succeeded", message
                steps = await (await connection.execute(_STEPS, [token])).fetchall()
                return Ended(seconds=seconds, steps=[(kind, float(took)) for kind, took in steps])
            await asyncio.sleep(0.2)
