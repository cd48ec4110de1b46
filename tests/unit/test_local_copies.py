"""A whole, signed local copy is read wherever the bucket does not give its object out whole."""

from __future__ import annotations

import hashlib
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyrage
import pytest

from actions.backup.catalogue import Catalogue, Folder
from actions.backup.logical import LogicalEngine
from actions.backup.manifest import Fingerprint, Manifest, Provenance, SignedManifest, StoredObject
from actions.backup.stored import StoredDumps, write_private
from actions.errors import DrError, PermanentError, TemporaryError, UserError, VerificationError
from actions.ports import no_progress
from actions.site import BackupPolicy, SecretRef, Site
from tests.fakes.backups import SIGNER, SIGNING_KEY
from tests.fakes.s3 import MemoryObjects

BODY = bytes(range(256)) * 64
IDENTITY = pyrage.x25519.Identity.generate()
NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)


class Keys:
    async def resolve(self, ref: SecretRef) -> str:
        assert ref
        return str(IDENTITY)


class World:
    """Backup `b1` in the bucket and in the local copy."""

    def __init__(self, directory: Path) -> None:
        self.policy = BackupPolicy(
            database="shop",
            bucket="dumps",
            local_directory=str(directory / "local"),
            recipients=(str(IDENTITY.to_public()),),
            identity="env:IDENTITY",
            signing_key="env:KEY",
            trusted_signers=(SIGNER,),
        )
        self.folder = Folder(self.policy, "b1")
        self.objects = MemoryObjects("dumps")
        self.dumps = StoredDumps(self.objects, Keys(), directory / "work")
        self.catalogue = Catalogue(self.objects)
        nothing: Any = None
        self.engine = LogicalEngine(
            Site(backups={"shop": self.policy}),
            postgres=nothing,
            objects=self.objects,
            secrets=Keys(),
            clock=nothing,
            tools=nothing,
            work_directory=directory / "work",
        )
        self.manifest = Manifest(
            id="b1",
            database="shop",
            server="main",
            provenance=Provenance.ATTESTED,
            system_id="7",
            server_version=150000,
            lsn="0/0",
            snapshot_at=NOW,
            finished_at=NOW,
            duration_ms=1,
            stored=StoredObject(
                bucket="dumps", key=self.folder.dump, bytes=len(BODY), sha256=hashlib.sha256(BODY).hexdigest()
            ),
            plain_bytes=1,
            plain_sha256="",
            compression="zstd",
            recipients=self.policy.recipients,
            database_bytes=1,
            fingerprint=Fingerprint(rows={}, sequences={}, schema_hash="", invariants={}),
        )
        self.local_dump, self.local_manifest = self.folder.local_dump, self.folder.local_manifest

    async def stored(self) -> None:
        body = SignedManifest.sign(self.manifest, SIGNING_KEY).model_dump_json(indent=1).encode()
        assert self.local_dump is not None
        assert self.local_manifest is not None
        write_private(self.local_dump, BODY)
        write_private(self.local_manifest, body)
        await self.objects.put("dumps", self.folder.dump, BODY)
        await self.objects.put("dumps", self.folder.manifest, body)

    async def lose(self, how: str) -> None:
        if how == "silent":
            self.objects.down = True
        elif how == "odd answers":
            self.objects.refusal = PermanentError("Bucket `dumps` did not look at it: 301 (Moved).")
        elif how == "bucket deleted":
            self.objects.buckets.clear()
        elif how == "object missing":
            await self.objects.delete("dumps", self.folder.dump)
        else:
            await self.objects.put("dumps", self.folder.dump, BODY[:-1])

    async def fetched(self) -> bytes:
        """What a restore reads; it is no archive, so the restore ends there."""
        spool = Path(str(self.policy.local_directory)).parent / "spool"
        with pytest.raises(DrError):
            await self.dumps.fetch(self.policy, self.manifest, spool, lambda _: None)
        return spool.read_bytes() if spool.exists() else b""


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    await made.stored()
    return made


LOSSES = ["silent", "odd answers", "bucket deleted", "object missing", "object cut off"]


@pytest.mark.parametrize("how", LOSSES)
async def test_a_restore_reads_the_local_copy(world: World, how: str, caplog: pytest.LogCaptureFixture) -> None:
    await world.lose(how)
    with caplog.at_level(logging.WARNING):
        assert (await world.catalogue.trusted(world.policy, "b1")) == world.manifest
        assert await world.fetched() == BODY
    assert f"local_copy_used: {world.local_dump}" in caplog.text


