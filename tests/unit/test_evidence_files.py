"""Files that are evidence: opened without following anything, hashed, stored, read back."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pyrage
import pytest
import zstandard

from actions.backup.evidence import Condition, UnsafeFileError, Vault, opened, printable, sha256_of
from actions.errors import UserError, VerificationError
from actions.site import EvidencePolicy
from tests.fakes.s3 import MemoryObject, MemoryObjects

IDENTITY = pyrage.x25519.Identity.generate()
POLICY = EvidencePolicy(bucket="vault", prefix="kept/", recipients=(str(IDENTITY.to_public()),))
BODY = b"image of a disk" * 100_000


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "web-1.img"
    path.write_bytes(BODY)
    return path


async def test_a_file_is_stored_encrypted_under_a_name_of_ours_and_found_again(image: Path) -> None:
    objects = MemoryObjects("vault")
    vault = Vault(objects, POLICY)
    with opened(str(image)) as source:
        copy = await vault.keep(source, "7")
    assert copy.packed.plain_sha256 == hashlib.sha256(BODY).hexdigest()
    [(key, found)] = objects.buckets["vault"].items()
    assert (copy.bucket, copy.key) == ("vault", key)
    assert key.startswith("kept/evidence/7/")
    assert "web-1" not in key
    assert zstandard.ZstdDecompressor().stream_reader(io.BytesIO(pyrage.decrypt(found.body, [IDENTITY]))).read() == BODY

    asked = (copy.bucket, copy.key, copy.packed.stored_sha256)
    assert await vault.look(*asked) == (Condition.OK, "")
    objects.buckets["vault"][key] = MemoryObject(found.body[:-1] + b"x", found.modified_at)
    assert await vault.look(*asked) == (Condition.ALTERED, "")
    del objects.buckets["vault"][key]
    assert await vault.look(*asked) == (Condition.MISSING, "")
    objects.down = True
    condition, why = await vault.look(*asked)
    assert condition is Condition.UNVERIFIABLE
    assert why


async def test_what_does_not_come_back_as_it_was_stored_is_no_evidence(image: Path) -> None:
    class Forgetful(MemoryObjects):
        async def get(self, bucket: str, key: str) -> bytes:
            return (await super().get(bucket, key))[:-1]

    with opened(str(image)) as source, pytest.raises(VerificationError, match="other bytes"):
        await Vault(Forgetful("vault"), POLICY).keep(source, "7")


async def test_a_file_that_is_written_to_meanwhile_is_refused(image: Path) -> None:
    with opened(str(image)) as source:
        with image.open("ab") as file:
            file.write(b"more")
        with pytest.raises(UserError, match="written to while it was read"):
            await sha256_of(source)
    with opened(str(image)) as source:
        os.utime(image, ns=(1, 1))  # as if other bytes of the same length had been written
        with pytest.raises(UserError, match="written to while it was read"):
            await Vault(MemoryObjects("vault"), POLICY).keep(source, "7")


async def test_only_a_plain_file_reached_without_links_is_opened(image: Path) -> None:
    with opened(str(image.parent / "x" / ".." / image.name)) as source:  # `..` is cut before anything is opened
        assert await sha256_of(source) == hashlib.sha256(BODY).hexdigest()
    (image.parent / "link").symlink_to(image)
    (image.parent / "folder").symlink_to(image.parent)
    os.mkfifo(image.parent / "pipe")
    for name, told in (
        ("link", f"name it as `{image}`"),
        (f"folder/{image.name}", f"name it as `{image}`"),
        ("pipe", "no plain file"),
        (".", "no plain file"),
    ):
        with pytest.raises(UnsafeFileError, match=told), opened(str(image.parent / name)):
            pass
    for name in ("nowhere", "nowhere/inside", "a\0b"):
        with pytest.raises(UserError, match="cannot be read"), opened(str(image.parent / name)):
            pass


def test_a_path_is_shown_so_that_it_can_be_stored() -> None:
    assert printable("/a\nb`c\udcff") == "/a?b?c�"
