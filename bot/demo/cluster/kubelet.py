"""Runs the pods. One with the annotation `demo.superprismora.com/command`, or of an image the stand-in has, is a real
process; others are simulated.

Annotations of the pod template:
- `demo.superprismora.com/command`: argv as a JSON list, for the first container. `{port}` stands for a free port.
- `demo.superprismora.com/ready-url`: ready once this answers 2xx; without it, ready soon after the start.
The process finds its port in `PORT`; the pod shows it in the annotation `demo.superprismora.com/port`. An image whose
tag is `broken` cannot be pulled. Nothing is isolated: processes see the machine as the stand-in does.
"""

import asyncio
import contextlib
import signal
import socket
import time
from pathlib import Path
from typing import Any

import aiohttp

from actions.adapters.programs import Account, Program, ProgramError
from bot.demo.cluster import kinds as k
from bot.demo.cluster.answers import RefusedError
from bot.demo.cluster.containers import (
    FAILED_MOUNT,
    Images,
    UnmountableError,
    cleared,
    is_real,
    last_words,
    prepared,
    unscheduled,
)
from bot.demo.cluster.environment import Lookup, MissingSourceError
from bot.demo.cluster.objects import Objects, timestamp
from bot.demo.cluster.workloads import set_status, tell, with_condition

Json = dict[str, Any]

READY_URL = "demo.superprismora.com/ready-url"
PORT = "demo.superprismora.com/port"

NODE_MEMORY = 64 << 30  # bytes of the one node
SETTLE = 0.2  # seconds until a start counts as one
BACKOFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before a crashed container is started again
PROBE_PERIOD = 1.0  # seconds between looks at a pod that is ready, as short as a real one's can be
PROBE_LIMIT = aiohttp.ClientTimeout(total=1.0)


