"""What is in escrow, one folder each: an object encrypted to the plan's recipients, and its signed manifest.

<prefix><folder>/<cluster>/<id>/<object>        age
<prefix><folder>/<cluster>/<id>/manifest.json   signed, written last
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from actions.backup.crypto import Identity, Recipients, signing_key
from actions.backup.signed_document import SignedDocument, opened
from actions.errors import UserError, VerificationError
from actions.escrow import Escrowed
from actions.ports import ObjectStore, Secrets
from actions.site import EscrowPolicy, Site

ManifestT = TypeVar("ManifestT", bound=Escrowed)

MANIFEST = "manifest.json"
READERS = 16  # of one bucket at the same time: there may be one for each hour


@dataclass(frozen=True, kw_only=True)
class Shelved(Generic[ManifestT]):
    """One of them as the bucket shows it. `manifest` is None where it is not one of ours."""

    id: str
    manifest: ManifestT | None
    problem: str | None = None
    trusted: bool = True


class Shelf(Generic[ManifestT]):
    """All that is kept under one folder. `noun` is what messages call one of them, `by_hand` says where people find the
    commands that open one."""

    def __init__(
        self,
        site: Site,
        objects: ObjectStore,
        secrets: Secrets,
        *,
        manifest: type[ManifestT],
        kind: str,
        folder: str,
        content: str,
        noun: str,
        by_hand: str,
    ) -> None:
        self._site, self._objects, self._secrets = site, objects, secrets
        self._manifest, self._kind = manifest, kind
        self._folder, self._content, self._noun, self._by_hand = folder, content, noun, by_hand

    @property
    def policy(self) -> EscrowPolicy:
        if self._site.escrow is None:
            raise UserError("The plan file says nothing of an escrow. Add `backups.escrow` with a bucket.")
        return self._site.escrow

    def objects(self, cluster: str, name: str) -> tuple[str, str]:
        """What one is made of, by key in its bucket: the encrypted object, and its manifest."""
        return shelved_objects(self.policy, self._folder, self._content, cluster, name)

    async def all(self, cluster: str) -> list[Shelved[ManifestT]]:
        """In no order. One that fails its check has a `problem`."""
        folder = f"{self.policy.prefix}{self._folder}/{cluster}/"
        listed = {facts.key: facts.bytes for facts in await self._objects.list(self.policy.bucket, folder)}
        names = [key.removeprefix(folder).partition("/")[0] for key in listed if key.endswith(f"/{MANIFEST}")]
        room = asyncio.Semaphore(READERS)

        async def one(name: str) -> Shelved[ManifestT] | None:
            async with room:
                try:
                    return await self._read(cluster, name, listed.get(self.objects(cluster, name)[0]))
                except UserError:
                    # Deleted since it was listed: an expiry is at work.
                    if await self._objects.head(self.policy.bucket, self.objects(cluster, name)[1]) is None:
                        return None
                    raise

        return [each for each in await asyncio.gather(*map(one, names)) if each is not None]

    async def find(self, cluster: str, name: str) -> Shelved[ManifestT] | None:
        """One of `all`; None when it has no manifest."""
        content, manifest = self.objects(cluster, name)
        if await self._objects.head(self.policy.bucket, manifest) is None:
            return None
        facts = await self._objects.head(self.policy.bucket, content)
        return await self._read(cluster, name, None if facts is None else facts.bytes)

    async def store(self, cluster: str, name: str, plain: bytes) -> dict[str, Any]:
        """Encrypt, store and read back. Returns what a manifest says of it."""
        policy, key = self.policy, self.objects(cluster, name)[0]
        stored = await asyncio.to_thread(_encrypted, Recipients(policy.recipients), plain)
        await self._objects.put(policy.bucket, key, stored)
        if await self._objects.get(policy.bucket, key) != stored:
            raise VerificationError(f"Bucket `{policy.bucket}` gives back other bytes than were stored as `{key}`.")
        return {
            "id": name,
            "cluster": cluster,
            "recipients": policy.recipients,
            "bucket": policy.bucket,
            "key": key,
            "bytes": len(stored),
            "sha256": hashlib.sha256(stored).hexdigest(),
        }

    async def sign(self, manifest: ManifestT) -> ManifestT:
        """Write it, and look that it is there with what it describes."""
        policy = self.policy
        signer = signing_key(await self._secrets.resolve(policy.signing_key), policy.signing_key)
        signed = SignedDocument.sign(self._kind, manifest, signer).bytes()
        await self._objects.put(policy.bucket, self.objects(manifest.cluster, manifest.id)[1], signed)
        made = await self._read(manifest.cluster, manifest.id, manifest.bytes)
        if made.problem is not None:
            raise VerificationError(made.problem)
        return manifest

    async def open(self, cluster: str, name: str) -> tuple[ManifestT, bytes]:
        """Its manifest, and what was encrypted: that goes to a cluster and nowhere else."""
        found = await self.find(cluster, name)
        if found is None or found.manifest is None or found.problem is not None:
            gone = f"There is no {self._noun} `{name}` of `{cluster}` any more."
            raise VerificationError(gone if found is None else str(found.problem))
        policy = self.policy
        if not policy.identity:
            raise UserError(
                f"The plan file gives the escrow no `identity`, so custodians give back what is in it: {self._by_hand}."
            )
        identity = Identity(await self._secrets.resolve(policy.identity), policy.identity)
        identity.check_opens(name, found.manifest.recipients)
        stored = await self._objects.get(found.manifest.bucket, found.manifest.key)
        if not _is(stored, found.manifest):
            raise VerificationError(f"The object of {self._noun} `{name}` is not what was signed.")
        return found.manifest, await asyncio.to_thread(_decrypted, identity, stored, name)

    async def whole(self, manifest: ManifestT) -> bool:
        """Whether the encrypted object is, byte for byte, what was signed."""
        return _is(await self._objects.get(manifest.bucket, manifest.key), manifest)

    async def remove(self, cluster: str, name: str) -> None:
        """Delete the encrypted object, then the manifest. One that is gone is no error."""
        policy = self.policy
        folder = f"{policy.prefix}{self._folder}/{cluster}/{name}/"
        keys = [facts.key for facts in await self._objects.list(policy.bucket, folder)]
        # The manifest last: what a store refuses to let go stays described, and is asked for again.
        for key in sorted(keys, key=lambda key: key.endswith(f"/{MANIFEST}")):
            await self._objects.delete(policy.bucket, key)

    async def _read(self, cluster: str, name: str, size: int | None) -> Shelved[ManifestT]:
        policy = self.policy
        body = await self._objects.get(policy.bucket, self.objects(cluster, name)[1])
        what = f"The manifest of {self._noun} `{name}`"
        try:
            found = opened(body, self._kind, self._manifest, policy.trusted_signers, what=what)
        except VerificationError as error:
            return Shelved(id=name, manifest=None, problem=str(error), trusted=False)
        if (found.id, found.cluster) != (name, cluster):
            problem = f"{what} belongs to `{found.id}` of `{found.cluster}`: somebody put it there."
            return Shelved(id=name, manifest=found, problem=problem, trusted=False)
        missing = f"The object of {self._noun} `{name}` is missing or changed."
        return Shelved(id=name, manifest=found, problem=None if size == found.bytes else missing)


def shelved_objects(policy: EscrowPolicy, folder: str, content: str, cluster: str, name: str) -> tuple[str, str]:
    """By key in its bucket."""
    whole = f"{policy.prefix}{folder}/{cluster}/{name}/"
    return whole + content, whole + MANIFEST


def nothing(policy: EscrowPolicy, cluster: str, name: str) -> dict[str, Any]:
    """What stands in a list for a manifest that says nothing that can be believed."""
    return {
        "id": name,
        "cluster": cluster,
        "made_at": datetime.fromisoformat("1970-01-01T00:00:00+00:00"),
        "recipients": (),
        "bucket": policy.bucket,
        "key": "",
        "bytes": 0,
        "sha256": "",
    }


def _is(stored: bytes, manifest: Escrowed) -> bool:
    return hashlib.sha256(stored).hexdigest() == manifest.sha256


def _encrypted(recipients: Recipients, plain: bytes) -> bytes:
    stored = io.BytesIO()
    recipients.encrypt(io.BytesIO(plain), stored)
    return stored.getvalue()


def _decrypted(identity: Identity, stored: bytes, name: str) -> bytes:
    plain = io.BytesIO()
    identity.decrypt(io.BytesIO(stored), plain, name)
    return plain.getvalue()
