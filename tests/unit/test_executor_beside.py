"""What needs a scratch instance runs beside it, whatever executor the other jobs use."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from actions.adapters.executor import PROCESS, SubprocessExecutor
from actions.adapters.executor_beside import BesideExecutor
from actions.adapters.executor_kubernetes import KubernetesExecutor
from actions.adapters.secrets import SecretReferences
from actions.backup.engines import PhysicalEngines
from actions.backup.jobs import LOCK, SPEC, Engines
from actions.errors import TemporaryError, UserError
from actions.ports import JobKind, JobPhase, JobSpec, JobState, no_progress
from actions.site import ClusterAccess, JobPlace, Site
from actions.steps.naming import beside_job_name
from bot.plan_file import load
from bot.settings import ExecutorKind, Settings
from bot.world import _executor
from tests.fakes.dump_tests import NoDumpTests
from tests.fakes.executor import MemoryExecutor
from tests.fakes.files import memory_files
from tests.fakes.postgres import MemoryPostgres
from tests.fakes.tables import MemoryTables
from tests.held_job import backups


def memory() -> MemoryExecutor:
    postgres = MemoryPostgres()
    none = PhysicalEngines(Site(), {})
    return MemoryExecutor(Engines(backups(), none, none, NoDumpTests(), MemoryTables(postgres), memory_files()))


@pytest.fixture
async def both() -> AsyncIterator[tuple[MemoryExecutor, MemoryExecutor, BesideExecutor]]:
    here, elsewhere = memory(), memory()
    for each in (here, elsewhere):
        each.hold()
    yield here, elsewhere, BesideExecutor(here, elsewhere)
    for each in (here, elsewhere):
        for name in tuple(each.jobs):
            await each.cancel(name)


def spec(kind: JobKind, name: str = "job-1") -> JobSpec:
    return JobSpec(name=name, kind=kind, request={})


Both = tuple[MemoryExecutor, MemoryExecutor, BesideExecutor]


@pytest.mark.parametrize("kind", list(JobKind))
async def test_copies_and_rescues_run_here_and_the_rest_elsewhere(both: Both, kind: JobKind) -> None:
    here, elsewhere, port = both
    await port.start(spec(kind))
    await port.start(spec(kind))  # a rerun
    assert (here.starts, elsewhere.starts) == (
        (["job-1"], []) if kind in {JobKind.COPY, JobKind.RESCUE} else ([], ["job-1"])
    )
    found = await port.find("job-1")
    assert found is not None
    assert found.phase is JobPhase.RUNNING
    with pytest.raises(UserError, match="Cancel it before"):
        await port.forget("job-1")
    await port.cancel("job-1")
    assert (await port.find("job-1")).phase is JobPhase.LOST  # type: ignore[union-attr]
    await port.forget("job-1")
    assert await port.find("job-1") is None
    assert not here.jobs
    assert not elsewhere.jobs


async def test_one_that_an_earlier_version_started_elsewhere_is_not_started_again(both: Both) -> None:
    here, elsewhere, port = both
    await elsewhere.start(spec(JobKind.RESCUE))
    await port.start(spec(JobKind.RESCUE))
    assert not here.starts
    found = await port.find("job-1")
    assert found is not None
    assert found.phase is JobPhase.RUNNING


class Silent(MemoryExecutor):
    """A cluster whose API does not answer."""

    async def start(self, spec: JobSpec) -> None:
        raise TemporaryError("The API does not answer.")

    async def find(self, name: str) -> JobState | None:
        raise TemporaryError("The API does not answer.")


async def test_what_reads_a_scratch_instance_needs_nothing_of_a_cluster_that_is_lost(both: Both) -> None:
    here, _, _ = both
    port = BesideExecutor(here, Silent(here._engines))
    name = beside_job_name("k7m2n3p4q5", 1)
    assert await port.find(name) is None
    await port.start(spec(JobKind.RESCUE, name))
    await port.start(spec(JobKind.RESCUE, name))
    assert here.starts == [name]
    await port.cancel(name)
    await port.forget(name)
    assert not here.jobs
    with pytest.raises(TemporaryError):  # any other name may be a job of the cluster's
        await port.find("job-1")


async def test_a_job_of_another_machine_runs_as_long_as_its_lock_is_held(tmp_path: Path) -> None:
    port = SubprocessExecutor(tmp_path, ["true"])
    folder = tmp_path / "job-1"
    folder.mkdir()
    (folder / SPEC).write_text(JobSpec(name="job-1", kind=JobKind.RESCUE, request={}).model_dump_json())
    mine = {"pid": os.getpid(), "started": psutil.Process().create_time()}  # that pid is somebody else's here
    (folder / PROCESS).write_text(json.dumps({**mine, "machine": "the other worker"}))
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TemporaryError, match="runs on `the other worker`"):
            await port.cancel("job-1")
        found = await port.find("job-1")
        assert found is not None
        assert found.phase is JobPhase.RUNNING
        with pytest.raises(UserError, match="is running"):
            await port.forget("job-1")
    found = await port.find("job-1")
    assert found is not None
    assert found.phase is JobPhase.LOST
    await port.cancel("job-1")  # it has ended


async def test_a_job_of_another_machine_that_is_over_its_time_is_waited_for_and_ends_nothing_here(
    tmp_path: Path,
) -> None:
    """Its number of a process may be that of a job of this machine."""
    port = SubprocessExecutor(tmp_path, [sys.executable, "-c", "import time; time.sleep(60)"], margin=timedelta(0))
    await port.start(JobSpec(name="mine", kind=JobKind.COPY, request={}))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    late = JobSpec(name="theirs", kind=JobKind.COPY, request={}, timeout=timedelta(seconds=1))
    (theirs / SPEC).write_text(late.model_dump_json())
    record = json.loads((tmp_path / "mine" / PROCESS).read_text())
    (theirs / PROCESS).write_text(json.dumps({**record, "started": 1.0, "machine": "the other worker"}))
    with (theirs / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = asyncio.ensure_future(port.wait("theirs", no_progress))
        await asyncio.sleep(0.3)
        assert not waiting.done()
    assert (await asyncio.wait_for(waiting, 10)).phase is JobPhase.LOST
    mine = await port.find("mine")
    assert mine is not None
    assert mine.phase is JobPhase.RUNNING
    await port.cancel("mine")


def test_a_worker_of_a_cluster_has_both(tmp_path: Path) -> None:
    settings = Settings(executor=ExecutorKind.KUBERNETES, data_directory=tmp_path)
    access = ClusterAccess(name="main", kubeconfig="env:KUBECONFIG")
    place = JobPlace(cluster="main", namespace="dr", image="drbot:1", plan_config_map="drbot-plan")
    site = Site(clusters={"main": access}, jobs=place)
    plan = load(Path(__file__).parents[2] / "dr-plan.yml")
    port = _executor(settings, plan, site, SecretReferences())
    assert isinstance(port, BesideExecutor)
    assert isinstance(port._here, SubprocessExecutor)
    assert isinstance(port._elsewhere, KubernetesExecutor)
