"""Jobs as processes of this machine that survive the bot: one folder each, found again by name.

directory/<name>/
  spec.json        what is to be done, without secrets
  process.json     pid, start time and machine; the pid alone may be somebody else's by now
  lock             held by the job: how workers that share the folder see one of another machine
  progress.ndjson  one report a line
  log              standard error
  tmp/             its TMPDIR, removed with it
  ended            why it was ended, when it was
  result.json      written last, as a whole
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from actions.adapters.containment import Limits, contained
from actions.adapters.programs import Program
from actions.backup.jobs import LOCK, RESULT, SPEC, SPOOL
from actions.backup.scratch_place import this_machine
from actions.errors import PermanentError, TemporaryError, UserError
from actions.ports import Executor, JobPhase, JobSpec, JobState, Progress, ProgressReport

PROCESS, PROGRESS, LOG, TEMPORARY, ENDED = "process.json", "progress.ndjson", "log", "tmp", "ended"
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123 label
POLL = 0.1  # seconds between two looks at a running job
EXIT = 5.0  # seconds for a job to leave after its result
GRACE = timedelta(seconds=20)  # to end in order: abort uploads, remove scratch
MARGIN = timedelta(minutes=5)  # a job ends itself at its limit, in order; this side does it by force so much later
ROOM = 1 << 30  # bytes that a machine for jobs should have free
LOG_TAIL = 1500


def named(name: str) -> str:
    """The name of a job. Raises UserError for one that is no RFC 1123 label."""
    if not NAME.fullmatch(name):
        raise UserError(f"`{name}` cannot name a job: use lower case letters, digits and dashes, at most 63.")
    return name


class SubprocessExecutor(Executor):
    """`command` is the start of the argv that the path of the spec is put behind, such as `drbot job`.

    `environment` is what the job sees beside the few variables every program gets: references such as `env:NAME` are
    resolved in the job. It is the whole environment of this process unless given.
    """

    def __init__(
        self,
        directory: Path,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        margin: timedelta = MARGIN,
        grace: timedelta = GRACE,
    ) -> None:
        self._directory = directory
        self._command = contained(command, limits or Limits())
        self._margin, self._grace = margin.total_seconds(), grace.total_seconds()
        self._environment = environment
        self._children: dict[int, Program] = {}

    async def start(self, spec: JobSpec) -> None:
        try:
            await asyncio.to_thread(self._start, spec)
        except OSError as error:
            raise UserError(
                f"The job `{spec.name}` cannot be started: `{self._directory}` cannot be written ({error.strerror}). "
                "Free space there, or check its owner and mode, then try again."
            ) from error

    async def find(self, name: str) -> JobState | None:
        return await asyncio.to_thread(self._find, name)

    async def wait(self, name: str, progress: Progress) -> JobState:
        place = 0
        if await self.find(name) is None:
            raise UserError(f"There is no job `{name}`. It was never started here, or was forgotten.")
        while True:
            state = await self.find(name)
            if state is None:
                return JobState(phase=JobPhase.LOST, error="its folder was removed while it was waited for")
            if state.phase is JobPhase.RUNNING and await asyncio.to_thread(self._overdue, name):
                await asyncio.to_thread(self._cancel, name, "it was ended after its time limit")
                continue
            place = await asyncio.to_thread(self._report, name, place, progress)
            if state.phase is not JobPhase.RUNNING:
                await asyncio.to_thread(self._settle, name)
                return state
            await asyncio.sleep(POLL)

    async def cancel(self, name: str) -> None:
        await asyncio.to_thread(self._cancel, name, "it was ended on request")

    async def forget(self, name: str) -> None:
        state = await self.find(name)
        if state is None:
            return
        if state.phase is JobPhase.RUNNING:
            raise UserError(f"The job `{name}` is running. Cancel it before it is forgotten.")
        await asyncio.to_thread(shutil.rmtree, self._folder(name))

    async def problems(self) -> Sequence[str]:
        return await asyncio.to_thread(self._examine)

    # ------------------------------------------------------------ in a thread

    def _examine(self) -> list[str]:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._directory):
                free = shutil.disk_usage(self._directory).free
        except OSError as error:
            return [
                f"`{self._directory}` cannot be written ({error.strerror}). Check its owner, its mode and the disk."
            ]
        if free < ROOM:
            return [f"`{self._directory}` has {free >> 20} MiB free; a restore writes its dump there. Make room."]
        return []

    def _folder(self, name: str) -> Path:
        return self._directory / named(name)

    def _start(self, spec: JobSpec) -> None:
        folder = self._folder(spec.name)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Held from the look to the record of the process: of two starts, one finds the other's job.
        with self._alone(spec.name):
            if (folder / PROCESS).exists():
                return
            # A crash between folder and process leaves a spec without a process: it starts now.
            folder.mkdir(mode=0o700, exist_ok=True)
            (folder / SPEC).write_text(spec.model_dump_json())
            (folder / TEMPORARY).mkdir(mode=0o700, exist_ok=True)
            environment = os.environ if self._environment is None else self._environment
            with (folder / PROGRESS).open("wb") as progress:
                program = Program.start(
                    [*self._command, folder / SPEC],
                    env={**environment, "TMPDIR": str(folder / TEMPORARY)},
                    stdout=progress,
                    log=folder / LOG,
                    outlive_owner=True,
                )
            try:
                fresh = folder / f"{PROCESS}.part"
                record = {"pid": program.pid, "started": _started(program.pid), "machine": this_machine()}
                fresh.write_text(json.dumps(record))
                fresh.replace(folder / PROCESS)
            except BaseException:
                program.kill()  # nobody would find it again
                raise
            self._children[program.pid] = program

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        locks = self._directory / ".locks"
        locks.mkdir(mode=0o700, exist_ok=True)
        with (locks / name).open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _find(self, name: str) -> JobState | None:
        folder = self._folder(name)
        if not (folder / PROCESS).exists():
            return None
        # Looked at before the result: it may end between the two looks, never the other way round.
        running = self._process(folder) is not None or _held_elsewhere(folder)
        try:
            return JobState.model_validate_json((folder / RESULT).read_bytes())
        except FileNotFoundError:
            if running:
                return JobState(phase=JobPhase.RUNNING)
            return JobState(phase=JobPhase.LOST, error=self._last_words(folder))
        except ValidationError as error:
            raise PermanentError(f"The result of job `{name}` cannot be read. Look at `{folder}`.") from error

    def _process(self, folder: Path) -> psutil.Process | None:
        try:
            record = _record(folder)
            if _machine(record) != this_machine():
                return None
            child = self._children.get(record["pid"])
            if child is not None and child.code() is not None:
                self._reap(record["pid"])
                return None
            process = psutil.Process(record["pid"])
            ours = process.create_time() == record["started"] and process.status() != psutil.STATUS_ZOMBIE
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None
        return process if ours else None

    def _last_words(self, folder: Path) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (folder / ENDED).read_text()
        with contextlib.suppress(FileNotFoundError):
            text = (folder / LOG).read_bytes()[-LOG_TAIL:].decode("utf-8", "replace").strip()
            lines = text.splitlines()
            return f"its process ended without a result{': ' + lines[-1] if lines else ''}"
        return "its process ended without a result"

    def _report(self, name: str, place: int, progress: Progress) -> int:
        """Hand on the whole lines since `place`; returns the new place."""
        try:
            with (self._folder(name) / PROGRESS).open("rb") as stream:
                stream.seek(place)
                for line in stream:
                    if not line.endswith(b"\n"):
                        break
                    place += len(line)
                    with contextlib.suppress(ValidationError):
                        progress(ProgressReport.model_validate_json(line))
        except FileNotFoundError:
            return 0
        return place

    def _settle(self, name: str) -> None:
        """The result is there, so the process has nothing more to do: see it out."""
        process = self._process(self._folder(name))
        if process is not None:
            _, left = psutil.wait_procs([process], timeout=EXIT)
            if left:
                self._cancel(name, "")
        for folder in (TEMPORARY, SPOOL):
            shutil.rmtree(self._folder(name) / folder, ignore_errors=True)
        record = _record(self._folder(name))
        if _machine(record) == this_machine():  # elsewhere that number is another process, maybe one of ours here
            self._reap(record["pid"])

    def _reap(self, pid: int) -> None:
        child = self._children.pop(pid, None)
        if child is not None:
            child.kill()

    def _overdue(self, name: str) -> bool:
        """Whether a job of this machine should have ended itself long ago: its own clock hangs with it."""
        folder = self._folder(name)
        try:
            limit = JobSpec.model_validate_json((folder / SPEC).read_bytes()).timeout.total_seconds()
            record = _record(folder)
        except FileNotFoundError:
            return False
        if _machine(record) != this_machine():
            return False
        begun = float(record["started"])
        return time.time() - begun > limit + self._margin

    def _cancel(self, name: str, why: str) -> None:
        folder = self._folder(name)
        process = self._process(folder)
        if process is None:
            if _held_elsewhere(folder):
                raise TemporaryError(
                    f"The job `{name}` runs on `{_machine(_record(folder))}`, and nobody can end it from "
                    f"`{this_machine()}`. End it there, or wait for its end."
                )
            return
        if why:
            (folder / ENDED).write_text(why)
        # Its own session, so the group is the job and what it started; programs of its own groups die with it
        # (PR_SET_PDEATHSIG), and are ended here by force where the kernel does not do that.
        family = _family(process)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs([process], timeout=self._grace)
        for member in {*family, *left}:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs([process, *family], timeout=self._grace)
        self._reap(process.pid)


def _record(folder: Path) -> dict[str, Any]:
    """Which process a job is. Raises FileNotFoundError when it was never started."""
    record: dict[str, Any] = json.loads((folder / PROCESS).read_text())
    return record


def _machine(record: Mapping[str, Any]) -> str:
    return str(record.get("machine", this_machine()))


def _held_elsewhere(folder: Path) -> bool:
    """Whether another machine on the same volume is at work in it: nobody here can end that one."""
    try:
        if _machine(_record(folder)) == this_machine():
            return False
        with (folder / LOCK).open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _started(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0
