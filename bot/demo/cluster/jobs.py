"""Jobs, and CronJobs that make them."""

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.triggers.cron import CronTrigger

from bot.demo.cluster import kinds as k
from bot.demo.cluster.answers import RefusedError
from bot.demo.cluster.objects import Objects, timestamp
from bot.demo.cluster.workloads import active, make_pod, owner_reference, set_status, with_condition

Json = dict[str, Any]


class Jobs:
    """Runs pods until enough have succeeded, or too many failed, or the time is over."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._seen: dict[str, dict[str, bool]] = {}  # Job -> its pods, and whether each has ended

    def reconcile(self) -> None:
        jobs = self._objects.all(k.JOB)
        there = {found["metadata"]["uid"] for found in jobs}
        self._seen = {uid: pods for uid, pods in self._seen.items() if uid in there}
        for found in jobs:
            with contextlib.suppress(RefusedError):  # its namespace is going
                self._one(found)

    def _one(self, found: Json) -> None:
        spec, status = found["spec"], dict(found.get("status") or {})
        pods = self._objects.owned(k.POD, found)
        running = active(pods)
        succeeded = sum(pod["status"].get("phase") == "Succeeded" for pod in pods)
        failed = sum(pod["status"].get("phase") == "Failed" for pod in pods) + self._vanished(found, pods)
        over = bool(status.get("conditions"))
        if over:
            self._expire(found, status)
        else:
            status.setdefault("startTime", timestamp())
            outcome = self._outcome(spec, status, succeeded, failed)
            if outcome is not None:
                name, reason, message = outcome
                status["conditions"] = with_condition([], name, met=True, reason=reason, message=message)
                if name == "Complete":
                    status["completionTime"] = timestamp()
                self._end(running)
            elif spec["suspend"]:
                self._end(running)
            else:
                missing = min(spec["parallelism"], spec["completions"] - succeeded) - len(running)
                for _ in range(missing):
                    make_pod(self._objects, k.JOB, found, spec["template"])
        status |= {"active": len(active(self._objects.owned(k.POD, found)))}
        if not over:  # pods may be cleared away afterwards; what was counted stays
            status |= {"succeeded": succeeded, "failed": failed}
        set_status(self._objects, k.JOB, found, status)

    def _vanished(self, found: Json, pods: list[Json]) -> int:
        """Pods that are gone without having ended: they count as failed, unless the Job itself was suspended."""
        uid = found["metadata"]["uid"]
        seen = self._seen.setdefault(uid, {})
        there = {pod["metadata"]["uid"] for pod in pods}
        if found["spec"]["suspend"]:
            seen.clear()
        for pod in pods:
            ended = pod["status"].get("phase") in ("Succeeded", "Failed")
            seen[pod["metadata"]["uid"]] = ended
        return sum(not ended for pod, ended in seen.items() if pod not in there)

    def _outcome(self, spec: Json, status: Json, succeeded: int, failed: int) -> tuple[str, str, str] | None:
        if succeeded >= spec["completions"]:
            return "Complete", "CompletionsReached", "Reached expected number of succeeded pods"
        if failed > spec["backoffLimit"]:
            return "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        limit = spec.get("activeDeadlineSeconds")
        if limit is not None and _since(status["startTime"]) > limit:
            return "Failed", "DeadlineExceeded", "Job was active longer than specified deadline"
        return None

    def _expire(self, found: Json, status: Json) -> None:
        kept = found["spec"].get("ttlSecondsAfterFinished")
        if kept is not None and _since(status["conditions"][0]["lastTransitionTime"]) > kept:
            self._objects.delete(k.JOB, found["metadata"]["namespace"], found["metadata"]["name"])

    def _end(self, pods: list[Json]) -> None:
        for pod in pods:
            self._objects.delete(k.POD, pod["metadata"]["namespace"], pod["metadata"]["name"])


class CronJobs:
    """Makes a Job at each time of the schedule (UTC) unless suspended. Missed times are not caught up."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._next: dict[str, tuple[str, datetime | None]] = {}  # uid -> schedule, its next time

    def reconcile(self) -> None:
        for found in self._objects.all(k.CRON_JOB):
            with contextlib.suppress(RefusedError):  # its namespace is going
                self._one(found)

    def _one(self, found: Json) -> None:
        spec, uid = found["spec"], found["metadata"]["uid"]
        jobs = self._objects.owned(k.JOB, found)
        running = [job for job in jobs if not (job.get("status") or {}).get("conditions")]
        schedule, due = self._next.get(uid, ("", None))
        now = datetime.now(UTC)
        status = dict(found.get("status") or {})
        if schedule != spec["schedule"]:
            due = None
        elif due is not None and due <= now and not spec["suspend"]:
            if not (running and spec["concurrencyPolicy"] == "Forbid"):
                running.append(self._start(found, due))
            status["lastScheduleTime"] = due.strftime("%Y-%m-%dT%H:%M:%SZ")
        if due is None or due <= now:
            trigger = CronTrigger.from_crontab(spec["schedule"], timezone=UTC)
            self._next[uid] = (spec["schedule"], trigger.get_next_fire_time(None, now + timedelta(seconds=1)))
        status["active"] = [
            {"kind": "Job", "apiVersion": "batch/v1", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
            for job in running
        ]
        set_status(self._objects, k.CRON_JOB, found, status)

    def _start(self, found: Json, due: datetime) -> Json:
        template = found["spec"]["jobTemplate"]
        name = f"{found['metadata']['name']}-{int(due.timestamp()) // 60}"
        body = {
            "metadata": {
                "name": name,
                "labels": dict((template.get("metadata") or {}).get("labels") or {}),
                "ownerReferences": [owner_reference(k.CRON_JOB, found)],
            },
            "spec": template["spec"],
        }
        return self._objects.create(k.JOB, found["metadata"]["namespace"], body, manager="controller")


def _since(text: str) -> float:
    then = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return (datetime.now(UTC) - then).total_seconds()
