"""A stored backup on its way back: decrypted, decompressed and measured; and once more, as often as it is needed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import zstandard

from actions.backup.crypto import AGE_MAGIC, Identity, NotARecipientError
from actions.backup.manifest import StoredObject
from actions.backup.stages import BLOCK, Blocks, Channel, Stages
from actions.errors import VerificationError

ZSTD_MAGIC, GZIP_MAGIC = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"


@dataclass(frozen=True)
class Unpacked:
    """What was read."""

    plain_bytes: int
    plain_sha256: str
    stored_bytes: int
    stored_sha256: str
    was_encrypted: bool


class Plain(Protocol):
    """The plain bytes."""

    def get(self) -> bytes:
        """The next block; empty at the end."""


class Sink(Protocol):
    """Takes the plain bytes, in a thread of its own."""

    def run(self, source: Plain, /) -> None:
        """Read it to its end, or raise EnoughError."""


class EnoughError(Exception):
    """Raised by a sink that needs no more."""


class GoneError(EnoughError):
    """Raised by a sink whose taker has ended before it had everything; the taker's own error says why."""


async def unpack(
    chunks: AsyncIterator[bytes],
    *,
    backup: str,
    identity: Identity,
    sink: Sink,
    done: Callable[[int], None],
    stop: Callable[[], None] | None = None,
) -> Unpacked:
    """Decrypt and decompress into `sink`, undoing age, zstd and gzip. `done` is told stored bytes; `stop` ends a sink
    that is held up. It is read to its end whatever the sink needs, unless that raises GoneError.

    Nothing is compared yet: that is for the caller, who knows what the hashes should be.
    """
    hashed, total = hashlib.sha256(), 0
    measured: _Measured | None = None

    def passed(chunk: bytes) -> None:
        nonlocal total
        hashed.update(chunk)
        total += len(chunk)
        done(total)

    def consume(plain: Channel) -> None:
        nonlocal measured
        measured = _Measured(plain)
        try:
            sink.run(measured)
        except GoneError:
            raise
        except EnoughError:
            pass
        while measured.get():
            pass

    was_encrypted = await _through(chunks, backup=backup, identity=identity, consume=consume, passed=passed, stop=stop)
    return Unpacked(
        plain_bytes=measured.total if measured else 0,
        plain_sha256=measured.hash.hexdigest() if measured else "",
        stored_bytes=total,
        stored_sha256=hashed.hexdigest(),
        was_encrypted=was_encrypted,
    )


async def replay(
    chunks: AsyncIterator[bytes], *, backup: str, identity: Identity, sink: Sink, stop: Callable[[], None]
) -> None:
    """The plain bytes of what was unpacked before, without measuring them again. `stop` ends a sink that is held up."""
    with contextlib.suppress(EnoughError):
        await _through(chunks, backup=backup, identity=identity, consume=sink.run, passed=lambda _: None, stop=stop)


async def _through(
    chunks: AsyncIterator[bytes],
    *,
    backup: str,
    identity: Identity,
    consume: Callable[[Channel], object],
    passed: Callable[[bytes], None],
    stop: Callable[[], None] | None = None,
) -> bool:
    """Whether it was encrypted. `passed` is told the stored bytes, `consume` gets the plain ones."""
    stored, compressed, plain = Channel(), Channel(), Channel()
    decrypting = _Decrypting(stored, compressed, identity, backup)
    inflating = _Inflating(compressed, plain)
    stages = Stages(stored, compressed, plain, stop=stop)

    async def feed() -> None:
        async for chunk in chunks:
            await stages.call(stored.put, chunk)
            await stages.call(passed, chunk)
        stored.end()

    try:
        threads = [stages.thread(stage.run) for stage in (decrypting, inflating)]
        await stages.run(*threads, stages.thread(consume, plain), stages.task(feed))
    finally:
        await cast("AsyncGenerator[bytes]", chunks).aclose()
    return decrypting.was_encrypted


class Described(Protocol):
    """A signed manifest, as far as it says what the object holds."""

    @property
    def id(self) -> str: ...

    @property
    def stored(self) -> StoredObject: ...

    @property
    def plain_bytes(self) -> int: ...

    @property
    def plain_sha256(self) -> str: ...


