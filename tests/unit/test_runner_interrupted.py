"""The runner when its own side gives way: a journal that is away, a guard that cannot be asked, a defect in a step."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import pytest

from actions.contract import JournalEntry, JournalState, Plan, Probe, Risk, Step
from actions.errors import TemporaryError
from actions.ports import Ports, Progress
from actions.runner import BrokenOffError, Outcome, Runner
from tests.contract.kit import MemoryJournal
from tests.fakes.world import a_world

AWAY = "The bot's own database does not answer."
LIT: list[str] = []


@pytest.fixture(autouse=True)
def dark() -> None:
    LIT.clear()


class Lamp(Step):
    kind: Literal["lamp"] = "lamp"
    name: str
    defect: bool = False
    flickers: bool = False

    @property
    def summary(self) -> str:
        return f"Switch on {self.name}"

    def by_hand(self) -> tuple[str, ...]:
        return ()

    async def probe(self, ports: Ports) -> Probe:
        return Probe.DONE if self.name in LIT and not self.flickers else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:
        LIT.append(self.name)
        if self.flickers:
            raise TemporaryError(f"Flicker {LIT.count(self.name)}.")
        if self.defect:
            raise KeyError("colour")

    async def verify(self, ports: Ports) -> None:
        return

    async def undo(self, ports: Ports) -> None:
        LIT.remove(self.name)


class AwayJournal(MemoryJournal):
    """Cannot take this one line, once."""

    def __init__(self, state: JournalState) -> None:
        super().__init__()
        self.refused: JournalState | None = state

    async def append(self, entry: JournalEntry) -> None:
        if entry.state is self.refused:
            self.refused = None
            raise TemporaryError(AWAY)
        await super().append(entry)


def a_plan(*steps: Step) -> Plan:
    return Plan(
        id="abc",
        action="lamp.on",
        summary="Switch on",
        risk=Risk.REVERSIBLE,
        target="lamp",
        params={},
        steps=steps,
        made_at=datetime(2026, 11, 23, 10, 0, tzinfo=UTC),
    )


def states(journal: MemoryJournal) -> Sequence[JournalState]:
    return [line.state for line in journal.lines]


@pytest.mark.parametrize("state", [JournalState.APPLYING, JournalState.VERIFIED])
async def test_journal_that_is_away_breaks_the_run_off_and_fails_nothing(state: JournalState) -> None:
    journal = AwayJournal(state)
    plan = a_plan(Lamp(name="a", undo_on_failure=True))
    with pytest.raises(BrokenOffError):
        await Runner(plan, a_world(), journal).run()
    assert JournalState.FAILED not in states(journal)
    result = await Runner(plan, a_world(), journal).run()
    assert result.outcome is Outcome.SUCCEEDED
    assert LIT == ["a"]


async def test_guard_that_cannot_ask_breaks_the_run_off_and_fails_nothing() -> None:
    async def guard() -> None:
        raise TemporaryError(AWAY)

    journal = MemoryJournal()
    with pytest.raises(BrokenOffError, match=AWAY):
        await Runner(a_plan(Lamp(name="a")), a_world(), journal, guard=guard).run()
    assert journal.lines == []
    assert LIT == []


async def test_defect_in_a_step_is_a_failure_that_people_read_and_is_put_back() -> None:
    journal = MemoryJournal()
    plan = a_plan(Lamp(name="a", undo_on_failure=True), Lamp(name="b", undo_on_failure=True, defect=True))
    result = await Runner(plan, a_world(), journal).run()
    assert result.outcome is Outcome.FAILED
    assert "not foreseen (KeyError)" in result.message
    assert "colour" not in result.message
    assert LIT == []


async def test_what_the_first_try_said_is_not_lost_behind_the_last() -> None:
    result = await Runner(a_plan(Lamp(name="a", flickers=True)), a_world(), MemoryJournal()).run()
    assert result.message == "Flicker 1. Then: Flicker 2. Then: Flicker 3. Tried 3 times."
