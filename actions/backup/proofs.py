"""Proofs: what each restore test found and measured, signed, kept beside the base backups.

In every bucket of base backups: <prefix>proofs/<server>/<id>.json; a test that failed is kept as well, with its
`problem`. An engine whose own catalogue looks for the newest one beside the backup that was restored gets a copy there,
unless a key of its own signs restore tests: whoever has that one writes under `proofs/` and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from actions.backup.crypto import signing_key
from actions.backup.native_records import put_beside
from actions.backup.physical import Proof
from actions.backup.signing import Signed
from actions.errors import DrError, UserError, VerificationError
from actions.ports import ObjectFacts, ObjectStore, Secrets
from actions.site import PhysicalPolicy

READERS = 16  # proofs read at the same time
NEWEST = 100
"""So many are read, by the time they were stored; older ones stay in the bucket."""

log = logging.getLogger(__name__)


class Proofs:
    """The restore tests of every server."""

    def __init__(self, objects: ObjectStore, secrets: Secrets) -> None:
        self._objects = objects
        self._secrets = secrets

    async def keep(self, policy: PhysicalPolicy, proof: Proof, *, beside: str | None = None) -> None:
        """Sign and store it, and once more under the key `beside`, where manifests and tests are signed by one key. The
        same one again changes nothing that counts. Raises UserError when nobody would believe the signature."""
        ref = policy.proof_signing_key or policy.signing_key
        signed = Signed[Proof].sign(proof, signing_key(await self._secrets.resolve(ref), ref))
        if policy.proof_signing_key and signed.signer not in policy.proof_signers:
            raise UserError(
                f"`{ref}` signs restore tests, and its public key is not among `backups.proof_signers`. Add "
                f"`{signed.signer}` there and have the plan file activated."
            )
        body = signed.body()
        if beside is not None and not policy.proof_signing_key:
            await put_beside(self._objects, policy, beside, body)
        await put_beside(self._objects, policy, _key(policy, proof.id), body)

    async def find(self, policy: PhysicalPolicy, proof: str) -> Proof | None:
        """None where there is none, or none that a trusted key has signed."""
        key = _key(policy, proof)
        failed: list[DrError] = []
        for bucket in policy.base_buckets:
            try:
                if await self._objects.head(bucket, key) is not None:
                    return _read(await self._objects.get(bucket, key), policy, proof)
            except DrError as error:
                failed.append(error)
        if len(failed) == len(policy.base_buckets):
            raise failed[0]
        return None

    async def newest(self, policy: PhysicalPolicy, *, limit: int = NEWEST) -> Sequence[Proof]:
        """Newest first. What is not signed by a trusted key, or is about something else, does not count."""
        known = await self._listed(policy)
        recent = sorted(known.values(), key=lambda item: item[1].modified_at, reverse=True)[:limit]
        room = asyncio.Semaphore(READERS)

        async def one(bucket: str, key: str) -> Proof | None:
            async with room:
                body = await self._objects.get(bucket, key)
            return _read(body, policy, key.removeprefix(proofs_prefix(policy)).removesuffix(".json"))

        found = await asyncio.gather(*(one(bucket, facts.key) for bucket, facts in recent))
        return sorted((proof for proof in found if proof is not None), key=lambda proof: proof.proven_at, reverse=True)

    async def _listed(self, policy: PhysicalPolicy) -> Mapping[str, tuple[str, ObjectFacts]]:
        """By key, in a bucket that has it. Raises the first one's error when none answers."""
        known: dict[str, tuple[str, ObjectFacts]] = {}
        failed: list[DrError] = []
        for bucket in policy.base_buckets:
            try:
                for facts in await self._objects.list(bucket, proofs_prefix(policy)):
                    known.setdefault(facts.key, (bucket, facts))
            except DrError as error:
                failed.append(error)
        if len(failed) == len(policy.base_buckets):
            raise failed[0]
        return known


def proofs_prefix(policy: PhysicalPolicy) -> str:
    """Of all proofs of one server, in each bucket."""
    return f"{proofs_folder(policy)}{quote(policy.server, safe='')}/"


def proofs_folder(policy: PhysicalPolicy) -> str:
    """Where the results of every server that shares this prefix are."""
    return f"{policy.prefix}proofs/"


def _key(policy: PhysicalPolicy, proof: str) -> str:
    return f"{proofs_prefix(policy)}{proof}.json"


def _read(body: bytes, policy: PhysicalPolicy, name: str) -> Proof | None:
    try:
        proof = Signed[Proof].parse(
            body, (*policy.trusted_signers, *policy.proof_signers), what=f"Restore test `{name}`"
        )
    except VerificationError as error:
        log.warning("proof_left_out: %s", error)
        return None
    if (proof.id, proof.server) != (name, policy.server):
        log.warning("proof_left_out: %s: it is about another test", name)
        return None
    return proof
