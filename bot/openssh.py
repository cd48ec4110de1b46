"""OpenSSH keys and signatures, read and checked without a program.

Formats: PROTOCOL.sshsig and PROTOCOL.u2f of OpenSSH, "ALLOWED SIGNERS" of ssh-keygen(1), RFC 8709. Only Ed25519 is
taken, plain (`ssh-ed25519`) or inside a FIDO token (`sk-ssh-ed25519@openssh.com`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAGIC = b"SSHSIG"
PLAIN = "ssh-ed25519"
TOKEN = "sk-ssh-ed25519@openssh.com"  # noqa: S105 - the name of a key type
LARGEST = 8192
"""Characters of an armored signature; a real one has some 300."""

_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
_PRESENT = 0x01  # somebody touched the token
_OPTION = re.compile(r'([A-Za-z-]+)(?:="([^"]*)")?(?:,|$)')


class OpenSshError(ValueError):
    """A key line or a signature is not what it should be; the text says why."""


@dataclass(frozen=True)
class PublicKey:
    """A public key as it goes over the wire: `blob` is what a signature names."""

    kind: str
    blob: bytes
    point: bytes
    application: str = ""  # of a FIDO token, such as "ssh:"

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest()).decode()
        return f"SHA256:{digest.rstrip('=')}"


@dataclass(frozen=True)
class AllowedKey:
    """A key with its limits: one line of `allowed_signers` without the principals."""

    key: PublicKey
    namespaces: tuple[str, ...] = ()  # patterns; empty: every one
    valid_after: datetime | None = None
    valid_before: datetime | None = None
    comment: str = ""

    def objection(self, namespace: str, at: datetime) -> str | None:
        """Why the key may not sign in this namespace at this time; None when it may."""
        if self.namespaces and not any(fnmatchcase(namespace, pattern) for pattern in self.namespaces):
            return f"the key {self.key.fingerprint} is not for {namespace}"
        if self.valid_after is not None and at < self.valid_after:
            return f"the key {self.key.fingerprint} is not valid before {_moment(self.valid_after)}"
        if self.valid_before is not None and at >= self.valid_before:
            return f"the key {self.key.fingerprint} expired at {_moment(self.valid_before)}"
        return None


def allowed_key(line: str) -> AllowedKey:
    """Read `[options] ssh-ed25519 AAAA... [comment]`; times without a Z are UTC too. Raises OpenSshError."""
    words = line.split()
    options = ""
    if words and words[0] not in (PLAIN, TOKEN):
        # A quoted option value may hold spaces, so the options end where the key type begins.
        found = re.match(rf"(?P<options>\S.*?)\s+(?P<rest>(?:{PLAIN}|{re.escape(TOKEN)})\s.*)$", line.strip())
        if found is None:
            raise OpenSshError(f"give an Ed25519 public key, `{PLAIN} AAAA... comment`")
        options, words = found["options"], found["rest"].split()
    if len(words) < 2:
        raise OpenSshError("the key itself is missing behind its type")
    try:
        blob = base64.b64decode(words[1], validate=True)
    except binascii.Error as error:
        raise OpenSshError("the key is cut or not base64; copy the whole line of the .pub file") from error
    key = public_key(blob)
    if key.kind != words[0]:
        raise OpenSshError(f"the line says {words[0]}, the key is {key.kind}")
    return _limited(AllowedKey(key=key, comment=" ".join(words[2:])), options)


def public_key(blob: bytes) -> PublicKey:
    """Read a public key in wire form. Raises OpenSshError."""
    fields = _Fields(blob)
    kind = fields.text()
    if kind not in (PLAIN, TOKEN):
        raise OpenSshError(f"a key of type {kind[:40]!r} does not count; make one with `ssh-keygen -t ed25519`")
    point = fields.bytes_()
    application = fields.text() if kind == TOKEN else ""
    fields.end()
    if len(point) != 32:
        raise OpenSshError("an Ed25519 key has 32 bytes")
    return PublicKey(kind=kind, blob=blob, point=point, application=application)


@dataclass(frozen=True)
class SshSignature:
    """A signature of `ssh-keygen -Y sign`, not checked yet."""

    key: PublicKey
    namespace: str
    reserved: bytes
    hash_name: str
    kind: str
    signature: bytes
    rest: bytes

    def check(self, message: bytes, namespace: str) -> None:
        """Raise OpenSshError unless the key signed exactly this message in this namespace."""
        if self.namespace != namespace:
            raise OpenSshError(f"it was signed for {self.namespace[:60]!r}, not for {namespace}")
        if self.hash_name not in ("sha512", "sha256"):
            raise OpenSshError(f"its hash {self.hash_name[:20]!r} is not known")
        if self.kind != self.key.kind:
            raise OpenSshError(f"its type {self.kind[:40]!r} is not that of its key")
        digest = hashlib.new(self.hash_name, message).digest()
        signed = MAGIC + b"".join(
            _string(part) for part in (namespace.encode(), self.reserved, self.hash_name.encode(), digest)
        )
        if self.key.kind == TOKEN:
            signed = self._by_token(signed)
        elif self.rest:
            raise OpenSshError("there is something behind its end")
        try:
            Ed25519PublicKey.from_public_bytes(self.key.point).verify(self.signature, signed)
        except (InvalidSignature, ValueError) as error:
            raise OpenSshError("the signature does not fit what was signed") from error

    def _by_token(self, signed: bytes) -> bytes:
        # PROTOCOL.u2f: what the token signs is its application, flags, counter and the hash of the message.
        if len(self.rest) != 5:
            raise OpenSshError("flags and counter of the token are missing")
        if not self.rest[0] & _PRESENT:
            raise OpenSshError("nobody touched the token")
        return hashlib.sha256(self.key.application.encode()).digest() + self.rest + hashlib.sha256(signed).digest()


def ssh_signature(armored: str) -> SshSignature:
    """Read an armored signature. Raises OpenSshError."""
    text = armored.strip()
    if len(text) > LARGEST or not text.startswith(_BEGIN) or not text.endswith(_END):
        raise OpenSshError("this is no SSH signature")
    try:
        blob = base64.b64decode("".join(text[len(_BEGIN) : -len(_END)].split()), validate=True)
    except binascii.Error as error:
        raise OpenSshError("the signature is cut or not base64") from error
    if not blob.startswith(MAGIC):
        raise OpenSshError("this is no SSH signature")
    fields = _Fields(blob[len(MAGIC) :])
    if fields.number() != 1:
        raise OpenSshError("this version of SSH signatures is not known")
    key = public_key(fields.bytes_())
    namespace, reserved, hash_name = fields.text(), fields.bytes_(), fields.text()
    inner = _Fields(fields.bytes_())
    fields.end()
    kind, signature = inner.text(), inner.bytes_()
    return SshSignature(
        key=key,
        namespace=namespace,
        reserved=reserved,
        hash_name=hash_name,
        kind=kind,
        signature=signature,
        rest=inner.left,
    )


class _Fields:
    """The fields of RFC 4251: numbers of four bytes, and strings with their length before them."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def number(self) -> int:
        return int.from_bytes(self._take(4))

    def bytes_(self) -> bytes:
        return self._take(self.number())

    def text(self) -> str:
        try:
            return self.bytes_().decode("ascii")
        except UnicodeDecodeError as error:
            raise OpenSshError("a name in it is not ASCII") from error

    def end(self) -> None:
        if self.left:
            raise OpenSshError("there is something behind its end")

    def _take(self, count: int) -> bytes:
        if len(self.left) < count:
            raise OpenSshError("it is cut")
        taken, self.left = self.left[:count], self.left[count:]
        return taken


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4) + data


def _limited(key: AllowedKey, options: str) -> AllowedKey:
    position = 0
    while position < len(options):
        found = _OPTION.match(options, position)
        if found is None:
            raise OpenSshError(f"the options `{options[:60]}` cannot be read")
        name, value, position = found[1].casefold(), found[2], found.end()
        if name == "namespaces" and value:
            key = replace(key, namespaces=tuple(value.split(",")))
        elif name == "valid-after" and value:
            key = replace(key, valid_after=_time(value))
        elif name == "valid-before" and value:
            key = replace(key, valid_before=_time(value))
        else:
            raise OpenSshError(f"the option `{name}` is not known; there are namespaces, valid-after, valid-before")
    return key


def _time(text: str) -> datetime:
    forms = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
    bare = text.removesuffix("Z")
    try:
        return datetime.strptime(bare, forms.get(len(bare), "")).replace(tzinfo=UTC)
    except ValueError as error:
        raise OpenSshError(f"`{text[:30]}` is no time; write YYYYMMDD or YYYYMMDDHHMM, in UTC") from error


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
