"""The runner when its own side gives way: a journal that is away, a guard that cannot be asked, a defect in a step."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import pytest

from actions.contract import JournalEntry, JournalState, Plan, Precondition, Probe, Risk, Step
from actions.errors import TemporaryError
from actions.ports import Ports, Progress
from actions.runner import BrokenOffError, Order, OrderKind, Outcome, Runner
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
    jammed: bool = False
    unreadable: bool = False

    @property
    def summary(self) -> str:
        return f"Switch on {self.name}"

    def by_hand(self) -> tuple[str, ...]:
        return ()

    async def probe(self, ports: Ports) -> Probe:
        if self.unreadable:
            raise KeyError("colour")
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
        if self.jammed:
            raise KeyError("colour")
        LIT.remove(self.name)


class Weather(Precondition):
    kind: Literal["weather"] = "weather"

    @property
    def summary(self) -> str:
        return "It is dark"

    async def violation(self, ports: Ports) -> str | None:
        raise KeyError("colour")


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


def a_plan(*steps: Step, preconditions: Sequence[Precondition] = ()) -> Plan:
    return Plan(
        id="abc",
        action="lamp.on",
        summary="Switch on",
        risk=Risk.REVERSIBLE,
        target="lamp",
        params={},
        steps=steps,
        preconditions=tuple(preconditions),
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


async def test_defect_while_putting_back_asks_people_instead_of_being_met_again() -> None:
    journal = MemoryJournal()
    plan = a_plan(Lamp(name="a", undo_on_failure=True, jammed=True), Lamp(name="b", undo_on_failure=True, defect=True))
    result = await Runner(plan, a_world(), journal).run()
    assert (result.outcome, result.step) == (Outcome.ASKING, 0)
    assert "Putting it back stopped at step 1 (Switch on a): Switch on a: this failed in a way" in result.message
    assert "not foreseen (KeyError)" in result.message
    assert states(journal)[-1] is JournalState.ASKING
    assert LIT == ["a"]


async def test_defect_of_a_precondition_starts_nothing() -> None:
    journal = MemoryJournal()
    result = await Runner(a_plan(Lamp(name="a"), preconditions=[Weather()]), a_world(), journal).run()
    assert result.outcome is Outcome.STALE
    assert "It is dark: could not be read" in result.message
    assert "not foreseen (KeyError)" in result.message
    assert journal.lines == []
    assert LIT == []


async def test_defect_while_a_stopped_step_is_looked_at_asks_people() -> None:
    journal = MemoryJournal()
    at = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
    journal.lines.append(JournalEntry(step=0, state=JournalState.APPLYING, at=at))

    async def orders() -> Order | None:
        return Order(kind=OrderKind.STOP, sentence="Sam has ordered it to stop.")

    result = await Runner(a_plan(Lamp(name="a", unreadable=True)), a_world(), journal, orders=orders).run()
    assert (result.outcome, result.step) == (Outcome.ASKING, 0)
    assert "could not be looked at since, and may go on" in result.message
    assert "not foreseen (KeyError)" in result.message
    assert states(journal) == [JournalState.APPLYING, JournalState.ASKING]


@pytest.mark.parametrize(
    ("before", "step"),
    [
        ([], 0),
        ([(0, JournalState.APPLYING)], 0),
        ([(0, JournalState.APPLYING), (0, JournalState.VERIFIED)], 1),
        ([(0, JournalState.SKIPPED), (1, JournalState.VERIFIED)], 1),
        ([(0, JournalState.VERIFIED), (1, JournalState.FAILED), (0, JournalState.UNDOING)], 0),
    ],
)
async def test_defect_of_the_bot_itself_is_asked_about_where_the_run_stands(
    before: Sequence[tuple[int, JournalState]], step: int
) -> None:
    journal = MemoryJournal()
    at = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
    journal.lines += [JournalEntry(step=number, state=state, at=at) for number, state in before]
    result = await Runner(a_plan(Lamp(name="a"), Lamp(name="b")), a_world(), journal).asks_about("It broke.")
    assert (result.outcome, result.step, result.message) == (Outcome.ASKING, step, "It broke.")
    [*_, last] = journal.lines
    assert (last.step, last.state, last.detail) == (step, JournalState.ASKING, "It broke.")
