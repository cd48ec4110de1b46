"""The signed record of one complete reading of a backup, kept beside its manifest."""

from __future__ import annotations

import operator
from datetime import datetime

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from actions.backup.signing import holds, signed
from actions.site import Frozen


class Verification(Frozen):
    """Both hashes were computed from the stored object and were those of the manifest, and the archive lists; or, with
    a `problem`, they were not."""

    backup: str
    manifest_sha256: str
    stored_sha256: str = ""
    plain_sha256: str = ""
    entries: int = 0  # of the archive's table of contents
    verified_at: datetime
    problem: str = Field(default="", exclude_if=operator.not_)  # older records have none, and stay signed


def found_damaged(problem: str, at: datetime, key: str) -> str:
    """Why a backup must not be used that was read completely and is not what was stored. `key`: of the record."""
    return (
        f"{problem.rstrip('.')}, found when it was read at {at:%Y-%m-%d %H:%M} UTC. Use another. Once its object was "
        f"put right, remove `{key}` and check it again."
    )


class SignedVerification(Frozen):
    """A verification as stored."""

    verification: Verification
    signer: str
    signature: str

    @classmethod
    def sign(cls, verification: Verification, key: Ed25519PrivateKey) -> SignedVerification:
        signer, signature = signed(_canonical(verification), key)
        return cls(verification=verification, signer=signer, signature=signature)

    def holds(self, trusted_signers: tuple[str, ...], *, manifest_sha256: str) -> bool:
        """Whether it is signed by a trusted key and speaks of exactly this manifest."""
        if self.signer not in trusted_signers or self.verification.manifest_sha256 != manifest_sha256:
            return False
        return holds(_canonical(self.verification), self.signer, self.signature)


def _canonical(verification: Verification) -> bytes:
    # A prefix of its own: a signature over a record can never pass for one over a manifest.
    return b"verification\n" + rfc8785.dumps(verification.model_dump(mode="json"))
