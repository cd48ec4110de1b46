"""Whatever happens in the office, its record is complete: the verifier finds nothing missing."""

from __future__ import annotations

import pytest

from actions.errors import UserError
from bot.services.cards import PlanState
from bot.verify import checkpoints, database
from bot.verify.findings import Verdict
from tests.fixtures.ledger import LedgerForTests
from tests.fixtures.office import OfficeForTests
from tests.integration.test_answers import a_run, answered, asked
from tests.integration.test_office import a_plan, approve, incident

pytestmark = pytest.mark.integration


async def test_every_story_leaves_a_record_without_a_gap(office: OfficeForTests) -> None:
    ledger = LedgerForTests(office.memory, office.clock)
    office.record = ledger.watch(database=office.at_work)
    async with ledger.sealing(), office.working(workers=2):
        await incident(office, "open", title="Orders are gone")
        await a_run(office, PlanState.SUCCEEDED, key="good")
        await a_run(office, PlanState.FAILED, key="bad", fails=2)
        card = await asked(office, key="happened")
        assert (await answered(office, "run.happened", card, step=2)).state is PlanState.SUCCEEDED
        await office.until(card, PlanState.SUCCEEDED)
        card = await asked(office, key="undo")
        await answered(office, "run.undo", card)
        await office.until(card, PlanState.ABORTED)
        refused = await a_plan(office, key="refused")
        with pytest.raises(UserError):
            await approve(office, "olivia", refused)
        await incident(office, "close", summary="restored")
    await ledger.sealed()
    await ledger.as_clock.dispose()
    verdict = Verdict()
    lines = [("witness", line) for line in ledger.kept[0].lines]
    witnessed = checkpoints.read(lines, [checkpoints.public_key(ledger.public)], verdict)
    database.verify(office.memory.url, witnessed, verdict)
    assert verdict.good, list(verdict.lines())
    assert verdict.witnessed == verdict.entries > 60
    assert len({plan for claim in witnessed.claims for plan in claim.consumed}) == 6
