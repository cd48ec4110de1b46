"""A checkpoint: what is signed about the log, as people and programs read it.

The body is lines of text in a fixed order, and the signature (Ed25519) is over its bytes, so that any tool can check
it. Beside them travel the hashes of the leaves it added: the signed root proves them, and with them a witness can tell
which entry was changed, not only that one was.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from actions.errors import UserError, VerificationError
from actions.site import Frozen

FORM = "drbot record checkpoint 1"
HASH = 32  # bytes


class Consumed(Frozen):
    """A plan whose run has started."""

    plan: str
    digest: str


class Checkpoint(Frozen):
    """The first `size` leaves hash to `root`; the leaves from `base` on were added by this one."""

    number: int
    epoch: int
    base: int
    size: int
    root: str  # hex
    at: datetime
    key: str  # id of the key that signs
    consumed: tuple[Consumed, ...] = ()

    def body(self) -> str:
        """The text that is signed."""
        lines = [
            FORM,
            f"number {self.number}",
            f"epoch {self.epoch}",
            f"base {self.base}",
            f"size {self.size}",
            f"root {self.root}",
            f"at {self.at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
            f"key {self.key}",
        ]
        lines += [f"consumed {item.plan} {item.digest}" for item in self.consumed]
        return "\n".join([*lines, ""])

    @classmethod
    def parse(cls, body: str) -> Checkpoint:
        """Raises VerificationError for any other text."""
        form, *lines = body.splitlines() or [""]
        if form != FORM:
            raise VerificationError("This is no checkpoint of a record.")
        words = [line.split(" ") for line in lines]
        facts = {line[0]: line[1] for line in words if len(line) == 2}
        try:
            made = cls.model_validate(
                {**facts, "consumed": [{"plan": line[1], "digest": line[2]} for line in words if line[0] == "consumed"]}
            )
        except (ValueError, IndexError) as error:
            raise VerificationError("This checkpoint cannot be read.") from error
        if made.body() != body:
            raise VerificationError("This checkpoint is written in another way than checkpoints are.")
        return made


class Signed(Frozen):
    """A checkpoint as it is published: one line of JSON."""

    body: str
    signature: bytes
    leaves: bytes = b""  # hashes of the added leaves, one after the other
    facts: str = ""  # of the adoption that the checkpoint begins an epoch with, and the proofs of those who signed it
    proofs: tuple[str, ...] = ()

    def line(self) -> str:
        """One line for a witness."""
        shown = self._head() | {"leaves": base64.b64encode(self.leaves).decode()}
        if self.facts:
            shown["adoption"] = {"facts": self.facts, "proofs": self.proofs}
        return json.dumps(shown)

    def head(self) -> str:
        """The same line without the leaves, as people are told it: the root proves that the log is the one that was
        signed, but not which entry of another one was changed."""
        return json.dumps(self._head())

    def _head(self) -> dict[str, object]:
        return {"body": self.body, "signature": base64.b64encode(self.signature).decode()}

    @classmethod
    def read(cls, line: str) -> Signed:
        """Raises VerificationError for what is no published checkpoint."""
        try:
            found = json.loads(line)
            return cls(
                body=str(found["body"]),
                signature=base64.b64decode(found["signature"], validate=True),
                leaves=base64.b64decode(found["leaves"], validate=True),
            )
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            raise VerificationError("This is no published checkpoint.") from error


class Signer:
    """The key of the sealer."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.id = key_id(key.public_key().public_bytes_raw())

    @classmethod
    def from_pem(cls, pem: str, reference: str) -> Signer:
        """Raises UserError, which names the reference and not the key."""
        try:
            key = load_pem_private_key(pem.encode(), password=None)
        except (ValueError, TypeError) as error:
            raise UserError(f"`{reference}` holds no private key in PEM form without a password.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise UserError(f"`{reference}` holds a key of another kind; checkpoints are signed with Ed25519.")
        return cls(key)

    def sign(self, checkpoint: Checkpoint) -> bytes:
        """The signature over the body."""
        return self._key.sign(checkpoint.body().encode())


class Trust:
    """The public keys whose checkpoints count."""

    def __init__(self, keys: Iterable[str]) -> None:
        """`keys` are base64 of the 32 raw bytes each."""
        raw = [base64.b64decode(key, validate=True) for key in keys]
        self._keys: Mapping[str, Ed25519PublicKey] = {
            key_id(item): Ed25519PublicKey.from_public_bytes(item) for item in raw
        }

    @property
    def ids(self) -> frozenset[str]:
        """The ids of the keys, as checkpoints name them."""
        return frozenset(self._keys)

    def check(self, signed: Signed) -> Checkpoint:
        """The checkpoint. Raises VerificationError when no trusted key has signed it."""
        checkpoint = Checkpoint.parse(signed.body)
        if checkpoint.key not in self._keys:
            raise VerificationError(f"Checkpoint {checkpoint.number} is signed with `{checkpoint.key}`, not trusted.")
        try:
            self._keys[checkpoint.key].verify(signed.signature, signed.body.encode())
        except InvalidSignature as error:
            raise VerificationError(f"Checkpoint {checkpoint.number} carries a signature of somebody else.") from error
        return checkpoint


def key_id(raw: bytes) -> str:
    """A short name of a public key."""
    return hashlib.sha256(raw).hexdigest()[:16]
