"""Signatures of the real ssh-keygen are taken, and nothing else is."""

from __future__ import annotations

import base64
import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from bot.openssh import MAGIC, TOKEN, AllowedKey, OpenSshError, allowed_key, ssh_signature
from tests.fixtures.ssh_keys import MakeKey, public_line, signed

SPACE = "drbot@superprismora"
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def string(data: bytes) -> bytes:
    return len(data).to_bytes(4) + data


def armor(blob: bytes) -> str:
    return f"-----BEGIN SSH SIGNATURE-----\n{base64.b64encode(blob).decode()}\n-----END SSH SIGNATURE-----\n"


class Token:
    """A FIDO token made of software: what PROTOCOL.u2f says it signs."""

    def __init__(self) -> None:
        self.private = Ed25519PrivateKey.generate()
        point = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.blob = string(TOKEN.encode()) + string(point) + string(b"ssh:")
        self.line = f"{TOKEN} {base64.b64encode(self.blob).decode()} token"

    def sign(self, message: bytes, *, flags: int = 1) -> str:
        digest = hashlib.sha512(message).digest()
        signed_part = MAGIC + string(SPACE.encode()) + string(b"") + string(b"sha512") + string(digest)
        rest = bytes([flags]) + (7).to_bytes(4)
        seen = hashlib.sha256(b"ssh:").digest() + rest + hashlib.sha256(signed_part).digest()
        inner = string(TOKEN.encode()) + string(self.private.sign(seen)) + rest
        head = MAGIC + (1).to_bytes(4) + string(self.blob) + string(SPACE.encode())
        return armor(head + string(b"") + string(b"sha512") + string(inner))


def test_a_signature_of_ssh_keygen_fits_its_words_and_its_key(make_key: MakeKey) -> None:
    key = make_key("ona")
    found = ssh_signature(signed("the words\nof Ona", key))
    found.check(b"the words\nof Ona", SPACE)
    assert found.key == allowed_key(public_line(key)).key


@pytest.mark.parametrize(
    ("words", "space", "why"),
    [
        (b"the words", "git", "signed for 'drbot@superprismora'"),
        (b"other words", SPACE, "does not fit"),
        (b"the words\n", SPACE, "does not fit"),
    ],
)
def test_other_words_or_another_namespace_are_refused(make_key: MakeKey, words: bytes, space: str, why: str) -> None:
    found = ssh_signature(signed("the words", make_key("ona")))
    with pytest.raises(OpenSshError, match=why):
        found.check(words, space)


def test_a_key_of_another_kind_is_refused_by_name(make_key: MakeKey) -> None:
    key = make_key("old", kind="rsa")
    with pytest.raises(OpenSshError, match="ed25519"):
        ssh_signature(signed("x", key))
    with pytest.raises(OpenSshError, match="ssh-ed25519"):
        allowed_key(public_line(key))


def test_no_byte_of_a_signature_can_be_changed(make_key: MakeKey) -> None:
    text = signed("the words", make_key("ona"))
    blob = base64.b64decode("".join(text.splitlines()[1:-1]))
    for position in range(len(blob)):
        changed = bytearray(blob)
        changed[position] ^= 0x01
        with pytest.raises(OpenSshError):
            ssh_signature(armor(bytes(changed))).check(b"the words", SPACE)
    for end in range(len(blob)):
        with pytest.raises(OpenSshError):
            ssh_signature(armor(blob[:end]))


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_with_a_reason(data: bytes) -> None:
    for blob in (data, MAGIC + (1).to_bytes(4) + data):
        with pytest.raises(OpenSshError):
            ssh_signature(armor(blob)).check(b"x", SPACE)


@pytest.mark.parametrize("text", ["", "x", "-----BEGIN SSH SIGNATURE-----\n-----END SSH SIGNATURE-----", "é" * 9000])
def test_what_is_no_signature_is_refused(text: str) -> None:
    with pytest.raises(OpenSshError):
        ssh_signature(text)


def test_a_token_signs_only_when_somebody_touches_it() -> None:
    token = Token()
    found = ssh_signature(token.sign(b"the words"))
    found.check(b"the words", SPACE)
    assert found.key == allowed_key(token.line).key
    with pytest.raises(OpenSshError, match="touched"):
        ssh_signature(token.sign(b"the words", flags=0)).check(b"the words", SPACE)
    with pytest.raises(OpenSshError, match="does not fit"):
        found.check(b"other words", SPACE)


def line_of(options: str) -> AllowedKey:
    key = base64.b64encode(string(b"ssh-ed25519") + string(os.urandom(32))).decode()
    return allowed_key(f"{options} ssh-ed25519 {key} ona@example.com".strip())


@pytest.mark.parametrize(
    ("options", "objection"),
    [
        ("", None),
        ('valid-after="20261123"', None),
        ('valid-after="202611231201Z"', "not valid before 2026-11-23 12:01 UTC"),
        ('valid-before="20261123120001"', None),
        ('valid-before="202611231200"', "expired at 2026-11-23 12:00 UTC"),
        ('namespaces="git,drbot@*"', None),
        ('namespaces="git"', "not for drbot@superprismora"),
        ('valid-after="20260101",valid-before="20260201",namespaces="drbot@superprismora"', "expired"),
    ],
)
def test_options_of_allowed_signers_are_honoured(options: str, objection: str | None) -> None:
    found = line_of(options).objection(SPACE, NOON)
    assert (found is None) == (objection is None)
    assert objection is None or objection in str(found)


@pytest.mark.parametrize(
    "options", ["cert-authority", 'valid-before="tomorrow"', 'valid-before=""', 'verify-required=""', "namespaces="]
)
def test_options_that_are_not_understood_are_refused(options: str) -> None:
    with pytest.raises(OpenSshError):
        line_of(options)


@pytest.mark.parametrize(
    "line", ["", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-ed25519 !!!!", "ssh-rsa AAAAB3NzaC1yc2E="]
)
def test_broken_key_lines_are_refused(line: str) -> None:
    with pytest.raises(OpenSshError):
        allowed_key(line)


def test_the_fingerprint_is_the_one_of_ssh_keygen(make_key: MakeKey, tmp_path: Path) -> None:
    import subprocess

    key = make_key("ona")
    said = subprocess.run(["ssh-keygen", "-l", "-f", str(key)], capture_output=True, text=True, check=True).stdout
    assert allowed_key(public_line(key)).key.fingerprint == said.split()[1]
