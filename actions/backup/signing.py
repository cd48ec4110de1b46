"""Ed25519 signatures over documents: of manifests, and of what is kept beside them."""

from __future__ import annotations

import base64
from typing import Generic, TypeVar

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from actions.errors import VerificationError
from actions.site import Frozen

D = TypeVar("D", bound=Frozen)


def signed(payload: bytes, key: Ed25519PrivateKey) -> tuple[str, str]:
    """Signer (base64 of the raw public key) and signature (base64)."""
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    return public, base64.b64encode(key.sign(payload)).decode()


def holds(payload: bytes, signer: str, signature: str) -> bool:
    """Whether the signature is this signer's over these bytes; whom to trust is for others to say."""
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(signer, validate=True))
        public.verify(base64.b64decode(signature, validate=True), payload)
    except (InvalidSignature, ValueError):
        return False
    return True


class Signed(Frozen, Generic[D]):
    """A document as it is stored. The name of its class is signed too: one kind never passes for another."""

    document: D
    signer: str
    signature: str

    @classmethod
    def sign(cls, document: D, key: Ed25519PrivateKey) -> Signed[D]:
        signer, signature = signed(_canonical(document), key)
        return cls(document=document, signer=signer, signature=signature)

    @classmethod
    def parse(cls, body: bytes, trusted_signers: tuple[str, ...], *, what: str) -> D:
        """The document, once its signature is checked. Raises VerificationError that begins with `what`."""
        try:
            found = cls.model_validate_json(body)
        except ValidationError as error:
            raise VerificationError(f"{what} cannot be read: it was changed or cut off.") from error
        if found.signer not in trusted_signers:
            raise VerificationError(f"{what} is signed by a key the plan file does not trust.")
        if not holds(_canonical(found.document), found.signer, found.signature):
            raise VerificationError(f"{what} does not match its signature: it was changed or forged.")
        return found.document

    def body(self) -> bytes:
        """As it is stored."""
        return self.model_dump_json(indent=1).encode()


def _canonical(document: Frozen) -> bytes:
    return type(document).__name__.encode() + b"\n" + rfc8785.dumps(document.model_dump(mode="json"))
