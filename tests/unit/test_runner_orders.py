"""The runner and people: what they answer when it asks, and what they order it to do. Steps switch lamps on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

import pytest

from actions.contract import JournalEntry, JournalState, Plan, Probe, Risk, Step
from actions.errors import DrError, PermanentError, TemporaryError, UnknownOutcomeError
from actions.ports import Ports, Progress
from actions.runner import ATTESTED, BrokenOffError, Order, OrderKind, Outcome, Runner, RunResult
from tests.contract.kit import MemoryJournal
from tests.fakes.world import a_world
from tests.fixtures.waiting import until

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)

A, V, F, K, U, D = (
    JournalState.APPLYING,
    JournalState.VERIFIED,
    JournalState.FAILED,
    JournalState.ASKING,
    JournalState.UNDOING,
    JournalState.UNDONE,
)
HAPPENED, REPEAT, SKIPPED, ABORTED, PREEMPTED = (
    JournalState.HAPPENED,
    JournalState.REPEAT,
    JournalState.SKIPPED,
    JournalState.ABORTED,
    JournalState.PREEMPTED,
)

ON: set[str] = set()
DONE: list[str] = []
SEEN: dict[str, Probe | DrError] = {}
TROUBLE: dict[str, list[DrError | None]] = {}


@pytest.fixture(autouse=True)
def dark() -> None:
    ON.clear()
    DONE.clear()
    SEEN.clear()
    TROUBLE.clear()


def act(what: str) -> None:
    DONE.append(what)
    errors = TROUBLE.get(what, [])
    error = errors.pop(0) if errors else None
    if error is not None:
        raise error


class Lamp(Step):
    kind: Literal["lamp"] = "lamp"
    name: str

    @property
    def summary(self) -> str:
        return f"Switch on {self.name}"

    def by_hand(self) -> tuple[str, ...]:
        return ()

    async def probe(self, ports: Ports) -> Probe:
        assert ports.clock
        act(f"probe {self.name}")
        seen = SEEN.get(self.name, Probe.DONE if self.name in ON else Probe.TODO)
        if isinstance(seen, DrError):
            raise seen
        return seen

    async def apply(self, ports: Ports, progress: Progress) -> None:
        act(f"apply {self.name}")
        ON.add(self.name)

    async def verify(self, ports: Ports) -> None:
        act(f"verify {self.name}")

    async def stop(self, ports: Ports) -> None:
        assert ports.clock
        act(f"stop {self.name}")

    async def undo(self, ports: Ports) -> None:
        act(f"undo {self.name}")
        ON.discard(self.name)


class Candle(Lamp):
    interruptible: ClassVar[bool] = True


def lamps(*names: str, **options: Any) -> tuple[Step, ...]:
    return tuple(Lamp(name=name, undo_on_failure=True, **options) for name in names)


def a_plan(*steps: Step) -> Plan:
    return Plan(
        id="abc",
        action="lamp.on",
        summary="Switch on",
        risk=Risk.REVERSIBLE,
        target="lamp",
        params={},
        steps=steps,
        made_at=NOW,
    )


def a_journal(*lines: tuple[int, JournalState] | tuple[int, JournalState, str]) -> MemoryJournal:
    journal = MemoryJournal()
    journal.lines = [
        JournalEntry(step=line[0], state=line[1], detail=line[2] if len(line) == 3 else "", at=NOW) for line in lines
    ]
    return journal


def added(journal: MemoryJournal, since: int) -> list[tuple[int, JournalState]]:
    return [(line.step, line.state) for line in journal.lines[since:]]


def orders(*given: OrderKind | None) -> Any:
    """One order each time it is asked for; the last one stands."""
    left = list(given)

    async def read() -> Order | None:
        kind = left.pop(0) if len(left) > 1 else left[0]
        return None if kind is None else Order(kind=kind, sentence=f"Ada says {kind}.")

    return read


async def run(plan: Plan, journal: MemoryJournal, **options: Any) -> RunResult:
    return await Runner(plan, a_world(), journal, **options).run()


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("seen", [Probe.UNKNOWN, PermanentError("it is away"), TemporaryError("it is away")])
async def test_what_people_attest_is_verified_on_their_word(seen: Probe | DrError) -> None:
    SEEN["a"] = seen
    journal = a_journal((0, K), (0, HAPPENED))

    result = await run(a_plan(*lamps("a", "b")), journal)

    assert result == RunResult(outcome=Outcome.SUCCEEDED)
    assert added(journal, 2) == [(0, V), (1, A), (1, V)]
    assert journal.lines[2].detail == ATTESTED
    assert DONE == ["probe a", "probe b", "apply b", "verify b"]


async def test_what_people_attest_and_the_world_shows_is_verified_as_ever() -> None:
    ON.add("a")
    journal = a_journal((0, K), (0, HAPPENED))

    assert (await run(a_plan(*lamps("a")), journal)).outcome is Outcome.SUCCEEDED
    assert journal.lines[2].detail == ""
    assert DONE == ["probe a", "verify a"]


async def test_what_people_attest_against_what_the_world_shows_is_asked_again() -> None:
    journal = a_journal((0, K), (0, HAPPENED))

    result = await run(a_plan(*lamps("a")), journal)

    assert (result.outcome, result.step) == (Outcome.ASKING, 0)
    assert result.message == (
        "Switch on a: people said that it has happened, but the target shows that it has not. Look at the target "
        "again, then answer."
    )
    assert added(journal, 2) == [(0, K)]
    assert set() == ON


@pytest.mark.parametrize("seen", [Probe.UNKNOWN, Probe.TODO])
async def test_what_has_not_happened_is_done_once(seen: Probe) -> None:
    SEEN["a"] = seen
    journal = a_journal((0, A), (0, K), (0, REPEAT))

    assert (await run(a_plan(*lamps("a")), journal)).outcome is Outcome.SUCCEEDED
    assert added(journal, 3) == [(0, A), (0, V)]
    assert DONE == ["probe a", "apply a", "verify a"]


async def test_what_happened_after_all_is_not_done_again() -> None:
    ON.add("a")
    journal = a_journal((0, K), (0, REPEAT))

    assert (await run(a_plan(*lamps("a")), journal)).outcome is Outcome.SUCCEEDED
    assert DONE == ["probe a", "verify a"]


async def test_the_word_that_it_has_not_happened_is_used_up_by_doing_it() -> None:
    """Temporary trouble in the middle: the second try has an outcome of its own, and asks."""
    SEEN["a"] = Probe.UNKNOWN
    TROUBLE["apply a"] = [TemporaryError("it broke in the middle")]
    journal = a_journal((0, K), (0, REPEAT))

    result = await run(a_plan(*lamps("a")), journal)

    assert result.outcome is Outcome.ASKING
    assert added(journal, 2) == [(0, A), (0, K)]
    assert DONE == ["probe a", "apply a", "probe a"]


async def test_the_word_that_it_has_not_happened_outlives_trouble_before_it_is_done() -> None:
    SEEN["a"] = Probe.UNKNOWN
    TROUBLE["probe a"] = [TemporaryError("away"), TemporaryError("still away")]
    journal = a_journal((0, K), (0, REPEAT))

    assert (await run(a_plan(*lamps("a")), journal)).outcome is Outcome.SUCCEEDED
    assert DONE == ["probe a", "probe a", "probe a", "apply a", "verify a"]


async def test_after_a_death_in_the_middle_the_word_is_not_used_again() -> None:
    SEEN["a"] = Probe.UNKNOWN
    journal = a_journal((0, K), (0, REPEAT), (0, A))

    assert (await run(a_plan(*lamps("a")), journal)).outcome is Outcome.ASKING
    assert DONE == ["probe a"]


async def test_a_skipped_step_is_passed_over() -> None:
    journal = a_journal((0, V), (1, K), (1, SKIPPED))

    assert (await run(a_plan(*lamps("a", "b", "c")), journal)).outcome is Outcome.SUCCEEDED
    assert added(journal, 3) == [(2, A), (2, V)]
    assert DONE == ["probe c", "apply c", "verify c"]


async def test_an_aborted_run_is_put_back_newest_first() -> None:
    ON.update("ab")
    journal = a_journal((0, A), (0, V), (1, A), (1, K, "unclear"), (1, ABORTED, "Ada and Bob abort."))

    result = await run(a_plan(*lamps("a", "b", "c")), journal)

    assert result == RunResult(
        outcome=Outcome.ABORTED, message="Ada and Bob abort. What was changed for it has been put back.", step=1
    )
    assert added(journal, 5) == [(1, U), (1, D), (0, U), (0, D)]
    assert DONE == ["undo b", "undo a"]


async def test_a_death_while_an_aborted_run_is_put_back_changes_nothing() -> None:
    journal = a_journal((0, V), (1, K), (1, ABORTED, "Abort."), (1, U), (1, D), (0, U))

    result = await run(a_plan(*lamps("a", "b")), journal)

    assert (result.outcome, result.message) == (Outcome.ABORTED, "Abort. What was changed for it has been put back.")
    assert DONE == ["undo a"]


async def test_what_people_have_put_back_by_hand_is_not_put_back_again() -> None:
    journal = a_journal((0, V), (1, A), (1, F, "It broke."), (1, U), (1, K), (1, HAPPENED))

    result = await run(a_plan(*lamps("a", "b")), journal)

    assert result.outcome is Outcome.FAILED
    assert added(journal, 6) == [(1, D), (0, U), (0, D)]
    assert journal.lines[6].detail == ATTESTED
    assert DONE == ["undo a"]


async def test_what_could_not_be_put_back_is_tried_again_where_people_say_so() -> None:
    journal = a_journal((0, V), (1, F, "It broke."), (1, U), (1, K), (1, REPEAT))

    assert (await run(a_plan(*lamps("a", "b")), journal)).outcome is Outcome.FAILED
    assert DONE == ["undo b", "undo a"]


# ---------------------------------------------------------------- optional


async def test_an_optional_step_that_fails_asks_and_undoes_nothing() -> None:
    TROUBLE["apply b"] = [PermanentError("No.")]
    journal = MemoryJournal()

    result = await run(a_plan(*lamps("a"), Lamp(name="b", optional=True)), journal)

    assert result == RunResult(
        outcome=Outcome.ASKING, message="No. This step is optional: skip it, repeat it or abort.", step=1
    )
    assert added(journal, 0) == [(0, A), (0, V), (1, A), (1, K)]
    assert {"a"} == ON


async def test_an_optional_step_whose_guard_refuses_fails_as_any_other() -> None:
    async def guard() -> None:
        raise PermanentError("The signatures no longer suffice.")

    journal = MemoryJournal()
    result = await run(a_plan(Lamp(name="b", optional=True)), journal, guard=guard)

    assert (result.outcome, result.message) == (Outcome.FAILED, "The signatures no longer suffice.")
    assert DONE == []


async def test_a_guard_that_cannot_tell_asks() -> None:
    async def guard() -> None:
        raise UnknownOutcomeError("Is it allowed?")

    journal = MemoryJournal()
    result = await run(a_plan(*lamps("a")), journal, guard=guard)

    assert result == RunResult(outcome=Outcome.ASKING, message="Is it allowed?", step=0)
    assert added(journal, 0) == [(0, K)]


# ---------------------------------------------------------------- orders between steps


@pytest.mark.parametrize("kind", [OrderKind.PAUSE, OrderKind.STOP])
async def test_between_steps_a_pause_and_a_stop_leave_everything_as_it_is(kind: OrderKind) -> None:
    journal = MemoryJournal()

    result = await run(a_plan(*lamps("a", "b")), journal, orders=orders(None, None, kind))

    assert result == RunResult(
        outcome=Outcome.PAUSED, message=f"Ada says {kind}. Nothing is half done; step 2 has not begun.", step=1
    )
    assert added(journal, 0) == [(0, A), (0, V)]
    assert (await run(a_plan(*lamps("a", "b")), journal)).outcome is Outcome.SUCCEEDED
    assert {"a", "b"} == ON


@pytest.mark.parametrize(
    ("kind", "state", "outcome"),
    [(OrderKind.ABORT, ABORTED, Outcome.ABORTED), (OrderKind.YIELD, PREEMPTED, Outcome.PREEMPTED)],
)
async def test_an_abort_puts_back_what_was_done_and_not_what_was_not(
    kind: OrderKind, state: JournalState, outcome: Outcome
) -> None:
    journal = MemoryJournal()

    result = await run(a_plan(*lamps("a", "b")), journal, orders=orders(None, None, kind))

    assert result == RunResult(
        outcome=outcome, message=f"Ada says {kind}. What was changed for it has been put back.", step=1
    )
    assert added(journal, 0) == [(0, A), (0, V), (1, state), (0, U), (0, D)]
    assert journal.lines[2].detail == f"Ada says {kind}."
    assert DONE[-1] == "undo a"


async def test_an_abort_before_the_first_step_has_nothing_to_put_back() -> None:
    result = await run(a_plan(*lamps("a")), MemoryJournal(), orders=orders(OrderKind.ABORT))

    assert result == RunResult(outcome=Outcome.ABORTED, message="Ada says abort.", step=0)
    assert DONE == []


@pytest.mark.parametrize("state", [A, K, HAPPENED, REPEAT])
async def test_a_step_that_was_begun_is_ended_before_a_pause(state: JournalState) -> None:
    ON.add("a")
    journal = a_journal((0, A), (0, state))

    result = await run(a_plan(*lamps("a", "b")), journal, orders=orders(OrderKind.PAUSE))

    assert (result.outcome, result.step) == (Outcome.PAUSED, 1)
    assert added(journal, 2) == [(0, V)]


async def test_an_order_does_not_stop_what_is_put_back() -> None:
    journal = a_journal((0, A), (0, V), (1, A), (1, F, "It broke."))

    result = await run(a_plan(*lamps("a", "b")), journal, orders=orders(OrderKind.PAUSE))

    assert result.outcome is Outcome.FAILED
    assert DONE == ["undo b", "undo a"]


async def test_a_step_that_failed_before_it_was_applied_is_not_put_back() -> None:
    journal = a_journal((0, A), (0, V), (1, F, "The signatures no longer suffice."))

    result = await run(a_plan(*lamps("a", "b")), journal)

    assert result.outcome is Outcome.FAILED
    assert DONE == ["undo a"]


async def test_orders_that_cannot_be_read_break_the_run_off() -> None:
    async def away() -> Order | None:
        raise TemporaryError("The database is away.")

    journal = MemoryJournal()
    with pytest.raises(BrokenOffError):
        await run(a_plan(*lamps("a")), journal, orders=away)
    assert journal.lines == []


# ---------------------------------------------------------------- orders within a step


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Probe.TODO, "it has not happened, or not completely"),
        (Probe.DONE, "it has happened"),
        (Probe.UNKNOWN, "it cannot be told whether it has happened"),
    ],
)
async def test_a_stop_within_a_step_ends_it_says_how_it_stands_and_asks(seen: Probe, words: str) -> None:
    SEEN["b"] = seen
    journal = a_journal((0, V), (1, A))

    result = await run(a_plan(*lamps("a", "b")), journal, orders=orders(OrderKind.STOP))

    assert result == RunResult(
        outcome=Outcome.ASKING,
        message=f"Ada says stop. Step 2 (Switch on b) was stopped within. Looked at since, {words}.",
        step=1,
    )
    assert added(journal, 2) == [(1, K)]
    assert DONE == ["stop b", "probe b"]


async def test_a_stop_that_was_obeyed_is_not_obeyed_again() -> None:
    """The bot died between the journal and the end of the run."""
    journal = a_journal((0, A), (0, V), (1, A), (1, K, "Stopped within."))

    result = await run(a_plan(*lamps("a", "b")), journal, orders=orders(OrderKind.STOP))

    assert result == RunResult(outcome=Outcome.ASKING, message="Stopped within.", step=1)
    assert added(journal, 4) == []
    assert DONE == []


async def test_a_step_that_cannot_be_ended_says_so() -> None:
    TROUBLE["stop a"] = [PermanentError("The job does not answer.")]
    journal = a_journal((0, A))

    result = await run(a_plan(*lamps("a")), journal, orders=orders(OrderKind.STOP))

    assert result.outcome is Outcome.ASKING
    assert result.message == (
        "Ada says stop. Step 1 (Switch on a) was stopped within. It could not be looked at since, and may go on: "
        "The job does not answer."
    )


async def test_a_stop_ends_putting_back_too() -> None:
    journal = a_journal((0, A), (0, F, "It broke."), (0, U))

    result = await run(a_plan(*lamps("a")), journal, orders=orders(OrderKind.STOP))

    assert result.outcome is Outcome.ASKING
    assert result.message.startswith("Ada says stop. Putting back step 1 (Switch on a) was stopped within.")
    assert (await run(a_plan(*lamps("a")), journal)).outcome is Outcome.FAILED
    assert DONE == ["stop a", "probe a", "undo a"]


async def test_what_can_be_interrupted_gives_way_at_once_and_is_put_back() -> None:
    journal = a_journal((0, V), (1, A))
    plan = a_plan(*lamps("a"), Candle(name="b", undo_on_failure=True))

    result = await run(plan, journal, orders=orders(OrderKind.YIELD))

    assert result.outcome is Outcome.PREEMPTED
    assert result.message == (
        "Ada says yield. Step 2 (Switch on b) was stopped within. What was changed for it has been put back."
    )
    # Nothing says that the interrupted step left something behind, but undoing it is safe where it did not.
    assert added(journal, 2) == [(1, PREEMPTED), (1, U), (1, D), (0, U), (0, D)]


async def test_a_death_while_giving_way_ends_the_same() -> None:
    journal = a_journal((0, A), (0, V), (1, PREEMPTED, "Ada says yield."), (0, U))

    result = await run(a_plan(*lamps("a", "b")), journal, orders=orders(OrderKind.YIELD))

    assert (result.outcome, result.step) == (Outcome.PREEMPTED, 1)
    assert DONE == ["undo a"]


@pytest.mark.parametrize(
    ("kind", "step", "lines", "breaks_off"),
    [
        (OrderKind.STOP, Lamp, [A], True),
        (OrderKind.STOP, Lamp, [F, U], True),
        (OrderKind.STOP, Lamp, [A, V], False),
        (OrderKind.STOP, Lamp, [], False),
        (OrderKind.YIELD, Candle, [A], True),
        (OrderKind.YIELD, Lamp, [A], False),
        (OrderKind.YIELD, Candle, [F, U], False),
        (OrderKind.YIELD, Candle, [A, V], False),
        (OrderKind.PAUSE, Candle, [A], False),
        (OrderKind.ABORT, Candle, [A], False),
    ],
)
async def test_which_order_is_obeyed_within_a_step(
    kind: OrderKind, step: type[Lamp], lines: Sequence[JournalState], breaks_off: bool
) -> None:
    journal = a_journal(*((0, state) for state in lines))
    runner = Runner(a_plan(step(name="a")), a_world(), journal)

    assert await runner.breaks_off_for(Order(kind=kind, sentence="")) is breaks_off


async def test_an_interrupted_run_is_found_as_it_was_left() -> None:
    """The worker cancels what runs, and runs again; the order is found there."""

    class Endless(Lamp):
        async def apply(self, ports: Ports, progress: Progress) -> None:
            act(f"apply {self.name}")
            await asyncio.Event().wait()

    journal, plan = MemoryJournal(), a_plan(Endless(name="a"))
    work = asyncio.create_task(run(plan, journal))
    await until(lambda: "apply a" in DONE)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)

    assert (await run(plan, journal, orders=orders(OrderKind.STOP))).outcome is Outcome.ASKING
    assert DONE == ["probe a", "apply a", "stop a", "probe a"]
