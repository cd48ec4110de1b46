"""One heavy step as a Kubernetes Job: what is created, and how it stands by what the API server shows. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from pydantic import ValidationError

from actions.backup.jobs import Ending
from actions.ports import JobKind, JobPhase, JobSpec, JobState
from actions.site import JobPlace

Json = dict[str, Any]

CONTAINER = "job"
LABEL = "dr.superprismora.com/job"
HASH = "dr.superprismora.com/spec-sha256"
SPEC = "dr.superprismora.com/spec"
CANCELLED = "dr.superprismora.com/cancelled"

USER = 10001  # of the image
DATA, PLAN, ORDER, SCRATCH = "/var/lib/drbot", "/etc/drbot", "/run/drbot/order", "/tmp"  # noqa: S108 - of the pod
TERMINATION = "/dev/termination-log"
MARGIN = timedelta(minutes=5)  # the job ends itself at its limit, in order; the cluster does it by force after this
GRACE = timedelta(seconds=30)  # to end in order: abort uploads, remove scratch

IMAGE_TROUBLE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
CONTAINER_TROUBLE = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff")
EVENTS_OF_TROUBLE = ("FailedMount", "FailedAttachVolume", "FailedCreate", "FailedCreatePodSandBox")


def spec_hash(spec: JobSpec) -> str:
    return hashlib.sha256(spec.model_dump_json().encode()).hexdigest()


def hash_of(job: Json) -> str:
    """What the Job was made for; empty for somebody else's."""
    return _annotations(job).get(HASH, "")


def manifest(spec: JobSpec, place: JobPlace, *, attempt: str, plan_digest: str) -> Json:
    """The Job. `attempt` tells two Jobs of one name apart, one after the other, in the folder they leave."""
    # Restore tests by themselves, so that a network policy can keep them from production.
    component = "prover" if spec.kind is JobKind.PROVE else "job"
    labels = {"app.kubernetes.io/name": "drbot", "app.kubernetes.io/component": component, LABEL: spec.name}
    text = spec.model_dump_json()
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": spec.name,
            "namespace": place.namespace,
            "labels": labels,
            "annotations": {HASH: spec_hash(spec)},
        },
        "spec": {
            "backoffLimit": 0,  # a failed step is people's to repeat, and the bot's to look at first
            "completions": 1,
            "parallelism": 1,
            "podReplacementPolicy": "Failed",
            "activeDeadlineSeconds": int((spec.timeout + MARGIN).total_seconds()),
            "ttlSecondsAfterFinished": int(place.keep_finished.total_seconds()),
            "template": {
                "metadata": {"labels": labels, "annotations": {SPEC: text}},
                "spec": _pod(spec, place, attempt, plan_digest),
            },
        },
    }


