"""A value with its signature: what the bot writes into buckets that others can write to as well."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Generic, TypeVar

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import SerializeAsAny, ValidationError

from actions.errors import VerificationError
from actions.site import Frozen

BodyT = TypeVar("BodyT", bound=Frozen)


class SignedDocument(Frozen, Generic[BodyT]):
    """`kind` goes into the signature: a signed document of one kind never passes for one of another."""

    kind: str
    body: SerializeAsAny[BodyT]
    signer: str  # base64 of the raw Ed25519 public key
    signature: str  # base64

    @classmethod
    def sign(cls, kind: str, body: BodyT, key: Ed25519PrivateKey) -> SignedDocument[BodyT]:
        return cls(
            kind=kind,
            body=body,
            signer=base64.b64encode(key.public_key().public_bytes_raw()).decode(),
            signature=base64.b64encode(key.sign(_canonical(kind, body))).decode(),
        )

    def bytes(self) -> bytes:
        """As stored."""
        return self.model_dump_json().encode()


def opened(stored: bytes, kind: str, body: type[BodyT], trusted_signers: Sequence[str], *, what: str) -> BodyT:
    """The value of a stored document. Raises VerificationError, calling it `what`, unless a trusted key signed exactly
    this, as this kind."""
    try:
        document = SignedDocument[body].model_validate_json(stored)  # type: ignore[valid-type]
    except ValidationError as error:
        raise VerificationError(f"{what} cannot be read: it was changed or cut off.") from error
    if document.kind != kind or document.signer not in trusted_signers:
        raise VerificationError(f"{what} is signed by a key the plan file does not trust, or is something else.")
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(document.signer, validate=True))
        public.verify(base64.b64decode(document.signature, validate=True), _canonical(kind, document.body))
    except (InvalidSignature, ValueError) as error:
        raise VerificationError(f"{what} does not match its signature: it was changed or forged.") from error
    return document.body


def _canonical(kind: str, body: Frozen) -> bytes:
    return f"{kind}\n".encode() + rfc8785.dumps(body.model_dump(mode="json"))
