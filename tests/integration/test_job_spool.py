"""What a job that was killed leaves in its spool is a dump in plain: it does not stay."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path

import pytest

from actions.adapters.executor import SubprocessExecutor
from actions.backup.jobs import LOCK, SPOOL, SPOOL_KEPT
from actions.ports import JobPhase, no_progress
from tests.contract.test_executor_port import begun, spec
from tests.fixtures.executors import ExecutorWorld
from tests.fixtures.waiting import until

pytestmark = pytest.mark.integration


def a_spool(folder: Path, *, age: float = 0) -> Path:
    (folder / SPOOL).mkdir(parents=True)
    (folder / SPOOL / "load-1.dump").write_text("everything, in plain")
    (folder / LOCK).touch()
    os.utime(folder / LOCK, (time.time() - age,) * 2)
    return folder / SPOOL


async def test_job_removes_its_own_and_those_of_the_long_dead(subprocess_world: ExecutorWorld) -> None:
    world = subprocess_world
    jobs = world.directory / "jobs"
    kept = SPOOL_KEPT.total_seconds()
    dead = a_spool(jobs / "dead", age=kept + 60)
    alive = a_spool(jobs / "alive", age=kept - 60)
    working = a_spool(jobs / "working", age=kept + 60)  # a load of terabytes
    with (jobs / "working" / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        await world.port.start(spec())
        await until(begun(world), within=60)
    own = jobs / "job-1" / SPOOL
    await asyncio.to_thread(own.mkdir)
    assert not dead.exists()
    assert alive.exists()
    assert working.exists()
    world.release()
    assert (await world.port.wait("job-1", no_progress)).phase is JobPhase.SUCCEEDED
    assert not own.exists()


async def test_spool_of_a_lost_job_goes_when_its_end_is_seen(subprocess_world: ExecutorWorld) -> None:
    world = subprocess_world
    assert isinstance(world.port, SubprocessExecutor)
    await world.port.start(spec())
    await until(begun(world), within=60)
    own = a_spool(world.directory / "jobs" / "job-1")
    await world.lose("job-1")
    assert (await world.port.wait("job-1", no_progress)).phase is JobPhase.LOST
    assert not own.exists()
