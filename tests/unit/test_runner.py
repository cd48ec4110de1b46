"""The runner: probe, journal, apply, verify; resume, ask, put back. Steps here act on a dictionary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal

import pytest

from actions.contract import JournalEntry, JournalState, Plan, Precondition, Probe, Risk, Step
from actions.errors import PermanentError, TemporaryError, UnknownOutcomeError, UserError, VerificationError
from actions.ports import Ports, Progress, ProgressReport
from actions.runner import ATTEMPTS, Outcome, Runner
from tests.contract.kit import MemoryJournal
from tests.fakes.world import a_world

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)

A, V, F, K, U, D = (
    JournalState.APPLYING,
    JournalState.VERIFIED,
    JournalState.FAILED,
    JournalState.ASKING,
    JournalState.UNDOING,
    JournalState.UNDONE,
)

Hook = Callable[[], Any]


class Stage:
    """The world of these tests: lamps that are on, what was done in order, and what goes wrong where."""

    def __init__(self) -> None:
        self.on: set[str] = set()
        self.done: list[str] = []
        self.trouble: dict[str, list[BaseException | None]] = {}
        self.probes: dict[str, Probe] = {}

    def act(self, name: str) -> None:
        self.done.append(name)
        errors = self.trouble.get(name, [])
        error = errors.pop(0) if errors else None
        if error is not None:
            raise error


STAGE = Stage()


@pytest.fixture(autouse=True)
def stage() -> Stage:
    # Steps are frozen data and find their world through the ports; these find theirs here, afresh for every test.
    Porter.seen.clear()
    STAGE.__init__()  # type: ignore[misc]
    return STAGE


class Lamp(Step):
    kind: Literal["lamp"] = "lamp"
    name: str

    @property
    def summary(self) -> str:
        return f"Switch on {self.name}"

    def by_hand(self) -> tuple[str, ...]:
        return ()

    async def probe(self, ports: Ports) -> Probe:
        STAGE.act(f"probe {self.name}")
        return STAGE.probes.get(self.name, Probe.DONE if self.name in STAGE.on else Probe.TODO)

    async def apply(self, ports: Ports, progress: Progress) -> None:
        progress(ProgressReport(done=1, unit="steps"))
        STAGE.act(f"apply {self.name}")
        STAGE.on.add(self.name)

    async def verify(self, ports: Ports) -> None:
        STAGE.act(f"verify {self.name}")

    async def undo(self, ports: Ports) -> None:
        STAGE.act(f"undo {self.name}")
        STAGE.on.discard(self.name)


class Slow(Lamp):
    timeout: timedelta = timedelta(milliseconds=20)

    async def apply(self, ports: Ports, progress: Progress) -> None:
        await asyncio.Event().wait()


class Told(Lamp):
    """Says something of itself, or fails to."""

    timeout: timedelta = timedelta(milliseconds=200)

    async def outcome(self, ports: Ports) -> str:
        STAGE.act(f"outcome {self.name}")
        if self.name == "silent":
            await asyncio.Event().wait()
        return "It is bright."


class SlowToUndo(Lamp):
    timeout: timedelta = timedelta(milliseconds=20)

    async def undo(self, ports: Ports) -> None:
        await asyncio.Event().wait()


class Porter(Lamp):
    """Remembers through which ports it was asked."""

    seen: ClassVar[list[tuple[str, object]]] = []

    async def probe(self, ports: Ports) -> Probe:
        self.seen.append(("probe", ports))
        return await super().probe(ports)

    async def apply(self, ports: Ports, progress: Progress) -> None:
        self.seen.append(("apply", ports))
        await super().apply(ports, progress)

    async def verify(self, ports: Ports) -> None:
        self.seen.append(("verify", ports))

    async def outcome(self, ports: Ports) -> str:
        self.seen.append(("outcome", ports))
        return ""

    async def undo(self, ports: Ports) -> None:
        self.seen.append(("undo", ports))


class Doorman(Precondition):
    kind: Literal["doorman"] = "doorman"

    @property
    def summary(self) -> str:
        return "Nobody is here"

    async def violation(self, ports: Ports) -> str | None:
        Porter.seen.append(("violation", ports))
        return None


class Waits(Lamp):
    """Takes two seconds and a half, by the clock of the world."""

    async def apply(self, ports: Ports, progress: Progress) -> None:
        await ports.clock.sleep(timedelta(seconds=2.5))


class Daylight(Precondition):
    kind: Literal["daylight"] = "daylight"

    @property
    def summary(self) -> str:
        return "It is day"

    async def violation(self, ports: Ports) -> str | None:
        STAGE.act("daylight")
        return "It is night." if "night" in STAGE.on else None


def a_plan(*steps: Step, preconditions: tuple[Precondition, ...] = ()) -> Plan:
    return Plan(
        id="abc",
        action="lamp.on",
        summary="Switch on",
        risk=Risk.REVERSIBLE,
        target="lamp",
        params={},
        steps=steps,
        preconditions=preconditions,
        made_at=NOW,
    )


def lamp(name: str, *, undo: bool = False) -> Lamp:
    return Lamp(name=name, undo_on_failure=undo)


def details(journal: MemoryJournal) -> list[str]:
    return [line.detail for line in journal.lines]


def entry(step: int, state: JournalState, detail: str = "") -> JournalEntry:
    return JournalEntry(step=step, state=state, detail=detail, at=NOW)


def states(journal: MemoryJournal) -> list[tuple[int, JournalState]]:
    return [(line.step, line.state) for line in journal.lines]


def a_journal(*lines: tuple[int, JournalState]) -> MemoryJournal:
    journal = MemoryJournal()
    journal.lines = [entry(step, state) for step, state in lines]
    return journal


async def run(plan: Plan, journal: MemoryJournal, **options: Any) -> Any:
    return await Runner(plan, a_world(), journal, **options).run()


# ---------------------------------------------------------------- forward


async def test_the_journal_is_written_before_the_world_is_touched(stage: Stage) -> None:
    journal = MemoryJournal()

    result = await run(a_plan(lamp("a"), lamp("b")), journal)

    assert result.outcome is Outcome.SUCCEEDED
    assert states(journal) == [(0, A), (0, V), (1, A), (1, V)]
    assert stage.done == ["probe a", "apply a", "verify a", "probe b", "apply b", "verify b"]


async def test_what_is_done_already_is_verified_and_not_applied(stage: Stage) -> None:
    stage.on.add("a")
    journal = MemoryJournal()

    await run(a_plan(lamp("a")), journal)

    assert states(journal) == [(0, V)]
    assert stage.done == ["probe a", "verify a"]


async def test_a_second_run_does_nothing(stage: Stage) -> None:
    plan, journal = a_plan(lamp("a"), preconditions=(Daylight(),)), MemoryJournal()
    await run(plan, journal)
    stage.done.clear()

    assert (await run(plan, journal)).outcome is Outcome.SUCCEEDED
    assert stage.done == []


@pytest.mark.parametrize(
    ("found", "probe", "outcome", "added", "done"),
    [
        ([], Probe.TODO, Outcome.SUCCEEDED, [A, V], ["probe a", "apply a", "verify a"]),
        ([], Probe.DONE, Outcome.SUCCEEDED, [V], ["probe a", "verify a"]),
        ([], Probe.UNKNOWN, Outcome.ASKING, [K], ["probe a"]),
        ([A], Probe.TODO, Outcome.SUCCEEDED, [V], ["probe a", "apply a", "verify a"]),
        ([A], Probe.DONE, Outcome.SUCCEEDED, [V], ["probe a", "verify a"]),
        ([A], Probe.UNKNOWN, Outcome.ASKING, [K], ["probe a"]),
        ([A, K], Probe.DONE, Outcome.SUCCEEDED, [V], ["probe a", "verify a"]),
        ([A, K], Probe.UNKNOWN, Outcome.ASKING, [K], ["probe a"]),
        ([A, K], Probe.TODO, Outcome.ASKING, [K], ["probe a"]),
        ([A, V], Probe.TODO, Outcome.SUCCEEDED, [], []),
        ([A, F], Probe.TODO, Outcome.FAILED, [U, D], ["undo a"]),
        ([A, F, U], Probe.TODO, Outcome.FAILED, [U, D], ["undo a"]),
        ([A, F, U, D], Probe.TODO, Outcome.FAILED, [], []),
        ([A, F, U, K], Probe.TODO, Outcome.FAILED, [U, D], ["undo a"]),
    ],
)
async def test_resuming(
    stage: Stage,
    found: list[JournalState],
    probe: Probe,
    outcome: Outcome,
    added: list[JournalState],
    done: list[str],
) -> None:
    stage.probes["a"] = probe
    journal = a_journal(*((0, state) for state in found))

    result = await run(a_plan(lamp("a", undo=True)), journal)

    assert result.outcome is outcome
    assert [line.state for line in journal.lines[len(found) :]] == added
    assert stage.done == done


async def test_looking_again_at_what_has_not_happened_says_what_to_answer(stage: Stage) -> None:
    stage.probes["a"] = Probe.TODO

    result = await run(a_plan(lamp("a")), a_journal((0, A), (0, K)))

    assert result.message == (
        "Switch on a: looked at again, it has not happened, or not completely. Answer with `/dr run repeat` to have it "
        "done, which takes the signatures of its risk, or with `/dr run undo`."
    )


async def test_a_step_goes_on_where_the_run_stopped(stage: Stage) -> None:
    await run(a_plan(lamp("a"), lamp("b")), a_journal((0, A), (0, V), (1, A)))

    assert stage.done == ["probe b", "apply b", "verify b"]


async def test_progress_names_the_step() -> None:
    seen: list[tuple[int, ProgressReport]] = []

    await run(a_plan(lamp("a"), lamp("b")), MemoryJournal(), progress=lambda *both: seen.append(both))

    report = ProgressReport(done=1, unit="steps")
    assert seen == [(0, report), (1, report)]


async def test_steps_and_preconditions_act_through_the_ports_of_the_run(stage: Stage) -> None:
    ports = a_world()
    stage.trouble["verify b"] = [PermanentError("no power.")]
    plan = a_plan(Porter(name="a", undo_on_failure=True), lamp("b"), preconditions=(Doorman(),))

    await Runner(plan, ports, MemoryJournal()).run()

    assert [name for name, _ in Porter.seen] == ["violation", "probe", "apply", "verify", "outcome", "undo"]
    assert all(given is ports for _, given in Porter.seen)


async def test_the_journal_says_how_long_each_step_took(stage: Stage) -> None:
    journal = MemoryJournal()

    await run(a_plan(Waits(name="a"), lamp("b")), journal)

    assert [(line.state, line.elapsed_ms) for line in journal.lines] == [(A, 0), (V, 2500), (A, 0), (V, 0)]


# ---------------------------------------------------------------- preconditions


async def test_a_changed_world_stops_before_the_first_step(stage: Stage) -> None:
    stage.on.add("night")
    journal = MemoryJournal()

    result = await run(a_plan(lamp("a"), preconditions=(Daylight(),)), journal)

    assert (result.outcome, result.message) == (Outcome.STALE, "It is night.")
    assert journal.lines == []


async def test_a_world_that_cannot_be_read_is_taken_for_changed(stage: Stage) -> None:
    stage.trouble["daylight"] = [PermanentError("the window is shut")]

    result = await run(a_plan(lamp("a"), preconditions=(Daylight(),)), MemoryJournal())

    assert result.outcome is Outcome.STALE
    assert "the window is shut" in result.message


async def test_a_passing_trouble_is_not_a_changed_world(stage: Stage) -> None:
    stage.trouble["daylight"] = [TemporaryError("fog"), TemporaryError("fog")]

    assert (await run(a_plan(lamp("a"), preconditions=(Daylight(),)), MemoryJournal())).outcome is Outcome.SUCCEEDED


async def test_a_run_that_has_begun_is_not_judged_again(stage: Stage) -> None:
    stage.on.add("night")

    result = await run(a_plan(lamp("a"), preconditions=(Daylight(),)), a_journal((0, A)))

    assert result.outcome is Outcome.SUCCEEDED


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("where", ["probe a", "apply a", "verify a"])
@pytest.mark.parametrize("error", [UserError, PermanentError, VerificationError])
async def test_an_error_fails_the_run(stage: Stage, where: str, error: type[Exception]) -> None:
    stage.trouble[where] = [error("no power")]
    journal = MemoryJournal()

    result = await run(a_plan(lamp("a")), journal)

    assert (result.outcome, result.message, result.step) == (Outcome.FAILED, "no power", 0)
    assert journal.lines[-1].state is F
    assert journal.lines[-1].detail == "no power"


@pytest.mark.parametrize("where", ["probe a", "apply a", "verify a"])
async def test_an_unknown_outcome_asks(stage: Stage, where: str) -> None:
    stage.trouble[where] = [UnknownOutcomeError("is it on?")]

    result = await run(a_plan(lamp("a", undo=True)), MemoryJournal())

    assert (result.outcome, result.message) == (Outcome.ASKING, "is it on?")
    assert "undo a" not in stage.done


async def test_a_probe_that_cannot_tell_asks_what_to_look_at(stage: Stage) -> None:
    stage.probes["a"] = Probe.UNKNOWN

    result = await run(a_plan(lamp("a")), MemoryJournal())

    assert result.message == (
        "Switch on a: it cannot be told whether this has happened. Look at the target, then answer."
    )


@pytest.mark.parametrize("where", ["probe a", "apply a", "verify a"])
async def test_a_passing_trouble_is_tried_again(stage: Stage, where: str) -> None:
    stage.trouble[where] = [TemporaryError("fuse", retry_after=timedelta(hours=1)) for _ in range(ATTEMPTS - 1)]
    journal = MemoryJournal()

    result = await run(a_plan(lamp("a")), journal)

    assert result.outcome is Outcome.SUCCEEDED
    # Also when the first try did not get as far as `apply`, which must never run without its line.
    assert states(journal) == [(0, A), (0, V)]


async def test_a_trouble_that_does_not_pass_fails(stage: Stage) -> None:
    stage.trouble["apply a"] = [TemporaryError("fuse.") for _ in range(ATTEMPTS)]

    result = await run(a_plan(lamp("a")), MemoryJournal())

    assert (result.outcome, result.message) == (Outcome.FAILED, f"fuse. Tried {ATTEMPTS} times.")
    assert stage.done.count("apply a") == ATTEMPTS


async def test_a_step_that_takes_too_long_fails() -> None:
    result = await run(a_plan(Slow(name="a")), MemoryJournal())

    assert result.outcome is Outcome.FAILED
    assert "not done within" in result.message


async def test_a_defect_fails_the_step_and_puts_back(stage: Stage) -> None:
    stage.trouble["apply a"] = [ZeroDivisionError()]

    result = await run(a_plan(lamp("a", undo=True)), MemoryJournal())

    assert result.outcome is Outcome.FAILED
    assert result.message.startswith(
        "Switch on a: this failed in a way that was not foreseen (ZeroDivisionError). "
        "The log of the worker has the details."
    )
    assert stage.done == ["probe a", "apply a", "undo a"]


async def test_nothing_follows_a_journal_that_refuses(stage: Stage) -> None:
    class Lost(MemoryJournal):
        async def append(self, entry: JournalEntry) -> None:
            raise RuntimeError("the lease is gone")

    with pytest.raises(RuntimeError, match="lease"):
        await run(a_plan(lamp("a", undo=True)), Lost())
    assert stage.done == ["probe a"]


# ---------------------------------------------------------------- guard


async def test_the_guard_is_asked_before_every_step(stage: Stage) -> None:
    asked: list[Sequence[str]] = []

    async def guard() -> None:
        asked.append(tuple(stage.on))

    await run(a_plan(lamp("a"), lamp("b")), MemoryJournal(), guard=guard)

    assert asked == [(), ("a",)]


async def test_a_guard_that_refuses_ends_the_run_and_puts_back(stage: Stage) -> None:
    async def guard() -> None:
        if "a" in stage.on:
            raise UserError("A signature was withdrawn.")

    journal = MemoryJournal()
    result = await run(a_plan(lamp("a", undo=True), lamp("b", undo=True)), journal, guard=guard)

    assert result.outcome is Outcome.FAILED
    assert [line.detail for line in journal.lines if line.state is F] == ["A signature was withdrawn."]
    assert result.message == "A signature was withdrawn. What was changed for it has been put back."
    assert stage.on == set()
    assert "probe b" not in stage.done


async def test_a_lost_lease_stops_without_a_word(stage: Stage) -> None:
    async def guard() -> None:
        raise RuntimeError("the lease is gone")

    journal = MemoryJournal()
    with pytest.raises(RuntimeError, match="lease"):
        await run(a_plan(lamp("a")), journal, guard=guard)
    assert journal.lines == []


# ---------------------------------------------------------------- putting back


async def test_finished_steps_are_undone_newest_first_the_failed_one_included(stage: Stage) -> None:
    stage.trouble["verify d"] = [PermanentError("no power.")]
    journal = MemoryJournal()

    result = await run(a_plan(lamp("a"), lamp("b", undo=True), lamp("c", undo=True), lamp("d", undo=True)), journal)

    assert [done for done in stage.done if done.startswith("undo")] == ["undo d", "undo c", "undo b"]
    assert {line.detail for line in journal.lines if line.state in (U, D)} == {""}
    assert stage.on == {"a"}
    assert result.message == "no power. What was changed for it has been put back."
    assert result.step == 3


async def test_steps_that_never_began_are_not_undone(stage: Stage) -> None:
    stage.trouble["apply a"] = [PermanentError("no power.")]

    await run(a_plan(lamp("a", undo=True), lamp("b", undo=True)), MemoryJournal())

    assert "undo b" not in stage.done


async def test_an_interrupted_undo_goes_on_with_the_reason_of_the_failure(stage: Stage) -> None:
    journal = a_journal((0, A), (0, V), (1, A))
    journal.lines += [entry(1, F, "no power."), entry(1, U), entry(1, D), entry(0, U)]
    stage.on = {"a"}

    result = await run(a_plan(lamp("a", undo=True), lamp("b", undo=True)), journal)

    assert stage.done == ["undo a"]
    assert result.message == "no power. What was changed for it has been put back."


async def test_an_undo_that_fails_stops_and_asks(stage: Stage) -> None:
    stage.trouble["apply c"] = [PermanentError("no power.")]
    stage.trouble["undo b"] = [PermanentError("the switch is stuck")]
    plan, journal = a_plan(lamp("a", undo=True), lamp("b", undo=True), lamp("c", undo=True)), MemoryJournal()

    result = await run(plan, journal)

    assert result.outcome is Outcome.ASKING
    assert result.message == "no power. Putting it back stopped at step 2 (Switch on b): the switch is stuck"
    assert "undo a" not in stage.done  # out of order it could do harm

    again = await run(plan, journal)

    assert again.outcome is Outcome.FAILED
    assert stage.on == set()
    assert stage.done.count("undo c") == 1


async def test_an_undo_is_tried_again(stage: Stage) -> None:
    stage.trouble["apply a"] = [PermanentError("no power.")]
    stage.trouble["undo a"] = [TemporaryError("fuse") for _ in range(ATTEMPTS - 1)]

    assert (await run(a_plan(lamp("a", undo=True)), MemoryJournal())).outcome is Outcome.FAILED


async def test_an_undo_that_takes_too_long_asks(stage: Stage) -> None:
    stage.trouble["verify a"] = [PermanentError("no power.")]

    result = await run(a_plan(SlowToUndo(name="a", undo_on_failure=True)), MemoryJournal())

    assert result.outcome is Outcome.ASKING
    assert "not done within" in result.message


async def test_after_a_failure_a_run_never_goes_forward(stage: Stage) -> None:
    plan = a_plan(lamp("a", undo=True), lamp("b"))
    stage.trouble["apply b"] = [PermanentError("no power.")]
    journal = MemoryJournal()
    await run(plan, journal)
    stage.done.clear()

    assert (await run(plan, journal)).outcome is Outcome.FAILED
    assert stage.done == []


# ---------------------------------------------------------------- what is said of a step


async def test_the_outcome_is_journalled_with_verified() -> None:
    journal = MemoryJournal()
    assert (await run(a_plan(Told(name="a"), lamp("b")), journal)).outcome is Outcome.SUCCEEDED
    assert states(journal) == [(0, A), (0, V), (1, A), (1, V)]
    assert details(journal) == ["", "It is bright.", "", ""]


@pytest.mark.parametrize("error", [PermanentError("no light meter"), RuntimeError("a defect")])
async def test_an_outcome_that_fails_fails_nothing(error: Exception) -> None:
    STAGE.trouble["outcome a"] = [error]
    journal = MemoryJournal()
    assert (await run(a_plan(Told(name="a"), lamp("b")), journal)).outcome is Outcome.SUCCEEDED
    assert states(journal) == [(0, A), (0, V), (1, A), (1, V)]
    assert details(journal) == ["", "", "", ""]
    assert STAGE.done.count("apply a") == 1


async def test_an_outcome_that_never_comes_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actions.runner.OUTCOME_LIMIT", timedelta(milliseconds=20))
    journal = MemoryJournal()
    assert (await run(a_plan(Told(name="silent")), journal)).outcome is Outcome.SUCCEEDED
    assert states(journal) == [(0, A), (0, V)]
    assert STAGE.done.count("apply silent") == 1
