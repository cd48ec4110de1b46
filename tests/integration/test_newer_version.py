"""Another version of the bot takes over a run in its middle: it goes on where it can read the plan, or asks."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from sqlalchemy import select, text
from sqlmodel import col

from actions.contract import Action, JournalState, Kinds, Plan, Step
from bot.driver import Driver
from bot.services.cards import PlanCard, PlanState
from storage.session import Database
from storage.tables import TimelineEntry
from tests.fakes.toy import HELD, WORLD, Toy, ToyCatalogue, ToyPatience, ToyStep
from tests.fixtures.office import OfficeForTests, shipped_plan
from tests.fixtures.waiting import eventually
from tests.integration.test_answers import a_run, journal, signed
from tests.integration.test_orders import begun, locks

pytestmark = [pytest.mark.integration, pytest.mark.kill]

LEASE = timedelta(seconds=2)


class NewerStep(ToyStep):
    """As a later version has it: with a field that plans of today do not have."""

    colour: str | None = None
    shades: tuple[str, ...] = ()


class NewerPatience(ToyPatience):
    colour: str | None = None


class NewerToy(Toy):
    steps: ClassVar[tuple[type[Step], ...]] = (NewerStep, NewerPatience)


class Reworded(ToyStep):
    """As a later version has it: with other commands by hand."""

    def by_hand(self) -> tuple[str, ...]:
        return (f"printf '%s\\n' {self.number}",)


class Rewording(ToyCatalogue):
    def action(self, name: str, /) -> Action[Any]:
        known = super().action(name)
        return RewordedToy() if isinstance(known, Toy) else known

    def kinds(self) -> Kinds:
        known = super().kinds()
        return Kinds(steps={**known.steps, "toy.count": Reworded}, preconditions=known.preconditions)


class RewordedToy(Toy):
    steps: ClassVar[tuple[type[Step], ...]] = (Reworded, ToyPatience)


class Newer(ToyCatalogue):
    def action(self, name: str, /) -> Action[Any]:
        known = super().action(name)
        return NewerToy() if isinstance(known, Toy) else known

    def kinds(self) -> Kinds:
        known = super().kinds()
        return Kinds(steps={**known.steps, "toy.count": NewerStep, "toy.patience": NewerPatience}, preconditions={})


class Without(ToyCatalogue):
    """A version that has given this kind of step up."""

    def kinds(self) -> Kinds:
        known = super().kinds()
        steps = {kind: step for kind, step in known.steps.items() if kind != "toy.count"}
        return Kinds(steps=steps, preconditions=known.preconditions)


async def killed_in_the_middle(office: OfficeForTests, monkeypatch: pytest.MonkeyPatch, key: str) -> PlanCard:
    """A run of three steps whose worker dies in the second one, without a word."""

    async def nothing(self: Driver, run_id: str, epoch: int) -> None:
        return None

    monkeypatch.setattr(Driver, "_hand_over", nothing)
    HELD.add(2)
    listening = asyncio.create_task(office.memory.listen(office.wake))
    working = asyncio.create_task(office.worker(lease=LEASE).run())
    try:
        card = await a_run(office, PlanState.RUNNING, steps=3, key=key)
        await begun(office, card, 1)
    finally:
        for task in (working, listening):
            task.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)
        HELD.clear()
    assert WORLD[card.plan_id] == ["do 1"]
    return card


@pytest.mark.parametrize("version", [Newer, Rewording])
async def test_a_newer_version_goes_on_with_a_plan_of_today(
    office: OfficeForTests, memory: Database, monkeypatch: pytest.MonkeyPatch, version: type[ToyCatalogue]
) -> None:
    card = await killed_in_the_middle(office, monkeypatch, "newer")
    newer = OfficeForTests(memory, shipped_plan(), catalogue=version())
    try:
        async with newer.working():
            ended = await newer.until(card, PlanState.SUCCEEDED, PlanState.FAILED, PlanState.ASKING)
    finally:
        await newer.close()
    assert ended.state is PlanState.SUCCEEDED, ended.message
    assert [step.by_hand for step in ended.steps] == [("echo 1",), ("echo 2",), ("echo 3",)]  # as they were signed
    assert WORLD[card.plan_id] == ["do 1", "do 2", "do 3"]
    verified = [step for step, state, _ in await journal(office, card) if state == JournalState.VERIFIED]
    assert verified == [0, 1, 2]
    async with memory.session() as session:
        assert (await session.execute(text("SELECT max(epoch) FROM journal"))).scalar_one() == 2


async def test_a_plan_that_another_version_words_anew_does_not_start(office: OfficeForTests, memory: Database) -> None:
    """What people would read of it is no longer what they signed."""
    async with office.working():
        card = await office.planned(await office.ask("olivia", "toy.run", key="reworded"))
    await signed(office, card)
    newer = OfficeForTests(memory, shipped_plan(), catalogue=Rewording())
    try:
        async with newer.working():
            void = await newer.until(card, PlanState.VOID)
    finally:
        await newer.close()
    assert "commands by hand" in void.message
    assert "ask for it again" in void.message
    assert card.plan_id not in WORLD


async def test_a_version_that_does_not_know_a_step_refuses_and_asks(
    office: OfficeForTests, memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = await killed_in_the_middle(office, monkeypatch, "without")
    other = OfficeForTests(memory, shipped_plan(), catalogue=Without())
    before = await journal(office, card)

    async def asks() -> bool:
        async with memory.session() as session:
            row = (await session.execute(text("SELECT state, message FROM run"))).one()
        return row.state == "asking" and "knows no `toy.count`" in row.message

    try:
        async with other.working():
            await eventually(asks, within=60)
        assert WORLD[card.plan_id] == ["do 1"]
        assert await journal(office, card) == before
        assert await locks(office, card) == 1
        # Once a worker of the old version is there again, people have it look, and it goes on.
        async with office.working():
            assert "looked at again" in await office.ordered("sam", "run.again", card)
            await office.until(card, PlanState.SUCCEEDED)
    finally:
        await other.close()
    assert WORLD[card.plan_id] == ["do 1", "do 2", "do 3"]


def test_a_new_optional_field_does_not_change_what_was_signed() -> None:
    """Its default says what plans meant before there was the field."""
    step = ToyStep(plan_id="x", number=1)
    plan = Plan.model_validate(
        {
            "id": "x", "action": "toy.run", "summary": "Count", "risk": "DESTRUCTIVE", "target": "toy", "params": {},
            "steps": (step,), "made_at": "2026-11-23T10:00:00Z",
        }
    )  # fmt: skip
    document = plan.model_dump(mode="json")
    read = Newer().kinds().plan(document)
    assert isinstance(read.steps[0], NewerStep)
    assert read.digest == plan.digest


async def test_the_timeline_names_the_machines_that_a_run_was_on(
    office: OfficeForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.worker.socket.gethostname", lambda: "worker-of-old")
    card = await killed_in_the_middle(office, monkeypatch, "machines")
    monkeypatch.setattr("bot.worker.socket.gethostname", lambda: "worker-2")
    async with office.working():
        await office.until(card, PlanState.SUCCEEDED, PlanState.FAILED, PlanState.ASKING)
    async with office.memory.session() as session:
        found = await session.execute(select(col(TimelineEntry.text)).where(col(TimelineEntry.kind) == "run"))
        told = [line for line in found.scalars() if card.plan_id in line]
    assert told[0].startswith(f"Run {card.plan_id} started on `worker-of-old`: ")
    taken = f"Run {card.plan_id} taken over by a worker on `worker-2`: its worker on `worker-of-old` fell silent"
    assert taken in told
