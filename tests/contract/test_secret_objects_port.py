"""What every `SecretObjects` keeps: the adapter on the stand-in of a cluster, and the fake. On both, the whole way: a
sealed copy that gives back what was lost or written over."""

from __future__ import annotations

import asyncio
import base64
import logging
import traceback
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiClient

from actions.adapters.kubernetes_session import Resource, Session
from actions.adapters.live_objects import ClusterObjects
from actions.adapters.secret_objects import ClusterSecrets
from actions.backup.secret_copies import EscrowedSecrets
from actions.errors import PermanentError, UserError, VerificationError
from actions.manifests import LiveObjects
from actions.secret_copies import SecretObjects
from actions.site import ClusterAccess, EscrowPolicy, Service, Site, WorkloadKind, WorkloadRef
from bot.demo.cluster import ClusterStandIn
from bot.demo.cluster.kinds import SECRET
from tests.contract.kit import secrets_in
from tests.fakes.buckets import MemoryBuckets
from tests.fakes.clock import MemoryClock
from tests.fakes.files import KEY_PEM, KEY_SIGNER
from tests.fakes.git import MemoryLive
from tests.fakes.secret_objects import MemorySecretObjects
from tests.fakes.secrets import MemorySecrets
from tests.fakes.world import CUSTODIAN, CUSTODIAN_KEY

VALUE, OTHER = "canary-value", "canary-value-newer"
NAME = "Secret main/shop/mail"


@dataclass
class World:
    port: SecretObjects
    copies: EscrowedSecrets
    store: MemoryBuckets
    stand_in: ClusterStandIn | None
    live: LiveObjects

    def put(self, name: str, value: str, **more: Any) -> None:
        """Somebody writes it; keys that are not named are gone."""
        metadata = {"name": name, "namespace": "shop", "labels": {"team": "shop"}}
        data = {"key": base64.b64encode(value.encode()).decode()}
        body = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data, **more}
        if self.stand_in is not None:
            self.lose(name)
            self.stand_in.apply(body)
            return
        assert isinstance(self.live, MemoryLive)
        self.lose(name)
        number = str(100 + len(value))
        body["metadata"] = {**body["metadata"], "uid": f"uid-{number}", "resourceVersion": number}
        self.live.held.append(body)

    def lose(self, name: str) -> None:
        if self.stand_in is None:
            assert isinstance(self.live, MemoryLive)
            self.live.held = [each for each in self.live.held if each["metadata"]["name"] != name]
        elif self.stand_in.objects.find(SECRET, "shop", name) is not None:
            self.stand_in.objects.delete(SECRET, "shop", name)

    async def value(self, name: str) -> str | None:
        for each in await self.port.read("main", ["shop"]):
            if each["metadata"]["name"] == name:
                assert set(each["data"]) == {"key"}
                return base64.b64decode(each["data"]["key"]).decode()
        return None

    async def version(self) -> str:
        found = (await self.copies.current("main")).find(NAME)
        return "" if found is None else found.version


@pytest.fixture(params=["fake", pytest.param("stand-in", marks=pytest.mark.integration)])
async def world(request: pytest.FixtureRequest, server_directory: Path) -> AsyncIterator[World]:
    policy = EscrowPolicy(
        bucket="vault",
        recipients=(CUSTODIAN_KEY,),
        identity="env:CUSTODIAN",
        secrets=True,
        signing_key="env:FILES_KEY",
        trusted_signers=(KEY_SIGNER,),
    )
    access = ClusterAccess(name="main", kubeconfig="env:KUBE")
    api = WorkloadRef("main", "shop", WorkloadKind.DEPLOYMENT, "api")
    site = Site(escrow=policy, clusters={"main": access}, services={"shop": Service(name="shop", workloads=(api,))})
    clock = MemoryClock()
    store = MemoryBuckets("vault", clock=clock)
    keys = {"env:FILES_KEY": KEY_PEM, "env:CUSTODIAN": CUSTODIAN}
    if request.param == "fake":
        memory = MemoryLive()
        fake = MemorySecretObjects(memory)
        copies = EscrowedSecrets(site, fake, memory, store, MemorySecrets(keys), clock)
        yield World(fake, copies, store, None, memory)
        return
    async with ClusterStandIn(server_directory, custom_resources=False) as stand_in:
        stand_in.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
        secrets = MemorySecrets({**keys, "env:KUBE": await asyncio.to_thread(stand_in.kubeconfig.read_text)})
        port, live = ClusterSecrets(site, secrets), ClusterObjects(site, secrets)
        yield World(port, EscrowedSecrets(site, port, live, store, secrets, clock), store, stand_in, live)
        port.close()
        live.close()


