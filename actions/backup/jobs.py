"""`drbot job SPEC`: one heavy step in a process of its own.

A job is a folder. The executor writes `spec.json`; this side prints progress as NDJSON on standard output and writes
`result.json`, last and as a whole. A folder without a result whose process is gone is a lost job.

In a cluster nobody outside can read the folder. There the result is also the last line of standard output, and after
it, as the very last thing, an `Ending` goes to the file the pod's termination message is taken from.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from actions.backup.dump_test import DumpTest
from actions.backup.physical import BaseRequest, FindRequest, PlaceRequest, PointRequest, ScratchRequest
from actions.backup.tables import RescueRequest
from actions.bucket_ports import Files
from actions.buckets import BringBack, CopiesExpiry, FilesCopyRequest
from actions.errors import (
    DrError,
    PermanentError,
    TemporaryError,
    UnknownOutcomeError,
    UserError,
    VerificationError,
)
from actions.ports import (
    AdoptRequest,
    BackupEngine,
    CopyRequest,
    DumpRequest,
    DumpTests,
    JobKind,
    JobPhase,
    JobSpec,
    JobState,
    LoadRequest,
    PhysicalBackups,
    Progress,
    ProgressReport,
    Tables,
)
from actions.site import Frozen

SPEC, RESULT, LOCK, SPOOL = "spec.json", "result.json", "lock", "spool"
SPOOL_KEPT = timedelta(days=1)  # beyond what a machine may not see of a job on another one
RESULT_LINE = '{"result":'
MESSAGE_BYTES = 4000  # a termination message may have 4096
ERROR_KEPT = 1500  # bytes of an error that is too long for the message


class Ending(Frozen):
    """How a job ended, small enough for a termination message: a large result is left out and named by its hash."""

    state: JobState
    result_sha256: str = ""

    @classmethod
    def of(cls, state: JobState) -> Ending:
        whole = cls(state=state)
        if len(whole.model_dump_json().encode()) <= MESSAGE_BYTES:
            return whole
        error = state.error.encode()[:ERROR_KEPT].decode(errors="ignore")
        short = state.model_copy(update={"result": None, "error": error})
        return cls(state=short, result_sha256="" if state.result is None else digest_of(state.result))

    def completed(self, lines: Iterable[str]) -> JobState:
        """The state with the result found among the lines of the log; without it where none fits."""
        if self.result_sha256:
            for line in lines:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    result = json.loads(line)["result"] if line.startswith(RESULT_LINE) else None
                    if result is not None and digest_of(result) == self.result_sha256:
                        return self.state.model_copy(update={"result": result})
        return self.state


def digest_of(result: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Engines:
    """What a job can work with."""

    backups: BackupEngine
    physical: PhysicalBackups
    prover: PhysicalBackups  # the same with the identity of the prover
    dump_tests: DumpTests  # likewise
    tables: Tables
    files: Files


async def run_job(spec: JobSpec, engines: Engines, progress: Progress) -> dict[str, Any]:
    """Do what the spec asks and give the result as JSON. Raises TemporaryError when its time is over."""
    try:
        async with asyncio.timeout(spec.timeout.total_seconds()):
            return await _KINDS[spec.kind](spec.request, engines, progress)
    except TimeoutError as error:
        limit = f"{spec.timeout.total_seconds():g} s"
        raise TemporaryError(f"The job `{spec.name}` was ended after {limit}, its time limit.") from error
    except ValidationError as error:
        raise PermanentError(
            f"The request of job `{spec.name}` cannot be read: {error.error_count()} errors."
        ) from error


async def _dump(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    return (await engines.backups.dump(DumpRequest.model_validate(request), progress)).model_dump(mode="json")


async def _load(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    await engines.backups.load(LoadRequest.model_validate(request), progress)
    return {}


async def _verify(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    entry = await engines.backups.verify(str(request["database"]), str(request["backup"]), progress)
    return entry.model_dump(mode="json")


async def _upload(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    signed = await engines.backups.upload(str(request["database"]), str(request["backup"]), progress)
    return signed.model_dump(mode="json")


async def _adopt(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    return (await engines.backups.adopt(AdoptRequest.model_validate(request), progress)).model_dump(mode="json")


async def _base(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    return (await engines.physical.take(BaseRequest.model_validate(request), progress)).model_dump(mode="json")


async def _base_verify(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    entry = await engines.physical.verify(str(request["server"]), str(request["backup"]), progress)
    return entry.model_dump(mode="json")


async def _base_copy(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    copied = await engines.physical.copy(str(request["server"]), str(request["backup"]), progress)
    return {"copied": list(copied)}


async def _scratch(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    return (await engines.physical.restore(ScratchRequest.model_validate(request), progress)).model_dump(mode="json")


async def _prove(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    if "database" in request:
        return (await engines.dump_tests.load(DumpTest.model_validate(request), progress)).model_dump(mode="json")
    return (await engines.prover.restore(ScratchRequest.model_validate(request), progress)).model_dump(mode="json")


async def _find(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    if "point" in request:
        points = await engines.physical.find_points(PointRequest.model_validate(request), progress)
        return {"points": [point.model_dump(mode="json") for point in points]}
    if "target" in request:
        places = await engines.physical.find_places(PlaceRequest.model_validate(request), progress)
        return {"places": [place.model_dump(mode="json") for place in places]}
    found = await engines.physical.find(FindRequest.model_validate(request), progress)
    return {"moments": [moment.model_dump(mode="json") for moment in found]}


async def _copy(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    await engines.backups.copy(CopyRequest.model_validate(request), progress)
    return {}


async def _rescue(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    return (await engines.tables.rescue(RescueRequest.model_validate(request), progress)).model_dump(mode="json")


async def _files_copy(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    copy = await engines.files.copy(FilesCopyRequest.model_validate(request), progress)
    return {"copy": copy.manifest.id}


async def _files_bring_back(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    asked = BringBack.model_validate(request)
    left = await (engines.files.take_back if asked.undo else engines.files.bring_back)(asked, progress)
    return left.model_dump(mode="json")


async def _files_expire(request: Mapping[str, Any], engines: Engines, progress: Progress) -> dict[str, Any]:
    await engines.files.expire(CopiesExpiry.model_validate(request), progress)
    return {}


_KINDS: Mapping[JobKind, Callable[[Mapping[str, Any], Engines, Progress], Awaitable[dict[str, Any]]]] = {
    JobKind.DUMP: _dump,
    JobKind.LOAD: _load,
    JobKind.VERIFY: _verify,
    JobKind.UPLOAD: _upload,
    JobKind.ADOPT: _adopt,
    JobKind.BASE: _base,
    JobKind.BASE_VERIFY: _base_verify,
    JobKind.BASE_COPY: _base_copy,
    JobKind.SCRATCH: _scratch,
    JobKind.PROVE: _prove,
    JobKind.FIND: _find,
    JobKind.COPY: _copy,
    JobKind.RESCUE: _rescue,
    JobKind.FILES_COPY: _files_copy,
    JobKind.FILES_BRING_BACK: _files_bring_back,
    JobKind.FILES_EXPIRE: _files_expire,
}


async def main(
    spec_path: Path,
    engines: Engines,
    *,
    hide: Callable[[str], str] = str,
    folder: Path | None = None,
    message: Path | None = None,
) -> int:
    """The body of `drbot job`. Returns the exit code: 0 when it succeeded, 1 when not; the result file says why.
    `hide` takes the secrets out of what it says. `folder` takes lock and result where the spec's own cannot be written;
    `message` takes the `Ending`.

    SIGTERM ends the work in order (uploads aborted, scratch removed) and leaves no result: the job counts as lost.
    """
    place = folder or spec_path.parent
    await asyncio.to_thread(place.mkdir, mode=0o700, parents=True, exist_ok=True)
    with (place / LOCK).open("w") as lock:
        # A starter that died before it recorded the process starts another one: that one waits here, and finds the
        # result, or does the work itself when the first has died without one.
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if await asyncio.to_thread((place / RESULT).exists):
            state = JobState.model_validate_json(await asyncio.to_thread((place / RESULT).read_bytes))
        else:
            await asyncio.to_thread(_sweep, place)
            try:
                ended = await _work(spec_path, engines, hide, place / RESULT)
            finally:
                await asyncio.to_thread(shutil.rmtree, place / SPOOL, ignore_errors=True)
            if ended is None:
                return 1
            state = ended
        if message is not None:
            await asyncio.to_thread(_announce, state, message)
        return 0 if state.phase is JobPhase.SUCCEEDED else 1


async def _work(spec_path: Path, engines: Engines, hide: Callable[[str], str], result: Path) -> JobState | None:
    """Work, and write the result; None when it was ended by a signal."""
    spec = JobSpec.model_validate_json(await asyncio.to_thread(spec_path.read_bytes))
    work = asyncio.ensure_future(run_job(spec, engines, _print))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
    try:
        state = JobState(phase=JobPhase.SUCCEEDED, result=await work)
    except DrError as error:
        state = JobState(phase=JobPhase.FAILED, error=hide(str(error)), error_kind=kind_of(error))
    except asyncio.CancelledError:
        return None
    except Exception as error:
        # A defect of ours must reach the person as well; the traceback is in the job's log.
        text = f"The job `{spec.name}` failed in a way that was not foreseen ({type(error).__name__}). See its log."
        logging.getLogger(__name__).exception("job_failed_unforeseen")
        state = _failed(text)
    await asyncio.to_thread(write_result, result, state)
    return state


def _sweep(place: Path) -> None:
    """Remove what jobs that were killed left in their spool, here and beside."""
    shutil.rmtree(place / SPOOL, ignore_errors=True)
    for lock in place.parent.glob(f"*/{LOCK}"):
        with contextlib.suppress(OSError):  # another job is quicker
            # By age as well: on some volumes of several machines a lock says nothing about the others.
            if time.time() - lock.stat().st_mtime > SPOOL_KEPT.total_seconds():
                with lock.open() as stream:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: it is at work
                    shutil.rmtree(lock.with_name(SPOOL), ignore_errors=True)


def _announce(state: JobState, message: Path) -> None:
    ending = Ending.of(state)
    if ending.result_sha256:
        sys.stdout.write(json.dumps({"result": state.result}) + "\n")
        sys.stdout.flush()
    message.write_text(ending.model_dump_json(), encoding="utf-8")


def kind_of(error: DrError) -> str:
    """The class of `actions.errors` that the worker raises again. It knows no other: a store that is away, told by the
    name of the adapter's own class, would not be tried again. A reason code stays in the job, where no request is
    refused."""
    return next((kind.__name__ for kind in _RAISED if isinstance(error, kind)), PermanentError.__name__)


_RAISED = (UserError, TemporaryError, UnknownOutcomeError, VerificationError)


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
