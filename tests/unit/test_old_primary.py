"""What becomes of the old primary once the new one serves: shut down, or told why not; never a danger to what runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from actions.catalog.promote import Promote, PromoteParams
from actions.contract import Finding, JournalState, Plan, Probe, Verdict
from actions.errors import TemporaryError
from actions.ports import Pulse, StopFacts, no_progress
from actions.runner import Outcome
from actions.site import WorkloadRef
from actions.steps.choice import SWITCH
from actions.steps.old_primary import SHUTDOWN, StopPrimary
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.history import POSTGRES, SCRATCH_ID, with_a_scratch, with_a_scratch_and_a_primary_in_the_cluster
from tests.fakes.postgres import MemoryServer
from tests.fakes.world import API, HEALTH, World


async def promote(world: World, *, old_primary_is_dead: bool = False) -> Plan:
    params = PromoteParams(scratch=SCRATCH_ID, old_primary_is_dead=old_primary_is_dead)
    return await Promote().plan(params, world, PLAN_ID)


def old(world: World) -> MemoryServer:
    return world.postgres.servers["primary"]


def told(journal: MemoryJournal) -> str:
    """What the last step that was verified said."""
    return [line.detail for line in journal.lines if line.state is JournalState.VERIFIED][-1]


async def promoted(world: World) -> tuple[Outcome, str]:
    """Run it all, and what it says of the old primary."""
    journal = MemoryJournal()
    result = await run(await promote(world), world, journal)
    return result.outcome, result.message or told(journal)


def findings(plan: Plan, check: str) -> list[Finding]:
    return [finding for finding in plan.findings if finding.check == check]


def shown(plan: Plan) -> str:
    return next(item.value for item in plan.observations if item.name == "old primary")


# ---------------------------------------------------------------- the plan


async def test_it_is_the_last_step_and_signers_see_how() -> None:
    plan = await promote(with_a_scratch())
    step = plan.steps[-1]

    assert isinstance(step, StopPrimary)
    assert step.optional
    assert plan.estimate == SWITCH + SHUTDOWN
    assert [each.kind for each in plan.steps[-3:-1]] == ["check_application", "see_connected"]
    assert step.by_hand()[0].startswith("pg_ctl stop -m fast -D /var/lib/postgresql/18/main  # at primary:5432")
    assert "SIGINT to its postmaster" in shown(plan)
    [finding] = findings(plan, "old primary")
    assert (finding.verdict, "shut down at the end, and kept" in finding.detail) == (Verdict.OK, True)


async def test_one_that_cannot_be_asked_is_left_closed_and_signers_see_why() -> None:
    world = with_a_scratch()
    old(world).stop_facts = StopFacts(hindrance="it runs on Windows, where no signal can be sent to it")
    plan = await promote(world)

    assert plan.steps[-1].kind == "see_connected"
    assert plan.stopped == ()
    [finding] = findings(plan, "old primary")
    assert finding.verdict is Verdict.WARN
    assert "goes on running: it runs on Windows" in finding.detail
    assert "pg_ctl stop -m fast" in finding.hint
    assert shown(plan) == "goes on running, closed"


async def test_a_dead_one_is_not_stopped() -> None:
    world = with_a_scratch()
    old(world).down = True
    plan = await promote(world, old_primary_is_dead=True)
    assert "stop_primary" not in [step.kind for step in plan.steps]
    assert "old primary" not in [item.name for item in plan.observations]


async def test_signers_see_who_streams_from_it_and_what_its_archiver_lacks() -> None:
    world = with_a_scratch()
    slot = world.site.physical["primary"].slot
    old(world).stop_facts = StopFacts(followers=("replica", slot), unarchived=12, archiving_fails=True)
    plan = await promote(world)

    [standbys] = findings(plan, "standbys")
    assert standbys.detail.startswith("`replica` stream from `primary`")
    assert "Patroni" in standbys.hint
    [archive] = findings(plan, "archive of the old primary")
    assert archive.detail.startswith("12 closed segments of WAL not archived yet")
    assert "`archive_command`, which fails" in archive.detail


async def test_the_archiver_alone_is_no_standby() -> None:
    world = with_a_scratch()
    old(world).stop_facts = StopFacts(followers=(world.site.physical["primary"].slot,), unarchived=0)
    plan = await promote(world)
    assert findings(plan, "standbys") == []
    assert findings(plan, "archive of the old primary") == []


# ---------------------------------------------------------------- carried out


async def test_it_is_down_at_the_end_and_the_run_says_how_to_look_at_it() -> None:
    world = with_a_scratch()
    outcome, said = await promoted(world)

    assert outcome is Outcome.SUCCEEDED
    assert (old(world).down, old(world).asked) == (True, 1)
    assert "is down: nothing listens there. Its data is kept in `/var/lib/postgresql/18/main`." in said
    assert "pg_ctl start -D /var/lib/postgresql/18/main" in said
    old(world).down = False  # somebody looks at it
    fence = await world.postgres.fencing("primary")
    assert (fence.read_only, fence.open) == (True, ())


async def test_it_runs_on_while_the_application_was_not_checked() -> None:
    world = with_a_scratch()
    world.service.answers[HEALTH] = "it answers 500"
    outcome, _ = await promoted(world)

    assert outcome is Outcome.ASKING
    assert (old(world).down, old(world).asked) == (False, 0)


async def test_one_that_is_started_again_is_told_and_keeps_nobody_waiting() -> None:
    world = with_a_scratch()
    old(world).supervised = True
    outcome, said = await promoted(world)

    assert outcome is Outcome.SUCCEEDED
    assert said.startswith("NOT STOPPED: the old primary `primary` at primary:5432 runs")
    assert "systemctl disable --now" in said
    assert (await world.postgres.fencing("primary")).holds
    assert world.cluster.workloads[API].replicas > 0


@pytest.mark.parametrize(
    ("heard", "says"),
    [
        (Pulse.REFUSES, "is not down after 2 min; it lets nobody in. It waits for its archiver"),
        (Pulse.UNREACHABLE, "Not seen: there is no way to the old primary at primary:5432"),
    ],
)
async def test_one_whose_end_is_not_seen_is_told(heard: Pulse, says: str) -> None:
    world = with_a_scratch()
    old(world).heard = heard
    outcome, said = await promoted(world)

    assert outcome is Outcome.SUCCEEDED
    assert says in said


async def test_one_that_comes_back_open_asks_and_may_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_a_scratch()
    stop = world.postgres.stop

    async def reopened(server: str, *, started_at: datetime) -> None:
        await stop(server, started_at=started_at)
        old(world).read_only = False

    old(world).supervised = True
    monkeypatch.setattr(world.postgres, "stop", reopened)
    outcome, said = await promoted(world)

    assert outcome is Outcome.ASKING
    assert "runs beside the new one and may take writes: its transactions are not read only" in said
    assert "This step is optional" in said
    assert world.cluster.workloads[API].replicas > 0


async def last_step(world: World) -> StopPrimary:
    """Of a promotion that has come this far."""
    plan = await promote(world)
    before = plan.model_copy(update={"steps": plan.steps[:-1]})
    assert (await run(before, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
    step = plan.steps[-1]
    assert isinstance(step, StopPrimary)
    return step


async def test_the_new_primary_is_never_taken_for_the_old_one() -> None:
    world = with_a_scratch()
    step = await last_step(world)
    new = world.postgres.servers[f"scratch-{SCRATCH_ID}"]
    assert new.system_id == old(world).system_id
    world.postgres.servers["primary"] = new  # the plan file names it by now
    new.read_only = True
    for item in new.databases.values():
        item.allows_connections = False

    for timeline_id in (new.timeline_id, step.timeline_id):
        judged = step.model_copy(update={"timeline_id": timeline_id})
        assert await judged.probe(world) is Probe.TODO
        await judged.apply(world, no_progress)
        await judged.verify(world)
        assert "another server answers by now" in await judged.outcome(world)
    assert (new.down, new.asked) == (False, 0)


async def test_a_primary_of_another_timeline_is_not_the_old_one() -> None:
    world = with_a_scratch()
    step = await last_step(world)
    old(world).timeline_id = 7
    await step.apply(world, no_progress)
    assert old(world).asked == 0


@pytest.mark.parametrize("made", [with_a_scratch, with_a_scratch_and_a_primary_in_the_cluster])
async def test_nothing_ends_while_the_new_primary_does_not_serve(made: Callable[[], World]) -> None:
    world = made()
    step = await last_step(world)
    await world.scratch.stop(SCRATCH_ID)
    with pytest.raises(TemporaryError, match="so nothing is done to the old"):
        await step.apply(world, no_progress)
    assert (old(world).down, old(world).asked) == (False, 0)


async def test_a_shutdown_that_never_ends_is_waited_for_two_minutes() -> None:
    world = with_a_scratch()
    step = await last_step(world)
    old(world).heard = Pulse.REFUSES
    begun = world.clock.now()
    await step.apply(world, no_progress)
    await step.verify(world)
    assert timedelta(minutes=2) <= world.clock.now() - begun < step.timeout - timedelta(minutes=1)


# ---------------------------------------------------------------- in a cluster


async def test_in_a_cluster_its_workload_is_scaled_to_zero_with_its_replicas_noted() -> None:
    world = with_a_scratch_and_a_primary_in_the_cluster()
    plan = await promote(world)
    assert plan.steps[-1].by_hand() == ("kubectl --context main -n data scale statefulset/postgres --replicas=0",)
    assert "scaled from 1 to 0" in shown(plan)
    journal = MemoryJournal()

    assert (await run(plan, world, journal)).outcome is Outcome.SUCCEEDED
    placed = world.cluster.workloads[POSTGRES]
    assert (placed.replicas, placed.recorded, placed.mark) == (0, 1, PLAN_ID)
    assert placed.gitops is not None
    assert placed.gitops.suspended
    assert (old(world).down, old(world).asked) == (True, 0)
    assert "scale statefulset/postgres --replicas=1" in told(journal)


async def test_one_that_is_scaled_up_again_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_a_scratch_and_a_primary_in_the_cluster()
    stop = world.cluster.stop

    async def reverted(ref: WorkloadRef, *, mark: str) -> None:
        await stop(ref, mark=mark)
        if ref == POSTGRES:
            world.cluster.workloads[ref].replicas = 1
            old(world).down = False

    monkeypatch.setattr(world.cluster, "stop", reverted)
    outcome, said = await promoted(world)

    assert outcome is Outcome.SUCCEEDED
    assert said.startswith("NOT STOPPED")
    assert "scale statefulset/postgres --replicas=0" in said


def without_a_volume(world: World) -> None:
    world.cluster.workloads[POSTGRES].lasting = ("/var/lib/postgres",)


def at_zero(world: World) -> None:
    world.cluster.workloads[POSTGRES].replicas = world.cluster.workloads[POSTGRES].git_replicas = 0


def missing(world: World) -> None:
    del world.cluster.workloads[POSTGRES]


@pytest.mark.parametrize(
    ("arrange", "says"),
    [
        (without_a_volume, "would lose its data: it has no volume at `/var/lib/postgresql/18/main`"),
        (at_zero, "is at 0 while it answers"),
        (missing, "there is no StatefulSet/postgres in main/data"),
    ],
)
async def test_a_workload_that_must_not_be_scaled_is_left_and_told(arrange: Callable[[World], None], says: str) -> None:
    world = with_a_scratch_and_a_primary_in_the_cluster()
    arrange(world)
    plan = await promote(world)

    assert "stop_primary" not in [step.kind for step in plan.steps]
    assert plan.stopped == ()
    [finding] = findings(plan, "old primary")
    assert (finding.verdict, says in finding.detail) == (Verdict.WARN, True)
    assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
    assert (await world.postgres.fencing("primary")).holds


async def test_a_cluster_that_does_not_answer_keeps_no_promotion_from_being_planned() -> None:
    world = with_a_scratch_and_a_primary_in_the_cluster()

    class Away:
        def __getattr__(self, name: str) -> Any:
            return getattr(world.cluster, name)

        async def workload(self, ref: WorkloadRef) -> Any:
            if ref == POSTGRES:
                raise TemporaryError("Cluster `main` does not answer.")
            return await world.cluster.workload(ref)

    plan = await promote(replace(world, cluster=Away()))  # type: ignore[arg-type]
    [finding] = findings(plan, "old primary")
    assert "could not be looked at (Cluster `main` does not answer.)" in finding.detail