async def test_what_was_lost_is_there_again_as_it_was(world: World) -> None:
    world.put("mail", VALUE)
    made = await world.copies.seal("p-1", "main", [NAME])
    world.lose("mail")

    tried = await world.copies.check("main", "p-1", {NAME: ""})
    assert (dict(tried.problems), await world.value("mail")) == ({}, None)
    await world.copies.give_back("main", "p-1", NAME, over="")

    assert await world.value("mail") == VALUE
    found = (await world.copies.current("main")).find(NAME)
    assert found is not None
    assert found.content == made.secrets[0].content == tried.contents[NAME]
    assert found.version != made.secrets[0].version
    [item] = await world.port.read("main", ["shop"])
    assert item["metadata"]["labels"] == {"team": "shop"}


async def test_what_was_written_since_is_replaced_at_the_very_version_that_was_seen(
    world: World,
) -> None:
    world.put("mail", VALUE)
    await world.copies.seal("p-1", "main", [NAME])
    world.put("mail", OTHER, data={"key": "bmV3", "more": "bW9yZQ=="})
    seen = await world.version()
    with pytest.raises(VerificationError, match="another one than was looked at"):
        await world.copies.give_back("main", "p-1", NAME, over="1 of uid-x")
    with pytest.raises(VerificationError, match="another one than was looked at"):
        await world.copies.give_back("main", "p-1", NAME, over="")

    assert not (await world.copies.check("main", "p-1", {NAME: seen})).problems
    assert await world.version() == seen
    await world.copies.give_back("main", "p-1", NAME, over=seen)

    assert await world.value("mail") == VALUE
    assert await world.version() != seen


async def test_another_type_is_refused_in_words_without_values(world: World) -> None:
    world.put("mail", VALUE)
    await world.copies.seal("p-1", "main", [NAME])
    world.put("mail", OTHER, type="example.com/other")

    tried = await world.copies.check("main", "p-1", {NAME: await world.version()})

    assert "refused as it was" in tried.problems[NAME]
    with pytest.raises(PermanentError, match="refused as it was"):
        await world.copies.give_back("main", "p-1", NAME, over=await world.version())


async def test_what_a_server_says_of_a_value_that_it_refuses_is_said_to_nobody() -> None:
    class Quoting(Session):
        def create(self, resource: Resource, namespace: str, body: Any, *, dry_run: bool = False) -> Any:
            raise PermanentError(f"invalid: {body['data']['key']}")

    def connect(name: str, kubeconfig: str, context: str | None) -> Session:
        return Quoting(name, ApiClient())

    access = ClusterAccess(name="main", kubeconfig="env:KUBE")
    port = ClusterSecrets(Site(clusters={"main": access}), MemorySecrets({"env:KUBE": "x"}), connect=connect)
    item = {"metadata": {"name": "mail", "namespace": "shop"}, "data": {"key": "Y2FuYXJ5LXZhbHVl"}}

    with pytest.raises(PermanentError) as refused:
        await port.write("main", item, over="")

    told = "".join(traceback.format_exception(refused.value))
    assert secrets_in(told) == []
    port.close()


async def test_a_copy_that_is_there_is_not_made_anew(world: World) -> None:
    world.put("mail", VALUE)
    first = await world.copies.seal("p-1", "main", [NAME])
    world.put("mail", OTHER)

    assert await world.copies.seal("p-1", "main", [NAME]) == first
    with pytest.raises(UserError, match="has no Secret `shop/gone`"):
        await world.copies.seal("p-2", "main", ["Secret main/shop/gone"])
    await world.copies.remove("main", "p-1")
    assert await world.copies.entries("main") == []


async def test_what_a_controller_marks_is_brought_by_it(world: World) -> None:
    world.put("mail", VALUE)
    for name, marks in (
        ("a", {"labels": {"reconcile.external-secrets.io/managed": "true"}}),
        ("b", {"annotations": {"argocd.argoproj.io/tracking-id": "shop:/Secret:shop/b"}}),
        ("c", {"annotations": {"cert-manager.io/certificate-name": "c"}}),
    ):
        world.put(name, VALUE, metadata={"name": name, "namespace": "shop", **marks})

    now = await world.copies.current("main")

    assert {each.name[-1]: each.by for each in now.secrets if len(each.name) == len("Secret main/shop/a")} == {
        "a": "an ExternalSecret",
        "b": "Git, by Argo CD",
        "c": "a Certificate of cert-manager",
    }
    assert [each.name for each in now.secrets if not each.by] == [NAME]


async def test_no_value_reaches_a_log_or_the_bucket(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.put("mail", VALUE)
    with caplog.at_level(logging.INFO):
        await world.copies.seal("p-1", "main", [NAME])
        world.put("mail", OTHER)
        await world.copies.give_back("main", "p-1", NAME, over=await world.version())
        await world.copies.may_give_back("main")

    assert secrets_in(caplog.text) == []
    for facts in await world.store.list("vault", ""):
        assert secrets_in((await world.store.get("vault", facts.key)).decode(errors="replace")) == []
    assert secrets_in(repr(await world.copies.entries("main")) + repr(await world.copies.current("main"))) == []