async def unpack_checked(
    chunks: AsyncIterator[bytes],
    *,
    manifest: Described,
    identity: Identity,
    sink: Sink,
    done: Callable[[int], None],
    stop: Callable[[], None] | None = None,
) -> Unpacked:
    """Unpack an object to its end, and raise VerificationError unless it is what its manifest says."""
    backup = manifest.id
    try:
        read = await unpack(chunks, backup=backup, identity=identity, sink=sink, done=done, stop=stop)
    except (VerificationError, NotARecipientError) as error:
        # The signed manifest names us as a recipient: a header that does not was changed.
        raise VerificationError(
            f"The object of backup `{backup}` is not what was stored: {error} Nothing was restored from it."
        ) from error
    wrong = [
        name
        for name, found, wanted in (
            ("stored", (read.stored_bytes, read.stored_sha256), (manifest.stored.bytes, manifest.stored.sha256)),
            ("plain", (read.plain_bytes, read.plain_sha256), (manifest.plain_bytes, manifest.plain_sha256)),
        )
        if found != wanted
    ]
    if wrong:
        raise _changed(wrong, backup)
    return read


async def check_stored(chunks: AsyncIterator[bytes], *, manifest: Described, done: Callable[[int], None]) -> None:
    """Read an object to its end as it is stored, and raise VerificationError unless it is what its manifest says."""
    hashed, total = hashlib.sha256(), 0
    try:
        async for chunk in chunks:
            await asyncio.to_thread(hashed.update, chunk)
            total += len(chunk)
            done(total)
    finally:
        await cast("AsyncGenerator[bytes]", chunks).aclose()
    if (total, hashed.hexdigest()) != (manifest.stored.bytes, manifest.stored.sha256):
        raise _changed(["stored"], manifest.id)


def _changed(which: list[str], backup: str) -> VerificationError:
    return VerificationError(
        f"The {' and '.join(which)} bytes of backup `{backup}` do not have the size and SHA-256 of its "
        "manifest: they were changed. Nothing was restored from it. Use another backup."
    )


class _Decrypting:
    def __init__(self, source: Channel, out: Channel, identity: Identity, backup: str) -> None:
        self._source, self._out, self._identity, self._backup = source, out, identity, backup
        self.was_encrypted = False

    def run(self) -> None:
        stream = io.BufferedReader(self._source, BLOCK)
        self.was_encrypted = stream.peek(len(AGE_MAGIC)).startswith(AGE_MAGIC)
        if self.was_encrypted:
            sink = Blocks(BLOCK, self._out.put)
            self._identity.decrypt(stream, sink, self._backup)
            sink.give()
        else:
            while block := stream.read1(BLOCK):
                self._out.put(block)
        self._out.end()


class _Inflating:
    def __init__(self, source: Channel, out: Channel) -> None:
        self._source, self._out = source, out

    def run(self) -> None:
        for block in self._plain(io.BufferedReader(self._source, BLOCK)):
            self._out.put(block)
        self._out.end()

    def _plain(self, stream: io.BufferedReader) -> Iterator[bytes]:
        magic = stream.peek(4)
        try:
            if magic.startswith(ZSTD_MAGIC):
                with zstandard.ZstdDecompressor().stream_reader(stream, read_size=BLOCK) as reader:
                    while block := reader.read(BLOCK):
                        yield block
            elif magic.startswith(GZIP_MAGIC):
                zipped = zlib.decompressobj(wbits=31)
                while block := zipped.decompress(zipped.unconsumed_tail or stream.read1(BLOCK), BLOCK):
                    yield block
            else:
                while block := stream.read(BLOCK):
                    yield block
        except (zstandard.ZstdError, zlib.error) as error:
            raise VerificationError("It cannot be decompressed: its bytes were changed.") from error


class _Measured(Plain):
    """Hashes in the thread of the sink: decompressing is work enough for one."""

    def __init__(self, source: Channel) -> None:
        self._source = source
        self.hash = hashlib.sha256()
        self.total = 0

    def get(self) -> bytes:
        block = self._source.get()
        self.hash.update(block)
        self.total += len(block)
        return block
