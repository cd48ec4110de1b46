"""What the Kubernetes adapter makes of trouble: each kind of refusal is told apart by who must act."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from actions.adapters import kubernetes_session
from actions.adapters.kubernetes import RECORD, KubernetesCluster
from actions.errors import TemporaryError, UserError
from actions.ports import GitOps, WorkloadFacts
from actions.site import ClusterAccess, Site, WorkloadKind, WorkloadRef
from bot.demo.cluster import ClusterStandIn, Fault
from bot.demo.cluster.kinds import APPLICATION
from tests.fakes.cluster_worlds import GIT, manifest

pytestmark = pytest.mark.integration

REF = WorkloadRef("here", "production", WorkloadKind.DEPLOYMENT, "api")


class KubeconfigSecrets:
    """One kubeconfig behind the reference `env:KUBE`, which can be rotated."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def resolve(self, ref: str) -> str:
        assert ref == "env:KUBE"
        return self.text


def adapter(secrets: KubeconfigSecrets) -> KubernetesCluster:
    return KubernetesCluster(Site(clusters={"here": ClusterAccess(name="here", kubeconfig="env:KUBE")}), secrets)


async def read(secrets: KubeconfigSecrets) -> WorkloadFacts | None:
    """Once, with a connection of its own."""
    with contextlib.closing(adapter(secrets)) as cluster:
        return await cluster.workload(REF)


@pytest.fixture
async def stand_in(server_directory: Path) -> AsyncIterator[ClusterStandIn]:
    async with ClusterStandIn(server_directory, custom_resources=False) as cluster:
        cluster.apply(manifest(REF, replicas=2, labels={"app.kubernetes.io/instance": "shop"}))
        yield cluster


@pytest.fixture
async def cluster(stand_in: ClusterStandIn) -> AsyncIterator[KubernetesCluster]:
    text = await asyncio.to_thread(stand_in.kubeconfig.read_text)
    found = adapter(KubeconfigSecrets(text))
    yield found
    found.close()


async def test_a_missing_right_names_the_rule(stand_in: ClusterStandIn, cluster: KubernetesCluster) -> None:
    stand_in.faults.add(Fault(what="forbid", verb="patch", resource="deployments"))
    with pytest.raises(UserError) as caught:
        await cluster.stop(REF, mark="plan-1")
    assert "`patch deployments`" in str(caught.value)
    assert 'apiGroups: ["apps"], resources: ["deployments"], verbs: ["patch"]' in str(caught.value)


async def test_without_the_custom_kinds_there_is_no_gitops(cluster: KubernetesCluster) -> None:
    found = await cluster.workload(REF)
    assert found is not None
    assert found.gitops is None
    await cluster.suspend_gitops(REF, mark="plan-1")


@pytest.mark.parametrize("what", ["drop", "fail", "busy"])
async def test_trouble_that_passes_is_temporary(
    stand_in: ClusterStandIn, cluster: KubernetesCluster, what: Any
) -> None:
    stand_in.faults.add(Fault(what=what, resource="deployments", times=1))
    with pytest.raises(TemporaryError, match="`here"):
        await cluster.workload(REF)
    assert await cluster.workload(REF) is not None


async def test_a_write_whose_answer_is_lost_can_be_repeated(
    stand_in: ClusterStandIn, cluster: KubernetesCluster
) -> None:
    stand_in.faults.add(Fault(what="drop", verb="patch", times=1))
    with pytest.raises(TemporaryError):
        await cluster.stop(REF, mark="plan-1")
    await cluster.stop(REF, mark="plan-1")
    found = await cluster.workload(REF)
    assert found is not None
    assert (found.replicas, found.recorded) == (0, 2)


async def test_a_server_that_is_gone_is_temporary(server_directory: Path) -> None:
    async with ClusterStandIn(server_directory) as stand_in:
        text = await asyncio.to_thread(stand_in.kubeconfig.read_text)
    with pytest.raises(TemporaryError, match=r"cannot be reached: .*refused"):
        await read(KubeconfigSecrets(text))


async def test_a_slow_server_is_given_up(
    stand_in: ClusterStandIn, cluster: KubernetesCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_session, "READ_TIMEOUT", kubernetes_session.CONNECT_TIMEOUT / 10)
    stand_in.faults.add(Fault(what="delay", resource="deployments", seconds=2))
    with pytest.raises(TemporaryError, match="cannot be reached"):
        await cluster.workload(REF)


async def test_rotated_credentials_are_read_again(stand_in: ClusterStandIn) -> None:
    good = await asyncio.to_thread(stand_in.kubeconfig.read_text)
    old = json.loads(good)
    old["users"][0]["user"]["token"] = "outdated-token-4711"
    secrets = KubeconfigSecrets(json.dumps(old))
    cluster = adapter(secrets)
    with pytest.raises(UserError, match="does not accept the bot's credentials") as caught:
        await cluster.workload(REF)
    assert "4711" not in str(caught.value)
    secrets.text = good
    assert await cluster.workload(REF) is not None
    # While a session is open: the server stops accepting it once, and the kubeconfig is read anew.
    stand_in.faults.add(Fault(what="unauthorized", times=1))
    assert await cluster.workload(REF) is not None
    cluster.close()


