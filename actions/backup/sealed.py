"""A sealed object: one signed JSON line that says what it is, then the bytes, compressed (zstd) and encrypted (age).

Whoever can write the bucket knows the recipients and could store WAL of his own making, so nothing without the
signature of a trusted key counts. Blocking, and the stored form is held in memory: a segment is 16 MiB.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import IO, cast

import rfc8785
import zstandard
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import AwareDatetime, ValidationError
from typing_extensions import Buffer

from actions.backup.crypto import Identity, NotARecipientError, Recipients
from actions.errors import UserError, VerificationError
from actions.site import Frozen

LEVEL = 1
BLOCK = 1024 * 1024
LONGEST_HEADER = 64 * 1024


class SealedKind(StrEnum):
    """SEGMENT: a closed one. RANGE: bytes of the open one. HISTORY: of a timeline."""

    SEGMENT = "segment"
    RANGE = "range"
    HISTORY = "history"


class SealedHeader(Frozen):
    """What a sealed object says of itself."""

    format: int = 1
    kind: SealedKind
    name: str  # of the file in pg_wal
    system_id: str
    timeline_id: int
    first: int = 0  # where its plain bytes begin in the file
    segment_bytes: int = 0  # of the whole file; 0 for a history
    plain_bytes: int
    plain_sha256: str
    stored_bytes: int
    stored_sha256: str  # of all that follows the header line
    closed_at: AwareDatetime  # UTC, when the archiver had these bytes: no commit in them is later
    recipients: tuple[str, ...]
    history: str = ""  # the text of a history: no secret, and what gaps are found with where there is no identity

    def canonical(self) -> bytes:
        """RFC 8785 form, the bytes that are signed."""
        return rfc8785.dumps(self.model_dump(mode="json"))


class _Line(Frozen):
    header: SealedHeader
    signer: str  # base64 of the raw Ed25519 public key
    signature: str  # base64


@dataclass(frozen=True, kw_only=True)
class What:
    """What is sealed, before it is measured."""

    kind: SealedKind
    name: str
    system_id: str
    timeline_id: int
    first: int = 0
    segment_bytes: int = 0
    history: str = ""


class Sealer:
    """Seals for the recipients of one policy, with its key."""

    def __init__(self, recipients: tuple[str, ...], key: Ed25519PrivateKey) -> None:
        self._names, self._recipients, self._key = recipients, Recipients(recipients), key
        self.signer = base64.b64encode(key.public_key().public_bytes_raw()).decode()

    def seal(self, what: What, plain: IO[bytes], closed_at: datetime) -> tuple[SealedHeader, bytes]:
        """The whole object. Reads `plain` to its end."""
        source = _Measured(plain)
        stored = io.BytesIO()
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        with compressor.stream_reader(cast(IO[bytes], source), read_size=BLOCK, closefd=False) as compressed:
            self._recipients.encrypt(compressed, stored)
        body = stored.getbuffer()
        header = SealedHeader(
            kind=what.kind,
            name=what.name,
            system_id=what.system_id,
            timeline_id=what.timeline_id,
            first=what.first,
            segment_bytes=what.segment_bytes,
            plain_bytes=source.total,
            plain_sha256=source.hash.hexdigest(),
            stored_bytes=len(body),
            stored_sha256=hashlib.sha256(body).hexdigest(),
            closed_at=closed_at,
            recipients=self._names,
            history=what.history,
        )
        signature = base64.b64encode(self._key.sign(header.canonical())).decode()
        line = _Line(header=header, signer=self.signer, signature=signature)
        return header, b"".join((line.model_dump_json().encode(), b"\n", body))


def header_of(stored: bytes, key: str, trusted_signers: tuple[str, ...], *, size: int | None = None) -> SealedHeader:
    """What the object says of itself, once its signature is checked. Where `stored` is the beginning of it alone, of at
    least LONGEST_HEADER bytes, `size` says how long all of it is. Raises VerificationError naming `key`."""
    end = stored.find(b"\n", 0, LONGEST_HEADER)
    try:
        line = _Line.model_validate_json(stored[: max(0, end)])
    except ValidationError as error:
        raise VerificationError(f"`{key}` does not begin with the header of a sealed object.") from error
    if line.signer not in trusted_signers:
        raise VerificationError(f"`{key}` is signed by a key the plan file does not trust.")
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(line.signer, validate=True))
        public.verify(base64.b64decode(line.signature, validate=True), line.header.canonical())
    except (InvalidSignature, ValueError, binascii.Error) as error:
        raise VerificationError(
            f"The header of `{key}` does not match its signature: it was changed or forged."
        ) from error
    follow = (len(stored) if size is None else size) - end - 1
    if follow != line.header.stored_bytes:
        raise VerificationError(
            f"`{key}` holds {follow} bytes after its header, which says {line.header.stored_bytes}: "
            "it was cut off or added to."
        )
    return line.header


def check_stored(stored: bytes, header: SealedHeader, key: str) -> None:
    """Raise VerificationError naming `key` unless the bytes are those that its checked `header` speaks of."""
    if hashlib.sha256(memoryview(stored)[-header.stored_bytes :]).hexdigest() != header.stored_sha256:
        raise VerificationError(
            f"The stored bytes of `{key}` do not have the SHA-256 of its header: they were changed."
        )


def unseal(stored: bytes, header: SealedHeader, key: str, identity: Identity, plain: IO[bytes]) -> None:
    """Write the plain bytes of an object whose `header` was checked. Raises VerificationError naming `key` when they
    are not what the header says, UserError when the identity is not among the recipients."""
    check_stored(stored, header, key)
    body = memoryview(stored)[-header.stored_bytes :]
    sink = _Sink(plain.write)
    try:
        with zstandard.ZstdDecompressor().stream_writer(cast(IO[bytes], sink), closefd=False) as decompressed:
            identity.decrypt(io.BytesIO(body), decompressed, key)
    except NotARecipientError as error:
        raise UserError(
            f"The identity at hand cannot open `{key}`: it is not among its {len(header.recipients)} recipients. "
            "Use the identity of one of them."
        ) from error
    except (VerificationError, zstandard.ZstdError) as error:
        if sink.failure is not None:
            raise sink.failure from error
        raise VerificationError(f"`{key}` cannot be opened: it was not stored by this product.") from error
    if (sink.total, sink.hash.hexdigest()) != (header.plain_bytes, header.plain_sha256):
        raise VerificationError(f"The plain bytes of `{key}` do not have the size and SHA-256 of its header.")


class _Measured(io.RawIOBase):
    """Counts and hashes what is read through it."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.hash = hashlib.sha256()
        self.total = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        block = self._source.read(size)
        self.hash.update(block)
        self.total += len(block)
        return block


class _Sink(io.RawIOBase):
    """Counts and hashes what is written through it. `failure` is the disk's, which age would wrap and forget."""

    def __init__(self, write: Callable[[Buffer], int]) -> None:
        self._write = write
        self.hash = hashlib.sha256()
        self.total = 0
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        self.hash.update(data)
        size = memoryview(data).nbytes
        self.total += size
        try:
            self._write(data)
        except OSError as error:
            self.failure = error
            raise
        return size
