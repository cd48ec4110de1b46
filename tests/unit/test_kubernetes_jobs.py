"""How a Job stands, from objects as real API servers show them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from actions.adapters.kubernetes_jobs import manifest, spec_hash, standing
from actions.backup.jobs import MESSAGE_BYTES, Ending, digest_of
from actions.ports import JobKind, JobPhase, JobSpec, JobState
from actions.site import JobClaim, JobPlace, JobSecret

Json = dict[str, Any]
SPEC = JobSpec(name="job-1", kind=JobKind.LOAD, request={"backup": "b1"}, timeout=timedelta(hours=1))
PLACE = JobPlace(cluster="main", namespace="dr", image="image:1", plan_config_map="drbot-plan", memory="3Gi")


def job(*conditions: Json, **metadata: Any) -> Json:
    body = manifest(SPEC, PLACE, attempt="a1", plan_digest="d1")
    body["metadata"] |= {"uid": "u1", **metadata}
    return body | {"status": {"conditions": [{"status": "True", **condition} for condition in conditions]}}


def pod(phase: str = "Running", state: Json | None = None, **status: Any) -> Json:
    containers = [] if state is None else [{"name": "job", "state": state}]
    return {
        "metadata": {"name": "job-1-x", "uid": "p1"},
        "spec": {"nodeName": "node-7"},
        "status": {"phase": phase, "containerStatuses": containers, **status},
    }


def test_nothing_is_nothing() -> None:
    assert standing(None, [], [], PLACE) is None


def test_pod_that_does_not_end_on_its_node_is_named_and_keeps_the_job_running() -> None:
    stuck = pod(state={"running": {}})
    stuck["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    found = standing(job({"type": "Failed", "reason": "DeadlineExceeded"}), [stuck], [], PLACE)
    assert found is not None
    assert found.state.phase is JobPhase.RUNNING
    assert found.left == ("pod `job-1-x` on node `node-7`",)
    assert found.trouble == "pod `job-1-x` on node `node-7` was told to end and does not: look whether its node answers"


def test_eviction_before_the_container_began_is_named() -> None:
    evicted = pod("Failed", reason="Evicted", message="The node had condition: [DiskPressure].")
    found = standing(job(), [evicted], [], PLACE)
    assert found is not None
    assert found.state.phase is JobPhase.LOST
    assert "[DiskPressure]" in found.state.error


def test_words_of_others_in_the_termination_message_are_no_result() -> None:
    state = {"terminated": {"exitCode": 128, "reason": "StartError", "message": "failed to create containerd task"}}
    found = standing(job(), [pod("Failed", state)], [], PLACE)
    assert found is not None
    assert found.state == JobState(phase=JobPhase.LOST, error="its process ended with code 128 and without a result")


def test_own_words_count_more_than_how_the_cluster_saw_it() -> None:
    ending = Ending.of(JobState(phase=JobPhase.SUCCEEDED, result={"a": 1}))
    state = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": ending.model_dump_json()}}
    found = standing(job({"type": "Failed", "reason": "BackoffLimitExceeded"}), [pod("Failed", state)], [], PLACE)
    assert found is not None
    assert found.state == JobState(phase=JobPhase.SUCCEEDED, result={"a": 1})


def test_event_of_another_object_is_not_told() -> None:
    events = [
        {"reason": "FailedMount", "message": "mine", "involvedObject": {"uid": "p1"}},
        {"reason": "FailedMount", "message": "somebody else's", "involvedObject": {"uid": "p2"}},
    ]
    found = standing(job(), [pod("Pending", {"waiting": {"reason": "ContainerCreating"}})], events, PLACE)
    assert found is not None
    assert found.trouble == "its pod cannot be made ready (FailedMount: mine)"


def test_quota_that_lets_no_pod_be_made_is_told() -> None:
    events = [{"reason": "FailedCreate", "message": "exceeded quota", "involvedObject": {"uid": "u1"}}]
    found = standing(job(), [], events, PLACE)
    assert found is not None
    assert (found.state.phase, "exceeded quota" in found.trouble) == (JobPhase.RUNNING, True)


def test_ending_fits_a_termination_message_whatever_it_says() -> None:
    for state in (
        JobState(phase=JobPhase.SUCCEEDED, result={"rows": ["x" * 10] * 1000}),
        JobState(phase=JobPhase.FAILED, error='ä€𝄞\n"' * 5000, error_kind="UserError"),
    ):
        ending = Ending.of(state)
        text = ending.model_dump_json()
        assert len(text.encode()) <= MESSAGE_BYTES
        assert (ending.state.phase, ending.state.error_kind) == (state.phase, state.error_kind)


def test_result_is_taken_from_the_log_only_when_its_hash_fits() -> None:
    result = {"rows": ["x" * 10] * 1000}
    ending = Ending.of(JobState(phase=JobPhase.SUCCEEDED, result=result))
    line = JobState(phase=JobPhase.SUCCEEDED, result=result).model_dump_json().replace('"phase":"succeeded",', "")
    good = '{"result": ' + line.removeprefix('{"result":').split(',"error"')[0] + "}"
    assert ending.completed(["noise", good]).result == result
    for bad in ('{"result": {"rows": []}}', '{"result": 3}', '{"result": ', "[]"):
        assert ending.completed([bad]).result is None
    assert ending.result_sha256 == digest_of(result)


def test_place_and_spec_shape_the_pod() -> None:
    place = PLACE.model_copy(
        update={
            "claims": (JobClaim(name="data", path="/var/lib/drbot"),),
            "secrets": (
                JobSecret(name="all"),
                JobSecret(name="dumps", kinds=("dump",)),
                JobSecret(name="identity", path="/run/drbot/keys", kinds=("load",)),
            ),
        }
    )
    body = manifest(SPEC, place, attempt="a1", plan_digest="d1")["spec"]
    assert (body["backoffLimit"], body["activeDeadlineSeconds"], body["ttlSecondsAfterFinished"]) == (0, 3900, 86400)
    spec = body["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["restartPolicy"] == "Never"
    [container] = spec["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "all"}}]
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "3Gi", "ephemeral-storage": "1Gi"}
    assert {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]} == {
        "/run/drbot/order": True,
        "/etc/drbot": True,
        "/tmp": False,
        "/var/lib/drbot": False,
        "/run/drbot/keys": True,
    }
    assert "b1" not in str(container)  # the order is in a file of the pod, not in argv
    without = manifest(SPEC, PLACE, attempt="a1", plan_digest="d1")["spec"]["template"]["spec"]
    assert [volume for volume in without["volumes"] if "persistentVolumeClaim" in volume] == []
    assert "/var/lib/drbot" in {mount["mountPath"] for mount in without["containers"][0]["volumeMounts"]}


def test_hash_tells_specs_apart_and_attempts_not() -> None:
    first, second = (manifest(SPEC, PLACE, attempt=attempt, plan_digest="d") for attempt in ("a1", "a2"))
    assert first["metadata"] == second["metadata"]
    assert spec_hash(SPEC) != spec_hash(SPEC.model_copy(update={"request": {"backup": "b2"}}))


def secrets_of(kind: JobKind, *secrets: JobSecret) -> list[str]:
    place = PLACE.model_copy(update={"secrets": secrets})
    made = manifest(JobSpec(name="j", kind=kind, request={}), place, attempt="a", plan_digest="d")
    volumes = made["spec"]["template"]["spec"]["volumes"]
    return [volume["secret"]["secretName"] for volume in volumes if "secret" in volume]


@pytest.mark.parametrize(
    ("kind", "accounts", "seen"),
    [
        (JobKind.PROVE, ("job", "prover"), "prover"),
        (JobKind.PROVE, ("", "prover"), "prover"),
        (JobKind.PROVE, ("job", ""), "job"),
        (JobKind.PROVE, ("", ""), None),
        (JobKind.SCRATCH, ("job", "prover"), "job"),
        (JobKind.SCRATCH, ("", "prover"), None),
    ],
)
def test_restore_tests_run_under_their_own_account(kind: JobKind, accounts: tuple[str, str], seen: str | None) -> None:
    place = PLACE.model_copy(update={"service_account": accounts[0], "prover_service_account": accounts[1]})
    spec = JobSpec(name="j", kind=kind, request={})
    template = manifest(spec, place, attempt="a", plan_digest="d")["spec"]["template"]
    pod = template["spec"]
    assert (pod.get("serviceAccountName"), pod["automountServiceAccountToken"]) == (seen, seen is not None)
    component = "prover" if kind is JobKind.PROVE else "job"
    assert template["metadata"]["labels"]["app.kubernetes.io/component"] == component


def test_restore_tests_get_their_own_identity_or_that_of_restores() -> None:
    restores = JobSecret(name="identity", path="/run/keys", kinds=("scratch",))
    own = JobSecret(name="prover", path="/run/prover", kinds=("prove",))
    assert secrets_of(JobKind.PROVE, restores) == ["identity"]
    assert secrets_of(JobKind.PROVE, restores, own) == ["prover"]
    assert secrets_of(JobKind.SCRATCH, restores, own) == ["identity"]
