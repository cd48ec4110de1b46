"""Drift on a cluster's API server and a real repository, from the push to the report."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from ruamel.yaml import YAML

from actions.adapters.git import GitMirrors
from actions.adapters.live_objects import ClusterObjects
from actions.backup.manifest_mirrors import ManifestMirrors
from actions.backup.point_parts import Parts
from actions.manifests import What
from actions.site import ClusterAccess, ManifestsPolicy, Service, Site, WorkloadKind, WorkloadRef
from actions.steps.point_cluster import changed_versions
from bot.demo.cluster import ClusterStandIn
from tests.fakes.buckets import MemoryBuckets
from tests.fakes.clock import MemoryClock
from tests.fakes.cluster import MemoryCluster
from tests.fakes.files import KEY_PEM, KEY_SIGNER
from tests.fakes.secrets import MemorySecrets
from tests.fakes.world import CUSTODIAN_KEY, a_world

MANIFESTS = """
apiVersion: v1
kind: Namespace
metadata: {name: production}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: production}
data: {MODE: live}
---
apiVersion: v1
kind: Secret
metadata: {name: login, namespace: production}
stringData: {password: canary-one}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: production}
spec:
  replicas: 0
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec:
      containers:
        - name: app
          image: app:1
          resources: {limits: {cpu: "0.5"}}
---
apiVersion: example.com/v1
kind: Gadget
metadata: {name: odd, namespace: production}
"""


def _commit(source: Path) -> None:
    (source / "app.yaml").write_text(MANIFESTS)
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main", str(source)], check=True)
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@example"]
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "first"], check=True)


async def test_what_people_changed_in_the_cluster_is_listed(server_directory: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    await asyncio.to_thread(_commit, source)
    async with ClusterStandIn(server_directory, custom_resources=False) as cluster:
        documents = list(YAML(typ="safe", pure=True).load_all(MANIFESTS))
        cluster.apply(*documents[:-1])
        kubeconfig = await asyncio.to_thread(cluster.kubeconfig.read_text)
        secrets = MemorySecrets({"env:KUBE": kubeconfig, "env:KEY": KEY_PEM})
        policy = ManifestsPolicy(
            name="production",
            url=f"file://{source}",
            cluster="main",
            bucket="vault",
            recipients=(CUSTODIAN_KEY,),
            signing_key="env:KEY",
            trusted_signers=(KEY_SIGNER,),
        )
        site = Site(
            clusters={"main": ClusterAccess(name="main", kubeconfig="env:KUBE")}, manifests={"production": policy}
        )
        clock = MemoryClock()
        live = ClusterObjects(site, secrets)
        mirrors = ManifestMirrors(
            site,
            GitMirrors(tmp_path / "mirrors", secrets),
            live,
            cluster=MemoryCluster(),
            objects=MemoryBuckets("vault", clock=clock),
            secrets=secrets,
            clock=clock,
            work=tmp_path / "work",
        )
        await mirrors.mirror("one", "production")
        unchanged = await mirrors.drift("production")

        documents[1]["data"]["MODE"] = "test"
        documents[2]["stringData"]["password"] = "canary-two"
        extra = {**documents[1], "metadata": {"name": "left-over", "namespace": "production"}}
        cluster.apply(documents[1], documents[2], extra)
        changed = await mirrors.drift("production")
        live.close()

    assert unchanged.entries == ()
    assert unchanged.compared == 5
    assert any("Gadget" in text for text in unchanged.not_understood)
    told = {(entry.what, entry.object, entry.path): (entry.wanted, entry.found) for entry in changed.entries}
    assert told == {
        (What.CHANGED, "ConfigMap production/settings", "data.MODE"): ("live", "test"),
        (What.CHANGED, "Secret production/login", "data.password"): ("(hidden)", "(hidden)"),
        (What.EXTRA, "ConfigMap production/left-over", ""): ("", ""),
    }
    assert "canary" not in repr(changed)


async def test_the_version_of_a_secret_tells_a_change_and_holds_no_value(server_directory: Path) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "login", "namespace": "production"},
        "stringData": {"password": "canary-one"},
    }
    async with ClusterStandIn(server_directory, custom_resources=False) as cluster:
        cluster.apply(secret)
        kubeconfig = await asyncio.to_thread(cluster.kubeconfig.read_text)
        world = a_world()
        api = WorkloadRef("main", "production", WorkloadKind.DEPLOYMENT, "api")
        site = world.site.model_copy(update={"services": {"shop": Service(name="shop", workloads=(api,))}})
        live = ClusterObjects(site, MemorySecrets({"env:KUBECONFIG": kubeconfig}))
        parts = Parts(
            site,
            backups=world.backups,
            physical=world.physical,
            files=world.files,
            buckets=world.buckets,
            cluster=world.cluster,
            escrow=world.escrow,
            manifests=world.manifests,
            registry=world.registry,
            live=live,
            clock=world.clock,
        )
        first = await parts.gather("one", requested_by="")
        again = await parts.gather("two", requested_by="")
        cluster.apply({**secret, "stringData": {"password": "canary-two"}})
        changed = await parts.gather("three", requested_by="")
        live.close()

    assert [each.name for each in first.versions] == ["Secret main/production/login"]
    assert again.versions == first.versions
    assert list(changed_versions(first, again)) == []
    [(name, said)] = changed_versions(first, changed)
    assert name == "Secret main/production/login"
    assert "was version" in said
    assert "canary" not in first.model_dump_json() + changed.model_dump_json()
