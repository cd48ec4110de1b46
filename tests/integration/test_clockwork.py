"""Schedules, alarms and drills on a real database with the rights of their processes: each thing once over replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select, text
from sqlmodel import col

from actions.adapters.clock import SystemClock
from actions.steps.health import Bases, Dumps, Health
from bot.clock import DrClock
from bot.plan_file import DrPlan
from bot.services.backup_watch import BackupWatch
from bot.services.worker_watch import WorkerWatch
from storage import alarms, plans, processes, runs
from storage.roles import DatabaseRole
from storage.session import Database
from storage.tables import JournalRow, OutboxRow, PlanRow, RequestRow, TimelineEntry
from tests.fakes.clock import MemoryClock
from tests.fixtures.office import OfficeForTests, shipped_plan
from tests.unit.test_backup_alarms import NOW, good_bases, good_dumps

pytestmark = pytest.mark.integration


OF_DATABASES = ("dump", "full", "incremental", "base-wanted", "expire", "expiry")


class Replicas:
    """Three clocks on one database."""

    def __init__(self, memory: Database, plan: DrPlan | None = None) -> None:
        self.memory = memory
        self.plan = plan or shipped_plan()
        self.own = [memory.acting_as(DatabaseRole.CLOCK, pool_size=2) for _ in range(3)]
        self.clocks = [DrClock(database, self.plan, SystemClock()) for database in self.own]

    async def tick(self, now: datetime) -> list[str]:
        """What was asked for of databases; what else the plan repeats is tried where it is made."""
        asked = [key for keys in await asyncio.gather(*(clock.tick(now) for clock in self.clocks)) for key in keys]
        return sorted(key for key in asked if key.split("/")[1] in OF_DATABASES)

    async def upgrades(self, now: datetime) -> list[str]:
        asked = await asyncio.gather(*(clock.test_upgrades(now) for clock in self.clocks))
        return sorted(key for keys in asked for key in keys)

    async def drills(self, now: datetime) -> list[str]:
        return [
            text for told in await asyncio.gather(*(clock.hold_drills(now) for clock in self.clocks)) for text in told
        ]


@pytest_asyncio.fixture
async def replicas(memory: Database) -> AsyncIterator[Callable[..., Replicas]]:
    """Makes replicas under a plan, the shipped one by default, and closes what it has made."""
    made: list[Replicas] = []

    def make(plan: DrPlan | None = None) -> Replicas:
        made.append(Replicas(memory, plan))
        return made[-1]

    yield make
    for each in made:
        for database in each.own:
            await database.dispose()


async def asked(memory: Database, name: str) -> list[RequestRow]:
    async with memory.session() as session:
        rows = await session.execute(
            select(RequestRow).where(col(RequestRow.name) == name).order_by(col(RequestRow.id))
        )
        return list(rows.scalars())


async def posted(memory: Database) -> list[str]:
    async with memory.session() as session:
        rows = (await session.execute(select(OutboxRow).order_by(col(OutboxRow.id)))).scalars()
        return [str(row.payload.get("text")) for row in rows]


async def entries(memory: Database, kind: str) -> list[dict[str, Any]]:
    async with memory.session() as session:
        rows = await session.execute(select(TimelineEntry).where(col(TimelineEntry.kind) == kind))
        return [row.data for row in rows.scalars()]


async def end(
    memory: Database, request: RequestRow, state: str, message: str = "", *, at: datetime | None = None
) -> None:
    """As if a worker had planned it, and its run had ended so; `running` leaves it open."""
    now = at or SystemClock().now()
    async with memory.session() as session:
        name = f"plan{request.id}"
        if await plans.get(session, name) is None:
            row = PlanRow(
                id=name,
                action=request.name,
                document={
                    "params": request.params,
                    "target": request.params.get("server") or request.params.get("database", ""),
                },
                digest="d",
                risk="REVERSIBLE",
                plan_schema=1,
                requester="schedule",
                reason="",
                channel="C1",
                token=name,
                created_at=now,
                expires_at=now,
            )
            await plans.add(session, row)
        run = await runs.get(session, name)
        assert run is not None
        run.state, run.message, run.ended_at = state, message, None if state == "running" else now
        held = await session.get(RequestRow, request.id)
        assert held is not None
        held.state, held.plan_id = "done", name


MORNING = datetime.fromisoformat("2026-11-23T01:58:30+00:00")


async def test_three_clocks_ask_once_for_each_instant_and_of_missed_ones_for_the_newest(
    memory: Database, replicas: Callable[..., Replicas]
) -> None:
    clocks = replicas()
    server = clocks.plan.database("superprismora").server
    assert await clocks.tick(MORNING) == []  # a new plan begins with its next instants

    assert await clocks.tick(MORNING + timedelta(minutes=2)) == [
        "schedule/dump/superprismora/2026-11-23T02:00Z",
        f"schedule/incremental/{server}/2026-11-23T02:00Z",
    ]
    assert await clocks.tick(MORNING + timedelta(minutes=3)) == []
    # The incremental is still open at its next instants, so those are left; the full backup waits for it, too.
    assert await clocks.tick(MORNING + timedelta(minutes=40)) == []
    [first] = await asked(memory, "backup.base")
    await end(memory, first, "running")
    assert await clocks.tick(MORNING + timedelta(minutes=41)) == []
    await end(memory, first, "succeeded")
    assert await clocks.tick(MORNING + timedelta(minutes=42)) == [f"schedule/full/{server}/2026-11-23T02:30Z"]
    # Nobody looked for nine hours; one catch-up each, and the dump of today was made.
    full = (await asked(memory, "backup.base"))[-1]
    assert {row.channel for row in await asked(memory, "backup.base")} == {"", clocks.plan.channels.on_call}
    assert full.params == {"server": server, "kind": "full"}
    await end(memory, full, "succeeded")
    assert await clocks.tick(MORNING + timedelta(hours=9)) == [
        f"schedule/expire/{server}/2026-11-23T03:40Z",
        "schedule/expiry/escrow/2026-11-23T04:20Z",
        "schedule/expiry/points/2026-11-23T03:50Z",
        f"schedule/incremental/{server}/2026-11-23T10:45Z",
    ]


async def test_a_clock_that_was_ahead_for_a_while_keeps_nothing_from_being_asked_for(
    memory: Database, replicas: Callable[..., Replicas]
) -> None:
    clocks = replicas()
    await clocks.tick(MORNING)
    await clocks.tick(MORNING + timedelta(days=400))
    for row in await asked(memory, "backup.dump"):
        await end(memory, row, "succeeded")

    assert "schedule/dump/superprismora/2026-11-23T02:00Z" in await clocks.tick(MORNING + timedelta(minutes=2))
    assert await clocks.tick(MORNING + timedelta(minutes=3)) == []


async def test_a_base_that_an_alarm_wants_is_asked_for_once_an_hour_and_never_beside_another(
    memory: Database, replicas: Callable[..., Replicas]
) -> None:
    clocks = replicas()
    server = clocks.plan.database("superprismora").server
    await clocks.tick(MORNING)
    async with memory.session() as session:
        assert await alarms.raise_(session, f"wal-gap/server:{server}", "a gap", wants_base=True, seen_at=MORNING)

    assert await clocks.tick(MORNING) == [f"schedule/base-wanted/{server}/2026-11-23T01:00Z"]
    later = MORNING + timedelta(hours=1)
    assert f"schedule/base-wanted/{server}/2026-11-23T02:00Z" not in await clocks.tick(later)
    [wanted] = await asked(memory, "backup.base")
    await end(memory, wanted, "failed", "no room")
    assert f"schedule/full/{server}/2026-11-23T02:30Z" in await clocks.tick(later)


async def test_each_alarm_and_each_recovery_is_told_once_over_all_workers(memory: Database) -> None:
    workers = [memory.acting_as(DatabaseRole.WORKER, pool_size=2) for _ in range(3)]
    nothing: Any = None
    watches = [BackupWatch(database, nothing, on_call="C0ONCALL") for database in workers]

    async def note(at: datetime, dumps: Dumps, bases: Bases) -> list[str]:
        seen = Health(at, (dumps,), (bases,))
        return [text for told in await asyncio.gather(*(watch.note(seen) for watch in watches)) for text in told]

    late, bases = replace(good_dumps(), entries=good_dumps().entries[1:]), replace(good_bases(), archiver=None)
    assert await note(NOW, good_dumps(), bases) == []
    [told] = await note(NOW + timedelta(minutes=1), late, bases)
    assert told.startswith("Backup alarm: The dump of `shop` due 2026-11-23 02:00 UTC is missing")
    assert await note(NOW + timedelta(minutes=2), late, bases) == []
    # What was seen before that is no news, and what does not answer ends nothing.
    assert await note(NOW + timedelta(seconds=30), good_dumps(), bases) == []
    [away] = await note(NOW + timedelta(minutes=3), replace(late, problem="no answer"), bases)
    assert "cannot be read: no answer" in away
    told_over = await note(NOW + timedelta(minutes=5), good_dumps(), bases)
    assert sorted(text.partition(":")[0] for text in told_over) == [
        "Backup alarm over after 2 min",
        "Backup alarm over after 4 min",
    ]
    [again] = await note(NOW + timedelta(minutes=6), late, bases)
    assert again == told
    assert await posted(memory) == [told, away, *told_over, again]
    assert [item["state"] for item in await entries(memory, "alarm")] == ["raised", "raised", "over", "over", "raised"]
    for database in workers:
        await database.dispose()


async def test_that_no_worker_is_there_is_told_once_over_all_clocks_and_so_is_its_return(memory: Database) -> None:
    watches = [WorkerWatch(memory.acting_as(DatabaseRole.CLOCK, pool_size=1), on_call="C0ONCALL") for _ in range(3)]

    async def look(minutes: float) -> list[str]:
        at = NOW + timedelta(minutes=minutes)
        return [text for text in await asyncio.gather(*(watch.look(at) for watch in watches)) if text]

    async with memory.session() as session:
        await processes.beat(session, "slack-1", "slack,clock", {})
    assert await look(0) == []
    assert await look(4.9) == []
    [told] = await look(5)
    assert told.startswith("No worker is there: nothing is carried out, no backup is made")
    assert told.endswith("None was seen for a day. Start `drbot run --role worker`.")
    assert await look(60) == []
    # A clock that has begun anew knows what the others told, and tells of the return as well.
    watches[:2] = [WorkerWatch(watch._database, on_call="C0ONCALL") for watch in watches[:2]]
    assert await look(60 + 24 * 60) == []
    async with memory.session() as session:
        await processes.beat(session, "all-1", "clock,worker", {})
    watches[2] = WorkerWatch(watches[2]._database, on_call="C0ONCALL")
    [back] = await look(25 * 60)
    assert back == "A worker is back: what was asked for goes on."
    assert await look(25 * 60 + 1) == []
    async with memory.session() as session:
        await session.execute(text("UPDATE process SET seen_at = seen_at - interval '20 minutes'"))
    assert await look(25 * 60 + 2) == []
    [again] = await look(25 * 60 + 8)
    assert "The last one was seen at 20" in again
    assert await posted(memory) == [told, back, again]
    for watch in watches:
        await watch._database.dispose()


async def test_workers_take_turns(memory: Database) -> None:
    async def take(every: timedelta) -> bool:
        async with memory.session() as session:
            return await alarms.turn(session, "backups", every=every)

    assert sorted(await asyncio.gather(*(take(timedelta(minutes=1)) for _ in range(4)))) == [False, False, False, True]
    assert await take(timedelta(0))


def with_drill(**changes: Any) -> DrPlan:
    """The shipped plan with its restore drill alone, changed."""
    document = shipped_plan().model_dump(mode="json")
    document["drills"] = [document["drills"][0] | changes]
    return DrPlan.model_validate(document)


DUE = datetime.fromisoformat("2026-12-07T09:00:00+00:00")


async def test_people_hold_and_postpone_a_drill_and_the_list_follows(
    memory: Database, replicas: Callable[..., Replicas]
) -> None:
    plan = with_drill(action=None, next="2026-12-07", schedule="1st mon 09:00 UTC")
    office = OfficeForTests(memory, plan, clock=MemoryClock(DUE - timedelta(days=5)))
    clocks = replicas(office.plan)
    [week] = await clocks.drills(DUE - timedelta(days=6))
    assert "is due in 6 d" in week
    assert await clocks.drills(DUE - timedelta(days=5)) == []

    await office.ask("olivia", "drill.postpone", drill="backup-restore", date="2026-12-10", why="release")
    [row] = (await rows_of(office)).rows
    assert row[2:] == ("never", "2026-12-10 09:00 UTC", "postponed")
    assert [stage async for stage in stages(clocks, DUE, DUE + timedelta(days=3, hours=1))] == ["days", "days", "now"]

    await office.ask("daniel", "drill.done", drill="backup-restore", note="12 min")
    [row] = (await rows_of(office)).rows
    assert row[2:] == ("2026-12-02 09:00 UTC", "2027-01-04 09:00 UTC", "planned")
    async with office.memory.session() as session:
        following = await office.drills(office.at_work).report(session, "drill.next")
    assert following.lines[-1].startswith(
        "1. Restore the latest backup in scratch and compare. Then say so: `/dr-drill done"
    )
    acts = await entries(memory, "drill")
    assert [item["act"] for item in acts] == ["postponed", "done"]
    assert (await posted(memory))[-1] == "Daniel Dietrich: Drill `backup-restore` was held: 12 min"
    with pytest.raises(Exception, match=r"no drill `fire`\. There are: `backup-restore`"):
        await office.ask("olivia", "drill.done", drill="fire")
    with pytest.raises(Exception, match="is no day"):
        await office.ask("olivia", "drill.postpone", drill="backup-restore", date="soon", why="release")
    await office.close()


async def rows_of(office: OfficeForTests) -> Any:
    async with office.memory.session() as session:
        return await office.drills(office.at_work).report(session, "drill.list")


async def stages(clocks: Replicas, start: datetime, until: datetime) -> Any:
    now = start
    while now < until:
        for told in await clocks.drills(now):
            yield "now" if "is due now" in told else "days"
        now += timedelta(hours=8)


async def test_the_restore_drill_runs_by_itself_and_is_reported_once(
    memory: Database, replicas: Callable[..., Replicas]
) -> None:
    clocks = replicas(with_drill(action="backup.prove", next="2026-12-07", schedule="1st mon 09:00 UTC"))
    server = clocks.plan.database("superprismora").server
    [start] = await clocks.drills(DUE)
    assert "The bot runs it and reports here" in start
    [request] = await asked(memory, "backup.prove")
    assert request.params == {"server": server}
    assert await clocks.drills(DUE + timedelta(minutes=1)) == []
    assert await asked(memory, "backup.prove") == [request]  # one after the other: they share a machine

    await end(memory, request, "succeeded")
    assert await clocks.drills(DUE + timedelta(minutes=2)) == []  # the other one is not over
    _, dumped = await asked(memory, "backup.prove")
    assert dumped.params == {"server": "superprismora", "dump": "newest"}
    await end(memory, dumped, "succeeded")
    async with memory.session() as session:
        session.add(
            JournalRow(run_id=f"plan{request.id}", epoch=1, step=1, state="verified", detail="RTO 41 s.", at=DUE)
        )
    [report] = await clocks.drills(DUE + timedelta(minutes=4))
    assert report == (
        f"Drill `backup-restore` passed: `{server}` (run plan{request.id}). RTO 41 s. "
        f"`dump:superprismora` (run plan{dumped.id})."
    )
    assert await clocks.drills(DUE + timedelta(days=2)) == []
    assert len(await asked(memory, "backup.prove")) == 2


async def test_a_plan_with_dumps_alone_has_its_restore_test_run_by_itself(
    memory: Database, replicas: Callable[..., Replicas]
) -> None:
    document = with_drill(action="backup.prove", next="2026-12-07", schedule="1st mon 09:00 UTC").model_dump(
        mode="json"
    )
    document["backups"] |= {"databases": [{**item, **NO_BASES} for item in document["backups"]["databases"]]}
    document["servers"] = [server | {"standby_of": None} for server in document["servers"]]
    clocks = replicas(DrPlan.model_validate(document))
    await clocks.drills(DUE)
    [request] = await asked(memory, "backup.prove")
    assert request.params == {"server": "superprismora", "dump": "newest"}


NO_BASES = {"base": None, "incremental": None, "wal": None}


async def test_an_upgrade_is_tested_once_by_itself_at_the_time_of_day_of_the_plans_tests(
    memory: Database, replicas: Callable[..., Replicas]
) -> None:
    clocks = replicas(with_drill(action="backup.prove", next="2026-12-07", schedule="1st mon 09:00 UTC"))
    server, seen = clocks.plan.database("superprismora").server, DUE - timedelta(days=5, minutes=-10)  # 09:10

    async def raised(key: str, at: datetime) -> None:
        async with memory.session() as session:
            await alarms.raise_(session, key, "Upgraded.", wants_base=False, seen_at=at)

    await raised(f"upgraded:one/server:{server}", seen)
    await raised("upgraded:two/superprismora", seen)
    assert await clocks.upgrades(seen + timedelta(hours=23)) == []
    told = await clocks.upgrades(seen + timedelta(hours=24))
    assert told == [f"schedule/upgraded:one/server:{server}"]
    assert await clocks.upgrades(seen + timedelta(hours=25)) == []  # one after the other
    await end(memory, (await asked(memory, "backup.prove"))[0], "succeeded")
    assert await clocks.upgrades(seen + timedelta(hours=26)) == ["schedule/upgraded:two/superprismora"]
    await end(memory, (await asked(memory, "backup.prove"))[1], "succeeded")
    assert [request.params for request in await asked(memory, "backup.prove")] == [
        {"server": server},
        {"server": "superprismora", "dump": "newest"},
    ]
    assert await clocks.upgrades(seen + timedelta(days=2)) == []
    # What is upgraded on the eve of the plan's own test is left to that one.
    await raised(f"upgraded:three/server:{server}", DUE - timedelta(hours=3))
    assert await clocks.upgrades(DUE + timedelta(minutes=1)) == []
    assert await clocks.upgrades(DUE + timedelta(days=3)) == []


async def test_an_action_that_is_no_drill_is_never_begun_by_the_clock(
    memory: Database, replicas: Callable[..., Replicas]
) -> None:
    """A plan of an earlier version may name one: `drbot plan check` refused none."""
    clocks = replicas(with_drill(action="restore.promote", next="2026-12-07", schedule="1st mon 09:00 UTC"))
    [start] = await clocks.drills(DUE)
    assert "The bot runs it" not in start
    assert await asked(memory, "restore.promote") == []


async def test_a_worker_knows_when_the_bot_tests_a_restore_next(
    memory: Database, replicas: Callable[..., Replicas]
) -> None:
    plan = with_drill(action="backup.prove", next="2026-12-07", schedule="1st mon 09:00 UTC")
    server, clock = plan.database("superprismora").server, MemoryClock(DUE - timedelta(days=5))
    office, clocks = OfficeForTests(memory, plan, clock=clock), replicas(plan)
    runs = office.ports.runs  # with the rights of a worker
    assert await runs.next_of("backup.prove", server) == DUE
    assert await runs.next_of("backup.prove", "other") is None
    assert await runs.next_of("backup.prove", "dump:superprismora") == DUE
    assert await runs.rhythm_of("backup.prove", server) == timedelta(days=35)
    assert await runs.rhythm_of("backup.prove", "other") is None
    assert await runs.next_of("backup.verify", server) is None

    later = DUE.replace(day=10)
    await office.ask("olivia", "drill.postpone", drill="backup-restore", date="2026-12-10", why="release")
    assert await runs.next_of("backup.prove", server) == later
    clock.advance(timedelta(days=8))
    await clocks.drills(later)
    [request] = await asked(memory, "backup.prove")
    await end(memory, request, "failed", "Page 7 of `orders` has a wrong checksum.")
    await clocks.drills(later + timedelta(minutes=2))
    await end(memory, (await asked(memory, "backup.prove"))[1], "succeeded")
    await clocks.drills(later + timedelta(minutes=4))
    assert await runs.next_of("backup.prove", server) == DUE.replace(year=2027, month=1, day=4)
    await office.close()


async def test_a_restore_drill_that_fails_stays_overdue_and_is_tried_next_month(
    memory: Database, replicas: Callable[..., Replicas]
) -> None:
    clocks = replicas(with_drill(action="backup.prove", next="2026-12-07", schedule="1st mon 09:00 UTC"))
    await clocks.drills(DUE)
    [request] = await asked(memory, "backup.prove")
    await end(memory, request, "failed", "Page 7 of `orders` has a wrong checksum.")
    assert await clocks.drills(DUE + timedelta(minutes=2)) == []  # the dump is tested all the same
    await end(memory, (await asked(memory, "backup.prove"))[1], "succeeded")

    [report] = await clocks.drills(DUE + timedelta(minutes=4))
    assert "failed: " in report
    assert "Page 7 of `orders`" in report
    [overdue] = await clocks.drills(DUE + timedelta(days=2))
    assert "is overdue since 2026-12-07 09:00 UTC" in overdue
    assert "Page 7" in overdue
    await clocks.drills(DUE.replace(year=2027, month=1, day=4))
    assert len(await asked(memory, "backup.prove")) == 3


async def test_running_clocks_tell_once_a_day_when_too_few_can_sign(
    memory: Database, replicas: Callable[..., Replicas]
) -> None:
    document = shipped_plan().model_dump(mode="json")
    document["rota"] = [{"persons": ["olivia", "daniel", "sam"], "since": "08:00", "until": "20:00"}]
    clocks = replicas(DrPlan.model_validate(document))
    tasks = [asyncio.create_task(clock.run()) for clock in clocks.clocks]
    try:
        async with asyncio.timeout(10):
            while not [text for text in await posted(memory) if "Not enough signers" in text]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # for the other two
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    [told] = [text for text in await posted(memory) if "Not enough signers" in text]
    assert "DESTRUCTIVE plans cannot be signed in 84 of 168 hours" in told

    [daily] = [job for job in clocks.clocks[0].scheduled().get_jobs() if job.name.endswith("_signers")]
    next_one = daily.trigger.get_next_fire_time(None, MORNING)
    assert next_one == MORNING.replace(hour=6, minute=30, second=0)
    assert daily.trigger.get_next_fire_time(next_one, next_one + timedelta(seconds=1)) == next_one + timedelta(days=1)