async def test_a_kubeconfig_by_path(stand_in: ClusterStandIn) -> None:
    assert await read(KubeconfigSecrets(str(stand_in.kubeconfig))) is not None
    with pytest.raises(UserError, match="kubeconfig file of cluster `here` cannot be read"):
        await read(KubeconfigSecrets("/no/such/kubeconfig"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{]\ntoken: hidden-4711", "is not YAML"),
        ("- a\n- list", "is not a kubeconfig"),
        ('{"users": [{"name": "a", "user": {"exec": {"command": "aws"}}}]}', "wants to run a program"),
        ('{"apiVersion": "v1"}', "cannot be used"),
    ],
)
async def test_a_bad_kubeconfig_is_named_without_its_content(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        await read(KubeconfigSecrets(text))
    assert "4711" not in f"{caught.value} {caught.value.__cause__}"


async def test_an_unknown_cluster_is_named(cluster: KubernetesCluster) -> None:
    with pytest.raises(UserError, match=r"no cluster `there`\. Known: `here`\."):
        await cluster.workload(REF._replace(cluster="there"))


async def test_a_record_that_is_no_number_is_not_guessed(stand_in: ClusterStandIn, cluster: KubernetesCluster) -> None:
    body = manifest(REF, replicas=2)
    body["metadata"]["annotations"] = {RECORD: "three"}
    stand_in.apply(body)
    with pytest.raises(UserError, match="is `three`, not a count"):
        await cluster.give_back(REF, mark="plan-1")


async def test_a_pod_that_still_ends_keeps_a_stop_from_being_done(
    stand_in: ClusterStandIn, cluster: KubernetesCluster
) -> None:
    body = manifest(REF, replicas=1)
    words = ["sh", "-c", "trap '' TERM; while true; do sleep 0.1; done"]
    body["spec"]["template"]["metadata"]["annotations"] = {"demo.superprismora.com/command": json.dumps(words)}
    stand_in.apply(body)
    await _until_done(cluster)
    await cluster.stop(REF, mark="plan-1")
    await asyncio.sleep(0.5)
    state = await cluster.rollout(REF)
    assert (state.done, [pod.reason for pod in state.failing]) == (False, ["Terminating"])
    await _until_done(cluster)


async def _until_done(cluster: KubernetesCluster) -> None:
    for _ in range(200):
        if (await cluster.rollout(REF)).done:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the rollout did not end")


# ---------------------------------------------------------------- whose workload is it


AUTOMATED: dict[str, object] = {"automated": {"selfHeal": True}}


def application(name: str, policy: dict[str, object], namespace: str = "argocd") -> dict[str, object]:
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Application",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"project": "default", "syncPolicy": policy},
    }


async def owner_of(directory: Path, workload: dict[str, object], *applications: dict[str, object]) -> GitOps | None:
    async with ClusterStandIn(directory) as stand_in:
        stand_in.apply(workload, *applications)
        text = await asyncio.to_thread(stand_in.kubeconfig.read_text)
        found = await read(KubeconfigSecrets(text))
    assert found is not None
    return found.gitops


async def test_argo_cd_by_tracking_id(server_directory: Path) -> None:
    body = manifest(REF, replicas=1)
    body["metadata"]["annotations"] = {
        "argocd.argoproj.io/tracking-id": "production_shop:apps/Deployment:production/api"
    }
    found = await owner_of(server_directory, body, application("shop", AUTOMATED, "production"))
    assert found is not None
    said = found.model_copy(update={"status": ""})  # the controller tells how it stands once it has looked
    assert said == GitOps(
        tool="argocd",
        kind="Application",
        namespace="production",
        name="shop",
        suspended=False,
        automated='{"selfHeal": true}',
    )


@pytest.mark.parametrize("policy", [{}, {"automated": {"enabled": False}}])
async def test_argo_cd_without_automation_counts_as_suspended(
    server_directory: Path, policy: dict[str, object]
) -> None:
    body = manifest(REF, replicas=1, labels={"app.kubernetes.io/instance": "shop"})
    found = await owner_of(server_directory, body, application("shop", policy))
    assert found is not None
    assert found.suspended


async def test_a_helm_release_of_the_same_name_is_not_argo_cds(server_directory: Path) -> None:
    body = manifest(REF, replicas=1, labels={"app.kubernetes.io/instance": "shop"})
    other = application("shop", AUTOMATED)
    listed = {"kind": "Deployment", "name": "other", "namespace": "production"}
    git = json.dumps([manifest(REF._replace(name="other"), replicas=1)])
    other["metadata"] = {"name": "shop", "namespace": "argocd", "annotations": {GIT: git}}
    async with ClusterStandIn(server_directory) as stand_in:
        stand_in.apply(body, other)
        await asyncio.sleep(1.2)  # the controller lists what it governs
        assert stand_in.objects.get(APPLICATION, "argocd", "shop")["status"]["resources"] == [listed]
        found = await read(KubeconfigSecrets(await asyncio.to_thread(stand_in.kubeconfig.read_text)))
    assert found is not None
    assert found.gitops is None


async def test_a_flux_helm_release(server_directory: Path) -> None:
    labels = {"helm.toolkit.fluxcd.io/name": "shop", "helm.toolkit.fluxcd.io/namespace": "production"}
    release: dict[str, object] = {
        "apiVersion": "helm.toolkit.fluxcd.io/v2",
        "kind": "HelmRelease",
        "metadata": {"name": "shop", "namespace": "production"},
        "spec": {"interval": "1m"},
    }
    found = await owner_of(server_directory, manifest(REF, replicas=1, labels=labels), release)
    assert found is not None
    said = found.model_copy(update={"status": ""})  # the controller tells how it stands once it has looked
    assert said == GitOps(tool="flux", kind="HelmRelease", namespace="production", name="shop", suspended=False)
