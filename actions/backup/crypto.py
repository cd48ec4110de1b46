"""Encryption of dumps to age recipients, and the keys that sign manifests."""

from __future__ import annotations

from collections.abc import Sequence
from io import RawIOBase
from typing import IO

import pyrage
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from actions.errors import UserError, VerificationError

AGE_MAGIC = b"age-encryption.org/"


class NotARecipientError(UserError):
    """No identity at hand opens this, by what its header says; the header itself is not authenticated until then."""


class Recipients:
    """Who can read a dump. Raises UserError when there is none or one is no age public key."""

    def __init__(self, keys: Sequence[str]) -> None:
        if not keys:
            raise UserError("The backup policy names no age recipient. Add at least one to the plan file.")
        try:
            self._keys = [pyrage.x25519.Recipient.from_str(key) for key in keys]
        except pyrage.RecipientError as error:
            raise UserError(f"A recipient of the backup policy is no age public key: {error}.") from error

    def encrypt(self, plain: IO[bytes], stored: IO[bytes] | RawIOBase) -> None:
        """Encrypt a stream; bounded memory. Blocking."""
        pyrage.encrypt_io(plain, stored, self._keys)


class Identity:
    """The secret that opens dumps. `reference` is what errors name."""

    def __init__(self, text: str, reference: str) -> None:
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        self._reference = reference
        try:
            self._keys = [pyrage.x25519.Identity.from_str(line) for line in lines]
        except pyrage.IdentityError as error:
            raise UserError(f"`{reference}` holds no age identity (`AGE-SECRET-KEY-1...`).") from error
        if not self._keys:
            raise UserError(f"`{reference}` holds no age identity (`AGE-SECRET-KEY-1...`).")

    @property
    def public_keys(self) -> tuple[str, ...]:
        return tuple(str(key.to_public()) for key in self._keys)

    def check_opens(self, backup: str, recipients: Sequence[str]) -> None:
        """Raise UserError unless it is among the recipients that a backup's manifest names."""
        if not set(self.public_keys) & set(recipients):
            raise UserError(
                f"The identity `{self._reference}` cannot open backup `{backup}`: it is not among its "
                f"{len(recipients)} recipients. Use the identity of one of them."
            )

    def decrypt(self, stored: IO[bytes], plain: IO[bytes] | RawIOBase, backup: str) -> None:
        """Decrypt a stream; every 64 KiB is authenticated before it is written. Blocking.

        Raises NotARecipientError when this identity is not among the recipients, VerificationError when the bytes
        were changed.
        """
        try:
            pyrage.decrypt_io(stored, plain, self._keys)
        except (pyrage.DecryptError, OSError) as error:
            if "matching keys" in str(error).lower():
                raise NotARecipientError(
                    f"The identity `{self._reference}` cannot open backup `{backup}`: it is not among its recipients. "
                    "Use the identity of one of the recipients that the manifest names."
                ) from error
            raise VerificationError(
                f"Backup `{backup}` cannot be decrypted: its bytes were changed or cut off. Use another backup."
            ) from error


def signing_key(text: str, reference: str) -> Ed25519PrivateKey:
    """The key that signs manifests, from PEM. Raises UserError naming the reference."""
    try:
        key = serialization.load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise UserError(f"`{reference}` holds no private key in PEM form.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"`{reference}` holds a key of another kind; manifests are signed with Ed25519.")
    return key
