"""Which files of a workload outlive its pods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LASTING = frozenset({"persistentVolumeClaim", "hostPath", "nfs", "iscsi", "fc", "awsElasticBlockStore", "azureDisk"})
"""Sources of a volume that are not made for one pod."""


def lasting(spec: Mapping[str, Any], pod: Mapping[str, Any]) -> tuple[str, ...]:
    """The paths in the containers of `pod` whose content is still there once the workload of this `spec` is at zero.

    A StatefulSet may say that its own claims are deleted then (`persistentVolumeClaimRetentionPolicy`).
    """
    policy = spec.get("persistentVolumeClaimRetentionPolicy") or {}
    claimed = spec.get("volumeClaimTemplates") or []
    kept = {str(each["metadata"]["name"]) for each in claimed if policy.get("whenScaled") != "Delete"}
    named = {str(each["metadata"]["name"]) for each in claimed}
    for volume in pod.get("volumes") or []:
        # A template's claim takes the place of a volume of the same name.
        if volume["name"] not in named and LASTING & volume.keys():
            kept.add(str(volume["name"]))
    mounts = [mount for each in pod["containers"] for mount in each.get("volumeMounts") or []]
    return tuple(sorted({str(mount["mountPath"]) for mount in mounts if mount["name"] in kept}))
