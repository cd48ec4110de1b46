"""`drbot job SPEC`: one heavy step in a process of its own.

A job is a folder. The executor writes `spec.json`; this side prints progress as NDJSON on standard output and writes
`result.json` beside the spec, last and as a whole. A folder without a result whose process is gone is a lost job.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from actions.errors import DrError, PermanentError, TemporaryError
from actions.ports import (
    AdoptRequest,
    BackupEngine,
    DumpRequest,
    JobKind,
    JobPhase,
    JobSpec,
    JobState,
    LoadRequest,
    Progress,
    ProgressReport,
)

SPEC, RESULT, LOCK = "spec.json", "result.json", "lock"


async def run_job(spec: JobSpec, engine: BackupEngine, progress: Progress) -> dict[str, Any]:
    """Do what the spec asks and give the result as JSON. Raises TemporaryError when its time is over."""
    try:
        async with asyncio.timeout(spec.timeout.total_seconds()):
            return await _WORK[spec.kind](spec.request, engine, progress)
    except TimeoutError as error:
        limit = f"{spec.timeout.total_seconds():g} s"
        raise TemporaryError(f"The job `{spec.name}` was ended after {limit}, its time limit.") from error
    except ValidationError as error:
        raise PermanentError(
            f"The request of job `{spec.name}` cannot be read: {error.error_count()} errors."
        ) from error


async def _dump(request: Mapping[str, Any], engine: BackupEngine, progress: Progress) -> dict[str, Any]:
    return (await engine.dump(DumpRequest.model_validate(request), progress)).model_dump(mode="json")


async def _load(request: Mapping[str, Any], engine: BackupEngine, progress: Progress) -> dict[str, Any]:
    await engine.load(LoadRequest.model_validate(request), progress)
    return {}


async def _verify(request: Mapping[str, Any], engine: BackupEngine, progress: Progress) -> dict[str, Any]:
    entry = await engine.verify(str(request["database"]), str(request["backup"]), progress)
    return entry.model_dump(mode="json")


async def _adopt(request: Mapping[str, Any], engine: BackupEngine, progress: Progress) -> dict[str, Any]:
    return (await engine.adopt(AdoptRequest.model_validate(request), progress)).model_dump(mode="json")


_WORK: Mapping[JobKind, Callable[[Mapping[str, Any], BackupEngine, Progress], Awaitable[dict[str, Any]]]] = {
    JobKind.DUMP: _dump,
    JobKind.LOAD: _load,
    JobKind.VERIFY: _verify,
    JobKind.ADOPT: _adopt,
}


async def main(spec_path: Path, engine: BackupEngine, *, hide: Callable[[str], str] = str) -> int:
    """The body of `drbot job`. Returns the exit code: 0 when it succeeded, 1 when not; the result file says why.
    `hide` takes the secrets out of what it says.

    SIGTERM ends the work in order (uploads aborted, scratch removed) and leaves no result: the job counts as lost.
    """
    with spec_path.with_name(LOCK).open("w") as lock:
        # A starter that died before it recorded the process starts another one: that one waits here, and finds the
        # result, or does the work itself when the first has died without one.
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if await asyncio.to_thread(spec_path.with_name(RESULT).exists):
            return 0
        return await _main(spec_path, engine, hide)


async def _main(spec_path: Path, engine: BackupEngine, hide: Callable[[str], str]) -> int:
    spec = JobSpec.model_validate_json(await asyncio.to_thread(spec_path.read_bytes))
    work = asyncio.ensure_future(run_job(spec, engine, _print))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
    try:
        state = JobState(phase=JobPhase.SUCCEEDED, result=await work)
    except DrError as error:
        state = JobState(phase=JobPhase.FAILED, error=hide(str(error)), error_kind=type(error).__name__)
    except asyncio.CancelledError:
        return 1
    except Exception as error:
        # A defect of ours must reach the person as well; the traceback is in the job's log.
        text = f"The job `{spec.name}` failed in a way that was not foreseen ({type(error).__name__}). See its log."
        await asyncio.to_thread(write_result, spec_path.with_name(RESULT), _failed(text))
        raise
    await asyncio.to_thread(write_result, spec_path.with_name(RESULT), state)
    return 0 if state.phase is JobPhase.SUCCEEDED else 1


def _failed(text: str) -> JobState:
    return JobState(phase=JobPhase.FAILED, error=text, error_kind=PermanentError.__name__)


def _print(report: ProgressReport, /) -> None:
    # Nobody may be reading any more; the work goes on.
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(json.dumps(report.model_dump(mode="json")) + "\n")
        sys.stdout.flush()


def write_result(path: Path, state: JobState) -> None:
    """Write the result as a whole or not at all. Blocking."""
    fresh = path.with_name(path.name + ".part")
    with fresh.open("w", encoding="utf-8") as stream:
        stream.write(state.model_dump_json())
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)
