"""Fingerprints of secret values, under a key of the bot: they tell whether two are the same, and nothing else."""

from __future__ import annotations

import hashlib
import hmac


def fingerprint_key(signing_key: str) -> bytes:
    """What values are fingerprinted under: nobody without the signing key can try values against a fingerprint."""
    return hmac.digest(signing_key.strip().encode(), b"superprismora-dr recovery-point fingerprint", "sha256")


def fingerprint(key: bytes, value: str) -> str:
    """`hmac 0123456789abcdef by 01234567`: of the value, and of the key it was made under."""
    return f"hmac {hmac.digest(key, value.encode(), 'sha256').hex()[:16]} by {hashlib.sha256(key).hexdigest()[:8]}"
