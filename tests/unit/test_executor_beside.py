"""What needs a scratch instance runs beside it, whatever executor the other jobs use."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from actions.adapters.executor import PROCESS, SubprocessExecutor
from actions.adapters.executor_beside import BesideExecutor
from actions.adapters.executor_kubernetes import KubernetesExecutor
from actions.adapters.secrets import SecretReferences
from actions.backup.engines import PhysicalEngines
from actions.backup.jobs import LOCK, Engines
from actions.errors import UserError
from actions.ports import JobKind, JobPhase, JobSpec
from actions.site import ClusterAccess, JobPlace, Site
from bot.plan_file import load
from bot.settings import ExecutorKind, Settings
from bot.world import _executor
from tests.fakes.executor import MemoryExecutor
from tests.fakes.files import memory_files
from tests.fakes.postgres import MemoryPostgres
from tests.fakes.tables import MemoryTables
from tests.held_job import backups


def memory() -> MemoryExecutor:
    postgres = MemoryPostgres()
    none = PhysicalEngines(Site(), {})
    return MemoryExecutor(Engines(backups(), none, none, MemoryTables(postgres), memory_files()))


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


async def test_a_job_of_another_machine_runs_as_long_as_its_lock_is_held(tmp_path: Path) -> None:
    port = SubprocessExecutor(tmp_path, ["true"])
    folder = tmp_path / "job-1"
    folder.mkdir()
    mine = {"pid": os.getpid(), "started": psutil.Process().create_time()}  # that pid is somebody else's here
    (folder / PROCESS).write_text(json.dumps({**mine, "machine": "the other worker"}))
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        await port.cancel("job-1")
        found = await port.find("job-1")
        assert found is not None
        assert found.phase is JobPhase.RUNNING
        with pytest.raises(UserError, match="is running"):
            await port.forget("job-1")
    found = await port.find("job-1")
    assert found is not None
    assert found.phase is JobPhase.LOST


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
