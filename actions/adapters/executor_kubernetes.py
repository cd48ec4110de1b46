"""Heavy steps as Kubernetes Jobs: found again by name, they survive the bot and run next to the data.

Everything that must be known later lies on the Job itself (hash of its spec, why it was ended) or comes from its pod
(termination message, log), so that any process of the bot can take over. Nothing is watched: a look every second
cannot break, and costs two small requests. The log alone is followed, for progress; when that breaks, it is followed
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import structlog
from pydantic import ValidationError

from actions.adapters import kubernetes_jobs as jobs
from actions.adapters.executor import named
from actions.adapters.kubernetes_session import LogStream, Resource, Session, StaleError
from actions.adapters.kubernetes_sessions import Sessions
from actions.backup.jobs import RESULT_LINE
from actions.errors import TemporaryError, UserError
from actions.ports import Executor, JobKind, JobPhase, JobSpec, JobState, Progress, ProgressReport
from actions.site import JobPlace

Json = dict[str, Any]
T = TypeVar("T")

JOBS = Resource("batch", "v1", "jobs")
PODS = Resource("", "v1", "pods")
EVENTS = Resource("", "v1", "events")
CLAIMS = Resource("", "v1", "persistentvolumeclaims")
CONFIG_MAPS = Resource("", "v1", "configmaps")

CANCELLED = "it was ended on request"
STARTS = 6  # attempts while the API server is away
LOG_LINES = 20  # of what was written before the log is followed
RESULT_BYTES = 8 << 20
LINE_KEPT = 2000  # characters of a log line
DRAIN = 5.0  # seconds for the last lines of an ended job
GONE = jobs.GRACE + timedelta(seconds=30)  # for pods to end after they were told to

log = structlog.get_logger(__name__)


class KubernetesExecutor(Executor):
    """Jobs in one namespace of one cluster of the site.

    `patience` is how long a job may fail to begin (image, room, volume) before it is given up; `poll` the time between
    two looks.
    """

    def __init__(
        self,
        place: JobPlace,
        sessions: Sessions,
        *,
        plan_digest: str,
        patience: timedelta = timedelta(minutes=5),
        poll: timedelta = timedelta(seconds=1),
    ) -> None:
        self._place = place
        self._sessions = sessions
        self._plan_digest = plan_digest
        self._patience = patience.total_seconds()
        self._poll = poll.total_seconds()

    async def start(self, spec: JobSpec) -> None:
        named(spec.name)
        body = jobs.manifest(spec, self._place, attempt=secrets.token_hex(4), plan_digest=self._plan_digest)
        for attempt in range(STARTS):
            try:
                await self._in(lambda session: self._create(session, spec, body))
            except TemporaryError:
                # Created or not: the name decides, so asking again is safe.
                if attempt == STARTS - 1:
                    raise
                await asyncio.sleep(self._poll * 2**attempt)
            else:
                return

    async def find(self, name: str) -> JobState | None:
        found = await self._look(named(name))
        return None if found is None else await self._told(found)

    async def wait(self, name: str, progress: Progress) -> JobState:
        if await self._patiently(lambda: self._look(named(name)), progress) is None:
            raise UserError(f"There is no job `{name}`. It was never started here, or was forgotten.")
        follower = _Follower(name, progress)
        since: float | None = None
        clock = asyncio.get_running_loop().time
        try:
            while True:
                found = await self._patiently(partial(self._look, name), progress)
                if found is None:
                    return JobState(phase=JobPhase.LOST, error="its Job was deleted while it was waited for")
                if found.speaking and not follower.busy:
                    follower.begin(await self._patiently(partial(self._follow, found.speaking), progress))
                if found.state.phase is not JobPhase.RUNNING:
                    await follower.drained(DRAIN)
                    return await self._patiently(partial(self._told, found), progress)
                if not found.trouble:
                    since = None
                else:
                    since = since if since is not None else clock()
                    progress(ProgressReport(phase=f"waiting: {found.trouble}"))
                    if clock() - since >= self._patience:
                        await self._end(name, found.trouble)
                        continue
                await follower.pause(self._poll)
        finally:
            follower.close()

    async def cancel(self, name: str) -> None:
        await self._end(named(name), CANCELLED)

    async def forget(self, name: str) -> None:
        found = await self._look(named(name))
        if found is None:
            return
        if found.state.phase is JobPhase.RUNNING:
            raise UserError(f"The job `{name}` is running. Cancel it before it is forgotten.")
        await self._in(lambda session: self._delete(session, name))
        await self._until(name, lambda left: left is None, "is still there, though it was deleted")

    async def problems(self) -> Sequence[str]:
        return await self._in(self._examine)

    # ------------------------------------------------------------ in a thread

    def _create(self, session: Session, spec: JobSpec, body: Json) -> None:
        found = session.get(JOBS, self._place.namespace, spec.name)
        if found is None:
            left = [pod for pod in self._pods(session, spec.name) if jobs.alive(pod)]
            if left:
                names = ", ".join(f"`{pod['metadata']['name']}`" for pod in left)
                raise TemporaryError(
                    f"The job `{spec.name}` cannot start while {names} of its last attempt still ends."
                )
            try:
                session.create(JOBS, self._place.namespace, body)
                return
            except StaleError:
                found = session.get(JOBS, self._place.namespace, spec.name)
        if found is None:
            raise TemporaryError(f"The job `{spec.name}` was deleted by others at this moment.")
        if jobs.hash_of(found) != jobs.spec_hash(spec):
            raise UserError(
                f"Namespace `{self._place.namespace}` has a Job `{spec.name}` that was not made for this step. Look at "
                f"it (`kubectl -n {self._place.namespace} get job {spec.name} -o yaml`), remove it, then try again."
            )

    def _pods(self, session: Session, name: str) -> list[Json]:
        return session.list(PODS, self._place.namespace, labels=f"{jobs.LABEL}={name}")

    def _seen(self, session: Session, name: str) -> jobs.Standing | None:
        # Pods first: a Job that ends between the two looks is seen as running once more, never as lost.
        pods = self._pods(session, name)
        job = session.get(JOBS, self._place.namespace, name)
        found = jobs.standing(job, pods, (), self._place)
        if found is not None and found.state.phase is JobPhase.RUNNING and not found.speaking and not found.trouble:
            events = session.list(EVENTS, self._place.namespace)
            return jobs.standing(job, pods, events, self._place)
        return found

    def _suspend(self, session: Session, name: str, why: str) -> None:
        found = session.get(JOBS, self._place.namespace, name)
        if found is None or jobs.CANCELLED in (found["metadata"].get("annotations") or {}):
            return
        # Suspended and not deleted: the cluster ends the pod in order, and the Job stays to tell what became of it.
        patch = {"metadata": {"annotations": {jobs.CANCELLED: why}}, "spec": {"suspend": True}}
        session.patch(JOBS, self._place.namespace, name, patch)

    def _delete(self, session: Session, name: str) -> None:
        found = session.get(JOBS, self._place.namespace, name)
        if found is not None:
            session.delete(JOBS, self._place.namespace, name, uid=found["metadata"]["uid"])

    def _examine(self, session: Session) -> list[str]:
        """What is missing, found by trying: on names that do not exist, or without effect."""
        place, found = self._place, list[str]()
        probe = JobSpec(name="drbot-doctor", kind=JobKind.VERIFY, request={})
        body = jobs.manifest(probe, place, attempt="doctor", plan_digest="")

        def tried(work: Callable[[], Json | str | None]) -> Any:
            try:
                return work()
            except StaleError:  # there is one of that name, so the right to make it is there
                return {}
            except UserError as error:
                found.append(str(error))
                return {"status": {}}

        tried(lambda: session.create(JOBS, place.namespace, body, dry_run=True))
        for verb in ("get", "patch", "delete"):
            tried(partial(session.allowed, verb, JOBS, place.namespace, probe.name))
        for resource in (PODS, EVENTS):
            tried(partial(session.allowed, "list", resource, place.namespace))
        tried(lambda: session.log(place.namespace, probe.name, jobs.CONTAINER, lines=1))
        for claim in place.claims:
            volume = tried(partial(session.get, CLAIMS, place.namespace, claim.name))
            if volume is None:
                found.append(f"There is no PersistentVolumeClaim `{claim.name}` in `{place.namespace}`. Create it.")
            elif volume["status"].get("phase") == "Lost":
                found.append(f"PersistentVolumeClaim `{claim.name}` has lost its volume. Restore or replace it.")
        if tried(partial(session.get, CONFIG_MAPS, place.namespace, place.plan_config_map)) is None:
            found.append(
                f"There is no ConfigMap `{place.plan_config_map}` in `{place.namespace}`: jobs cannot read the plan. "
                f"Create it with `kubectl -n {place.namespace} create configmap {place.plan_config_map} "
                "--from-file=dr-plan.yml`."
            )
        return found

    # ------------------------------------------------------------ inside

    async def _in(self, work: Callable[[Session], T]) -> T:
        return await self._sessions.run(self._place.cluster, work)

    async def _look(self, name: str) -> jobs.Standing | None:
        return await self._in(lambda session: self._seen(session, name))

    async def _follow(self, pod: str) -> LogStream | None:
        return await self._in(
            lambda session: session.follow(self._place.namespace, pod, jobs.CONTAINER, lines=LOG_LINES)
        )

    async def _told(self, found: jobs.Standing) -> JobState:
        """The state, with what only the log has: a large result, or the last line of a job that ended without one."""
        lost = found.state.phase is JobPhase.LOST and found.speaking
        if not lost and (found.ending is None or not found.ending.result_sha256):
            return found.state
        text = await self._in(
            lambda session: session.log(
                self._place.namespace, found.speaking, jobs.CONTAINER, lines=LOG_LINES, limit=RESULT_BYTES
            )
        )
        lines = (text or "").splitlines()
        if found.ending is not None:
            return found.ending.completed(lines)
        said = next((line for line in reversed(lines) if line.strip() and not _report(line)), "")
        error = f"{found.state.error}: {said[:LINE_KEPT]}" if said else found.state.error
        return found.state.model_copy(update={"error": error})

    async def _patiently(self, ask: Callable[[], Awaitable[T]], progress: Progress) -> T:
        """Ask until the API server answers: the job goes on without it, and so does the wait for it."""
        while True:
            try:
                return await ask()
            except TemporaryError as error:
                log.warning("cluster_away", cluster=self._place.cluster, error=str(error))
                progress(ProgressReport(phase=f"cluster `{self._place.cluster}` does not answer; the job goes on"))
                await asyncio.sleep(max(self._poll, 0.2))

    async def _end(self, name: str, why: str) -> None:
        found = await self._look(name)
        if found is None:
            return
        if found.state.phase is JobPhase.RUNNING:
            await self._in(lambda session: self._suspend(session, name, why))
        await self._until(name, lambda left: left is None or not left.left, "has not ended, though it was told to")

    async def _until(self, name: str, done: Callable[[jobs.Standing | None], bool], what: str) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + GONE.total_seconds()
        while not done(found := await self._look(name)):
            if loop.time() >= end:
                left = ", ".join(found.left) if found is not None and found.left else f"Job `{name}`"
                raise TemporaryError(
                    f"{left} {what}: perhaps its node cannot be reached, and it may still run there. Look at the node; "
                    "nothing was started in its place."
                )
            await asyncio.sleep(min(self._poll, 0.5))


class _Follower:
    """Reads a log in a thread of its own, since it may last for hours, and hands its lines on in the event loop."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._name = name
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._stream: LogStream | None = None
        self._over = asyncio.Event()
        self._recent: deque[bytes] = deque(maxlen=LOG_LINES)
        self.busy = False

    def begin(self, stream: LogStream | None) -> None:
        if stream is None:
            return
        self._stream, self.busy = stream, True
        self._over.clear()
        threading.Thread(target=self._read, args=(stream,), daemon=True, name="job-log").start()

    async def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the log: then there is something to look at."""
        if not self.busy:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()

    async def drained(self, seconds: float) -> None:
        if self.busy:
            await self.pause(seconds)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _read(self, stream: LogStream) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            try:
                for line in stream:
                    self._loop.call_soon_threadsafe(self._take, line)
            except TemporaryError as error:
                log.info("job_log_broken_off", job=self._name, error=str(error))
            finally:
                self._loop.call_soon_threadsafe(self._ended)

    def _take(self, line: bytes) -> None:
        if line in self._recent:
            return  # a log that is followed again begins with what was handed on already
        self._recent.append(line)
        text = line.decode("utf-8", errors="replace")
        report = _report(text)
        if report is not None:
            self._progress(report)
        elif text.strip() and not text.startswith(RESULT_LINE):
            log.info("job_says", job=self._name, line=text[:LINE_KEPT])

    def _ended(self) -> None:
        self._stream, self.busy = None, False
        self._over.set()


def _report(line: str) -> ProgressReport | None:
    try:
        return ProgressReport.model_validate_json(line)
    except ValidationError:
        return None