@pytest.mark.parametrize("how", LOSSES)
async def test_a_copy_that_is_cut_off_is_not_read(world: World, how: str) -> None:
    assert world.local_dump is not None
    write_private(world.local_dump, BODY[:-1])
    await world.lose(how)
    assert await world.fetched() == b""


async def test_verifying_the_stored_object_does_not_read_the_copy(world: World) -> None:
    await world.lose("object missing")
    with pytest.raises(VerificationError, match="is missing: bucket `dumps`"):
        await world.dumps.read(world.policy, world.manifest, lambda _: None)


async def test_a_local_manifest_of_a_stranger_is_refused(world: World) -> None:
    assert world.local_manifest is not None
    write_private(world.local_manifest, world.local_manifest.read_bytes().replace(b'"main"', b'"evil"'))
    await world.lose("bucket deleted")
    with pytest.raises(VerificationError):
        await world.catalogue.trusted(world.policy, "b1")


async def test_without_a_copy_the_bucket_says_what_is_wrong(world: World) -> None:
    bare = world.policy.model_copy(update={"local_directory": None})
    await world.lose("bucket deleted")
    with pytest.raises(UserError, match="There is no bucket `dumps`"):
        await world.catalogue.trusted(bare, "b1")
    world.objects.down = True
    with pytest.raises(TemporaryError):
        await world.catalogue.trusted(bare, "b1")


@pytest.mark.parametrize("how", ["object missing", "object cut off"])
async def test_the_catalogue_tells_a_lost_object_from_other_problems(world: World, how: str) -> None:
    [entry] = await world.catalogue.entries(world.policy)
    assert not entry.lost
    await world.lose(how)
    [entry] = await world.catalogue.entries(world.policy)
    assert entry.lost
    assert entry.problem is not None


@pytest.mark.parametrize(
    ("error", "then"),
    [
        (UserError("Check the keys `env:KEY` and their policy."), "Once that is put right in the bucket"),
        (
            PermanentError("Bucket `dumps` did not store it: 400 (InvalidRequest)."),
            "Once that is put right in the bucket",
        ),
        (TemporaryError("Bucket `dumps` does not answer."), "Once the bucket answers"),
    ],
)
@pytest.mark.parametrize("verb", ["head", "put_stream", "put"])
async def test_an_upload_that_is_refused_says_what_there_is_and_what_to_do(
    world: World, monkeypatch: pytest.MonkeyPatch, verb: str, error: DrError, then: str
) -> None:
    await world.objects.delete("dumps", world.folder.manifest)

    async def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(world.objects, verb, refuse)
    with pytest.raises(type(error)) as raised:
        await world.engine.upload("shop", "b1", no_progress)
    said = str(raised.value)
    assert said.startswith(str(error))
    assert f"The local copy `{world.local_dump}`" in said
    assert f"{then}, `/dr-backup upload shop b1` brings it there." in said
    monkeypatch.undo()
    assert (await world.engine.upload("shop", "b1", no_progress)).manifest == world.manifest
    assert world.folder.manifest in world.objects.buckets["dumps"]


async def test_a_copy_that_was_changed_is_not_said_to_be_whole(world: World) -> None:
    await world.objects.delete("dumps", world.folder.manifest)
    assert world.local_dump is not None
    write_private(world.local_dump, BODY[:-1] + b"x")
    with pytest.raises(VerificationError, match=r"its bytes were changed\. Dump again\.$"):
        await world.engine.upload("shop", "b1", no_progress)
    assert world.folder.manifest not in world.objects.buckets["dumps"]


async def test_a_dump_whose_manifest_the_bucket_refuses_is_in_the_copy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = SignedManifest.sign(world.manifest, SIGNING_KEY)
    await world.objects.delete("dumps", world.folder.manifest)
    put = world.objects.put

    async def refuse(*_: object, **__: object) -> None:
        raise UserError("Check the keys.")

    monkeypatch.setattr(world.objects, "put", refuse)
    with pytest.raises(UserError, match="`/dr-backup upload shop b1` brings it there"):
        await world.dumps.publish(world.policy, world.folder, signed, None)
    monkeypatch.setattr(world.objects, "put", put)
    await world.dumps.publish(world.policy, world.folder, signed, None)
    with pytest.raises(UserError, match=r"is not overwritten\.$"):  # it is there: nothing is to be brought
        await world.dumps.publish(world.policy, world.folder, signed, None)
