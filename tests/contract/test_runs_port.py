"""The bot's own runs: the real ones on PostgreSQL and the fake promise the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from actions import registry
from actions.adapters.clock import SystemClock
from actions.backup.physical import BackupKind
from actions.contract import JournalState, Plan, Risk
from actions.errors import PermanentError, UserError
from actions.ports import Answer, MeasuredLoad, Runs
from actions.site import DatabaseRef
from actions.steps.bases import MakeBase
from actions.steps.copies import LoadDump
from actions.steps.workloads import ScaleWorkload
from bot.services.drills import Drills
from bot.services.own_runs import OwnRuns
from bot.services.policy import Policy
from storage import plans, timeline
from storage.session import Database
from storage.tables import Incident, JournalRow, PlanRow, RunRow
from tests.fakes.runs import MemoryRuns
from tests.fakes.world import API
from tests.fixtures.office import shipped_plan

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)

NO_TIME = timedelta()

A, V, F, K = JournalState.APPLYING, JournalState.VERIFIED, JournalState.FAILED, JournalState.ASKING
ANSWERS = (Answer.HAPPENED, Answer.REPEAT, Answer.SKIPPED, Answer.ABORTED, Answer.LEFT)


def a_plan(name: str = "abcdefghjk") -> Plan:
    return Plan(
        id=name,
        action="application.scale",
        summary="Scale",
        risk=Risk.DISRUPTIVE,
        target="shop",
        params={},
        steps=(
            ScaleWorkload(ref=API, replicas_before=3, replicas=5),
            ScaleWorkload(ref=API, replicas_before=5, replicas=4),
        ),
        made_at=NOW,
    )


class RunsUnderTest:
    """The port, and a way to put a run behind it."""

    port: Runs

    async def add(
        self, plan: Plan, state: str, *lines: tuple[int, JournalState], message: str = "", took: timedelta = NO_TIME
    ) -> None:
        raise NotImplementedError

    async def declare(self, title: str, scenario: str, at: datetime, *notes: str) -> None:
        """An incident, with notes of people an hour after it was declared."""
        raise NotImplementedError


class InMemory(RunsUnderTest):
    def __init__(self) -> None:
        self.port = self.runs = MemoryRuns()

    async def add(
        self, plan: Plan, state: str, *lines: tuple[int, JournalState], message: str = "", took: timedelta = NO_TIME
    ) -> None:
        self.runs.add(plan, state, *lines, message=message, took=took, at=NOW)

    async def declare(self, title: str, scenario: str, at: datetime, *notes: str) -> None:
        if "breach" in scenario:
            self.runs.exposures.append((at, f"Incident 1 `{title}` was declared."))
        self.runs.exposures += [(at + timedelta(hours=1), f"Incident 1: {note}") for note in notes if "rotat" in note]


class InPostgres(RunsUnderTest):
    def __init__(self, memory: Database) -> None:
        self.memory, plan, clock = memory, shipped_plan(), SystemClock()
        self.port = OwnRuns(memory, Policy(plan), registry.kinds(), clock, Drills(memory, plan, Policy(plan), clock))

    async def add(
        self, plan: Plan, state: str, *lines: tuple[int, JournalState], message: str = "", took: timedelta = NO_TIME
    ) -> None:
        row = PlanRow(
            id=plan.id,
            action=plan.action,
            document=plan.model_dump(mode="json"),
            digest=plan.digest,
            risk=plan.risk,
            plan_schema=plan.plan_schema,
            requester="olivia",
            reason="x",
            channel="C1",
            token=plan.id,
            created_at=NOW,
            expires_at=NOW + timedelta(hours=1),
        )
        async with self.memory.session() as session:
            await plans.add(session, row)
            run = await session.get(RunRow, plan.id)
            assert run is not None
            run.state, run.message = state, message
            if state == "running":
                run.lease_until = datetime.now(UTC) + timedelta(minutes=1)
            for step, line in lines:
                elapsed = took // timedelta(milliseconds=1) if line is V else 0
                session.add(JournalRow(run_id=plan.id, epoch=1, step=step, state=line, at=NOW, elapsed_ms=elapsed))
                await session.flush()

    async def declare(self, title: str, scenario: str, at: datetime, *notes: str) -> None:
        async with self.memory.session() as session:
            found = Incident(
                id=title,
                title=title,
                severity="SEV1",
                scenario=scenario,
                commander="olivia",
                channel="C1",
                impact_started_at=at,
                declared_at=at,
                closed_at=at + timedelta(hours=2),
                rto_s=3600,
            )
            session.add(found)
            await session.flush()
            for note in notes:
                later = at + timedelta(hours=1)
                await timeline.add(
                    session, incident_id=title, kind="note", actor="Olivia", occurred_at=later, text=note
                )


@pytest.fixture(params=["memory", "postgres"])
def runs(request: pytest.FixtureRequest, memory: Database) -> RunsUnderTest:
    return InMemory() if request.param == "memory" else InPostgres(memory)


async def test_a_run_that_asks_shows_what_it_asks(runs: RunsUnderTest) -> None:
    await runs.add(a_plan(), "asking", (0, V), (1, A), (1, K), message="Is it so?")
    facts = await runs.port.find("abcdefghjk")
    assert facts is not None
    assert facts.plan == a_plan()
    assert (facts.state, facts.message, facts.step, facts.lines) == ("asking", "Is it so?", 1, 3)
    assert facts.question is not None
    assert (facts.backward, dict(facts.last), dict(facts.answered)) == (False, {0: "verified", 1: "asking"}, {})


def a_restore(name: str, *, database: str = "shop", database_bytes: int = 3_400_000_000) -> Plan:
    load = LoadDump(
        job=f"drbot-{name}-1",
        database=database,
        backup="b-1",
        into=DatabaseRef("primary", f"shop_restore_{name}"),
        owner="shop",
        mark=f"drbot:scratch:{name}",
        jobs=2,
        bucket="backups",
        endpoint=None,
        key="b-1.dump",
        sha256="0" * 64,
        invariants=(),
        database_bytes=database_bytes,
    )
    return a_plan(name).model_copy(update={"action": "restore.dump", "steps": (*a_plan(name).steps[:1], load)})


async def test_the_last_load_of_a_database_is_measured(runs: RunsUnderTest) -> None:
    assert await runs.port.last_load("shop") is None
    first, second = timedelta(seconds=50), timedelta(seconds=100)
    await runs.add(a_restore("a" * 10), "succeeded", (0, A), (0, V), (1, A), (1, V), took=first)
    await runs.add(a_restore("b" * 10), "failed", (0, A), (0, V), (1, A), (1, V), (1, F), took=second)
    # None of these measures a load of `shop`: interrupted, not done, of another database, from before it was noted.
    await runs.add(a_restore("c" * 10), "succeeded", (1, A), (1, A), (1, V), took=first)
    await runs.add(a_restore("d" * 10), "failed", (1, A), (1, F), took=first)
    await runs.add(a_restore("e" * 10, database="other"), "succeeded", (1, A), (1, V), took=first)
    await runs.add(a_restore("f" * 10, database_bytes=0), "succeeded", (1, A), (1, V), took=first)
    await runs.add(a_plan("g" * 10), "succeeded", (1, A), (1, V), took=first)

    found = await runs.port.last_load("shop")

    assert found == MeasuredLoad(database_bytes=3_400_000_000, took=second, at=NOW)
    assert await runs.port.last_load("nothing") is None


def a_base_plan(name: str, kind: BackupKind, *, server: str = "primary") -> Plan:
    step = MakeBase(
        job=f"drbot-{name}-1",
        server=server,
        backup=f"{server}-{name}",
        backup_kind=kind,
        parent=None,
        bucket="backups",
        endpoint=None,
        prefix="",
        recipients=(),
        engine="native",
        stanza="",
        requested_by="",
    )
    return a_plan(name).model_copy(update={"action": "backup.base", "target": server, "steps": (step,)})


async def test_a_full_base_backup_at_work_is_seen(runs: RunsUnderTest) -> None:
    await runs.add(a_base_plan("a" * 10, BackupKind.INCREMENTAL), "running", (0, A))
    await runs.add(a_base_plan("b" * 10, BackupKind.FULL, server="other"), "running", (0, A))
    await runs.add(a_base_plan("c" * 10, BackupKind.FULL), "succeeded", (0, A), (0, V))
    await runs.add(a_base_plan("d" * 10, BackupKind.FULL), "asking", (0, A), (0, K))
    await runs.add(a_plan("e" * 10).model_copy(update={"target": "primary"}), "running", (0, A))
    assert await runs.port.full_since("primary") is None
    await runs.add(a_base_plan("f" * 10, BackupKind.FULL), "running", (0, A))
    assert await runs.port.full_since("primary") is not None


async def test_one_whose_worker_is_gone_is_not_at_work(memory: Database) -> None:
    runs = InPostgres(memory)
    await runs.add(a_base_plan("f" * 10, BackupKind.FULL), "running", (0, A))
    async with memory.session() as session:
        run = await session.get(RunRow, "f" * 10)
        assert run is not None
        run.lease_until = datetime.now(UTC) - timedelta(seconds=1)
    assert await runs.port.full_since("primary") is None


async def test_what_is_over_asks_nothing(runs: RunsUnderTest) -> None:
    await runs.add(a_plan(), "failed", (0, A), (0, F), (0, JournalState.UNDOING), (0, JournalState.UNDONE))
    facts = await runs.port.find("abcdefghjk")
    assert facts is not None
    assert (facts.question, facts.step, facts.backward, facts.lines) == (None, None, True, 4)
    assert await runs.port.find("nothing") is None


@pytest.mark.parametrize("answer", ANSWERS)
async def test_an_answer_is_taken_once(runs: RunsUnderTest, answer: Answer) -> None:
    await runs.add(a_plan(), "asking", (0, A), (0, K))
    asked = await runs.port.find("abcdefghjk")
    assert asked is not None
    assert asked.question is not None
    for _ in range(2):
        await runs.port.answer("abcdefghjk", asked.question, answer, plan="answer")
    facts = await runs.port.find("abcdefghjk")
    assert facts is not None
    assert facts.answered == {asked.question: answer}
    assert (facts.question, facts.lines, facts.last[0]) == (None, 3, answer)
    assert facts.state == ("failed" if answer is Answer.LEFT else "running")
    assert facts.backward is (answer is Answer.ABORTED)


async def test_another_answer_and_one_to_another_question_are_refused(runs: RunsUnderTest) -> None:
    await runs.add(a_plan(), "asking", (0, A), (0, K))
    asked = await runs.port.find("abcdefghjk")
    assert asked is not None
    assert asked.question is not None
    with pytest.raises(PermanentError, match="does not ask this any more"):
        await runs.port.answer("abcdefghjk", asked.question - 1, Answer.REPEAT, plan="answer")
    await runs.port.answer("abcdefghjk", asked.question, Answer.HAPPENED, plan="answer")
    with pytest.raises(PermanentError, match="does not ask this any more"):
        await runs.port.answer("abcdefghjk", asked.question, Answer.REPEAT, plan="answer")
    facts = await runs.port.find("abcdefghjk")
    assert facts is not None
    assert facts.answered == {asked.question: Answer.HAPPENED}


async def test_a_question_that_was_asked_again_has_a_number_of_its_own(runs: RunsUnderTest) -> None:
    await runs.add(a_plan(), "asking", (0, A), (0, K), (0, K))
    facts = await runs.port.find("abcdefghjk")
    assert facts is not None
    assert facts.question is not None
    with pytest.raises(PermanentError):
        await runs.port.answer("abcdefghjk", facts.question - 1, Answer.HAPPENED, plan="answer")
    await runs.port.answer("abcdefghjk", facts.question, Answer.HAPPENED, plan="answer")


async def test_a_plan_of_another_version_is_told_to_people(memory: Database) -> None:
    runs = InPostgres(memory)
    await runs.add(a_plan(), "asking", (0, A), (0, K))
    policy, clock = Policy(shipped_plan()), SystemClock()
    drills = Drills(memory, shipped_plan(), policy, clock)
    without = OwnRuns(memory, policy, type(registry.kinds())(steps={}, preconditions={}), clock, drills)
    with pytest.raises(UserError, match="knows no `scale_workload`"):
        await without.find("abcdefghjk")


async def test_what_people_say_of_a_breach_or_a_rotation_since_a_moment_is_told(runs: RunsUnderTest) -> None:
    await runs.declare("Disk is full", "database_corruption", NOW, "the disk is bigger now")
    assert await runs.port.exposures_since(NOW) == []

    await runs.declare("Somebody was in", "security_breach", NOW, "mail password rotated")
    told = await runs.port.exposures_since(NOW)

    assert len(told) == 2
    assert "`Somebody was in` was declared" in told[0]
    assert await runs.port.exposures_since(NOW + timedelta(hours=3)) == []


async def test_an_incident_of_before_that_was_still_open_is_told_as_well(memory: Database) -> None:
    runs = InPostgres(memory)
    await runs.declare("Stolen laptop", "", NOW - timedelta(hours=1))

    assert await runs.port.exposures_since(NOW) == ["Incident 1 `Stolen laptop` was open after it."]


async def test_a_run_that_rotates_is_told(memory: Database) -> None:
    runs = InPostgres(memory)
    await runs.add(a_plan().model_copy(update={"action": "rotate.database"}), "running", (0, A))
    async with memory.session() as session:
        row = await session.get(RunRow, a_plan().id)
        assert row is not None
        row.started_at = NOW

    assert await runs.port.exposures_since(NOW) == ["Plan abcdefghjk (`rotate.database`) rotates credentials."]
