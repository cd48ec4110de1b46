"""What every Executor keeps: processes of this machine, and the fake."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from actions.adapters.executor import PROCESS, SubprocessExecutor
from actions.errors import UserError
from actions.ports import Executor, JobKind, JobPhase, JobSpec, ProgressReport, no_progress
from actions.site import BackupPolicy, Database, DatabaseRef, Site
from tests.fakes.backups import SIGNER, MemoryBackups
from tests.fakes.executor import MemoryExecutor
from tests.fakes.postgres import MemoryPostgres

# A job that waits for the file `go` beside its spec, and says what it is told by its request.
SCRIPT = """
import json, os, pathlib, sys, time
spec = pathlib.Path(sys.argv[1])
asked = json.loads(spec.read_text())["request"]
go = spec.parents[1] / "go"
print(json.dumps({"done": 1, "total": 2, "unit": "bytes", "phase": "dump"}), flush=True)
for _ in range(3000):
    if go.exists():
        break
    time.sleep(0.01)
state = {"phase": "succeeded", "result": {"manifest": {"id": asked["id"]}, "pid": os.getpid()}}
if asked["database"] == "unknown":
    state = {"phase": "failed", "error": "The plan file knows no database `unknown`.", "error_kind": "UserError"}
part = spec.with_name("result.part")
part.write_text(json.dumps(state))
part.replace(spec.with_name("result.json"))
"""


@dataclass
class World:
    port: Executor
    release: Callable[[], None]
    lose: Callable[[str], Awaitable[None]]
    directory: Path | None = None


@pytest.fixture(params=["fake", "real"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "fake":
        memory = MemoryPostgres("main")
        memory.add(DatabaseRef("main", "shop"))
        policy = BackupPolicy(
            database="shop", bucket="b", recipients=("r",), identity="i", signing_key="k", trusted_signers=(SIGNER,)
        )
        site = Site(databases={"shop": Database(name="shop", server="main", owner="app")}, backups={"shop": policy})
        fake = MemoryExecutor(MemoryBackups(site, memory))
        fake.hold()
        yield World(fake, fake.release, fake.lose)
        return
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    jobs = SubprocessExecutor(tmp_path / "jobs", [sys.executable, script], environment={})

    async def lose(name: str) -> None:
        os.kill(pid_of(tmp_path / "jobs", name), signal.SIGKILL)

    yield World(jobs, (tmp_path / "jobs" / "go").touch, lose, tmp_path / "jobs")


def pid_of(directory: Path, name: str) -> int:
    return int(json.loads((directory / name / PROCESS).read_text())["pid"])


def spec(name: str = "job-1", database: str = "shop") -> JobSpec:
    return JobSpec(name=name, kind=JobKind.DUMP, request={"id": "b1", "database": database, "requested_by": ""})


async def test_job_runs_once_and_is_found_by_name(world: World) -> None:
    assert await world.port.find("job-1") is None
    await asyncio.gather(*(world.port.start(spec()) for _ in range(5)))
    found = await world.port.find("job-1")
    assert found is not None
    assert found.phase is JobPhase.RUNNING
    world.release()
    reports: list[ProgressReport] = []
    state = await world.port.wait("job-1", reports.append)
    assert state.phase is JobPhase.SUCCEEDED
    assert state.result is not None
    assert state.result["manifest"]["id"] == "b1"
    assert "dump" in {report.phase for report in reports}
    await world.port.start(spec())
    assert await world.port.find("job-1") == state


async def test_failure_carries_text_and_kind(world: World) -> None:
    await world.port.start(spec(database="unknown"))
    world.release()
    state = await world.port.wait("job-1", no_progress)
    assert (state.phase, state.error_kind) == (JobPhase.FAILED, "UserError")
    assert "knows no database `unknown`" in state.error


async def test_cancelled_wait_leaves_the_job(world: World) -> None:
    await world.port.start(spec())
    wait = asyncio.create_task(world.port.wait("job-1", no_progress))
    await asyncio.sleep(0.05)
    wait.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wait
    world.release()
    assert (await world.port.wait("job-1", no_progress)).phase is JobPhase.SUCCEEDED


async def test_lost_job_is_told_and_can_be_forgotten(world: World) -> None:
    await world.port.start(spec())
    await world.lose("job-1")
    assert (await world.port.wait("job-1", no_progress)).phase is JobPhase.LOST
    await world.port.forget("job-1")
    assert await world.port.find("job-1") is None
    world.release()
    await world.port.start(spec())
    assert (await world.port.wait("job-1", no_progress)).phase is JobPhase.SUCCEEDED


async def test_cancel_ends_it_and_a_running_job_is_not_forgotten(world: World) -> None:
    await world.port.start(spec())
    with pytest.raises(UserError, match="is running"):
        await world.port.forget("job-1")
    await world.port.cancel("job-1")
    found = await world.port.find("job-1")
    assert found is not None
    assert found.phase is JobPhase.LOST
    await world.port.cancel("job-1")
    await world.port.cancel("never-started")
    await world.port.forget("never-started")


async def test_unknown_job_cannot_be_waited_for(world: World) -> None:
    with pytest.raises(UserError, match="no job `job-9`"):
        await world.port.wait("job-9", no_progress)


@pytest.mark.kill
async def test_job_outlives_its_starter_and_two_starters_start_one(tmp_path: Path) -> None:
    script, jobs = tmp_path / "job.py", tmp_path / "jobs"
    script.write_text(SCRIPT)
    starter = (
        "import asyncio, sys, time\nfrom pathlib import Path\n"
        "from actions.adapters.executor import SubprocessExecutor\nfrom actions.ports import JobSpec\n"
        f"spec = JobSpec.model_validate_json({spec().model_dump_json()!r})\n"
        f"jobs = SubprocessExecutor(Path({str(jobs)!r}), [sys.executable, {str(script)!r}], environment={{}})\n"
        "asyncio.run(jobs.start(spec))\nprint('started', flush=True)\ntime.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    starters = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", starter, cwd=root, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    for process in starters:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"started\n"
        process.kill()
        await process.wait()
    running = [p for p in psutil.process_iter(["cmdline"]) if str(script) in (p.info["cmdline"] or [])]
    assert len(running) == 1
    port = SubprocessExecutor(jobs, [sys.executable, script], environment={})
    found = await port.find("job-1")
    assert found is not None
    assert found.phase is JobPhase.RUNNING
    (jobs / "go").touch()
    state = await port.wait("job-1", no_progress)
    assert state.phase is JobPhase.SUCCEEDED
    assert state.result is not None
    assert state.result["pid"] == running[0].pid


@pytest.mark.parametrize("name", ["", "../x", "UPPER", "a" * 64, "-x"])
async def test_names_that_are_no_labels_are_refused(tmp_path: Path, name: str) -> None:
    port = SubprocessExecutor(tmp_path, [sys.executable])
    with pytest.raises(UserError, match="cannot name a job"):
        await port.find(name)


async def test_number_of_a_process_that_was_given_to_another_is_no_job(tmp_path: Path) -> None:
    folder = tmp_path / "job-1"
    folder.mkdir()
    (folder / PROCESS).write_text(json.dumps({"pid": os.getpid(), "started": 1.0}))
    port = SubprocessExecutor(tmp_path, [sys.executable])
    found = await port.find("job-1")
    assert found is not None
    assert found.phase is JobPhase.LOST
    await port.cancel("job-1")
