"""A stored base backup on its way back into a folder: signature, stored bytes, plain bytes, then every single file.

Of two buckets the first one that gives it as it was stored will do."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from actions.backup.crypto import Identity
from actions.backup.native_catalogue import BaseFolder
from actions.backup.native_records import BaseRecords
from actions.backup.physical import PhysicalEntry, PhysicalManifest
from actions.backup.physical_tools import PhysicalTools
from actions.backup.tar_stream import Extraction
from actions.backup.unpacking import check_stored, unpack_checked
from actions.errors import DrError, TemporaryError, VerificationError
from actions.ports import ObjectStore, Secrets
from actions.site import PhysicalPolicy


class BaseFetch:
    """The manifest of every entry is one whose signature was checked."""

    def __init__(self, objects: ObjectStore, secrets: Secrets, tools: PhysicalTools, records: BaseRecords) -> None:
        self._objects, self._secrets, self._tools, self._records = objects, secrets, tools, records

    async def identity(self, policy: PhysicalPolicy) -> Identity:
        """Raises UserError when the reference holds none."""
        return Identity(await self._secrets.resolve(policy.identity), policy.identity)

    async def fetch(
        self,
        policy: PhysicalPolicy,
        entry: PhysicalEntry,
        identity: Identity,
        into: Path,
        done: Callable[[int], None],
    ) -> tuple[str, ...]:
        """Into a new folder; which buckets were passed over, each with why. Raises VerificationError, naming the
        backup, unless one gives all of it as it was stored and every file as the server had listed it."""
        identity.check_opens(entry.manifest.id, entry.manifest.recipients)
        passed: list[str] = []
        errors: list[DrError] = []
        for bucket in entry.whole_in:
            try:
                await self.read(policy, entry.manifest, bucket, identity, into, done)
            except DrError as error:
                errors.append(error)
                passed.append(f"Base backup `{entry.manifest.id}` was not taken from bucket `{bucket}`: {error}")
                await asyncio.to_thread(shutil.rmtree, into, ignore_errors=True)
                if isinstance(error, VerificationError) and policy.copy_bucket:
                    await self._records.damaged(policy, entry, bucket, str(error))
            else:
                await self._tools.check_files(policy.server, entry.manifest.id, into)
                return tuple(passed)
        raise _none_left(errors, passed)

    async def read(
        self,
        policy: PhysicalPolicy,
        manifest: PhysicalManifest,
        bucket: str,
        identity: Identity,
        into: Path,
        done: Callable[[int], None],
    ) -> None:
        """From one bucket, without the list of the server: what a VerificationError says here, no other program can
        change."""
        identity.check_opens(manifest.id, manifest.recipients)
        chunks = await self._chunks(policy, manifest, bucket)
        await unpack_checked(chunks, manifest=manifest, identity=identity, sink=Extraction(into), done=done)

    async def check(
        self, policy: PhysicalPolicy, manifest: PhysicalManifest, bucket: str, done: Callable[[int], None]
    ) -> None:
        """Raises VerificationError unless the bucket has, byte for byte, what was stored."""
        chunks = await self._chunks(policy, manifest, bucket)
        await check_stored(chunks, manifest=manifest, done=done)

    async def _chunks(self, policy: PhysicalPolicy, manifest: PhysicalManifest, bucket: str) -> AsyncIterator[bytes]:
        key = BaseFolder(policy, manifest.id).base
        found = await self._objects.head(bucket, key)
        if found is None or found.bytes != manifest.stored.bytes:
            has = "is missing" if found is None else f"has {found.bytes} of {manifest.stored.bytes} bytes"
            raise VerificationError(
                f"The object of base backup `{manifest.id}` {has} in bucket `{bucket}`. Use another backup."
            )
        return self._objects.get_stream(bucket, key)


def _none_left(errors: list[DrError], passed: list[str]) -> DrError:
    if len(errors) == 1:
        return errors[0]
    kind = TemporaryError if any(isinstance(error, TemporaryError) for error in errors) else VerificationError
    return kind(" ".join(passed) or "No bucket has this base backup whole. Use another backup.")