class Runtime:
    """What the kubelet knows of one pod beyond its object."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.program: Program | None = None
        self.port = 0
        self.begun = time.monotonic()
        self.restarts = 0
        self.again_at: float | None = None  # when the next start is due
        self.waiting: Json = {"reason": "ContainerCreating"}
        self.ended: Json | None = None  # how the process last ended
        self.over = False  # it will not be started again
        self.ready = False
        self.probed_at = 0.0
        self.kill_at: float | None = None  # end of the grace period
        self.message: Path | None = None  # where the container leaves its last words
        self.struck = ""  # why it was killed on order


class Kubelet:
    """Brings what runs in line with the pods that should. `directory` takes logs and working directories."""

    def __init__(
        self, objects: Objects, directory: Path, *, account: Account | None = None, images: Images | None = None
    ) -> None:
        self._objects = objects
        self._directory = directory
        self._account = account
        self._images = images or {}
        self._running: dict[str, Runtime] = {}
        self._http: aiohttp.ClientSession | None = None

    async def tick(self) -> None:
        pods = {pod["metadata"]["uid"]: pod for pod in self._objects.all(k.POD)}
        for uid in self._running.keys() - pods.keys():  # deleted by force
            self._kill(self._running.pop(uid))
        for uid, pod in pods.items():
            runtime = self._running.get(uid)
            if runtime is None:
                runtime = self._running[uid] = Runtime(self._log_path(uid))
            with contextlib.suppress(RefusedError):  # its namespace is going
                if "deletionTimestamp" in pod["metadata"]:
                    self._end(pod, runtime)
                else:
                    self._keep(pod, runtime)
        await asyncio.gather(
            *(self._probe(pods[uid], runtime) for uid, runtime in self._running.items() if uid in pods)
        )
        for uid, runtime in self._running.items():
            if uid in pods and "deletionTimestamp" not in pods[uid]["metadata"]:
                self._report(pods[uid], runtime)

    async def close(self) -> None:
        """End every process: asked first, forced after a second."""
        programs = [runtime.program for runtime in self._running.values() if runtime.program]
        for program in programs:
            program.send(signal.SIGTERM)
        for _ in range(50):
            if all(program.code() is not None for program in programs):
                break
            await asyncio.sleep(0.02)
        for runtime in self._running.values():
            self._kill(runtime)
        self._running.clear()
        if self._http is not None:
            await self._http.close()

    def log_of(self, pod: Json, container: str) -> Path | None:
        """Where a container writes; None while it has not started."""
        runtime = self._running.get(pod["metadata"]["uid"])
        first = pod["spec"]["containers"][0]["name"]
        if runtime is None or (runtime.program is None and runtime.ended is None and runtime.waiting):
            return None
        return runtime.log if container == first else runtime.log.with_suffix(".none")

    def strike(self, pod: Json, reason: str) -> None:
        """Kill what runs in the pod as the kernel (`OOMKilled`) or the kubelet (`Evicted`) would."""
        runtime = self._running.get(pod["metadata"]["uid"])
        if runtime is None or runtime.program is None:
            raise RefusedError(409, f"nothing runs in pod {pod['metadata']['name']}")
        runtime.struck = reason
        runtime.program.kill()

    # ------------------------------------------------------------ inside

    def _log_path(self, uid: str) -> Path:
        logs = self._directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        return logs / f"{uid}.log"

    def _kill(self, runtime: Runtime) -> None:
        if runtime.program is not None:
            runtime.program.kill()
            runtime.program = None

    def _end(self, pod: Json, runtime: Runtime) -> None:
        now = time.monotonic()
        if runtime.program is not None and runtime.program.code() is None:
            if runtime.kill_at is None:
                runtime.kill_at = now + pod["metadata"]["deletionGracePeriodSeconds"]
                runtime.program.send(signal.SIGTERM)
            if now < runtime.kill_at:
                return
        self._kill(runtime)
        self._running.pop(pod["metadata"]["uid"], None)
        cleared(self._directory, pod)
        self._objects.finish(pod)

    def _keep(self, pod: Json, runtime: Runtime) -> None:
        if runtime.over:
            return
        if runtime.program is not None:
            code = runtime.program.code()
            if code is not None:
                self._ended(pod, runtime, code)
            return
        if why := unscheduled(pod, self._lookup(pod), memory=NODE_MEMORY):
            runtime.waiting = {"reason": "Unschedulable", "message": why}
            return
        if not is_real(pod, self._images) or runtime.again_at is not None:
            if runtime.again_at is not None and time.monotonic() >= runtime.again_at:
                runtime.again_at = None
                self._start(pod, runtime)
            elif runtime.again_at is None:
                self._simulate(pod, runtime)
            return
        self._start(pod, runtime)

    def _unpulled(self, pod: Json, runtime: Runtime) -> bool:
        image = next((one["image"] for one in pod["spec"]["containers"] if one["image"].endswith(":broken")), None)
        if image is None:
            return False
        message = f'Failed to pull image "{image}": not found'
        if runtime.waiting.get("reason") == "ContainerCreating":
            tell(self._objects, k.POD, pod, reason="Failed", message=message, warning=True)
        late = time.monotonic() - runtime.begun > 1.0  # then the real one waits between its attempts
        runtime.waiting = {"reason": "ImagePullBackOff" if late else "ErrImagePull", "message": message}
        return True

    def _simulate(self, pod: Json, runtime: Runtime) -> None:
        if not self._unpulled(pod, runtime) and time.monotonic() - runtime.begun >= SETTLE:
            runtime.waiting, runtime.ready = {}, True

    def _start(self, pod: Json, runtime: Runtime) -> None:
        if self._unpulled(pod, runtime):
            return
        metadata = pod["metadata"]
        home = self._directory / "pods" / metadata["name"]
        runtime.port = runtime.port or _free_port()
        try:
            made = prepared(pod, self._directory, self._images, self._lookup(pod), port=runtime.port)
            runtime.message = made.message
            own = {"PORT": str(runtime.port), "HOSTNAME": metadata["name"], "POD_NAMESPACE": metadata["namespace"]}
            if self._account is not None:
                home.chmod(0o777)  # the account's own directory, seen by nobody else
            runtime.program = Program.start(
                made.argv, env=made.env | own, secrets=made.secrets, cwd=home, log=runtime.log, account=self._account
            )
        except UnmountableError as error:
            if runtime.waiting.get("message") != str(error):
                tell(self._objects, k.POD, pod, reason=FAILED_MOUNT, message=str(error), warning=True)
            runtime.waiting = {"reason": "ContainerCreating", "message": str(error)}
            return
        except MissingSourceError as error:
            runtime.waiting = {"reason": "CreateContainerConfigError", "message": str(error)}
            return
        except (ProgramError, ValueError) as error:
            runtime.waiting = {"reason": "RunContainerError", "message": str(error)}
            runtime.again_at = time.monotonic() + BACKOFF[0]
            return
        runtime.begun, runtime.waiting, runtime.ready = time.monotonic(), {}, False
        self._show_port(pod, runtime)

    def _lookup(self, pod: Json) -> Lookup:
        kinds = {"Secret": k.SECRET, "ConfigMap": k.CONFIG_MAP, "PersistentVolumeClaim": k.CLAIM}
        return lambda kind, name: self._objects.find(kinds[kind], pod["metadata"]["namespace"], name)

    def _show_port(self, pod: Json, runtime: Runtime) -> None:
        def change(fresh: Json) -> None:
            fresh["metadata"].setdefault("annotations", {})[PORT] = str(runtime.port)

        self._objects.edit(k.POD, pod, change, manager="kubelet")

    def _ended(self, pod: Json, runtime: Runtime, code: int) -> None:
        self._kill(runtime)  # and what it left in its group
        runtime.ready = False
        code = 128 - code if code < 0 else code  # a signal, as a container runtime shows it
        reason = "Completed" if code == 0 else "Error"
        reason = "OOMKilled" if runtime.struck == "OOMKilled" else reason
        runtime.ended = {"exitCode": code, "reason": reason, "finishedAt": timestamp()}
        if runtime.message is not None and (said := last_words(runtime.message)):
            runtime.ended["message"] = said
        policy = pod["spec"]["restartPolicy"]
        if policy == "Never" or (policy == "OnFailure" and code == 0):
            runtime.over = True
            return
        pause = BACKOFF[min(runtime.restarts, len(BACKOFF) - 1)]
        runtime.restarts += 1
        runtime.again_at = time.monotonic() + pause
        message = f"back-off {pause:g}s restarting failed container"
        runtime.waiting = {"reason": "CrashLoopBackOff", "message": message}
        tell(self._objects, k.POD, pod, reason="BackOff", message=message, warning=True)

    async def _probe(self, pod: Json, runtime: Runtime) -> None:
        if runtime.program is None or "deletionTimestamp" in pod["metadata"]:
            return
        url = (pod["metadata"].get("annotations") or {}).get(READY_URL)
        if url is None:
            runtime.ready = time.monotonic() - runtime.begun >= SETTLE
            return
        if runtime.ready and time.monotonic() - runtime.probed_at < PROBE_PERIOD:
            return
        runtime.probed_at = time.monotonic()
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=PROBE_LIMIT)
        try:
            async with self._http.get(url.replace("{port}", str(runtime.port))) as answer:
                runtime.ready = answer.ok
        except (aiohttp.ClientError, TimeoutError):
            runtime.ready = False

    def _report(self, pod: Json, runtime: Runtime) -> None:
        status = dict(pod.get("status") or {})
        status["phase"] = _phase(runtime)
        if runtime.struck == "Evicted":
            status |= {"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."}
        status |= {"podIP": "127.0.0.1", "hostIP": "127.0.0.1"}
        status.setdefault("startTime", timestamp())
        status["containerStatuses"] = [
            _container_status(one, runtime, first=number == 0) for number, one in enumerate(pod["spec"]["containers"])
        ]
        if runtime.waiting.get("reason") == "Unschedulable":
            status["containerStatuses"] = []  # no node has seen it yet
        conditions = status.get("conditions") or []
        why = runtime.waiting.get("message", "") if runtime.waiting.get("reason") == "Unschedulable" else ""
        reason = "Unschedulable" if why else ""
        for name in ("PodScheduled", "Initialized"):
            conditions = with_condition(conditions, name, met=not why, reason=reason, message=why)
        for name in ("ContainersReady", "Ready"):
            reason = "" if runtime.ready else "ContainersNotReady"
            conditions = with_condition(conditions, name, met=runtime.ready, reason=reason)
        status["conditions"] = conditions
        with contextlib.suppress(RefusedError):  # its namespace is going
            set_status(self._objects, k.POD, pod, status)


def _phase(runtime: Runtime) -> str:
    if runtime.over and runtime.ended:
        return "Succeeded" if runtime.ended["exitCode"] == 0 else "Failed"
    return "Pending" if runtime.waiting and runtime.ended is None else "Running"


def _container_status(container: Json, runtime: Runtime, *, first: bool) -> Json:
    broken = container["image"].endswith(":broken")
    state: Json = {"running": {}}
    if runtime.over:
        state = {"terminated": runtime.ended if first else {"exitCode": 0, "reason": "Completed"}}
    elif runtime.waiting and (first or broken or runtime.ended is None):
        # Only the container with the bad image is to blame; its neighbours merely wait.
        blamed = broken or (first and "ImagePull" not in runtime.waiting["reason"])
        state = {"waiting": runtime.waiting if blamed else {"reason": "ContainerCreating"}}
    found: Json = {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "ready": runtime.ready,
        "started": "running" in state,
        "restartCount": runtime.restarts if first else 0,
        "state": state,
        "lastState": {"terminated": runtime.ended} if first and runtime.ended and not runtime.over else {},
    }
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
