"""The doctor of restore tests: it says what the alarms say of them, and that nothing is wrong where nothing is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Never

import pytest

from actions import registry
from actions.catalog.proof import ProveParams
from actions.contract import Verdict
from bot.doctor import Doctor
from bot.services.policy import Policy
from storage.roles import DatabaseRole
from storage.session import Database
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.history import with_history
from tests.fakes.physical import MemoryPhysical
from tests.fakes.world import a_world
from tests.fixtures.office import shipped_plan

pytestmark = pytest.mark.integration


@pytest.fixture
async def at_work(memory: Database) -> AsyncIterator[Database]:
    database = memory.acting_as(DatabaseRole.WORKER)
    yield database
    await database.dispose()


async def test_the_doctor_tells_of_an_upgrade_and_of_what_was_not_tested(at_work: Database) -> None:
    world, plan = a_world(), shipped_plan()

    async def told() -> list[tuple[Verdict, str]]:
        found = await Doctor(at_work, plan, Policy(plan), world).examine()
        return [(item.verdict, item.detail) for item in found if item.check == "restore tests"]

    test = await registry.action("backup.prove").plan(ProveParams(), world, PLAN_ID)
    assert (await run(test, world, MemoryJournal())).message == ""
    assert await told() == [(Verdict.OK, "none has failed or is overdue, and nothing was upgraded since")]
    world.backups.programs["pg_restore"] = "19.0"
    [(verdict, detail)] = await told()
    assert verdict is Verdict.WARN
    assert "pg_restore 18.2 to 19.0" in detail
    world.clock.advance(timedelta(days=50))
    assert any("No restore of the dumps of `shop` has been proven for 50 d" in said for _, said in await told())


class Hanging(MemoryPhysical):
    """A store that neither answers nor refuses."""

    async def catalogue(self, server: str) -> Never:
        await asyncio.Event().wait()
        raise AssertionError(server)


async def test_a_store_that_hangs_holds_up_its_own_checks_alone(at_work: Database) -> None:
    world, plan = with_history(), shipped_plan()
    hung = replace(world, physical=Hanging(world.site, world.postgres, world.scratch, world.clock))
    found = await Doctor(at_work, plan, Policy(plan), hung, patience=timedelta(seconds=1)).examine()
    stopped = {item.check: item.detail for item in found if "no answer within 1 s" in item.detail}
    assert {"pins", "restore tests"} <= stopped.keys()
    assert {"own database", "roster"} <= {item.check for item in found} - stopped.keys()
