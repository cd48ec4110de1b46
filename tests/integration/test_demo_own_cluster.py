"""The demo's workloads in another cluster, here a second stand-in; the processes of this machine follow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actions.adapters.kubernetes import KubernetesCluster
from actions.adapters.secrets import SecretReferences
from actions.errors import UserError
from actions.site import ClusterAccess, Site, WorkloadKind, WorkloadRef
from bot.demo.cluster import ClusterStandIn, Fault
from bot.demo.cluster import kinds as k
from bot.demo.manifests import manifests
from bot.demo.own_cluster import PAUSE, OwnCluster, kubeconfig
from bot.demo.plan import API, CLOSE_DAY, CONFIG_MAP, NAMESPACE
from tests.fixtures.waiting import until

pytestmark = pytest.mark.integration

SHOWN = manifests(database_host="127.0.0.1:1", password="not-to-be-sent", port=1)


@dataclass
class Both:
    ours: ClusterStandIn
    theirs: ClusterStandIn
    own: OwnCluster

    def here(self, kind: k.Kind, name: str) -> dict[str, Any]:
        return self.ours.objects.get(kind, NAMESPACE, name)

    def there(self, kind: k.Kind, name: str) -> dict[str, Any]:
        return self.theirs.objects.get(kind, self.own.namespace, name)


@pytest.fixture
async def both(server_directory: Path) -> AsyncIterator[Both]:
    async with (
        ClusterStandIn(server_directory / "ours", custom_resources=False) as ours,
        ClusterStandIn(server_directory / "theirs", custom_resources=False) as theirs,
    ):
        # Nothing needs to run here: what follows is the objects.
        ours.apply(*(body for body in SHOWN if body["kind"] in ("Namespace", "ConfigMap", "Secret")))
        for body in SHOWN:
            if body["kind"] in ("Deployment", "CronJob"):
                ours.apply({**body, "spec": quiet(body["spec"])})
        async with OwnCluster(theirs.kubeconfig, ours, home=NAMESPACE) as own:
            await own.apply(SHOWN)
            yield Both(ours, theirs, own)
        assert not theirs.objects.all(k.DEPLOYMENT)
        assert theirs.objects.find(k.NAMESPACE, "", own.namespace) is None


def quiet(spec: dict[str, Any]) -> dict[str, Any]:
    if "template" not in spec:
        return spec
    return {
        **spec,
        "template": {"metadata": {"labels": spec["template"]["metadata"]["labels"]}, "spec": spec["template"]["spec"]},
    }


async def test_processes_follow_what_the_bot_does_to_the_other_cluster(both: Both) -> None:
    access = ClusterAccess(name="production", kubeconfig=f"file:{both.theirs.kubeconfig}")
    bot = KubernetesCluster(Site(clusters={"production": access}), SecretReferences({}))
    place = both.own.namespace
    api = WorkloadRef("production", place, WorkloadKind.DEPLOYMENT, API)
    nightly = WorkloadRef("production", place, WorkloadKind.CRON_JOB, CLOSE_DAY)
    for ref in (api, nightly):
        await bot.stop(ref, mark="p")
    await until(lambda: both.here(k.DEPLOYMENT, API)["spec"]["replicas"] == 0, within=30)
    await until(lambda: both.here(k.CRON_JOB, CLOSE_DAY)["spec"]["suspend"] is True, within=30)
    await bot.set_config(
        "production", place, CONFIG_MAP, key="DATABASE_HOST", before="127.0.0.1:1", after="127.0.0.1:2"
    )
    await until(lambda: both.here(k.CONFIG_MAP, CONFIG_MAP)["data"]["DATABASE_HOST"] == "127.0.0.1:2", within=30)
    for ref in (api, nightly):
        await bot.give_back(ref, mark="p")
    await until(lambda: both.here(k.DEPLOYMENT, API)["spec"]["replicas"] == 2, within=30)
    await bot.restart(api, mark="p")
    await until(lambda: "restartedAt" in str(both.here(k.DEPLOYMENT, API)["spec"]["template"]), within=30)
    bot.close()


async def test_other_cluster_gets_no_secret_and_nothing_that_runs(both: Both) -> None:
    assert not both.theirs.objects.all(k.SECRET)
    assert "not-to-be-sent" not in str(both.theirs.objects.all(k.DEPLOYMENT))
    images = {container["image"] for pod in both.theirs.objects.all(k.POD) for container in pod["spec"]["containers"]}
    assert images == {PAUSE}


async def test_cluster_that_is_away_for_a_moment_changes_nothing_here(both: Both) -> None:
    before = both.here(k.DEPLOYMENT, API)["spec"]
    both.theirs.faults.add(Fault(what="drop", times=6))
    await until(lambda: not both.theirs.faults.active, within=60)
    assert both.here(k.DEPLOYMENT, API)["spec"] == before


async def test_cluster_that_refuses_is_told(server_directory: Path) -> None:
    async with (
        ClusterStandIn(server_directory / "ours", custom_resources=False) as ours,
        ClusterStandIn(server_directory / "theirs", custom_resources=False) as theirs,
    ):
        theirs.faults.add(Fault(what="forbid", verb="create", resource="namespaces"))
        with pytest.raises(UserError, match="has no right to it"):
            async with OwnCluster(theirs.kubeconfig, ours, home=NAMESPACE):
                pass


def test_kubeconfig_must_name_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for value in ("", str(tmp_path / "none"), f"{tmp_path}:{tmp_path}"):
        monkeypatch.setenv("KUBECONFIG", value)
        with pytest.raises(UserError, match="leave `--own-cluster` out"):
            kubeconfig()
