"""A stored dump on its way back: decrypted, decompressed, spooled for `pg_restore`."""

from __future__ import annotations

import contextlib
import hashlib
import io
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import zstandard

from actions.backup.archive import Contents, Places, read_contents
from actions.backup.crypto import AGE_MAGIC, Identity
from actions.backup.stages import BLOCK, Blocks, Channel, Header, Stages, disk, private
from actions.errors import VerificationError

ZSTD_MAGIC, GZIP_MAGIC = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"


@dataclass(frozen=True)
class Unpacked:
    """What was read, and the archive's header as it was stored. `rest` is where the data begins in the spool file."""

    plain_bytes: int
    plain_sha256: str
    stored_bytes: int
    stored_sha256: str
    contents: Contents
    rest: int
    was_encrypted: bool


async def unpack(
    chunks: AsyncIterator[bytes],
    *,
    backup: str,
    identity: Identity,
    spool: Path | None,
    header: Callable[[Contents], bytes],
    done: Callable[[int], None],
) -> Unpacked:
    """Decrypt and decompress into the file `spool` (none: only read), undoing age, zstd and gzip.

    `header` may change the archive's header in the spool file, where the places of the data are filled in as well; the
    hash is that of the archive as it was. `done` is told stored bytes.
    """
    stored, compressed, plain = Channel(), Channel(), Channel()
    decrypting = _Decrypting(stored, compressed, identity, backup)
    inflating, spooling = _Inflating(compressed, plain), _Spooling(plain, spool, header)
    stages = Stages(stored, compressed, plain)
    hashed = hashlib.sha256()
    total = 0

    async def feed() -> None:
        nonlocal total
        async for chunk in chunks:
            await stages.call(stored.put, chunk)
            await stages.call(hashed.update, chunk)
            total += len(chunk)
            done(total)
        stored.end()

    try:
        threads = [stages.thread(stage.run) for stage in (decrypting, inflating, spooling)]
        await stages.run(*threads, stages.task(feed()))
    finally:
        await cast("AsyncGenerator[bytes]", chunks).aclose()
    contents = spooling.header.contents
    if contents is None:
        raise VerificationError(f"Backup `{backup}` ends before its table of contents. Use another backup.")
    return Unpacked(
        plain_bytes=inflating.total,
        plain_sha256=inflating.hash.hexdigest(),
        stored_bytes=total,
        stored_sha256=hashed.hexdigest(),
        contents=contents,
        rest=spooling.rest,
        was_encrypted=decrypting.was_encrypted,
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
        self.hash = hashlib.sha256()
        self.total = 0

    def run(self) -> None:
        for block in self._plain(io.BufferedReader(self._source, BLOCK)):
            self.hash.update(block)
            self.total += len(block)
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
            raise VerificationError("The dump cannot be decompressed: its bytes were changed. Use another.") from error


class _Spooling:
    """The last stage: reads the archive's header, and writes the archive into the spool file, if there is one."""

    def __init__(self, source: Channel, spool: Path | None, header: Callable[[Contents], bytes]) -> None:
        self._source, self._spool, self._changed = source, spool, header
        self.rest = 0
        self.header = Header()
        self._written: Contents | None = None  # the header as it is in the spool file
        self._places: Places | None = None

    def run(self) -> None:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(private(self._spool)) if self._spool is not None else None
            while block := self._source.get():
                if self.header.contents is not None:
                    self._write(file, block)
                elif self.header.feed(block):
                    self._begin(file)
            if self.header.contents is None and self.header.end():
                self._begin(file)
            if file is not None and self._written is not None and self._places is not None:
                with disk(self._spool):
                    file.seek(0)
                    file.write(self._written.with_places(self._places.found))

    def _begin(self, file: IO[bytes] | None) -> None:
        contents = self.header.contents
        if contents is not None and file is not None:
            changed = self._changed(contents)
            self.rest = len(changed)
            with disk(self._spool):
                file.write(changed)
            if contents.searchable:
                self._written = read_contents(changed)
                self._places = Places(self.rest)
            self._write(file, self.header.bytes[len(contents.header) :])

    def _write(self, file: IO[bytes] | None, block: bytes) -> None:
        if file is not None:
            with disk(self._spool):
                file.write(block)
            if self._places is not None:
                self._places.feed(block)
