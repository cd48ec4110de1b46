"""How long the bot itself takes: from the last signature to the first step, and around every step."""

from __future__ import annotations

import statistics

import pytest
from sqlalchemy import text

from benchmarks.table import milliseconds
from bot.services.cards import PlanState
from tests.fixtures.office import OfficeForTests
from tests.integration.test_office import a_plan, approve

pytestmark = pytest.mark.bench

RUNS = 40
STEPS = 20


async def test_from_the_second_signature_to_the_first_step(office: OfficeForTests) -> None:
    """By the database's own clock: from the signature's row to the journal's first line."""
    async with office.working():
        for number in range(RUNS):
            card = await a_plan(office, steps=1, key=f"key-{number}")
            await approve(office, "daniel", card)
            await office.until(card, PlanState.SUCCEEDED)
    async with office.memory.session() as session:
        query = """
            SELECT extract(epoch FROM j.at - s.at)::float8
            FROM (SELECT run_id, min(at) AS at FROM journal GROUP BY run_id) j
            JOIN signature s ON s.plan_id = j.run_id AND s.act = 'approve'
            """
        waits = list((await session.execute(text(query))).scalars())
    assert len(waits) == RUNS
    milliseconds("second signature to first step", waits, 100)
    assert statistics.median(waits) < 0.1


async def test_journal_and_orchestration_per_step(office: OfficeForTests) -> None:
    """Steps that do nothing: all that passes between two of them is the bot's own."""
    async with office.working():
        for _ in range(5):
            card = await a_plan(office, steps=STEPS)
            await approve(office, "daniel", card)
            await office.until(card, PlanState.SUCCEEDED)
    async with office.memory.session() as session:
        query = """
            SELECT extract(epoch FROM at - lag(at) OVER (PARTITION BY run_id ORDER BY seq))::float8
            FROM journal WHERE state = 'verified'
            """
        gaps = [gap for gap in (await session.execute(text(query))).scalars() if gap is not None]
    milliseconds("journal and orchestration per step", gaps, 20)
    assert statistics.median(gaps) < 0.02
