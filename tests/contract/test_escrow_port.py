"""What an escrow of sealing keys keeps: on the real engine, in memory and on a real S3 server."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pyrage
import pytest

from actions import registry
from actions.adapters.s3_buckets import S3Buckets
from actions.adapters.secrets import SecretReferences
from actions.backup.escrow import Escrows
from actions.catalog.escrow import EscrowParams, EscrowStateParams, escrow_findings
from actions.contract import Verdict
from actions.errors import TemporaryError, UserError, VerificationError
from actions.escrow import uncovered
from actions.ports import ObjectStore
from actions.site import Bucket, EscrowPolicy, Site
from tests.contract.kit import PLAN_ID, MemoryJournal, run, secrets_in
from tests.fakes.buckets import MemoryBuckets
from tests.fakes.clock import MemoryClock
from tests.fakes.files import KEY_PEM, KEY_SIGNER
from tests.fakes.sealing_keys import MemorySealingKeys
from tests.fakes.secrets import MemorySecrets
from tests.fakes.world import CUSTODIAN, CUSTODIAN_KEY, a_world
from tests.fixtures.shared_s3 import S3


@dataclass
class World:
    port: Escrows
    store: ObjectStore
    sealing: MemorySealingKeys
    bucket: str
    clock: MemoryClock
    secrets: MemorySecrets


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    clock, sealing = MemoryClock(), MemorySealingKeys()
    sealing.add_key("main", "key-1", "private one", at=clock.now() - timedelta(days=40))
    if request.param == "fake":
        yield _world(MemoryBuckets("vault", clock=clock), "vault", sealing, clock)
        return
    s3: S3 = request.getfixturevalue("s3")
    bucket: str = request.getfixturevalue("bucket")
    entry = Bucket(name=bucket, endpoint=s3.endpoint, access_key="env:A", secret_key="env:S")
    store = S3Buckets(Site(buckets={bucket: entry}), SecretReferences({"A": s3.access_key, "S": s3.secret_key}))
    yield _world(store, bucket, sealing, clock)
    store.close()


def _world(store: ObjectStore, bucket: str, sealing: MemorySealingKeys, clock: MemoryClock) -> World:
    policy = EscrowPolicy(
        bucket=bucket,
        prefix="safe/",
        recipients=(CUSTODIAN_KEY,),
        identity="env:CUSTODIAN",
        signing_key="env:FILES_KEY",
        trusted_signers=(KEY_SIGNER,),
    )
    secrets = MemorySecrets({"env:FILES_KEY": KEY_PEM, "env:CUSTODIAN": CUSTODIAN})
    port = Escrows(Site(escrow=policy), sealing, store, secrets, clock)
    return World(port, store, sealing, bucket, clock, secrets)


async def test_a_custodian_gets_every_key_back_and_nobody_else(world: World) -> None:
    world.sealing.add_key("main", "key-2", "private two", at=world.clock.now())

    made = await world.port.make("main-1", "main")

    stored = await world.store.get(world.bucket, made.manifest.key)
    assert b"private" not in stored
    plain = io.BytesIO()
    pyrage.decrypt_io(io.BytesIO(stored), plain, [pyrage.x25519.Identity.from_str(CUSTODIAN)])
    items = json.loads(plain.getvalue())["items"]
    assert {item["data"]["tls.key"] for item in items} == {"private one", "private two"}
    assert [key.name for key in made.manifest.keys] == ["key-2", "key-1"]
    for facts in await world.store.list(world.bucket, ""):
        assert b"private" not in await world.store.get(world.bucket, facts.key)


async def test_a_new_key_is_uncovered_until_the_next_escrow(world: World) -> None:
    await world.port.make("main-1", "main")
    assert uncovered(await world.port.current("main"), await world.port.entries("main")) == ()
    world.sealing.add_key("main", "key-2", "private two", at=world.clock.now())

    missing = uncovered(await world.port.current("main"), await world.port.entries("main"))
    assert [key.name for key in missing] == ["key-2"]
    world.clock.advance(timedelta(hours=1))
    await world.port.make("main-2", "main")

    entries = await world.port.entries("main")
    assert uncovered(await world.port.current("main"), entries) == ()
    assert [entry.manifest.id for entry in entries] == ["main-2", "main-1"]


async def test_a_rerun_returns_what_is_there(world: World) -> None:
    first = await world.port.make("main-1", "main")
    before = await world.store.get(world.bucket, first.manifest.key)

    assert await world.port.make("main-1", "main") == first
    assert await world.store.get(world.bucket, first.manifest.key) == before


async def test_a_key_that_the_cluster_has_lost_comes_back(world: World) -> None:
    await world.port.make("main-1", "main")
    [key] = await world.port.current("main")
    world.sealing.forget("main", "key-1")

    await world.port.check("main", "main-1", [key.fingerprint])
    assert await world.port.current("main") == []
    await world.port.give_back("main", "main-1", [key.fingerprint])

    assert [each.fingerprint for each in await world.port.current("main")] == [key.fingerprint]
    assert b"private one" in await world.sealing.export("main")


async def test_what_cannot_be_given_back_from_here_is_told_before(world: World) -> None:
    await world.port.make("main-1", "main")
    [key] = await world.port.current("main")
    with pytest.raises(VerificationError, match="lacks sealing keys"):
        await world.port.check("main", "main-1", ["0" * 64])
    with pytest.raises(VerificationError, match="no escrow `main-9`"):
        await world.port.check("main", "main-9", [key.fingerprint])
    world.sealing.closed = True
    with pytest.raises(UserError, match="no right to it"):
        await world.port.check("main", "main-1", [key.fingerprint])
    world.secrets.values["env:CUSTODIAN"] = str(pyrage.x25519.Identity.generate())
    with pytest.raises(UserError, match="not among its 1 recipients"):
        await world.port.check("main", "main-1", [key.fingerprint])


@pytest.mark.corruption
async def test_an_object_of_the_same_size_is_not_taken_for_the_escrow(world: World) -> None:
    made = (await world.port.make("main-1", "main")).manifest
    stored = bytearray(await world.store.get(world.bucket, made.key))
    stored[-1] ^= 1
    await world.store.put(world.bucket, made.key, bytes(stored))

    with pytest.raises(VerificationError, match="not what was signed"):
        await world.port.check("main", "main-1", [key.fingerprint for key in made.keys])


@pytest.mark.corruption
@pytest.mark.parametrize("damage", ["forged", "cut", "lost"])
async def test_an_escrow_that_does_not_check_covers_nothing(world: World, damage: str) -> None:
    made = (await world.port.make("main-1", "main")).manifest
    manifest = made.key.replace("keys.age", "manifest.json")
    if damage == "forged":
        body = await world.store.get(world.bucket, manifest)
        await world.store.put(world.bucket, manifest, body.replace(b"key-1", b"key-9"))
    elif damage == "cut":
        await world.store.put(world.bucket, made.key, b"age")
    else:
        await world.store.delete(world.bucket, made.key)

    [entry] = await world.port.entries("main")

    assert entry.problem is not None
    assert len(uncovered(await world.port.current("main"), [entry])) == 1


async def test_a_cluster_without_a_controller_is_told(world: World) -> None:
    with pytest.raises(UserError, match="no controller"):
        await world.port.make("x", "other")


# ---------------------------------------------------------------- what people are told


async def test_the_doctor_says_that_a_new_cluster_could_not_decrypt() -> None:
    world = a_world()

    [before] = await escrow_findings("main", world)
    plan = await registry.action("secrets.escrow").plan(EscrowParams(), world, PLAN_ID)
    result = await run(plan, world, MemoryJournal())
    [after] = await escrow_findings("main", world)

    assert before.verdict is Verdict.STOP
    assert "A new cluster could not decrypt what is sealed with `key-new` and `key-old`" in before.detail
    assert result.message == "" or secrets_in(result.message) == []
    assert after.verdict is Verdict.OK


async def test_without_an_escrow_in_the_plan_the_doctor_says_so() -> None:
    world = a_world()
    object.__setattr__(world, "site", world.site.model_copy(update={"escrow": None}))

    [finding] = await escrow_findings("main", world)

    assert finding.verdict is Verdict.STOP
    assert "could not decrypt" in finding.detail


async def test_the_commands_for_a_new_cluster_are_there_when_the_old_one_is_gone() -> None:
    world = a_world()
    await world.escrow.make("main-1", "main")
    world.sealing.down = True

    report = await registry.query("status.escrow").read(EscrowStateParams(), world)

    assert any("age -d" in line and "kubectl" in line for line in report.lines)
    assert any("escrow/main/main-1/keys.age" in line for line in report.lines)
    assert secrets_in(report.model_dump_json()) == []
    with pytest.raises(TemporaryError):
        await world.escrow.current("main")
