"""Proofs: what each restore test found and measured, signed, kept beside the base backups it is about.

<prefix><server>/proofs/<id>.json; a test that failed is kept as well, with its `problem`.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Sequence
from urllib.parse import quote

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from actions.backup.crypto import signing_key
from actions.backup.physical import Proof
from actions.ports import ObjectStore, Secrets
from actions.site import Frozen, PhysicalPolicy

READERS = 16  # proofs read at the same time
NEWEST = 100
"""So many are read, by the time they were stored; older ones stay in the bucket."""

log = logging.getLogger(__name__)


class SignedProof(Frozen):
    """A proof as stored."""

    proof: Proof
    signer: str
    signature: str

    @classmethod
    def sign(cls, proof: Proof, key: Ed25519PrivateKey) -> SignedProof:
        return cls(
            proof=proof,
            signer=base64.b64encode(key.public_key().public_bytes_raw()).decode(),
            signature=base64.b64encode(key.sign(_canonical(proof))).decode(),
        )

    def holds(self, trusted_signers: tuple[str, ...]) -> bool:
        """Whether a trusted key has signed exactly this."""
        if self.signer not in trusted_signers:
            return False
        try:
            public = Ed25519PublicKey.from_public_bytes(base64.b64decode(self.signer, validate=True))
            public.verify(base64.b64decode(self.signature, validate=True), _canonical(self.proof))
        except (InvalidSignature, ValueError):
            return False
        return True


class Proofs:
    """The restore tests of every server."""

    def __init__(self, objects: ObjectStore, secrets: Secrets) -> None:
        self._objects = objects
        self._secrets = secrets

    async def keep(self, policy: PhysicalPolicy, proof: Proof) -> None:
        """Sign and store it. The same one again changes nothing that counts."""
        key = signing_key(await self._secrets.resolve(policy.signing_key), policy.signing_key)
        body = SignedProof.sign(proof, key).model_dump_json().encode()
        await self._objects.put(policy.bucket, _key(policy, proof.id), body)

    async def find(self, policy: PhysicalPolicy, proof: str) -> Proof | None:
        """None where there is none, or none that a trusted key has signed."""
        key = _key(policy, proof)
        if await self._objects.head(policy.bucket, key) is None:
            return None
        return _read(await self._objects.get(policy.bucket, key), policy, proof)

    async def newest(self, policy: PhysicalPolicy, *, limit: int = NEWEST) -> Sequence[Proof]:
        """Newest first. What is not signed by a trusted key, or is about something else, does not count."""
        listed = await self._objects.list(policy.bucket, _prefix(policy))
        recent = sorted(listed, key=lambda facts: facts.modified_at, reverse=True)[:limit]
        room = asyncio.Semaphore(READERS)

        async def one(key: str) -> Proof | None:
            async with room:
                body = await self._objects.get(policy.bucket, key)
            return _read(body, policy, key.removeprefix(_prefix(policy)).removesuffix(".json"))

        found = await asyncio.gather(*(one(facts.key) for facts in recent))
        return sorted((proof for proof in found if proof is not None), key=lambda proof: proof.proven_at, reverse=True)


def _prefix(policy: PhysicalPolicy) -> str:
    return f"{policy.prefix}{quote(policy.server, safe='')}/proofs/"


def _key(policy: PhysicalPolicy, proof: str) -> str:
    return f"{_prefix(policy)}{proof}.json"


def _read(body: bytes, policy: PhysicalPolicy, name: str) -> Proof | None:
    try:
        signed = SignedProof.model_validate_json(body)
    except ValidationError:
        log.warning("proof_left_out: %s: cannot be read", name)
        return None
    if not signed.holds(policy.trusted_signers) or (signed.proof.id, signed.proof.server) != (name, policy.server):
        log.warning("proof_left_out: %s: not signed by a trusted key, or about another test", name)
        return None
    return signed.proof


def _canonical(proof: Proof) -> bytes:
    # A prefix of its own: a signature over a proof can never pass for one over a manifest.
    return b"proof\n" + rfc8785.dumps(proof.model_dump(mode="json"))
