"""Restore tests: what is kept is signed, what is not does not count; a failed one says so and leaves nothing behind."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from actions import registry
from actions.backup.native_catalogue import checked
from actions.backup.physical import PhysicalManifest, Proof, ScratchRequest, ScratchRestored
from actions.backup.proofs import Proofs
from actions.backup.signing import Signed
from actions.catalog.proof import ProveParams, When
from actions.errors import TemporaryError, UserError, VerificationError
from actions.ports import Progress
from actions.runner import Outcome
from actions.site import ScratchBudget
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.physical_world import FAR, SERVER, with_bases, with_two_buckets
from tests.fakes.world import START, World, a_world


async def proven(world: World, **params: object) -> tuple[Outcome, str]:
    plan = await registry.action("backup.prove").plan(ProveParams.model_validate(params), world, PLAN_ID)
    result = await run(plan, world, MemoryJournal())
    return result.outcome, result.message


async def kept(world: World) -> list[Signed[Proof]]:
    bucket = world.objects.buckets["backups"]
    return [Signed[Proof].model_validate_json(item.body) for key, item in bucket.items() if "/proofs/" in key]


async def test_a_test_that_passes_is_signed_and_measured_and_leaves_nothing() -> None:
    world = with_bases()
    assert await proven(world) == (Outcome.SUCCEEDED, "")

    [proof] = await Proofs(world.objects, world.secrets).newest(world.site.physical_of(SERVER))
    assert (proof.id, proof.problem, proof.backup) == (PLAN_ID, None, "base-hour")
    assert proof.rpo == timedelta(seconds=2)
    assert proof.checks["shop: rows"] == "10 rows in 2 tables"
    assert world.scratch.made == {}


async def test_an_empty_database_fails_the_test_and_is_on_record() -> None:
    world = with_bases()
    commits = world.physical.history[SERVER].commits
    empty = commits[-1].databases["shop"].model_copy(update={"rows": {}})
    commits[-1] = replace(commits[-1], databases={"shop": empty})
    outcome, message = await proven(world)

    assert outcome is Outcome.FAILED
    assert "is empty, its newest dump has" in message
    assert "Production was not touched" in message
    assert [item.document.problem for item in await kept(world)] == [
        "database `shop` is empty, its newest dump has 13 rows."
    ]
    assert world.scratch.made == {}


async def test_a_base_that_cannot_be_restored_is_on_record_too() -> None:
    world = with_bases()
    plan = await registry.action("backup.prove").plan(ProveParams(), world, PLAN_ID)
    for backup in ("base-full", "base-hour"):
        world.physical.spoil(SERVER, backup, "its object was cut off.")
    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.FAILED
    [proof] = [item.document for item in await kept(world)]
    assert proof.problem is not None
    assert proof.problem.startswith("No base backup of `primary` ends before")
    assert world.scratch.made == {}


async def test_a_failure_that_cannot_be_put_on_record_is_told_all_the_same() -> None:
    world = with_bases()
    plan = await registry.action("backup.prove").plan(ProveParams(), world, PLAN_ID)
    for backup in ("base-full", "base-hour"):
        world.physical.spoil(SERVER, backup, "its object was cut off.")

    async def away(*_: object, **__: object) -> None:
        raise TemporaryError("Bucket `backups` does not answer.")

    world.objects.put = away  # type: ignore[method-assign]
    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.FAILED
    assert "No base backup of `primary` ends before" in result.message


async def test_a_random_moment_lies_in_the_window_and_the_copy_shows_it() -> None:
    world = with_bases()
    await proven(world, moment=When.RANDOM)
    [proof] = await Proofs(world.objects, world.secrets).newest(world.site.physical_of(SERVER))

    assert proof.target is not None
    assert proof.target.time is not None
    assert START.replace(hour=2, minute=30) <= proof.target.time <= START


async def test_what_nobody_we_trust_has_signed_is_no_proof() -> None:
    world = with_bases()
    await proven(world)
    policy = world.site.physical_of(SERVER)
    [signed] = await kept(world)
    proofs, bucket = Proofs(world.objects, world.secrets), world.objects.buckets["backups"]
    [key] = [key for key in bucket if "/proofs/" in key]

    async def put(body: str) -> None:
        await world.objects.put("backups", key, body.encode())

    changed = json.loads(signed.model_dump_json())
    changed["document"]["rto"] = 1.0
    await put(json.dumps(changed))
    assert await proofs.newest(policy) == []
    await put(Signed[Proof].sign(signed.document, Ed25519PrivateKey.generate()).model_dump_json())
    assert await proofs.find(policy, PLAN_ID) is None
    await put("{")
    assert await proofs.newest(policy) == []
    await put(signed.model_dump_json())
    await world.objects.put("backups", key.replace(PLAN_ID, "another"), signed.model_dump_json().encode())
    assert [proof.id for proof in await proofs.newest(policy)] == [PLAN_ID]


async def test_a_test_is_on_record_in_both_buckets_of_base_backups() -> None:
    world = with_two_buckets()
    await proven(world)
    policy, proofs = world.site.physical_of(SERVER), Proofs(world.objects, world.secrets)
    world.objects.buckets["backups"].clear()
    assert [proof.id for proof in await proofs.newest(policy)] == [PLAN_ID]
    assert await proofs.find(policy, PLAN_ID) is not None
    del world.objects.buckets["backups"]
    assert [proof.id for proof in await proofs.newest(policy)] == [PLAN_ID]
    assert await proofs.find(policy, PLAN_ID) is not None
    del world.objects.buckets[FAR]
    with pytest.raises(UserError, match="no bucket"):
        await proofs.newest(policy)
    with pytest.raises(UserError, match="no bucket"):
        await proofs.find(policy, PLAN_ID)


async def test_what_was_stored_last_counts_where_two_buckets_have_kept_different_ends_of_a_test() -> None:
    """A test failed and was run again while the first bucket was away."""
    world = with_two_buckets()
    policy, proofs = world.site.physical_of(SERVER), Proofs(world.objects, world.secrets)
    await proven(world)
    [passed] = await proofs.newest(policy)
    near, far = world.objects.buckets["backups"], world.objects.buckets[FAR]
    failed = passed.model_copy(update={"problem": "it ended early."})
    world.clock.advance(timedelta(minutes=1))
    await proofs.keep(policy, failed)
    world.objects.buckets["backups"] = {}
    world.clock.advance(timedelta(minutes=1))
    await proofs.keep(policy, passed)
    again = world.objects.buckets["backups"]
    world.objects.buckets["backups"] = near
    assert again  # it went into both; what follows is as if the first had been away
    assert await proofs.find(policy, PLAN_ID) == passed
    assert await proofs.newest(policy) == [passed]
    [key] = [key for key in far if "/proofs/" in key]
    await world.objects.put(FAR, key, b"{")  # and one that cannot be read hides none that can
    assert await proofs.find(policy, PLAN_ID) == failed
    assert await proofs.newest(policy) == [failed]


PROOF_KEY = Ed25519PrivateKey.generate()
PROOF_SIGNER = base64.b64encode(PROOF_KEY.public_key().public_bytes_raw()).decode()


def with_a_proof_key(signers: tuple[str, ...]) -> World:
    world = with_bases()
    pem = PROOF_KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    world.secrets.values["env:PROOF_KEY"] = pem.decode()
    policy = world.site.physical_of(SERVER).model_copy(
        update={"proof_signing_key": "env:PROOF_KEY", "proof_signers": signers}
    )
    return replace(world, site=world.site.model_copy(update={"physical": {SERVER: policy}}))


async def test_the_key_of_proofs_is_trusted_for_nothing_else() -> None:
    world = with_a_proof_key((PROOF_SIGNER,))
    assert await proven(world) == (Outcome.SUCCEEDED, "")

    policy = world.site.physical_of(SERVER)
    [signed] = await kept(world)
    assert signed.signer == PROOF_SIGNER
    assert [proof.id for proof in await Proofs(world.objects, world.secrets).newest(policy)] == [PLAN_ID]
    # Beside the backup, where a prover may not write, nothing is written.
    assert not [key for key in world.objects.buckets["backups"] if "proven-" in key]
    manifest = world.physical.entries[SERVER, "base-hour"].manifest
    body = Signed[PhysicalManifest].sign(manifest, PROOF_KEY).body()
    with pytest.raises(VerificationError, match="signed by a key the plan file does not trust"):
        checked(body, policy, manifest.id)


async def test_a_key_of_proofs_that_nobody_trusts_signs_nothing() -> None:
    world = with_a_proof_key(())
    outcome, message = await proven(world)
    assert outcome is Outcome.FAILED
    assert f"its public key is not among `backups.proof_signers`. Add `{PROOF_SIGNER}` there" in message
    assert await kept(world) == []
    assert world.scratch.made == {}


@pytest.mark.parametrize(
    ("bare", "unseen", "said"),
    [
        (set(), set(), "every page"),
        ({SERVER}, set(), "not possible, the server has none"),
        (set(), {SERVER}, "not looked at"),
    ],
)
async def test_a_proof_says_what_became_of_the_pages(bare: set[str], unseen: set[str], said: str) -> None:
    world = with_bases()
    world.physical.bare, world.physical.unseen = bare, unseen
    assert (await proven(world, server=SERVER))[0] is Outcome.SUCCEEDED
    [proof] = await Proofs(world.objects, world.secrets).newest(world.site.physical_of(SERVER))
    assert proof.checks["page checksums"] == said


@pytest.mark.parametrize("params", [{}, {"dump": "newest"}], ids=["bases", "dump"])
async def test_a_test_for_which_there_is_no_room_is_refused_before_anybody_waits(params: dict[str, str]) -> None:
    world, prove = with_bases(), registry.action("backup.prove")
    world.scratch.lacks = "Every port from 55400 to 55401 is taken on this machine. Discard one."
    plan = await prove.plan(ProveParams.model_validate(params), world, PLAN_ID)
    assert [finding.detail for finding in plan.stopped] == [world.scratch.lacks]

    world.scratch.lacks = ""
    small = world.site.model_copy(update={"scratch": ScratchBudget(disk=1000)})
    plan = await prove.plan(ProveParams.model_validate(params), replace(world, site=small), PLAN_ID)
    assert "or raise `backups.scratch.disk`" in plan.stopped[0].detail

    # What is taken since the request keeps it from beginning; it is no failed test.
    plan = await prove.plan(ProveParams.model_validate(params), world, PLAN_ID)
    assert plan.stopped == ()
    world.scratch.lacks = "The disk has no room."
    result = await run(plan, world, MemoryJournal())
    assert (result.outcome, result.message) == (Outcome.STALE, "The disk has no room.")
    assert await kept(world) == []


async def test_the_room_of_a_prover_apart_is_looked_at_by_itself() -> None:
    world = with_bases()
    world.scratch.lacks = "This worker's disk has no room."
    site = world.site.model_copy(update={"prover_apart": True})
    plan = await registry.action("backup.prove").plan(ProveParams(), replace(world, site=site), PLAN_ID)
    assert plan.stopped == ()
    assert [each.kind for each in plan.preconditions] == ["scratch_room"]


# ---------------------------------------------------------------- dumps


async def test_a_database_with_dumps_alone_is_tested_by_its_newest_usable_dump() -> None:
    world = a_world()
    assert await proven(world) == (Outcome.SUCCEEDED, "")
    [proof] = await Proofs(world.objects, world.secrets).newest(world.site.backup("shop"))
    assert (proof.backup, proof.database, proof.server, proof.problem) == ("b-new", "shop", "primary", None)
    assert proof.rpo == timedelta(days=1)  # the next one comes at 02:00 UTC
    assert proof.checks["rows"] == "13 rows in 2 tables"
    assert proof.known == {"PostgreSQL": "18.6", "pg_dump": "18.2", "pg_restore": "18.2"}
    assert world.scratch.made == {}


@pytest.mark.parametrize(
    ("params", "backup"),
    [
        ({}, "base-hour"),
        ({"server": "shop"}, "base-hour"),
        ({"dump": "newest"}, "b-new"),
        ({"server": "primary", "dump": "newest"}, "b-new"),
        ({"server": "shop", "dump": "b-old"}, "b-old"),
    ],
)
async def test_where_there_are_both_a_dump_is_tested_when_it_is_asked_for(params: dict[str, str], backup: str) -> None:
    world = with_bases()
    assert await proven(world, **params) == (Outcome.SUCCEEDED, "")
    policy = world.site.backup("shop") if "dump" in params else world.site.physical_of(SERVER)
    [proof] = await Proofs(world.objects, world.secrets).newest(policy)
    assert proof.backup == backup


async def test_the_rpo_of_an_older_dump_ends_with_the_next_one() -> None:
    world = a_world()
    world.clock.advance(timedelta(days=3))
    await proven(world, dump="b-old")
    [proof] = await Proofs(world.objects, world.secrets).newest(world.site.backup("shop"))
    assert proof.rpo == timedelta(days=1)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"dump": "newest", "moment": "random"}, "none can be drawn"),
        ({"dump": "b-bad"}, r"must not be used: its object is missing\. Test another one"),
        ({"dump": "b-none"}, "has no backup `b-none`"),
        (
            {"server": "nowhere", "dump": "newest"},
            "Name the database whose dump is to be tested; those with dumps: `shop`",
        ),
        ({"server": "nowhere"}, "nowhere"),
    ],
)
async def test_what_cannot_be_tested_of_dumps_is_refused_with_the_reason(params: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        await proven(a_world(), **params)


async def test_a_dump_that_cannot_be_loaded_is_on_record_as_failed() -> None:
    world = a_world()
    plan = await registry.action("backup.prove").plan(ProveParams(), world, PLAN_ID)
    world.backups.spoil("shop", "b-new", "Its object was cut off.")
    result = await run(plan, world, MemoryJournal())
    assert result.outcome is Outcome.FAILED
    [proof] = [item.document for item in await kept(world)]
    assert (proof.backup, proof.problem) == ("b-new", "Its object was cut off.")
    assert world.scratch.made == {}


async def test_a_test_of_dumps_passes_for_none_of_a_server_and_the_other_way_round() -> None:
    world = with_bases()
    await proven(world, dump="newest")
    bucket = world.objects.buckets["backups"]
    [key] = [key for key in bucket if "/proofs/" in key]
    proofs, physical = Proofs(world.objects, world.secrets), world.site.physical_of(SERVER)
    await world.objects.put("backups", f"{physical.prefix}proofs/{SERVER}/{PLAN_ID}.json", bucket[key].body)
    assert await proofs.newest(physical) == []
    del bucket[f"{physical.prefix}proofs/{SERVER}/{PLAN_ID}.json"]
    del bucket[key]
    await proven(world)
    [key] = [key for key in bucket if "/proofs/" in key]
    await world.objects.put("backups", f"dumps/proofs/shop/{PLAN_ID}.json", bucket[key].body)
    assert await proofs.newest(world.site.backup("shop")) == []


async def test_a_server_on_which_nobody_writes_has_lost_nothing_by_its_restore_test() -> None:
    """Its newest commit may be of last week, and everything committed since is in the archive: nothing."""
    world = with_bases()
    world.clock.advance(timedelta(hours=3))
    plan = await registry.action("backup.prove").plan(ProveParams(), world, PLAN_ID)
    restore = world.physical.restore

    async def covered(request: ScratchRequest, progress: Progress) -> ScratchRestored:
        restored = await restore(request, progress)
        told = restored.model_copy(update={"covered_until": world.clock.now() - timedelta(seconds=3)})
        facts = world.scratch.made[request.id]
        world.scratch.made[request.id] = facts.model_copy(update={"restored": told})
        return told

    world.physical.restore = covered  # type: ignore[method-assign]
    assert (await run(plan, world, MemoryJournal())).message == ""
    [proof] = await Proofs(world.objects, world.secrets).newest(world.site.physical_of(SERVER))
    assert proof.rpo == timedelta(seconds=3)
