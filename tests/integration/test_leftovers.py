"""The bot's memory decides what debris of a load may go: real runs in PostgreSQL, servers in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select
from sqlmodel import col

from actions.backup.catalogue import database_prefix
from actions.backup.leftovers import QUIET, QUIET_UNKNOWN
from actions.contract import Finding, Step, Verdict
from actions.ports import JobPhase, JobState, RoleFacts
from actions.site import DatabaseRef
from actions.steps.copies import LoadDump
from actions.steps.scratch_copies import CopyDatabase
from bot.doctor import Doctor
from bot.services.approvals import Policy
from bot.services.leftovers import Leftovers
from storage import plans, processes, runs
from storage.roles import DatabaseRole
from storage.session import Database
from storage.tables import JournalRow, PlanRow, TimelineEntry
from tests.fakes.executor import MemoryJob
from tests.fakes.history import POSTGRES, with_a_scratch_and_a_primary_in_the_cluster
from tests.fakes.manifests import an_entry
from tests.fakes.world import API, START, World, a_world
from tests.fixtures.office import shipped_plan

pytestmark = pytest.mark.integration

PLAN, JOB = "k7m2n3p4q5", "drbot-k7m2n3p4q5-1"
COPY = DatabaseRef("primary", f"shop_restore_{PLAN}")
MARK = f"drbot:scratch:{PLAN}"
ROLE = "drbot_load_0123456789abcdef"


@pytest_asyncio.fixture
async def at_work(memory: Database) -> AsyncIterator[Database]:
    """The same database with the rights of a worker."""
    database = memory.acting_as(DatabaseRole.WORKER)
    yield database
    await database.dispose()


def with_debris() -> World:
    """Half a copy and a role of a load that died."""
    world = a_world()
    world.postgres.add(COPY, mark=MARK)
    world.postgres.servers["primary"].loading[ROLE] = RoleFacts(name=ROLE, mark=MARK, sessions=0)
    return world


async def remembered(memory: Database, state: str, *, verified: tuple[int, ...] = (), load: str = "load_dump") -> None:
    """A restore plan whose run is in this state."""
    over = state not in ("awaiting", "running", "asking", "paused")
    steps: list[dict[str, Any]] = [{"kind": load, "job": JOB}, {"kind": "compare_copy"}]
    async with memory.session() as session:
        row = PlanRow(
            id=PLAN,
            action="restore.dump",
            document={"steps": steps},
            digest="d",
            risk="DESTRUCTIVE",
            plan_schema=1,
            requester="olivia",
            reason="damaged",
            channel="C1",
            token="t",
            created_at=START,
            expires_at=START,
        )
        await plans.add(session, row)
        run = await runs.get(session, PLAN)
        assert run is not None
        run.state, run.ended_at = state, START if over else None
        for step in verified:
            session.add(JournalRow(run_id=PLAN, epoch=1, step=step, state="verified", at=START))


async def swept(at_work: Database, world: World, *, idle: timedelta = QUIET) -> list[str]:
    """What two looks remove between which the time of rest passes."""
    janitor = Leftovers(at_work, world)
    assert await janitor.sweep() == []
    world.clock.advance(idle)
    return [item.name for item in await janitor.sweep()]


async def test_debris_of_a_failed_run_is_removed_and_told(memory: Database, at_work: Database) -> None:
    await remembered(memory, "failed")
    world = with_debris()
    assert await swept(at_work, world) == [COPY.name, ROLE]
    assert await world.postgres.database(COPY) is None
    assert await world.postgres.loading_roles("primary") == []
    async with memory.session() as session:
        statement = select(TimelineEntry).where(col(TimelineEntry.kind) == "leftover").order_by(col(TimelineEntry.seq))
        told = [entry.text for entry in (await session.execute(statement)).scalars()]
    assert [text.split(",")[0] for text in told] == [
        f"Removed database `{COPY.name}` on `primary`",
        f"Removed role `{ROLE}` on `primary`",
    ]
    assert all(f"run {PLAN} is over" in text for text in told)


@pytest.mark.parametrize("state", ["awaiting", "running", "asking", "paused"])
async def test_debris_of_a_run_that_is_not_over_is_not_even_shown(
    memory: Database, at_work: Database, state: str
) -> None:
    await remembered(memory, state)
    world = with_debris()
    assert await swept(at_work, world, idle=timedelta(days=30)) == []
    assert await Leftovers(at_work, world).look() == []
    assert await world.postgres.database(COPY) is not None


async def test_debris_of_an_unknown_plan_goes_after_a_day(at_work: Database) -> None:
    world = with_debris()
    assert await swept(at_work, world, idle=QUIET_UNKNOWN - timedelta(seconds=1)) == []
    assert await swept(at_work, world, idle=QUIET_UNKNOWN) == [COPY.name, ROLE]


@pytest.mark.parametrize("known", [True, False])
async def test_debris_is_kept_while_its_job_works(memory: Database, at_work: Database, known: bool) -> None:
    if known:
        await remembered(memory, "failed")
    world = with_debris()
    world.executor.jobs[JOB] = MemoryJob(spec=None)  # type: ignore[arg-type]
    assert await swept(at_work, world, idle=QUIET_UNKNOWN) == []
    assert [found.kept for found in await Leftovers(at_work, world).look()] != [None, None]
    world.executor.jobs[JOB].state = JobState(phase=JobPhase.LOST)
    assert await swept(at_work, world, idle=QUIET_UNKNOWN) == [COPY.name, ROLE]


@pytest.mark.parametrize("load", [LoadDump, CopyDatabase])
async def test_complete_copy_stays_while_its_role_goes(memory: Database, at_work: Database, load: type[Step]) -> None:
    await remembered(memory, "failed", verified=(0,), load=load.model_fields["kind"].default)
    world = with_debris()
    assert await swept(at_work, world) == [ROLE]
    [left] = await Leftovers(at_work, world).look()
    assert "loaded completely and is kept until" in (left.kept or "")


async def test_session_begins_the_time_of_rest_anew(memory: Database, at_work: Database) -> None:
    await remembered(memory, "failed")
    world = with_debris()
    janitor = Leftovers(at_work, world)
    await janitor.sweep()
    world.clock.advance(QUIET)
    world.postgres.connect(COPY)
    assert [item.name for item in await janitor.sweep()] == [ROLE]
    await world.postgres.close(COPY)
    assert await janitor.sweep() == []
    world.clock.advance(QUIET)
    assert [item.name for item in await janitor.sweep()] == [COPY.name]


async def test_doctor_shows_what_is_left_and_when_it_goes(memory: Database, at_work: Database) -> None:
    await remembered(memory, "failed")
    plan = shipped_plan()
    findings = await Doctor(at_work, plan, Policy(plan), with_debris()).examine()
    left = [finding for finding in findings if finding.check == "left over"]
    assert [finding.detail for finding in left] == [
        f"database `{COPY.name}` on `primary`, mark `{MARK}`",
        f"role `{ROLE}` on `primary`, mark `{MARK}`",
    ]
    assert all("is removed once it was idle for 0:10:00" in finding.hint for finding in left)


async def test_doctor_shows_dumps_that_are_in_the_local_copy_alone(at_work: Database) -> None:
    world, plan = a_world(local=True), shipped_plan()
    here = an_entry(id="b-here", database="shop", snapshot_at=START, finished_at=START)
    world.backups.local["shop", "b-here"] = here
    hints = [finding.hint for finding in await Doctor(at_work, plan, Policy(plan), world).examine()]
    assert "Bring it there: `/dr-backup upload shop b-here`." in hints
    world.backups.entries["shop", "b-here"] = here
    findings = await Doctor(at_work, plan, Policy(plan), world).examine()
    assert not any("b-here" in finding.detail for finding in findings)


async def test_doctor_shows_what_was_stored_and_never_became_a_backup(at_work: Database) -> None:
    world, plan = a_world(), shipped_plan()
    folder = f"{database_prefix(policy := world.site.backups['shop'])}b-half/"
    await world.objects.put(policy.bucket, f"{folder}dump.age", b"x")
    world.clock.advance(timedelta(days=2))
    findings = await Doctor(at_work, plan, Policy(plan), world).examine()
    [stray] = [finding for finding in findings if "b-half" in finding.detail]
    assert "no manifest" in stray.detail
    assert f"s3 rm --recursive s3://{policy.bucket}/{folder}`" in stray.hint


async def test_doctor_shows_a_server_that_a_promotion_could_not_scale_away(at_work: Database) -> None:
    world, plan = with_a_scratch_and_a_primary_in_the_cluster(), shipped_plan()

    async def found() -> list[Finding]:
        findings = await Doctor(at_work, plan, Policy(plan), world).examine()
        return [each for each in findings if each.check == "server primary" and each.verdict is Verdict.WARN]

    assert await found() == []
    world.cluster.workloads[POSTGRES].lasting = ()
    [only] = await found()
    assert "would leave it running, closed: at 0 StatefulSet/postgres in main/data would lose its data" in only.detail


async def test_doctor_shows_gitops_that_a_plan_left_suspended(at_work: Database) -> None:
    world, plan = a_world(), shipped_plan()
    await world.cluster.suspend_gitops(API, mark="k7m2n3p4q5")
    findings = await Doctor(at_work, plan, Policy(plan), world).examine()
    [held] = [finding for finding in findings if finding.check == "GitOps of shop"]
    assert held.detail.startswith("Application `argocd/shop` is suspended by plan `k7m2n3p4q5`")
    assert "/dr app resume shop" in held.hint


async def test_doctor_shows_that_slack_takes_no_tokens(at_work: Database) -> None:
    plan = shipped_plan()
    async with at_work.session() as session:
        notes = {"lost": {}, "trouble": "Slack does not take the tokens: token_revoked."}
        await processes.beat(session, "here-1", "clock,slack,worker", notes)
    findings = await Doctor(at_work, plan, Policy(plan), a_world()).examine(quick=True)
    [told] = [finding for finding in findings if finding.check == "Slack"]
    assert (told.verdict, told.detail) == (Verdict.STOP, "Slack does not take the tokens: token_revoked.")
    assert "start that process again" in told.hint


async def test_silent_server_does_not_end_the_time_of_rest(memory: Database, at_work: Database) -> None:
    await remembered(memory, "failed")
    world = with_debris()
    janitor = Leftovers(at_work, world)
    await janitor.sweep()
    world.postgres.servers["primary"].down = True
    world.clock.advance(QUIET)
    assert await janitor.sweep() == []
    world.postgres.servers["primary"].down = False
    assert len(await janitor.sweep()) == 2
