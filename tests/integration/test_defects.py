"""Defects of the bot: one request or one run is lost to them, never a worker, and never without a word."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from actions.contract import Action, JournalEntry, JournalState, Plan
from actions.errors import PermanentError
from actions.ports import Ports
from bot.driver import Driver
from bot.run_record import DatabaseJournal
from bot.services.approvals import Approvals
from bot.services.cards import PlanState
from storage import outbox
from storage.tables import PlanRow, RequestRow
from tests.fakes.toy import WORLD, Toy, ToyCatalogue, ToyParams
from tests.fixtures.office import OfficeForTests
from tests.fixtures.waiting import eventually
from tests.integration.test_answers import a_run, answered, signed

pytestmark = pytest.mark.integration


class Broken(Toy):
    """Cannot be planned, in one of the ways nobody has thought of."""

    async def plan(self, params: ToyParams, ports: Ports, plan_id: str) -> Plan:
        if params.key == "broken":
            raise KeyError("colour")
        if params.key == "file":
            raise FileNotFoundError("/nowhere")
        return await super().plan(params, ports, plan_id)


class BrokenCatalogue(ToyCatalogue):
    def action(self, name: str, /) -> Action[Any]:
        return Broken() if name == "toy.run" else super().action(name)


async def pages(office: OfficeForTests) -> list[str]:
    async with office.memory.session() as session:
        rows = await session.execute(text("SELECT payload->>'text' FROM outbox WHERE kind = 'page' ORDER BY id"))
        return list(rows.scalars())


@pytest.mark.parametrize("key", ["broken", "file"])
async def test_request_that_no_worker_can_answer_is_failed_and_the_next_one_served(
    office: OfficeForTests, key: str
) -> None:
    office.catalogue = BrokenCatalogue()
    poison = await office.ask("olivia", "toy.run", key=key)
    sound = await office.ask("olivia", "toy.run", key="sound")
    async with office.working():
        said = await office.refused(poison)
        await office.planned(sound)
    assert "failed in a way that was not foreseen" in said
    assert f"The log of the worker has the details under request {poison}." in said
    assert "colour" not in said
    assert "/nowhere" not in said
    async with office.memory.session() as session:
        [answer] = await outbox.answers(session, poison)
    assert answer.payload["text"] == said


async def test_request_whose_transaction_cannot_be_saved_is_failed_in_another(
    office: OfficeForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that the bot's own database refuses."""
    poison = await office.ask("olivia", "toy.run", key="refused by the database")
    sound = await office.ask("olivia", "toy.run", key="sound")
    worker, answer = office.worker(), office.worker()._answer

    async def broken(session: AsyncSession, request: RequestRow, who: Any) -> None:
        if request.id == poison:
            await session.execute(text("SELECT 1 / 0"))
        await answer(session, request, who)

    monkeypatch.setattr(worker, "_answer", broken)
    assert await worker._one_request()
    assert await worker._one_request()
    assert f"details under request {poison}" in await office.refused(poison)
    await office.planned(sound)


async def test_run_that_cannot_be_judged_is_told_of_once_and_holds_nobody_up(
    office: OfficeForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with office.working():
        poison = await office.planned(await office.ask("olivia", "toy.run", key="poison"))
        refused = await office.planned(await office.ask("olivia", "toy.run", key="refused"))
    decision = Approvals.decision

    async def broken(self: Approvals, session: AsyncSession, row: PlanRow, *rest: Any, **named: Any) -> Any:
        if row.id == poison.plan_id and self._database is office.at_work:
            raise KeyError("colour")
        if row.id == refused.plan_id and self._database is office.at_work:
            raise PermanentError("not now.")
        return await decision(self, session, row, *rest, **named)

    monkeypatch.setattr(Approvals, "decision", broken)
    async with office.working():
        other = await office.planned(await office.ask("olivia", "toy.run", key="other"))
        await signed(office, other)
        await office.until(other, PlanState.SUCCEEDED)
        office.wake("signature")

        async def told() -> bool:
            return len(await pages(office)) > 0

        await eventually(told)
    [page] = await pages(office)
    assert f"Run {poison.plan_id} (toy.run) does not start. It cannot be judged or started" in page
    assert "not foreseen (KeyError)" in page
    assert (await office.desk.plan_card(poison.token)).state is PlanState.PENDING


async def test_defect_of_the_driver_asks_people_once_and_their_answer_is_obeyed(
    office: OfficeForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, broken = Driver._guard, [True]

    async def guarded(self: Driver, row: PlanRow, *rest: Any) -> None:
        if broken and WORLD.get(row.id) == ["do 1"]:
            raise KeyError("colour")
        await guard(self, row, *rest)

    monkeypatch.setattr(Driver, "_guard", guarded)
    async with office.working(workers=2):
        card = await a_run(office, PlanState.ASKING, steps=2, key="driver")
        assert "The bot failed at this run in a way that was not foreseen (KeyError)" in card.message
        assert len(await pages(office)) == 1
        broken.clear()
        await answered(office, "run.repeat", card)
        await office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 2"]


async def test_run_whose_journal_cannot_be_read_asks_people(
    office: OfficeForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreadable(self: DatabaseJournal) -> Sequence[JournalEntry]:
        raise ValueError(JournalState.APPLYING)

    monkeypatch.setattr(DatabaseJournal, "entries", unreadable)
    async with office.working():
        card = await a_run(office, PlanState.ASKING, steps=1, key="journal")
        assert "not foreseen (ValueError)" in card.message
        [page] = await pages(office)
    assert card.plan_id in page
    assert card.plan_id not in WORLD


async def test_run_that_no_worker_can_take_over_asks_people(
    office: OfficeForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = office.worker(lease=timedelta(milliseconds=300))
    async with office.working():
        card = await office.planned(await office.ask("olivia", "toy.run", key="orphan"))
    fallen = text(
        "UPDATE run SET state = 'running', owner = 'gone', epoch = 1, lease_until = clock_timestamp() WHERE id = :run"
    )
    async with office.memory.session() as session:
        await session.execute(fallen, {"run": card.plan_id})

    async def broken(run_id: str, tasks: Any) -> None:
        raise KeyError("colour")

    monkeypatch.setattr(worker, "_take_over", broken)

    async def asks() -> bool:
        async with asyncio.TaskGroup() as tasks:
            await worker._look_for_runs(tasks)
        return (await office.desk.plan_card(card.token)).state is PlanState.ASKING

    await eventually(asks)
    [page] = await pages(office)
    assert "No worker could carry it on: that failed in a way that was not foreseen (KeyError)" in page
