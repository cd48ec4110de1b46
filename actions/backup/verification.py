"""The signed record of one complete reading of a backup, kept beside its manifest."""

from __future__ import annotations

import base64
from datetime import datetime

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from actions.site import Frozen


class Verification(Frozen):
    """Both hashes were computed from the stored object and were those of the manifest; the archive lists."""

    backup: str
    manifest_sha256: str
    stored_sha256: str
    plain_sha256: str
    entries: int  # of the archive's table of contents
    verified_at: datetime


class SignedVerification(Frozen):
    """A verification as stored."""

    verification: Verification
    signer: str
    signature: str

    @classmethod
    def sign(cls, verification: Verification, key: Ed25519PrivateKey) -> SignedVerification:
        return cls(
            verification=verification,
            signer=base64.b64encode(key.public_key().public_bytes_raw()).decode(),
            signature=base64.b64encode(key.sign(_canonical(verification))).decode(),
        )

    def holds(self, trusted_signers: tuple[str, ...], *, manifest_sha256: str) -> bool:
        """Whether it is signed by a trusted key and speaks of exactly this manifest."""
        if self.signer not in trusted_signers or self.verification.manifest_sha256 != manifest_sha256:
            return False
        try:
            public = Ed25519PublicKey.from_public_bytes(base64.b64decode(self.signer, validate=True))
            public.verify(base64.b64decode(self.signature, validate=True), _canonical(self.verification))
        except (InvalidSignature, ValueError):
            return False
        return True


def _canonical(verification: Verification) -> bytes:
    # A prefix of its own: a signature over a record can never pass for one over a manifest.
    return b"verification\n" + rfc8785.dumps(verification.model_dump(mode="json"))
