"""Which files of a workload outlive its pods."""

from __future__ import annotations

from typing import Any

import pytest

from actions.adapters.kubernetes_volumes import lasting

PATH = "/var/lib/postgresql/data"


def spec(*, templates: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    return {"volumeClaimTemplates": [{"metadata": {"name": name}} for name in templates], **more}


def pod(*volumes: dict[str, Any], mounted: str = "data") -> dict[str, Any]:
    mounts = [{"name": mounted, "mountPath": PATH}, {"name": "run", "mountPath": "/run"}]
    return {"containers": [{"name": "postgres", "volumeMounts": mounts}], "volumes": list(volumes)}


@pytest.mark.parametrize(
    ("spec", "pod"),
    [
        (spec(templates=("data",)), pod()),
        (spec(), pod({"name": "data", "persistentVolumeClaim": {"claimName": "pgdata"}})),
        (spec(), pod({"name": "data", "hostPath": {"path": "/srv"}})),
        (spec(templates=("data",), persistentVolumeClaimRetentionPolicy={"whenDeleted": "Delete"}), pod()),
        ({"replicas": 1}, pod({"name": "data", "nfs": {"server": "nas", "path": "/"}})),
    ],
)
def test_claims_and_folders_of_elsewhere_stay(spec: dict[str, Any], pod: dict[str, Any]) -> None:
    assert lasting(spec, pod) == (PATH,)


@pytest.mark.parametrize(
    ("spec", "pod"),
    [
        (spec(), pod()),
        (spec(), pod({"name": "data", "emptyDir": {}})),
        (spec(), pod({"name": "data"})),
        (spec(), pod({"name": "data", "ephemeral": {"volumeClaimTemplate": {}}})),
        (spec(), pod({"name": "other", "persistentVolumeClaim": {"claimName": "pgdata"}})),
        (spec(templates=("data",), persistentVolumeClaimRetentionPolicy={"whenScaled": "Delete"}), pod()),
        (
            spec(templates=("data",), persistentVolumeClaimRetentionPolicy={"whenScaled": "Delete"}),
            pod({"name": "data", "persistentVolumeClaim": {"claimName": "pgdata"}}),
        ),
    ],
)
def test_what_is_made_for_a_pod_or_deleted_with_it_does_not(spec: dict[str, Any], pod: dict[str, Any]) -> None:
    assert lasting(spec, pod) == ()
