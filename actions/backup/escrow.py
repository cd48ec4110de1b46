"""Sealing keys encrypted to the plan's recipients and stored beside the backups, with a signed manifest.

<prefix>escrow/<cluster>/<id>/keys.age        a List of Secrets, age
<prefix>escrow/<cluster>/<id>/manifest.json   signed, written last
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from actions.backup.crypto import Identity, Recipients, signing_key
from actions.backup.signed_document import SignedDocument, opened
from actions.errors import PermanentError, UserError, VerificationError
from actions.escrow import Escrow, EscrowEntry, EscrowManifest, SealingKey, SealingKeys
from actions.ports import Clock, ObjectStore, Secrets
from actions.site import EscrowPolicy, Site

MANIFEST, KEYS, KIND = "manifest.json", "keys.age", "secrets-escrow"


class Escrows(Escrow):
    """All clusters of the site that have a controller."""

    def __init__(self, site: Site, keys: SealingKeys, objects: ObjectStore, secrets: Secrets, clock: Clock) -> None:
        self._site, self._keys, self._objects = site, keys, objects
        self._secrets, self._clock = secrets, clock

    async def current(self, cluster: str) -> Sequence[SealingKey]:
        return await self._keys.keys(cluster)

    async def entries(self, cluster: str) -> Sequence[EscrowEntry]:
        policy = self._policy()
        prefix = f"{policy.prefix}escrow/{cluster}/"
        listed = {facts.key: facts.bytes for facts in await self._objects.list(policy.bucket, prefix)}
        found = [
            await self._entry(policy, cluster, key.removeprefix(prefix).partition("/")[0], listed.get(_beside(key)))
            for key in listed
            if key.endswith(f"/{MANIFEST}")
        ]
        return sorted(found, key=lambda entry: entry.manifest.made_at, reverse=True)

    async def make(self, escrow: str, cluster: str, *, requested_by: str = "") -> EscrowEntry:
        there = [entry for entry in await self.entries(cluster) if entry.manifest.id == escrow]
        if there and there[0].problem is None:
            return there[0]
        policy = self._policy()
        keys = tuple(await self._keys.keys(cluster))
        if not keys:
            raise UserError(
                f"Cluster `{cluster}` has no sealing keys where the plan looks for them. Correct `sealed_secrets` of "
                "the cluster: it is the namespace of the controller."
            )
        stored = await asyncio.to_thread(_encrypted, Recipients(policy.recipients), await self._keys.export(cluster))
        key = f"{policy.prefix}escrow/{cluster}/{escrow}/{KEYS}"
        await self._objects.put(policy.bucket, key, stored)
        if await self._objects.get(policy.bucket, key) != stored:
            raise VerificationError(f"Bucket `{policy.bucket}` gives back other bytes than were stored as `{key}`.")
        if tuple(await self._keys.keys(cluster)) != keys:
            raise PermanentError(f"The sealing keys of `{cluster}` were changed just now. Make the escrow again.")
        manifest = EscrowManifest(
            id=escrow,
            cluster=cluster,
            made_at=self._clock.now(),
            keys=keys,
            recipients=policy.recipients,
            bucket=policy.bucket,
            key=key,
            bytes=len(stored),
            sha256=hashlib.sha256(stored).hexdigest(),
            requested_by=requested_by,
        )
        signer = signing_key(await self._secrets.resolve(policy.signing_key), policy.signing_key)
        signed = SignedDocument.sign(KIND, manifest, signer).bytes()
        await self._objects.put(policy.bucket, f"{policy.prefix}escrow/{cluster}/{escrow}/{MANIFEST}", signed)
        made = await self._entry(policy, cluster, escrow, len(stored))
        if made.problem is not None:
            raise VerificationError(made.problem)
        return made

    async def check(self, cluster: str, escrow: str, fingerprints: Collection[str]) -> None:
        manifest, plain = await self._opened(cluster, escrow)
        held = {key.fingerprint for key in manifest.keys}
        if not plain or not set(fingerprints) <= held:
            raise VerificationError(f"Escrow `{escrow}` lacks sealing keys of `{cluster}` that it is said to hold.")
        await self._keys.may_add(cluster)

    async def give_back(self, cluster: str, escrow: str, fingerprints: Collection[str]) -> None:
        _, plain = await self._opened(cluster, escrow)
        await self._keys.add(cluster, plain, fingerprints)

    async def _opened(self, cluster: str, escrow: str) -> tuple[EscrowManifest, bytes]:
        """Its manifest, and the keys themselves: they go to the cluster and nowhere else."""
        policy = self._policy()
        found = next((each for each in await self.entries(cluster) if each.manifest.id == escrow), None)
        if found is None or found.problem is not None:
            said = f"There is no escrow `{escrow}` of `{cluster}` any more." if found is None else str(found.problem)
            raise VerificationError(said)
        if not policy.identity:
            raise UserError(
                "The plan file gives the escrow no `identity`: custodians give keys back, `/dr secrets status` has the "
                "commands."
            )
        identity = Identity(await self._secrets.resolve(policy.identity), policy.identity)
        identity.check_opens(escrow, found.manifest.recipients)
        stored = await self._objects.get(found.manifest.bucket, found.manifest.key)
        if hashlib.sha256(stored).hexdigest() != found.manifest.sha256:
            raise VerificationError(f"The object of escrow `{escrow}` is not what was signed.")
        return found.manifest, await asyncio.to_thread(_decrypted, identity, stored, escrow)

    async def remove(self, cluster: str, escrow: str) -> None:
        policy = self._policy()
        await self._held_by_others(cluster, escrow)
        folder = f"{policy.prefix}escrow/{cluster}/{escrow}/"
        keys = [facts.key for facts in await self._objects.list(policy.bucket, folder)]
        # The manifest last: what a store refuses to let go stays described, and is asked for again.
        for key in sorted(keys, key=lambda key: key.endswith(f"/{MANIFEST}")):
            await self._objects.delete(policy.bucket, key)

    async def _held_by_others(self, cluster: str, escrow: str) -> None:
        """Raise VerificationError unless every key of this escrow is in another one that is whole, by its bytes: what
        is sealed with a key that is in none can never be opened again, and a listing tells sizes alone."""
        entries = await self.entries(cluster)
        lacking = {key.fingerprint for each in entries if each.manifest.id == escrow for key in each.manifest.keys}
        for manifest in (each.manifest for each in entries if each.problem is None and each.manifest.id != escrow):
            held = lacking & {key.fingerprint for key in manifest.keys}
            if held and hashlib.sha256(await self._objects.get(manifest.bucket, manifest.key)).hexdigest() == (
                manifest.sha256
            ):
                lacking -= held
        if lacking:
            raise VerificationError(
                f"Escrow `{escrow}` of `{cluster}` stays: {len(lacking)} of its keys are in no other one that is as it "
                "was signed. Look at the newer ones, and make another."
            )

    def _policy(self) -> EscrowPolicy:
        if self._site.escrow is None:
            raise UserError("The plan file says nothing of an escrow. Add `backups.escrow` with a bucket.")
        return self._site.escrow

    async def _entry(self, policy: EscrowPolicy, cluster: str, escrow: str, size: int | None) -> EscrowEntry:
        body = await self._objects.get(policy.bucket, f"{policy.prefix}escrow/{cluster}/{escrow}/{MANIFEST}")
        what = f"The manifest of escrow `{escrow}`"
        try:
            manifest = opened(body, KIND, EscrowManifest, policy.trusted_signers, what=what)
        except VerificationError as error:
            return EscrowEntry(manifest=_nothing(policy, cluster, escrow), problem=str(error), trusted=False)
        if (manifest.id, manifest.cluster) != (escrow, cluster):
            problem = f"{what} belongs to `{manifest.id}` of `{manifest.cluster}`: somebody put it there."
            return EscrowEntry(manifest=manifest, problem=problem, trusted=False)
        if size != manifest.bytes:
            return EscrowEntry(manifest=manifest, problem=f"The object of escrow `{escrow}` is missing or changed.")
        return EscrowEntry(manifest=manifest)


def _encrypted(recipients: Recipients, plain: bytes) -> bytes:
    stored = io.BytesIO()
    recipients.encrypt(io.BytesIO(plain), stored)
    return stored.getvalue()


def _decrypted(identity: Identity, stored: bytes, escrow: str) -> bytes:
    plain = io.BytesIO()
    identity.decrypt(io.BytesIO(stored), plain, escrow)
    return plain.getvalue()


def escrow_objects(policy: EscrowPolicy, cluster: str, escrow: str) -> tuple[str, str]:
    """What one escrow is made of, by key in its bucket."""
    folder = f"{policy.prefix}escrow/{cluster}/{escrow}/"
    return folder + KEYS, folder + MANIFEST


def _beside(manifest: str) -> str:
    return manifest.removesuffix(MANIFEST) + KEYS


def _nothing(policy: EscrowPolicy, cluster: str, escrow: str) -> EscrowManifest:
    """What stands in the list for a manifest that says nothing that can be believed."""
    never = datetime.fromtimestamp(0, UTC)
    return EscrowManifest(
        id=escrow,
        cluster=cluster,
        made_at=never,
        keys=(),
        recipients=(),
        bucket=policy.bucket,
        key="",
        bytes=0,
        sha256="",
    )