def _pod(spec: JobSpec, place: JobPlace, attempt: str, plan_digest: str) -> Json:
    # Where nothing is given to restore tests by name, they get what other restores into scratch get.
    own = any(JobKind.PROVE.value in secret.kinds for secret in place.secrets)
    kind = JobKind.SCRATCH if spec.kind is JobKind.PROVE and not own else spec.kind
    secrets = [secret for secret in place.secrets if not secret.kinds or kind.value in secret.kinds]
    volumes, mounts = _volumes(place, [(one.name, one.path) for one in secrets if one.path])
    limits = {"cpu": place.cpu, "memory": place.memory, "ephemeral-storage": place.ephemeral_storage}
    variables = {
        "DRBOT_DATA_DIRECTORY": DATA,
        "DRBOT_PLAN_FILE": f"{PLAN}/dr-plan.yml",
        "DRBOT_PLAN_DIGEST": plan_digest,
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
    }
    container: Json = {
        "name": CONTAINER,
        "image": place.image,
        "args": [
            *("job", f"{ORDER}/spec.json", "--folder", f"{DATA}/jobs/{spec.name}-{attempt}"),
            *("--message", TERMINATION),
        ],
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "envFrom": [{"secretRef": {"name": one.name}} for one in secrets if not one.path],
        "resources": {"requests": limits, "limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": TERMINATION,
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }
    name = (place.prover_service_account if spec.kind is JobKind.PROVE else "") or place.service_account
    account = {"serviceAccountName": name} if name else {}
    return {
        **account,
        "automountServiceAccountToken": bool(name),
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": int(GRACE.total_seconds()),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }


def _volumes(place: JobPlace, secrets: Iterable[tuple[str, str]]) -> tuple[list[Json], list[Json]]:
    order = {"items": [{"path": "spec.json", "fieldRef": {"fieldPath": f"metadata.annotations['{SPEC}']"}}]}
    sources: list[tuple[str, Json, bool]] = [
        (ORDER, {"downwardAPI": order}, True),
        (PLAN, {"configMap": {"name": place.plan_config_map}}, True),
        (SCRATCH, {"emptyDir": {"sizeLimit": place.ephemeral_storage}}, False),
    ]
    sources += [(one.path, {"persistentVolumeClaim": {"claimName": one.name}}, False) for one in place.claims]
    if not any(one.path == DATA or DATA.startswith(f"{one.path}/") for one in place.claims):
        sources.append((DATA, {"emptyDir": {"sizeLimit": place.ephemeral_storage}}, False))
    sources += [(path, {"secret": {"secretName": name, "defaultMode": 0o440}}, True) for name, path in secrets]
    volumes = [{"name": f"v{number}", **source} for number, (_, source, _) in enumerate(sources)]
    mounts = [
        {"name": f"v{number}", "mountPath": path} | ({"readOnly": True} if fixed else {})
        for number, (path, _, fixed) in enumerate(sources)
    ]
    return volumes, mounts


# ---------------------------------------------------------------- how it stands


class Standing(NamedTuple):
    """A Job by what the API server shows now."""

    state: JobState
    ending: Ending | None = None  # its own last words
    speaking: str = ""  # the pod whose log can be read
    trouble: str = ""  # why it does not begin; it may still, when somebody repairs it
    left: tuple[str, ...] = ()  # pods that have not ended


def standing(job: Json | None, pods: Sequence[Json], events: Sequence[Json], place: JobPlace) -> Standing | None:
    """None when there is neither a Job nor anything left of one."""
    left = tuple(_shown(pod) for pod in pods if alive(pod))
    speaking = next((_name(pod) for pod in pods if _state(pod).keys() & {"running", "terminated"}), "")
    if job is None:
        if not left:
            return None
        return Standing(_lost(f"its Job was deleted; {', '.join(left)} still ends"), speaking=speaking, left=left)
    for pod in pods:
        ending = _ending(pod)
        if ending is not None:
            return Standing(ending.state, ending, _name(pod), left=left)
    running = JobState(phase=JobPhase.RUNNING)
    if cancelled := _annotations(job).get(CANCELLED):
        return Standing(running if left else _lost(cancelled), speaking=speaking, left=left)
    over = {one["type"]: one for one in (job.get("status") or {}).get("conditions") or [] if one["status"] == "True"}
    if "Complete" in over and not left:
        return Standing(JobState(phase=JobPhase.SUCCEEDED), left=left)
    ended = "Failed" in over or "deletionTimestamp" in job["metadata"] or any(_over(pod) for pod in pods)
    if ended and not left:
        return Standing(_lost(_why(over.get("Failed") or {}, pods, place)), speaking=speaking)
    return Standing(running, speaking=speaking, trouble=_trouble(job, pods, events, place), left=left)


def alive(pod: Json) -> bool:
    """Whether something of the pod may still run."""
    return (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")


def _lost(error: str) -> JobState:
    return JobState(phase=JobPhase.LOST, error=error)


def _ending(pod: Json) -> Ending | None:
    text = (_state(pod).get("terminated") or {}).get("message")
    try:
        return Ending.model_validate_json(text) if text else None
    except ValidationError:
        return None  # somebody else's words, such as those of a container runtime


def _why(failed: Json, pods: Sequence[Json], place: JobPlace) -> str:
    if failed.get("reason") == "DeadlineExceeded":
        return "it was ended after its time limit"
    for pod in pods:
        status, ended = pod.get("status") or {}, _state(pod).get("terminated") or {}
        if status.get("reason") == "Evicted":
            return (
                f"its pod was evicted ({status.get('message', 'no reason given')}): free the node, or ask for more "
                "under `jobs` in the plan file"
            )
        if ended.get("reason") == "OOMKilled":
            return f"it ran out of memory (OOMKilled, limit {place.memory}): raise `jobs.memory` in the plan file"
        if ended:
            return f"its process ended with code {ended.get('exitCode')} and without a result"
    return "its pod was deleted, or its node is gone"


def _trouble(job: Json, pods: Sequence[Json], events: Sequence[Json], place: JobPlace) -> str:
    for pod in pods:
        if alive(pod) and "deletionTimestamp" in pod["metadata"]:
            return f"{_shown(pod)} was told to end and does not: look whether its node answers"
        waiting = _state(pod).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        said = f"{reason}: {message}" if message else reason
        if reason in IMAGE_TROUBLE:
            return (
                f"the image `{place.image}` cannot be pulled ({said}): correct `jobs.image` in the plan file, or give "
                f"namespace `{place.namespace}` the right to pull it"
            )
        if reason in CONTAINER_TROUBLE:
            return f"its container cannot start ({said}): provide what is missing in namespace `{place.namespace}`"
        for condition in (pod.get("status") or {}).get("conditions") or []:
            if condition.get("reason") == "Unschedulable":
                return (
                    f"no node takes its pod (Unschedulable: {condition.get('message', '')}): add room to the cluster, "
                    "or ask for less under `jobs` in the plan file"
                )
    started = any(_state(pod).keys() & {"running", "terminated"} for pod in pods)
    uids = {job["metadata"]["uid"], *(pod["metadata"]["uid"] for pod in pods)}
    for event in reversed(events):
        if (event.get("involvedObject") or {}).get("uid") in uids and event.get("reason") in EVENTS_OF_TROUBLE:
            return "" if started else f"its pod cannot be made ready ({event['reason']}: {event.get('message', '')})"
    return ""


def _over(pod: Json) -> bool:
    return not alive(pod)


def _state(pod: Json) -> Json:
    for found in (pod.get("status") or {}).get("containerStatuses") or []:
        if found["name"] == CONTAINER:
            state: Json = found.get("state") or {}
            return state
    return {}


def _name(pod: Json) -> str:
    return str(pod["metadata"]["name"])


def _shown(pod: Json) -> str:
    node = (pod.get("spec") or {}).get("nodeName")
    return f"pod `{_name(pod)}`{f' on node `{node}`' if node else ''}"


def _annotations(found: Json) -> dict[str, str]:
    return found["metadata"].get("annotations") or {}
