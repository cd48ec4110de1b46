"""A stored base backup on its way back into a folder: signature, stored bytes, plain bytes, then every single file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from actions.backup.crypto import Identity
from actions.backup.native_catalogue import BaseFolder
from actions.backup.physical import PhysicalManifest
from actions.backup.physical_tools import PhysicalTools
from actions.backup.tar_stream import Extraction
from actions.backup.unpacking import unpack_checked
from actions.errors import VerificationError
from actions.ports import ObjectStore, Secrets
from actions.site import PhysicalPolicy


class BaseFetch:
    """`manifest` is one whose signature was checked."""

    def __init__(self, objects: ObjectStore, secrets: Secrets, tools: PhysicalTools) -> None:
        self._objects, self._secrets, self._tools = objects, secrets, tools

    async def identity(self, policy: PhysicalPolicy) -> Identity:
        """Raises UserError when the reference holds none."""
        return Identity(await self._secrets.resolve(policy.identity), policy.identity)

    async def fetch(
        self,
        policy: PhysicalPolicy,
        manifest: PhysicalManifest,
        identity: Identity,
        into: Path,
        done: Callable[[int], None],
    ) -> None:
        """Into a new folder; raises VerificationError, naming the backup, unless all of it is what was stored and every
        file what the server had listed."""
        await self.read(policy, manifest, identity, into, done)
        await self._tools.check_files(policy.server, manifest.id, into)

    async def read(
        self,
        policy: PhysicalPolicy,
        manifest: PhysicalManifest,
        identity: Identity,
        into: Path,
        done: Callable[[int], None],
    ) -> None:
        """The same without the list of the server: what a VerificationError says here, no other program can change."""
        key = BaseFolder(policy, manifest.id).base
        identity.check_opens(manifest.id, manifest.recipients)
        found = await self._objects.head(policy.bucket, key)
        if found is None or found.bytes != manifest.stored.bytes:
            has = "is missing" if found is None else f"has {found.bytes} of {manifest.stored.bytes} bytes"
            raise VerificationError(
                f"The object of base backup `{manifest.id}` {has} in bucket `{policy.bucket}`. Use another backup."
            )
        chunks = self._objects.get_stream(policy.bucket, key)
        await unpack_checked(chunks, manifest=manifest, identity=identity, sink=Extraction(into), done=done)
