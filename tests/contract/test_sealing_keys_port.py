"""What every `SealingKeys` keeps: the adapter on the stand-in of a cluster, and the fake."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from actions.adapters.sealing_keys import LABEL, ClusterSealingKeys
from actions.errors import PermanentError, UserError, VerificationError
from actions.escrow import SealingKeys
from actions.site import ClusterAccess, Site
from bot.demo.cluster import ClusterStandIn
from bot.demo.cluster.kinds import SECRET
from tests.fakes.sealing_keys import MemorySealingKeys
from tests.fakes.secrets import MemorySecrets


@dataclass
class World:
    port: SealingKeys
    stand_in: ClusterStandIn | None

    def add(self, name: str, *, state: str = "active", label: bool = True, private: str = "") -> None:
        if self.stand_in is None:
            if label:
                assert isinstance(self.port, MemorySealingKeys)
                self.port.add_key("main", name, private or f"private {name}", at=datetime.now(UTC))
            return
        labels = {LABEL: state} if label else {}
        metadata = {"name": name, "namespace": "kube-system", "labels": labels}
        data = {"tls.crt": _b64(certificate()), "tls.key": _b64(f"private {name}".encode())}
        kind = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls"}
        self.stand_in.apply({**kind, "metadata": metadata, "data": data})

    def lose(self, name: str) -> None:
        """Somebody deletes it."""
        if self.stand_in is None:
            assert isinstance(self.port, MemorySealingKeys)
            self.port.forget("main", name)
        else:
            self.stand_in.objects.delete(SECRET, "kube-system", name)


def _b64(text: bytes) -> str:
    return base64.b64encode(text).decode()


def certificate() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sealed-secrets")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(params=["fake", pytest.param("stand-in", marks=pytest.mark.integration)])
async def world(request: pytest.FixtureRequest, server_directory: Path) -> AsyncIterator[World]:
    if request.param == "fake":
        fake = MemorySealingKeys()
        fake.held["main"] = []
        yield World(fake, None)
        return
    async with ClusterStandIn(server_directory, custom_resources=False) as stand_in:
        stand_in.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}})
        text = await asyncio.to_thread(stand_in.kubeconfig.read_text)
        access = ClusterAccess(name="main", kubeconfig="env:KUBE", sealed_secrets="kube-system")
        bare = ClusterAccess(name="bare", kubeconfig="env:KUBE")
        port = ClusterSealingKeys(Site(clusters={"main": access, "bare": bare}), MemorySecrets({"env:KUBE": text}))
        yield World(port, stand_in)
        port.close()


async def test_every_labelled_key_is_told_without_its_private_half(world: World) -> None:
    world.add("key-1")
    world.add("other", label=False)
    world.add("key-2")

    keys = await world.port.keys("main")

    assert {key.name for key in keys} == {"key-1", "key-2"}
    assert len({key.fingerprint for key in keys}) == 2
    assert all(key.active for key in keys)
    assert "private" not in repr(keys)


async def test_the_export_has_what_a_new_cluster_needs(world: World) -> None:
    world.add("key-1")
    world.add("other", label=False)

    exported = json.loads(await world.port.export("main"))

    [item] = exported["items"]
    assert exported["kind"] == "List"
    assert item["metadata"]["name"] == "key-1"
    private = item["data"]["tls.key"]
    if world.stand_in is not None:
        private = base64.b64decode(private).decode()
        assert item["metadata"] == {"name": "key-1", "namespace": "kube-system", "labels": {LABEL: "active"}}
    assert private == "private key-1"


async def test_what_was_lost_comes_back_beside_what_is_there(world: World) -> None:
    world.add("key-1")
    world.add("key-2")
    both, exported = await world.port.keys("main"), await world.port.export("main")
    lost = next(key for key in both if key.name == "key-1")
    world.lose("key-1")
    world.add("key-3")
    await world.port.may_add("main")
    assert {key.name for key in await world.port.keys("main")} == {"key-2", "key-3"}

    for _ in range(2):
        await world.port.add("main", exported, [lost.fingerprint])

    keys = {key.name: key for key in await world.port.keys("main")}
    assert set(keys) == {"key-1", "key-2", "key-3"}
    assert keys["key-1"].fingerprint == lost.fingerprint
    assert keys["key-1"].active
    again = json.loads(await world.port.export("main"))
    assert len({item["data"]["tls.key"] for item in again["items"]}) == 3


async def test_a_name_that_another_key_has_is_left_to_it(world: World) -> None:
    world.add("key-1")
    [lost], exported = await world.port.keys("main"), await world.port.export("main")
    world.lose("key-1")
    world.add("key-1", private="another")

    await world.port.add("main", exported, [lost.fingerprint])

    keys = {key.name: key.fingerprint for key in await world.port.keys("main")}
    assert keys.pop(f"key-1-{lost.fingerprint[:8]}") == lost.fingerprint
    assert set(keys) == {"key-1"}


async def test_a_key_that_the_export_has_not_is_told_before_anything_is_created(world: World) -> None:
    world.add("key-1")
    [lost], exported = await world.port.keys("main"), await world.port.export("main")
    world.lose("key-1")

    with pytest.raises(VerificationError, match="lacks sealing keys"):
        await world.port.add("main", exported, [lost.fingerprint, "0" * 64])
    assert await world.port.keys("main") == []


async def test_what_the_cluster_refuses_of_a_key_is_told_without_it(world: World) -> None:
    if world.stand_in is None:
        pytest.skip("the fake refuses nothing")
    world.add("key-1")
    [lost], exported = await world.port.keys("main"), json.loads(await world.port.export("main"))
    world.lose("key-1")
    exported["items"][0]["metadata"]["name"] = "No Name Of Kubernetes"

    with pytest.raises(PermanentError, match="refused the sealing key") as told:
        await world.port.add("main", json.dumps(exported).encode(), [lost.fingerprint])
    assert _b64(b"private key-1") not in f"{told.value!r} {told.value.__cause__!r}"
    assert told.value.__suppress_context__


async def test_a_cluster_without_a_controller_is_told(world: World) -> None:
    with pytest.raises(UserError, match="no controller of SealedSecrets for cluster `bare`"):
        await world.port.keys("bare")


async def test_an_old_key_is_told_apart_and_a_broken_one_named(world: World) -> None:
    if world.stand_in is None:
        pytest.skip("the fake knows no certificates")
    world.add("key-1", state="compromised")
    assert [key.active for key in await world.port.keys("main")] == [False]
    metadata = {"name": "broken", "namespace": "kube-system", "labels": {LABEL: "active"}}
    data = {"tls.key": _b64(b"private half")}
    world.stand_in.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})

    with pytest.raises(PermanentError, match="`broken` has no certificate") as told:
        await world.port.keys("main")
    assert "private" not in str(told.value)
