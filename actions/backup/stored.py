"""Dumps as they are stored: encrypted into the bucket and the local copy, and read back with both hashes checked."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

from actions.backup.archive import Contents
from actions.backup.catalogue import Folder
from actions.backup.crypto import Identity, Recipients
from actions.backup.manifest import Manifest, SignedManifest, StoredObject
from actions.backup.packing import Packed, pack
from actions.backup.patience import PATIENCE, AwayError, patiently
from actions.backup.spool import Spool, SpooledArchive, StoredArchive, Survey, file_chunks
from actions.backup.stages import disk
from actions.backup.tools import Archive, ArchiveSource
from actions.backup.unpacking import Unpacked, check_stored, unpack_checked
from actions.errors import DrError, PermanentError, TemporaryError, UserError, VerificationError, adding
from actions.ports import ObjectStore, Secrets
from actions.site import BackupPolicy

log = logging.getLogger(__name__)

SPARE = 64 * 1024 * 1024  # bytes of the spool disk that a restore leaves free


class StoredDumps:
    """Writes and reads stored dumps. `work_directory` takes spool files as large as a dump is stored; `patience` is how
    long a dump that is uploaded waits for a store that went away before it has its manifest."""

    def __init__(
        self, objects: ObjectStore, secrets: Secrets, work_directory: Path, *, patience: timedelta = PATIENCE
    ) -> None:
        self._objects, self._secrets, self._work, self._patience = objects, secrets, work_directory, patience

    async def store(
        self,
        source: ArchiveSource,
        policy: BackupPolicy,
        folder: Folder,
        recipients: Recipients,
        done: Callable[[int], None],
        *,
        copy_only: bool = False,
    ) -> tuple[Packed, Survey, DrError | None]:
        """Encrypt and store an archive in the bucket and, where the policy wants it, on disk.

        With a local copy an error of the bucket is returned, not raised: the copy is completed all the same. With
        `copy_only` the bucket is not asked at all.
        """
        local = folder.local_dump
        failed: list[DrError] = []

        async def store(chunks: AsyncIterator[bytes]) -> None:
            if copy_only:
                async for _ in chunks:
                    pass
                return
            try:
                await self._objects.put_stream(policy.bucket, folder.dump, chunks)
            except (TemporaryError, UserError, PermanentError) as error:
                if local is None:
                    raise
                failed.append(error)
                async for _ in chunks:
                    pass

        part = local.with_name(local.name + ".part") if local else None
        survey = Survey(follow=True)
        try:
            packed = await pack(
                *(source.read, source.finish, source.stop),
                recipients=recipients,
                store=store,
                local=part,
                watcher=survey,
                done=done,
            )
            if part is not None and local is not None:
                await asyncio.to_thread(part.replace, local)
        finally:
            if part is not None:
                await asyncio.to_thread(part.unlink, missing_ok=True)
        if not survey.complete:
            raise VerificationError("The dump ended before its table of contents.")
        return packed, survey, failed[0] if failed else None

    async def publish(
        self, policy: BackupPolicy, folder: Folder, signed: SignedManifest, upload_error: DrError | None
    ) -> SignedManifest:
        """Write the manifest, which makes the stored object a backup."""
        if (path := folder.local_manifest) is not None:
            await asyncio.to_thread(write_private, path, _body(signed))
        if upload_error is None:
            try:
                await self._publish(policy, folder, signed)
                return signed
            except DrError as error:
                if path is None or await self.is_there(policy, folder):
                    raise
                upload_error = error
        if path is not None:
            raise only_in_the_copy(upload_error, policy, folder, signed) from upload_error
        raise upload_error

    async def is_there(self, policy: BackupPolicy, folder: Folder) -> bool:
        """Whether another try has stored a manifest under this name; not, as far as the bucket says."""
        try:
            return await self._objects.head(policy.bucket, folder.manifest) is not None
        except DrError:
            return False

    async def _publish(self, policy: BackupPolicy, folder: Folder, signed: SignedManifest) -> None:
        body, tries = _body(signed), 0

        async def once() -> None:
            nonlocal tries
            tries += 1
            found = await self._objects.head(policy.bucket, folder.dump)
            if found is None or found.bytes != signed.manifest.stored.bytes:
                raise TemporaryError(f"Bucket `{policy.bucket}` did not keep `{folder.dump}` as it was sent.")
            await self._objects.put(policy.bucket, folder.manifest, body, only_if_absent=True)

        try:
            await patiently(once, self._patience, AwayError)
        except UserError:
            # The answer to an earlier try may have been lost.
            if tries == 1 or await self._objects.get(policy.bucket, folder.manifest) != body:
                raise

    async def keep(self, folder: Folder, signed: SignedManifest) -> SignedManifest:
        """Write the manifest of the local copy alone."""
        if folder.local_manifest is None:
            raise UserError("The plan file names no `local_directory` for this database.")
        await asyncio.to_thread(write_private, folder.local_manifest, _body(signed))
        return signed

    async def remove(self, policy: BackupPolicy, folder: Folder) -> None:
        """Delete the dump in both places, the manifests first. What is gone already is left alone."""
        await self._objects.delete(policy.bucket, folder.manifest)
        for facts in await self._objects.list(policy.bucket, folder.prefix):
            await self._objects.delete(policy.bucket, facts.key)
        if folder.local_manifest is not None:
            await asyncio.to_thread(folder.local_manifest.unlink, missing_ok=True)
            await asyncio.to_thread(shutil.rmtree, folder.local_manifest.parent, ignore_errors=True)

    async def upload(
        self, policy: BackupPolicy, folder: Folder, signed: SignedManifest, done: Callable[[int], None]
    ) -> SignedManifest:
        """The local copy into the bucket. No manifest is written unless the bytes were those that were dumped."""
        hashed, total = hashlib.sha256(), 0

        async def chunks(path: Path) -> AsyncIterator[bytes]:
            nonlocal total
            async for block in file_chunks(path):
                hashed.update(block)
                total += len(block)
                done(total)
                yield block

        if folder.local_dump is None:
            raise UserError("The plan file names no `local_directory` for this database.")
        await self._objects.put_stream(policy.bucket, folder.dump, chunks(folder.local_dump))
        if (total, hashed.hexdigest()) != (signed.manifest.stored.bytes, signed.manifest.stored.sha256):
            await self._objects.delete(policy.bucket, folder.dump)
            raise VerificationError(
                f"The local copy `{folder.local_dump}` is not what was dumped: its bytes were changed. Dump again."
            )
        await self._publish(policy, folder, signed)
        return signed

    async def identity(self, policy: BackupPolicy) -> Identity:
        """The identity that opens dumps here. Raises UserError when the reference holds none."""
        return Identity(await self._secrets.resolve(policy.identity), policy.identity)

    async def read(
        self,
        policy: BackupPolicy,
        manifest: Manifest,
        done: Callable[[int], None],
    ) -> tuple[Unpacked, Contents]:
        """Read the stored object to its end and compare both hashes with the manifest."""
        identity = await self._opening(policy, manifest)
        # What is said of the stored object must not come from the local copy.
        chunks, survey = await self._chunks(policy, manifest, local=False), Survey(follow=False)
        read = await unpack_checked(chunks, manifest=manifest, identity=identity, sink=survey, done=done)
        return read, survey.contents(manifest.id)

    async def fetch(self, policy: BackupPolicy, manifest: Manifest, path: Path, done: Callable[[int], None]) -> Archive:
        """Read the stored object into the file `path`, and compare it with the manifest before anybody uses it. What
        was kept stays on an error too; whoever names the path removes it."""
        identity = await self._opening(policy, manifest)
        await asyncio.to_thread(self.check_room, manifest.stored.bytes)
        spool = Spool(path, identity, manifest.id)
        chunks = spool.kept(await self._chunks(policy, manifest))
        if manifest.places:
            await check_stored(chunks, manifest=manifest, done=done)
            return StoredArchive(spool, await spool.contents(), manifest)
        survey = Survey(follow=True)  # made before manifests said where the data lies: read it once for that
        await unpack_checked(chunks, manifest=manifest, identity=identity, sink=survey, done=done)
        return SpooledArchive(spool, survey)

    async def _opening(self, policy: BackupPolicy, manifest: Manifest) -> Identity:
        identity = await self.identity(policy)
        identity.check_opens(manifest.id, manifest.recipients)
        return identity

    async def _chunks(self, policy: BackupPolicy, manifest: Manifest, *, local: bool = True) -> AsyncIterator[bytes]:
        """The stored object; with `local` from the local copy where the bucket does not give it out whole."""
        folder = Folder(policy, manifest.id)
        try:
            return await self._stored_chunks(policy, manifest, folder)
        except DrError as error:
            path = folder.local_dump if local else None
            if path is None or not await asyncio.to_thread(_has_size, path, manifest.stored.bytes):
                raise
            log.warning("local_copy_used: %s: %s", path, error)
            return file_chunks(path)

    async def _stored_chunks(self, policy: BackupPolicy, manifest: Manifest, folder: Folder) -> AsyncIterator[bytes]:
        found = await self._objects.head(policy.bucket, folder.dump)
        if found is None:
            raise VerificationError(
                f"The object of backup `{manifest.id}` is missing: bucket `{policy.bucket}` has no `{folder.dump}`. "
                "Use another backup."
            )
        if found.bytes != manifest.stored.bytes:
            raise VerificationError(
                f"The object of backup `{manifest.id}` has {found.bytes} bytes, its manifest says "
                f"{manifest.stored.bytes}. Use another backup."
            )
        return self._objects.get_stream(policy.bucket, folder.dump)

    def check_room(self, size: int) -> None:
        """Raise UserError unless the spool disk has room for a dump of that many stored bytes. Blocking."""
        self._work.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(self._work).free
        if free < size + SPARE:
            raise UserError(
                f"The disk of `{self._work}` has {free} bytes free; the dump needs {size + SPARE}. "
                "Free space there, then try again."
            )


def stored_as(policy: BackupPolicy, folder: Folder, packed: Packed) -> StoredObject:
    """What the manifest says of the object."""
    return StoredObject(bucket=policy.bucket, key=folder.dump, bytes=packed.stored_bytes, sha256=packed.stored_sha256)


def _body(signed: SignedManifest) -> bytes:
    return signed.model_dump_json(indent=1).encode()


def write_private(path: Path, body: bytes) -> None:
    """Write a small file as a whole or not at all. Blocking. Raises UserError when the disk does not take it."""
    fresh = path.with_name(path.name + ".part")
    try:
        with disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(body)
            fresh.chmod(0o600)
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _has_size(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def only_in_the_copy(error: DrError, policy: BackupPolicy, folder: Folder, signed: SignedManifest) -> DrError:
    """The bucket's error, which also says what there is and what to do."""
    backup = signed.manifest.id
    return adding(
        error,
        f"The local copy `{folder.local_dump}` with `{folder.local_manifest}` is complete "
        f"({signed.manifest.stored.bytes} bytes); the bucket has no backup `{backup}`. {put_right(error)}, "
        f"`/dr-backup upload {policy.database} {backup}` brings it there.",
    )


def put_right(error: DrError) -> str:
    """What must be so before a bucket with this error is asked again: the beginning of a sentence."""
    return "Once the bucket answers" if isinstance(error, TemporaryError) else "Once that is put right in the bucket"
