"""What a cluster really runs: the digests its runtime pulled, the commit its GitOps controller applied."""

from __future__ import annotations

from typing import Any, cast

import pytest

from actions.adapters import kubernetes
from actions.adapters import kubernetes_gitops as gitops
from actions.adapters import kubernetes_rollout as rollouts
from actions.adapters.kubernetes_session import Resource, Session
from actions.site import WorkloadKind, WorkloadRef

Json = dict[str, Any]
DIGEST = f"sha256:{'0a' * 32}"
REF = WorkloadRef("main", "shop", WorkloadKind.DEPLOYMENT, "api")


@pytest.mark.parametrize(
    ("pulled", "runs"),
    [
        (f"registry.example/app@{DIGEST}", f"registry.example/app@{DIGEST}"),
        (f"docker-pullable://registry.example/app@{DIGEST}", f"registry.example/app@{DIGEST}"),
        (DIGEST, "registry.example/app:1"),  # containerd, of an image that was imported on the node
        ("", "registry.example/app:1"),
    ],
)
def test_images_by_digest_where_the_runtime_tells(pulled: str, runs: str) -> None:
    pod: Json = {
        "metadata": {"name": "api-1"},
        "spec": {"containers": [{"name": "app", "image": "registry.example/app:1"}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "app", "imageID": pulled}]},
    }

    assert rollouts.pod_facts(pod).images == (runs,)


def test_images_of_init_containers_are_told_beside_those_that_run() -> None:
    pod: Json = {
        "metadata": {"name": "api-1"},
        "spec": {
            "initContainers": [{"name": "migrate", "image": "app:m"}, {"name": "wait", "image": "tool:1"}],
            "containers": [{"name": "app", "image": "app:1"}],
        },
        "status": {
            "initContainerStatuses": [{"name": "migrate", "imageID": f"registry.example/library/app@{DIGEST}"}],
            "containerStatuses": [{"name": "app", "imageID": ""}],
        },
    }

    facts = rollouts.pod_facts(pod)

    assert facts.images == ("app:1",)
    assert facts.init_images == (f"registry.example/library/app@{DIGEST}", "tool:1")


@pytest.mark.parametrize("kind", [WorkloadKind.DEPLOYMENT, WorkloadKind.CRON_JOB])
def test_a_workload_tells_what_its_init_containers_ask_for(kind: WorkloadKind) -> None:
    containers = {"containers": [{"name": "app", "image": "app:1"}], "initContainers": [{"image": "tool:1"}]}
    spec: Json = {"template": {"spec": containers}, "replicas": 0}
    if kind is WorkloadKind.CRON_JOB:
        spec = {"jobTemplate": {"spec": spec}, "suspend": False, "schedule": "@daily"}
    found = {"metadata": {"name": "api", "uid": "u"}, "spec": spec}

    facts = kubernetes._facts(REF._replace(kind=kind), found, [])

    assert (facts.images, facts.init_images) == (("app:1",), ("tool:1",))


class Served:
    """As much of a session as finds a controller: one object under every name."""

    def __init__(self, found: Json) -> None:
        self.found = found

    def preferred_version(self, group: str) -> str:
        return "v1"

    def get(self, resource: Resource, namespace: str | None, name: str) -> Json:
        return self.found


@pytest.mark.parametrize(
    ("labels", "status", "revision"),
    [
        ({"app.kubernetes.io/instance": "shop"}, {"sync": {"revision": "4f2c1e"}}, "4f2c1e"),
        ({"app.kubernetes.io/instance": "shop"}, {}, ""),
        (
            {"kustomize.toolkit.fluxcd.io/name": "shop", "kustomize.toolkit.fluxcd.io/namespace": "flux"},
            {"lastAppliedRevision": "main@sha1:4f2c1e"},
            "main@sha1:4f2c1e",
        ),
    ],
)
def test_the_commit_is_the_one_that_was_applied(labels: Json, status: Json, revision: str) -> None:
    session = cast(Session, Served({"metadata": {"name": "shop"}, "spec": {}, "status": status}))

    owner = gitops.controller(session, REF, {"metadata": {"labels": labels}}, "argocd")

    assert owner is not None
    assert owner.facts.revision == revision
