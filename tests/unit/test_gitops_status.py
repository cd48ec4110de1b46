"""How Argo CD and Flux say that they stand."""

from __future__ import annotations

import pytest

from actions.adapters.kubernetes_gitops import ready, synced


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({}, ""),
        ({"sync": {"status": "Synced"}}, "Synced"),
        ({"sync": {"status": "OutOfSync"}, "health": {"status": "Degraded"}}, "OutOfSync, Degraded"),
    ],
)
def test_argo_cd_tells_sync_and_health(status: dict[str, object], said: str) -> None:
    assert synced({"status": status}) == said


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ([], ""),
        ([{"type": "Ready", "status": "True"}], "Ready"),
        ([{"type": "Ready", "status": "False", "reason": "BuildFailed"}], "not ready: BuildFailed"),
    ],
)
def test_flux_tells_whether_it_is_ready(conditions: list[object], said: str) -> None:
    assert ready({"status": {"conditions": conditions}}) == said
