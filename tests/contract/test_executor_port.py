"""What every Executor keeps: the fake, processes of this machine, and Kubernetes Jobs on the stand-in."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import pytest

from actions.errors import UserError
from actions.ports import JobKind, JobPhase, JobSpec, ProgressReport, no_progress
from tests.fixtures.executors import ExecutorWorld
from tests.fixtures.waiting import until
from tests.held_job import ROOT


def spec(name: str = "job-1", database: str = "shop") -> JobSpec:
    return JobSpec(name=name, kind=JobKind.DUMP, request={"id": "b1", "database": database, "requested_by": ""})


def begun(world: ExecutorWorld) -> Callable[[], bool]:
    return lambda: world.starts() > 0


@pytest.fixture
def world(executor_world: ExecutorWorld) -> ExecutorWorld:
    return executor_world


@pytest.mark.parametrize("database", ["shop", "large"])
async def test_job_runs_once_and_is_found_by_name(world: ExecutorWorld, database: str) -> None:
    assert await world.port.find("job-1") is None
    await asyncio.gather(*(world.port.start(spec(database=database)) for _ in range(5)))
    found = await world.port.find("job-1")
    assert found is not None
    assert found.phase is JobPhase.RUNNING
    await until(begun(world), within=60)
    world.release()
    reports: list[ProgressReport] = []
    state = await world.port.wait("job-1", reports.append)
    assert state.phase is JobPhase.SUCCEEDED
    assert state.result is not None
    assert state.result["manifest"]["id"] == "b1"
    assert len(state.result["manifest"]["fingerprint"]["rows"]) == (5000 if database == "large" else 0)
    assert "dump" in {report.phase for report in reports}
    await world.port.start(spec(database=database))
    assert await world.again().find("job-1") == state
    assert world.starts() == 1


async def test_failure_carries_text_and_kind(world: ExecutorWorld) -> None:
    await world.port.start(spec(database="unknown"))
    world.release()
    state = await world.port.wait("job-1", no_progress)
    assert (state.phase, state.error_kind) == (JobPhase.FAILED, "UserError")
    assert "knows no database `unknown`" in state.error


async def test_cancelled_wait_leaves_the_job(world: ExecutorWorld) -> None:
    await world.port.start(spec())
    wait = asyncio.create_task(world.port.wait("job-1", no_progress))
    await until(begun(world), within=60)
    wait.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wait
    world.release()
    assert (await world.again().wait("job-1", no_progress)).phase is JobPhase.SUCCEEDED
    assert world.starts() == 1


async def test_progress_is_told_while_it_runs(world: ExecutorWorld) -> None:
    await world.port.start(spec())
    reports: list[ProgressReport] = []
    wait = asyncio.create_task(world.port.wait("job-1", reports.append))
    if world.pids():  # the fake tells all at the end
        await until(lambda: ProgressReport(done=1, total=2, phase="dump") in reports, within=60)
    world.release()
    await wait
    assert reports[-1] == ProgressReport(done=1000, total=1000, phase="dump")


async def test_lost_job_is_told_and_can_be_forgotten(world: ExecutorWorld) -> None:
    await world.port.start(spec())
    await until(begun(world), within=60)
    await world.lose("job-1")
    state = await world.port.wait("job-1", no_progress)
    assert state.phase is JobPhase.LOST
    assert state.error
    await world.port.start(spec())
    assert world.starts() == 1  # it has a name, and nobody forgot it
    await world.port.forget("job-1")
    assert await world.port.find("job-1") is None
    world.release()
    await world.port.start(spec())
    assert (await world.port.wait("job-1", no_progress)).phase is JobPhase.SUCCEEDED
    assert world.starts() == 2


async def test_job_whose_traces_are_removed_while_it_is_waited_for_is_lost(world: ExecutorWorld) -> None:
    await world.port.start(spec())
    await until(begun(world), within=60)
    wait = asyncio.create_task(world.port.wait("job-1", no_progress))
    await asyncio.sleep(0.3)
    await world.vanish("job-1")
    state = await wait
    assert (state.phase, state.result) == (JobPhase.LOST, None)
    await world.port.cancel("job-1")  # waits for what is left of it
    assert await world.port.find("job-1") is None


async def test_cancel_ends_it_and_a_running_job_is_not_forgotten(world: ExecutorWorld) -> None:
    await world.port.start(spec())
    await until(begun(world), within=60)
    with pytest.raises(UserError, match="is running"):
        await world.port.forget("job-1")
    await world.again().cancel("job-1")
    found = await world.port.find("job-1")
    assert found is not None
    assert found.phase is JobPhase.LOST
    assert "on request" in found.error
    await world.port.cancel("job-1")
    await world.port.forget("job-1")
    assert await world.port.find("job-1") is None
    await world.port.cancel("never-started")
    await world.port.forget("never-started")


async def test_end_of_a_job_that_succeeded_is_not_changed_by_cancel(world: ExecutorWorld) -> None:
    world.release()
    await world.port.start(spec())
    state = await world.port.wait("job-1", no_progress)
    await world.port.cancel("job-1")
    assert await world.port.find("job-1") == state


async def test_unknown_job_cannot_be_waited_for(world: ExecutorWorld) -> None:
    with pytest.raises(UserError, match="no job `job-9`"):
        await world.port.wait("job-9", no_progress)


async def test_nothing_keeps_a_job_from_running_here(world: ExecutorWorld) -> None:
    assert list(await world.port.problems()) == []
    assert await world.port.find("drbot-doctor") is None


@pytest.mark.parametrize("name", ["", "../x", "UPPER", "a" * 64, "-x"])
async def test_names_that_are_no_labels_are_refused(world: ExecutorWorld, name: str) -> None:
    for ask in (world.port.find, world.port.cancel, world.port.forget):
        with pytest.raises(UserError, match="cannot name a job"):
            await ask(name)


@pytest.mark.kill
async def test_job_outlives_its_starter_and_two_starters_start_one(world: ExecutorWorld) -> None:
    if not world.starter:
        pytest.skip("the fake lives in the process of its starter")
    text = spec().model_dump_json()
    starters = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", world.starter, text, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        for _ in range(2)
    ]
    for process in starters:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"started\n"
        process.kill()
        await process.wait()
    await until(begun(world), within=60)
    found = await world.port.find("job-1")
    assert found is not None
    assert found.phase is JobPhase.RUNNING
    world.release()
    assert (await world.port.wait("job-1", no_progress)).phase is JobPhase.SUCCEEDED
    assert world.starts() == 1
