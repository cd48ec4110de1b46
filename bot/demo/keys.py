"""The demo's key pairs, made anew each time, in files that only their owner can read."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyrage
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bot.demo.people import ACCOUNTS


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Public halves as text, private halves as files."""

    recipient: str  # age1...
    custodian: str  # age1..., its identity is thrown away: nobody restores with it here
    identity: Path
    prover: str  # age1..., of restore tests
    prover_identity: Path
    signer: str  # base64 of the 32 raw bytes
    signing_key: Path  # PEM, PKCS #8
    record: str  # base64 of the 32 raw bytes
    record_key: Path  # PEM, PKCS #8
    people: Mapping[str, str]  # by person, the line of a .pub file; the private half is in `<person>-key`


def make_keys(directory: Path) -> Keys:
    """Make the files `age-identity.txt`, `prover-identity.txt`, `manifest-key.pem`, `record-key.pem` and, for the
    people of the roster, `<person>-key` in `directory`. Raises FileExistsError."""
    identity, prover = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    signing, record = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    return Keys(
        recipient=str(identity.to_public()),
        custodian=str(pyrage.x25519.Identity.generate().to_public()),
        identity=private_file(directory / "age-identity.txt", f"{identity}\n"),
        prover=str(prover.to_public()),
        prover_identity=private_file(directory / "prover-identity.txt", f"{prover}\n"),
        signer=base64.b64encode(signing.public_key().public_bytes_raw()).decode(),
        signing_key=private_file(directory / "manifest-key.pem", _pem(signing)),
        record=base64.b64encode(record.public_key().public_bytes_raw()).decode(),
        record_key=private_file(directory / "record-key.pem", _pem(record)),
        people={account.person: _own_key(directory, account.person) for account in ACCOUNTS if account.person},
    )


def _own_key(directory: Path, person: str) -> str:
    """A key as `ssh-keygen -t ed25519` makes it; its public half."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    private_file(directory / f"{person}-key", private.decode())
    line = f"{public.decode()} {person}"
    private_file(directory / f"{person}-key.pub", f"{line}\n")
    return line


def _pem(key: Ed25519PrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def private_file(path: Path, text: str) -> Path:
    """Write a new file that only its owner may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
    return path
