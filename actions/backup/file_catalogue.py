"""The copies of files as their bucket shows them.

<prefix>files/<name>/objects/<key>@<hash>     the bytes of one version, shared by all copies that have it
<prefix>files/<name>/copies/<id>/part-00001   signed lists of files, as far as a copy has come
<prefix>files/<name>/copies/<id>/manifest.json  signed, written last: makes it a copy
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import zstandard

from actions.backup.signed_document import SignedDocument, opened
from actions.bucket_ports import Buckets
from actions.buckets import Comparison, FileEntry, FilesCopy, FilesManifest, ObjectVersion, Tombstone
from actions.errors import UserError, VerificationError
from actions.ports import ObjectStore
from actions.site import FilesPolicy, Frozen

MANIFEST, PART = "manifest.json", "part-"
MANIFEST_KIND, PART_KIND = "files-copy", "files-part"
LONGEST = 900  # bytes of a key that is still kept readable; S3 takes 1024
LONGEST_NAME = 255  # bytes behind the last `/`: what stores on file systems take
PART_LIMIT = 512 * 1024 * 1024  # bytes of a part once unpacked; more is no part of ours


class Part(Frozen):
    """A stretch of a copy's list."""

    copy_id: str
    number: int
    entries: tuple[FileEntry, ...] = ()
    tombstones: tuple[Tombstone, ...] = ()


class Place:
    """Where a policy's copies are."""

    def __init__(self, policy: FilesPolicy) -> None:
        self.bucket = policy.copy_bucket
        self.base = f"{policy.copy_prefix}files/{policy.name}/"
        self.objects, self.copies = f"{self.base}objects/", f"{self.base}copies/"

    def folder(self, copy: str) -> str:
        return f"{self.copies}{copy}/"

    def manifest(self, copy: str) -> str:
        return self.folder(copy) + MANIFEST

    def part(self, copy: str, number: int) -> str:
        return f"{self.folder(copy)}{PART}{number:05}"

    def stored(self, found: ObjectVersion) -> str:
        """Where the bytes of this version go: the same place in every copy."""
        name = identity(found)
        readable = f"{self.objects}{found.key}@{name[:16]}"
        fits = len(readable.encode()) <= LONGEST and len(readable.rpartition("/")[2].encode()) <= LONGEST_NAME
        return readable if fits else f"{self.objects}@{name}"


def identity(found: ObjectVersion | FileEntry) -> str:
    """SHA-256, hex, of what tells one version of a file from every other."""
    parts = (found.key, found.version, found.etag, str(found.bytes), found.modified_at.astimezone(UTC).isoformat())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class FileCatalogue:
    """Reads copies; writes nothing."""

    def __init__(self, objects: ObjectStore, buckets: Buckets) -> None:
        self._objects, self._buckets = objects, buckets

    async def copies(self, policy: FilesPolicy) -> Sequence[FilesCopy]:
        """Newest first; none where files are kept by their versions alone."""
        if not policy.copy_bucket:
            return []
        place = Place(policy)
        listed = {facts.key: facts for facts in await self._objects.list(place.bucket, place.copies)}
        found = [
            await self._copy(policy, key.removeprefix(place.copies).partition("/")[0], set(listed))
            for key in listed
            if key.endswith(f"/{MANIFEST}")
        ]
        return sorted(found, key=lambda copy: copy.manifest.state_of, reverse=True)

    async def find(self, policy: FilesPolicy, copy: str) -> FilesCopy | None:
        if not policy.copy_bucket:
            return None
        place = Place(policy)
        listed = {facts.key for facts in await self._objects.list(place.bucket, place.folder(copy))}
        return await self._copy(policy, copy, listed) if place.manifest(copy) in listed else None

    async def usable(self, policy: FilesPolicy, copy: str) -> FilesManifest:
        """Raise UserError when there is no such copy, VerificationError when it must not be used."""
        found = await self.find(policy, copy)
        if found is None:
            raise UserError(f"There is no copy `{copy}` of `{policy.name}`. Choose one of `/dr files {policy.name}`.")
        if found.problem is not None:
            raise VerificationError(found.problem)
        return found.manifest

    async def parts(self, policy: FilesPolicy, manifest: FilesManifest) -> list[Part]:
        """The lists of a copy, each checked against the manifest and its own signature."""
        place = Place(policy)
        room = asyncio.Semaphore(8)

        async def one(key: str, sha256: str) -> Part:
            async with room:
                body = await self._objects.get(place.bucket, key)
            if hashlib.sha256(body).hexdigest() != sha256:
                raise VerificationError(f"Part `{key}` of copy `{manifest.id}` was changed. Use another copy.")
            return read_part(body, policy, manifest.id)

        return list(await asyncio.gather(*(one(key, sha256) for key, sha256 in manifest.parts.items())))

    async def _copy(self, policy: FilesPolicy, copy: str, listed: Iterable[str]) -> FilesCopy:
        body = await self._objects.get(policy.copy_bucket, Place(policy).manifest(copy))
        digest = hashlib.sha256(body).hexdigest()
        try:
            manifest = _manifest(body, policy, copy)
        except VerificationError as error:
            return FilesCopy(manifest=_nothing(policy, copy), manifest_sha256=digest, problem=str(error))
        missing = [key for key in manifest.parts if key not in listed]
        problem = f"{len(missing)} part(s) of copy `{copy}` are missing. Use another copy." if missing else None
        return FilesCopy(manifest=manifest, manifest_sha256=digest, problem=problem)


def _manifest(body: bytes, policy: FilesPolicy, copy: str) -> FilesManifest:
    what = f"The manifest of copy `{copy}`"
    manifest = opened(body, MANIFEST_KIND, FilesManifest, policy.trusted_signers, what=what)
    if (manifest.id, manifest.name) != (copy, policy.name):
        raise VerificationError(f"{what} belongs to `{manifest.id}` of `{manifest.name}`: somebody put it there.")
    return manifest


def pack_part(signed: SignedDocument[Part]) -> bytes:
    """As stored."""
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(signed.bytes())


def read_part(body: bytes, policy: FilesPolicy, copy: str) -> Part:
    """Raises VerificationError unless a trusted key signed it for this very copy."""
    what = f"A part of copy `{copy}`"
    try:
        plain = zstandard.ZstdDecompressor().decompress(body, max_output_size=PART_LIMIT)
    except zstandard.ZstdError as error:
        raise VerificationError(f"{what} cannot be unpacked: it was changed or cut off.") from error
    part = opened(plain, PART_KIND, Part, policy.trusted_signers, what=what)
    if part.copy_id != copy:
        raise VerificationError(f"{what} belongs to copy `{part.copy_id}`: somebody put it there.")
    return part


def _nothing(policy: FilesPolicy, copy: str) -> FilesManifest:
    """What stands in the list for a manifest that says nothing that can be believed."""
    never = datetime.fromtimestamp(0, UTC)
    return FilesManifest(
        id=copy,
        name=policy.name,
        bucket=policy.bucket,
        prefix=policy.prefix,
        copy_bucket=policy.copy_bucket,
        state_of=never,
        finished_at=never,
        objects=0,
        bytes=0,
        copied=0,
        copied_bytes=0,
        tombstones=0,
        parts={},
        comparison=Comparison(compared_at=never, source_objects=0, copy_objects=0),
    )
