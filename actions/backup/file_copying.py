"""One copy of files: list, copy what is new, compare, and only then say in a signed manifest that it is a copy."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from actions.backup.file_catalogue import (
    MANIFEST_KIND,
    PART,
    PART_KIND,
    FileCatalogue,
    Part,
    Place,
    identity,
    pack_part,
    read_part,
)
from actions.backup.signed_document import SignedDocument
from actions.bucket_ports import Buckets
from actions.buckets import (
    Comparison,
    FileEntry,
    FilesCopyRequest,
    FilesManifest,
    ObjectAttributes,
    ObjectVersion,
    Tombstone,
)
from actions.errors import TemporaryError, UserError, VerificationError
from actions.ports import Clock, ObjectStore, Progress, ProgressReport
from actions.site import FilesPolicy

AT_ONCE = 8  # files that are copied at the same time
PART_FILES = 500
SAMPLE = 20  # files whose bytes are read again on both sides
NO_VERSION = "null"
META_BYTES = 2000  # S3 takes 2 KB of metadata


class Copying:
    """Makes one copy. `key` signs."""

    def __init__(
        self,
        policy: FilesPolicy,
        request: FilesCopyRequest,
        key: Ed25519PrivateKey,
        *,
        objects: ObjectStore,
        buckets: Buckets,
        clock: Clock,
        progress: Progress,
    ) -> None:
        self._policy, self._request, self._key = policy, request, key
        self._objects, self._buckets, self._clock, self._progress = objects, buckets, clock, progress
        self._place = Place(policy)
        self._catalogue = FileCatalogue(objects, buckets)
        self._parts: dict[str, str] = {}
        self._refused: set[str] = set()
        self._copied = self._copied_bytes = 0

    async def make(self) -> FilesManifest:
        began = self._clock.now()
        found = await self._buckets.versions(self._policy.bucket, self._policy.prefix)
        there = [item for item in found if item.latest and not item.marker]
        markers = {item.key: item for item in found if item.latest and item.marker}
        before = await self._before()
        known = {identity(entry): entry for entry in before.values()} | await self._resumed()
        entries = await self._all(there, known)
        await self._bury(before, {entry.key for entry in entries} | self._refused, markers)
        comparison = await self._compared(entries, there, markers)
        manifest = FilesManifest(
            id=self._request.id,
            name=self._policy.name,
            bucket=self._policy.bucket,
            prefix=self._policy.prefix,
            copy_bucket=self._policy.copy_bucket,
            state_of=began,
            finished_at=self._clock.now(),
            objects=len(entries),
            bytes=sum(entry.bytes for entry in entries),
            copied=self._copied,
            copied_bytes=self._copied_bytes,
            tombstones=self._buried,
            parts=self._parts,
            comparison=comparison,
            requested_by=self._request.requested_by,
        )
        signed = SignedDocument.sign(MANIFEST_KIND, manifest, self._key)
        await self._objects.put(self._place.bucket, self._place.manifest(manifest.id), signed.bytes())
        return manifest

    # ------------------------------------------------------------ what is there already

    async def _before(self) -> Mapping[str, FileEntry]:
        """The files of the newest copy that can be read, by key. One whose lists were changed holds no new copy up: it
        is passed over, and what only it has is copied again."""
        for copy in await self._catalogue.copies(self._policy):
            if copy.problem is None:
                try:
                    parts = await self._catalogue.parts(self._policy, copy.manifest)
                except VerificationError:
                    continue
                return {entry.key: entry for part in parts for entry in part.entries}
        return {}

    async def _resumed(self) -> dict[str, FileEntry]:
        """What an earlier try of this very copy has brought across. A part that does not check is not believed: its
        files are copied again."""
        known: dict[str, FileEntry] = {}
        for facts in await self._objects.list(self._place.bucket, f"{self._place.folder(self._request.id)}{PART}"):
            try:
                part = read_part(await self._objects.get(self._place.bucket, facts.key), self._policy, self._request.id)
            except VerificationError:
                continue
            known |= {identity(entry): entry for entry in part.entries}
        return known

    # ------------------------------------------------------------ copying

    async def _all(self, there: Sequence[ObjectVersion], known: Mapping[str, FileEntry]) -> list[FileEntry]:
        stored = {facts.key: facts.bytes for facts in await self._objects.list(self._place.bucket, self._place.objects)}
        entries: list[FileEntry] = []
        done, total = 0, sum(item.bytes for item in there)
        for number, place in enumerate(range(0, len(there), PART_FILES), 1):
            batch = there[place : place + PART_FILES]
            made = [entry for entry in await self._batch(batch, known, stored) if entry is not None]
            await self._write(Part(copy_id=self._request.id, number=number, entries=tuple(made)))
            entries += made
            done += sum(item.bytes for item in batch)
            self._progress(ProgressReport(done=done, total=total, phase="copy"))
        return entries

    async def _batch(
        self, batch: Iterable[ObjectVersion], known: Mapping[str, FileEntry], stored: Mapping[str, int]
    ) -> list[FileEntry | None]:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(found: ObjectVersion) -> FileEntry | None:
            entry = known.get(identity(found))
            if entry is not None and stored.get(entry.stored) == entry.bytes:
                return entry
            async with room:
                return await self._across(found)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(found)) for found in batch]
        except* Exception as errors:  # noqa: BLE001 - the first one is raised as it was
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _across(self, found: ObjectVersion) -> FileEntry | None:
        """Copy one file; None when it was removed at the source meanwhile, or is refused there."""
        try:
            source = await self._buckets.open(self._policy.bucket, found.key, found.version)
        except UserError:
            if await self._is_there(found.key, found.version):
                self._refused.add(found.key)  # one file that is refused does not keep the others from being copied
            return None
        with source:
            if source.bytes != found.bytes:
                return None  # a bucket without versions: replaced since it was listed, the next copy has it
            hashed = hashlib.sha256()

            async def chunks() -> AsyncIterator[bytes]:
                async for chunk in source.chunks:
                    hashed.update(chunk)
                    yield chunk

            stored = self._place.stored(found)
            about = self._labelled(found, source.attributes)
            sent = await self._buckets.store(self._place.bucket, stored, chunks(), about)
        if sent != found.bytes:
            raise TemporaryError(f"Bucket `{self._policy.bucket}` gave {sent} of {found.bytes} bytes of `{found.key}`.")
        self._copied += 1
        self._copied_bytes += sent
        return FileEntry(
            key=found.key,
            version=found.version,
            modified_at=found.modified_at,
            bytes=found.bytes,
            etag=found.etag,
            sha256=hashed.hexdigest(),
            stored=stored,
            attributes=source.attributes,
        )

    async def _is_there(self, key: str, version: str) -> bool:
        found = await self._buckets.versions(self._policy.bucket, key)
        return any((item.key, item.version, item.marker) == (key, version, False) for item in found)

    @staticmethod
    def _labelled(found: ObjectVersion, attributes: ObjectAttributes) -> ObjectAttributes:
        """For people without the bot: which version this is, and of when."""
        ours = {
            "drbot-source-version": quote(found.version),
            "drbot-source-modified": found.modified_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        both = {**attributes.metadata, **ours}
        # The list of the copy has the file's own metadata in any case.
        fits = sum(len(name) + len(value) for name, value in both.items()) <= META_BYTES
        return attributes.model_copy(update={"metadata": both if fits else ours})

    async def _bury(
        self, before: Mapping[str, FileEntry], present: set[str], markers: Mapping[str, ObjectVersion]
    ) -> None:
        gone = sorted(before.keys() - present)
        self._buried = len(gone)
        for number, place in enumerate(range(0, len(gone), PART_FILES), len(self._parts) + 1):
            tombstones = [_tombstone(key, markers.get(key)) for key in gone[place : place + PART_FILES]]
            await self._write(Part(copy_id=self._request.id, number=number, tombstones=tuple(tombstones)))

    async def _write(self, part: Part) -> None:
        body = pack_part(SignedDocument.sign(PART_KIND, part, self._key))
        key = self._place.part(self._request.id, part.number)
        await self._objects.put(self._place.bucket, key, body)
        self._parts[key] = hashlib.sha256(body).hexdigest()

    # ------------------------------------------------------------ comparing

    async def _compared(
        self, entries: Sequence[FileEntry], listed: Sequence[ObjectVersion], markers: Mapping[str, ObjectVersion]
    ) -> Comparison:
        """Hold the copy against the source. Raises VerificationError naming the first file that is not as it was."""
        stored = {facts.key: facts.bytes for facts in await self._objects.list(self._place.bucket, self._place.objects)}
        for entry in entries:
            if stored.get(entry.stored) != entry.bytes:
                raise VerificationError(
                    f"The copy of `{entry.key}` has {stored.get(entry.stored, 'no')} bytes, the file {entry.bytes}. "
                    f"Look at bucket `{self._place.bucket}`, then copy again."
                )
        sampled = await self._sample(entries)
        now = await self._buckets.versions(self._policy.bucket, self._policy.prefix)
        there = [item for item in now if item.latest and not item.marker]
        deleted = {item.key for item in now if item.latest and item.marker}
        changed = {identity(item) for item in there} ^ {identity(item) for item in listed}
        if not entries and len(changed) < len(listed):
            raise UserError(
                f"No file of bucket `{self._policy.bucket}` could be read, though they are there: this is no copy. "
                "Look at the keys of the bucket and their policy, then copy again."
            )
        return Comparison(
            compared_at=self._clock.now(),
            source_objects=len(there),
            copy_objects=len(entries),
            source_newest=max((item.modified_at for item in there), default=None),
            copy_newest=max((entry.modified_at for entry in entries), default=None),
            source_markers=len(deleted),
            copied_markers=len(deleted & markers.keys()),
            sampled=sampled,
            meanwhile=len(changed),
            refused=len(self._refused),
            first_refused=min(self._refused, default=""),
        )

    async def _sample(self, entries: Sequence[FileEntry]) -> int:
        """Read some files again, the newest among them, on both sides."""
        newest = sorted(entries, key=lambda entry: entry.modified_at)[-1:]
        # Chosen by the copy's id: a rerun checks the same ones.
        others = random.Random(self._request.id).sample(list(entries), min(SAMPLE - 1, len(entries)))  # noqa: S311
        chosen = {entry.key: entry for entry in [*newest, *others]}
        for number, entry in enumerate(chosen.values(), 1):
            here = await _sha256(self._objects.get_stream(self._place.bucket, entry.stored))
            if here != entry.sha256:
                raise VerificationError(
                    f"The copy of `{entry.key}` has other bytes than were stored. Look at bucket "
                    f"`{self._place.bucket}`: `{entry.stored}` must be removed, then copy again."
                )
            try:
                source = await self._buckets.open(self._policy.bucket, entry.key, entry.version)
            except UserError:
                if await self._is_there(entry.key, entry.version):
                    self._refused.add(entry.key)
                continue  # else it was deleted meanwhile
            with source:
                same = await _sha256(source.chunks) == entry.sha256
            # Without versions the file may just have been replaced.
            if not same and entry.version != NO_VERSION:
                raise VerificationError(
                    f"`{entry.key}` of bucket `{self._policy.bucket}` has other bytes than when it was copied, under "
                    f"the same version `{entry.version}`. Look at the source: it is damaged."
                )
            self._progress(ProgressReport(done=number, total=len(chosen), unit="steps", phase="compare"))
        return len(chosen)


def _tombstone(key: str, marker: ObjectVersion | None) -> Tombstone:
    if marker is None:
        return Tombstone(key=key)
    return Tombstone(key=key, marker=marker.version, deleted_at=marker.modified_at)


async def _sha256(chunks: AsyncIterator[bytes]) -> str:
    hashed = hashlib.sha256()
    async for chunk in chunks:
        hashed.update(chunk)
    return hashed.hexdigest()
