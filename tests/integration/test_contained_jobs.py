"""What a job that is a process of this machine may reach, and that it cannot stay for ever."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from actions.adapters.containment import Limits
from actions.adapters.executor import TEMPORARY, SubprocessExecutor
from actions.errors import PermanentError, UserError
from actions.ports import JobPhase, JobSpec, no_progress
from tests.contract.test_executor_port import spec
from tests.fixtures.waiting import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="containment is Linux's"),
    pytest.mark.needs("prlimit", "setpriv"),
]

LOOK = """
import json, os, pathlib, resource, sys, tempfile
spec = pathlib.Path(sys.argv[1])
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
links = {fd: f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")}
fds = {fd: os.readlink(path) for fd, path in links.items() if os.path.exists(path)}
with tempfile.NamedTemporaryFile() as stream:
    temporary = stream.name
pathlib.Path(tempfile.gettempdir(), "left").write_text("x")
found = {
    "core": resource.getrlimit(resource.RLIMIT_CORE), "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "data": resource.getrlimit(resource.RLIMIT_DATA), "privileges": status["NoNewPrivs"].strip(), "fds": fds,
    "temporary": temporary, "session": os.getsid(0), "group": os.getpgid(0), "pid": os.getpid(),
    "environment": sorted(os.environ),
}
spec.with_name("result.json").write_text(json.dumps({"phase": "succeeded", "result": found}))
"""
HOG = """
import pathlib, sys
held = bytearray(400 << 20)
pathlib.Path(sys.argv[1]).with_name("result.json").write_text('{"phase": "succeeded"}')
"""
# Deaf to SIGTERM, and a child beside it that is too.
STUCK = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
words = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"]
child = subprocess.Popen(words, start_new_session=True)
pathlib.Path(sys.argv[1]).with_name("child").write_text(str(child.pid))
time.sleep(60)
"""


def executor(directory: Path, script: str, **more: object) -> SubprocessExecutor:
    path = directory / "job.py"
    path.write_text(script)
    return SubprocessExecutor(directory / "jobs", [sys.executable, path], environment={"GIVEN": "1"}, **more)  # type: ignore[arg-type]


def runs(pid: int) -> bool:
    """Whether it does something; one that is dead may stay in the table where nobody reaps orphans."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def inherited() -> Iterator[int]:
    """A descriptor of this process that any child could inherit."""
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    yield reader
    os.close(reader)
    os.close(writer)


async def test_job_sees_its_folder_and_little_else(tmp_path: Path, inherited: int) -> None:
    port = executor(tmp_path, LOOK)
    await port.start(spec())
    state = await port.wait("job-1", no_progress)
    assert state.phase is JobPhase.SUCCEEDED, state.error
    found = dict(state.result or {})
    assert found["core"] == [0, 0]
    assert found["files"] == [4096, 4096]
    assert found["data"] == [4 << 30, 4 << 30]
    assert found["privileges"] == "1"
    assert (found["session"], found["group"]) == (found["pid"], found["pid"])
    assert found["pid"] != os.getpid()
    assert str(inherited) not in found["fds"]
    assert set(found["fds"].values()) == {
        os.devnull,
        str(tmp_path / "jobs/job-1/progress.ndjson"),
        str(tmp_path / "jobs/job-1/log"),
    }
    folder = tmp_path / "jobs/job-1" / TEMPORARY
    assert found["temporary"].startswith(f"{folder}/")
    assert not folder.exists()  # nothing it left there stays
    assert "GIVEN" in found["environment"]
    assert "PYTEST_CURRENT_TEST" not in found["environment"]


async def test_memory_of_a_job_is_limited(tmp_path: Path) -> None:
    port = executor(tmp_path, HOG, limits=Limits(memory=256 << 20))
    await port.start(spec())
    state = await port.wait("job-1", no_progress)
    assert (state.phase, "MemoryError" in state.error) == (JobPhase.LOST, True)


async def test_job_that_hangs_beyond_its_limit_is_ended_with_all_it_started(tmp_path: Path) -> None:
    port = executor(tmp_path, STUCK, margin=timedelta(0), grace=timedelta(seconds=1))
    stuck = JobSpec(**{**spec().model_dump(), "timeout": timedelta(seconds=2)})
    await port.start(stuck)
    child = tmp_path / "jobs/job-1/child"
    await until(lambda: child.exists() and child.read_text() != "", within=60)
    state = await port.wait("job-1", no_progress)
    assert (state.phase, state.error) == (JobPhase.LOST, "it was ended after its time limit")
    assert not runs(int(child.read_text()))


async def test_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("not a folder")
    port = executor(tmp_path, LOOK)
    [problem] = await port.problems()
    assert "cannot be written" in problem
    with pytest.raises(UserError, match="cannot be started"):
        await port.start(spec())


async def test_result_that_nobody_can_read_is_told(tmp_path: Path) -> None:
    port = executor(tmp_path, LOOK)
    await port.start(spec())
    await port.wait("job-1", no_progress)
    (tmp_path / "jobs/job-1/result.json").write_text(json.dumps({"phase": "no such phase"}))
    with pytest.raises(PermanentError, match="cannot be read"):
        await port.find("job-1")


async def test_number_of_a_process_that_was_given_to_another_is_no_job(tmp_path: Path) -> None:
    folder = tmp_path / "jobs/job-1"
    folder.mkdir(parents=True)
    (folder / "process.json").write_text(json.dumps({"pid": os.getpid(), "started": 1.0}))
    port = executor(tmp_path, LOOK)
    found = await port.find("job-1")
    assert found is not None
    assert found.phase is JobPhase.LOST
    await port.cancel("job-1")
