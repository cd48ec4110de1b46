"""A dump that went into the local copy alone is uploaded by the clock, and asked for until it is in the bucket."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from actions.adapters.clock import SystemClock
from bot.clock import DrClock
from storage import plans, runs
from storage.roles import DatabaseRole
from storage.session import Database
from storage.tables import PlanRow, RequestRow
from tests.fixtures.office import shipped_plan

pytestmark = pytest.mark.integration


async def ended(memory: Database, plan: str, action: str, document: dict[str, Any], state: str = "succeeded") -> None:
    now = SystemClock().now()
    async with memory.session() as session:
        row = PlanRow(
            id=plan,
            action=action,
            document=document,
            digest="d",
            risk="REVERSIBLE",
            plan_schema=1,
            requester="schedule",
            reason="",
            channel="C1",
            token=plan,
            created_at=now,
            expires_at=now,
        )
        await plans.add(session, row)
        run = await runs.get(session, plan)
        assert run is not None
        run.state, run.ended_at = state, now


async def dumped(memory: Database, backup: str, *, copy_only: bool, state: str = "succeeded") -> None:
    step = {"kind": "make_dump", "database": "superprismora", "backup": backup, "copy_only": copy_only}
    await ended(memory, f"plan-{backup}", "backup.dump", {"steps": [step]}, state)


async def uploaded(memory: Database, plan: str, backup: str, state: str) -> None:
    await ended(memory, plan, "backup.upload", {"params": {"backup": backup}}, state)


async def asked(memory: Database) -> list[dict[str, Any]]:
    async with memory.session() as session:
        rows = (await session.execute(select(RequestRow).order_by(col(RequestRow.id)))).scalars()
        return [row.params for row in rows if row.name == "backup.upload"]


async def test_upload_is_asked_for_once_an_hour_until_it_is_done(memory: Database) -> None:
    now = SystemClock().now()
    at_clock = memory.acting_as(DatabaseRole.CLOCK)
    clock = DrClock(at_clock, shipped_plan(), SystemClock())
    await dumped(memory, "b-copy", copy_only=True)
    await dumped(memory, "b-bucket", copy_only=False)
    await dumped(memory, "b-broken", copy_only=True, state="failed")
    wanted = {"database": "superprismora", "backup": "b-copy"}
    for _ in range(2):
        await clock.catch_up(now)
    assert await asked(memory) == [wanted]
    await uploaded(memory, "u1", "b-copy", "failed")
    await clock.catch_up(now + timedelta(hours=1))
    assert await asked(memory) == [wanted, wanted]
    await uploaded(memory, "u2", "b-copy", "running")
    await clock.catch_up(now + timedelta(hours=2))
    assert await asked(memory) == [wanted, wanted]
    await at_clock.dispose()
