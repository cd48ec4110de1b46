"""The way of a dump's bytes: `pg_dump` -> SHA-256 -> zstd -> age -> SHA-256 -> bucket and local copy; and back.

Every stage has a thread, with a bounded channel between two of them: zstd, SHA-256 and the pipes release Python's
lock, so the stages run side by side, and memory stays under some 150 MiB whatever the size of the dump.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import io
import os
import threading
import zlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import zstandard
from typing_extensions import Buffer

from actions.backup.archive import Contents, IncompleteError, Places, read_contents
from actions.backup.crypto import AGE_MAGIC, Identity, Recipients
from actions.errors import UserError, VerificationError

BLOCK = 1024 * 1024
UPLOAD = 8 * BLOCK
LEVEL, ZSTD_THREADS = 1, 2
LARGEST_HEADER = 256 * BLOCK
ZSTD_MAGIC, GZIP_MAGIC = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"


class StoppedError(Exception):
    """The other side of a channel has given up; its own error tells why."""


class Channel(io.RawIOBase):
    """Bytes from one thread to another, at most `room` of them waiting. Readable as a stream."""

    def __init__(self, room: int = 4 * UPLOAD) -> None:
        self._room, self._held = room, 0
        self._chunks: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._ended = self._stopped = False

    def put(self, chunk: bytes) -> None:
        with self._changed:
            while self._held >= self._room and not self._stopped:
                self._changed.wait()
            if self._stopped:
                raise StoppedError
            self._chunks.append(chunk)
            self._held += len(chunk)
            self._changed.notify_all()

    def get(self) -> bytes:
        """The next chunk; empty at the end."""
        with self._changed:
            while not self._chunks and not self._ended and not self._stopped:
                self._changed.wait()
            if self._stopped:
                raise StoppedError
            if not self._chunks:
                return b""
            chunk = self._chunks.popleft()
            self._held -= len(chunk)
            self._changed.notify_all()
            return chunk

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Wake everybody who waits; they raise StoppedError."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    # As a stream, for age and zstd.

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        chunk = self.get()
        view = memoryview(buffer)
        size = min(len(chunk), len(view))
        view[:size] = chunk[:size]
        if size < len(chunk):
            with self._changed:
                self._chunks.appendleft(chunk[size:])
                self._held += len(chunk) - size
        return size


class _Blocks(io.RawIOBase):
    """The stream that age writes to: gathers its small pieces into blocks. `flush` gives the rest."""

    def __init__(self, size: int, take: Callable[[bytes], None]) -> None:
        self._size, self._take = size, take
        self._gathered = bytearray()
        self.failure: Exception | None = None  # age would wrap it and lose what it says

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        self._gathered += data
        if len(self._gathered) >= self._size:
            self.give()
        return memoryview(data).nbytes

    def give(self) -> None:
        block, self._gathered = bytes(self._gathered), bytearray()
        try:
            if block:
                self._take(block)
        except Exception as error:
            self.failure = error
            raise


@dataclass(frozen=True)
class Packed:
    """What was stored. `contents` is the archive's header."""

    plain_bytes: int
    plain_sha256: str
    stored_bytes: int
    stored_sha256: str
    contents: Contents


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


class _Stages:
    """Threads that work on one stream. The first error stops all channels and is the one that is raised."""

    def __init__(self, *channels: Channel, stop: Callable[[], None] | None = None) -> None:
        self._channels, self._stop = channels, stop
        self._pool = ThreadPoolExecutor(max_workers=6, thread_name_prefix="pipeline")
        self.error: BaseException | None = None

    def halt(self, error: BaseException) -> None:
        if self.error is None or isinstance(self.error, StoppedError):
            self.error = error
        for channel in self._channels:
            channel.stop()
        if self._stop is not None:
            self._stop()

    async def thread(self, work: Callable[..., object], *values: object) -> None:
        def guarded() -> None:
            try:
                work(*values)
            except BaseException as error:  # noqa: BLE001 - kept, and raised by `run`
                self.halt(error)

        await asyncio.get_running_loop().run_in_executor(self._pool, guarded)

    async def task(self, work: Awaitable[object]) -> None:
        try:
            await work
        except asyncio.CancelledError as error:
            self.halt(error)
            raise
        except BaseException as error:  # noqa: BLE001 - kept, and raised by `run`
            self.halt(error)

    async def call(self, work: Callable[..., bytes | None], *values: object) -> bytes | None:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *values)

    async def run(self, *works: Awaitable[None]) -> None:
        running = [asyncio.ensure_future(work) for work in works]
        try:
            await asyncio.gather(*running)
        except asyncio.CancelledError as error:
            self.halt(error)
            await asyncio.gather(*running, return_exceptions=True)
            raise
        finally:
            self._pool.shutdown(wait=False)
        if self.error is not None:
            raise self.error


# ---------------------------------------------------------------- to the bucket


async def pack(
    read: Callable[[int], bytes],
    finish: Callable[[], None],
    stop: Callable[[], None],
    *,
    recipients: Recipients,
    store: Callable[[AsyncIterator[bytes]], Awaitable[object]],
    local: Path | None,
    done: Callable[[int], None],
) -> Packed:
    """Send what `read` gives through the stages into `store`, and into the file `local`.

    `finish` is called at the end of the input and raises when it was no good end; `stop` ends the input at once. `done`
    is told the plain bytes so far. Errors of `store` and of the other stages are raised as they are.
    """
    compressed, stored = Channel(), Channel()
    compressing = _Compressing(read, finish, compressed, done)
    encrypting = _Encrypting(compressed, stored, recipients, local)
    stages = _Stages(compressed, stored, stop=stop)

    async def chunks() -> AsyncIterator[bytes]:
        while chunk := await stages.call(stored.get):
            yield chunk

    await stages.run(stages.thread(compressing.run), stages.thread(encrypting.run), stages.task(store(chunks())))
    if compressing.contents is None:
        raise VerificationError("The dump ended before its table of contents.")
    return Packed(
        plain_bytes=compressing.total,
        plain_sha256=compressing.hash.hexdigest(),
        stored_bytes=encrypting.total,
        stored_sha256=encrypting.hash.hexdigest(),
        contents=compressing.contents,
    )


class _Compressing:
    def __init__(
        self, read: Callable[[int], bytes], finish: Callable[[], None], out: Channel, done: Callable[[int], None]
    ) -> None:
        self._read, self._finish, self._out, self._done = read, finish, out, done
        self.hash = hashlib.sha256()
        self.total = 0
        self._head = _Header()

    @property
    def contents(self) -> Contents | None:
        return self._head.contents

    def run(self) -> None:
        zstd = zstandard.ZstdCompressor(level=LEVEL, threads=ZSTD_THREADS, write_checksum=True).compressobj()
        while block := self._read(BLOCK):
            self.hash.update(block)
            self.total += len(block)
            self._head.feed(block)
            if packed := zstd.compress(block):
                self._out.put(packed)
            self._done(self.total)
        self._finish()
        self._head.end()
        self._out.put(zstd.flush())
        self._out.end()


class _Encrypting:
    """The last stage: age, then hash, local copy and blocks for the upload."""

    def __init__(self, source: Channel, out: Channel, recipients: Recipients, local: Path | None) -> None:
        self._source, self._out, self._recipients, self._local = source, out, recipients, local
        self._file: IO[bytes] | None = None
        self.hash = hashlib.sha256()
        self.total = 0

    def run(self) -> None:
        with contextlib.ExitStack() as stack:
            if self._local is not None:
                self._file = stack.enter_context(_private(self._local))
            sink = _Blocks(UPLOAD, self._take)
            try:
                self._recipients.encrypt(io.BufferedReader(self._source, BLOCK), sink)
                sink.give()
            except Exception as error:
                raise sink.failure or error from error
            if self._file is not None:
                with disk(self._local):
                    self._file.flush()
                    os.fsync(self._file.fileno())
        self._out.end()

    def _take(self, block: bytes) -> None:
        self.hash.update(block)
        self.total += len(block)
        if self._file is not None:
            with disk(self._local):
                self._file.write(block)
        self._out.put(block)


# ---------------------------------------------------------------- from the bucket


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
    stages = _Stages(stored, compressed, plain)
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
            sink = _Blocks(BLOCK, self._out.put)
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
        self.header = _Header()
        self._written: Contents | None = None  # the header as it is in the spool file
        self._places: Places | None = None

    def run(self) -> None:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(_private(self._spool)) if self._spool is not None else None
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


class _Header:
    """Collects the first bytes of an archive until its header can be read."""

    def __init__(self) -> None:
        self.contents: Contents | None = None
        self.bytes = b""
        self._parts: list[bytes] = []
        self._held = self._next = 0

    def feed(self, block: bytes) -> bool:
        """True with the block that completes the header."""
        if self.contents is not None:
            return False
        self._parts.append(block)
        self._held += len(block)
        # Tried again at twice the size: reading it anew for every block would be quadratic.
        return self._held >= self._next and self.end()

    def end(self) -> bool:
        """Read what there is. True when that completes the header."""
        if self.contents is not None:
            return False
        self.bytes = b"".join(self._parts)
        self._parts = [self.bytes]
        self._next = 2 * self._held
        try:
            self.contents = read_contents(self.bytes)
        except IncompleteError:
            if self._held > LARGEST_HEADER:
                raise VerificationError("The dump's table of contents is longer than 256 MiB.") from None
        return self.contents is not None


@contextlib.contextmanager
def _private(path: Path) -> Iterator[IO[bytes]]:
    """A new file that only this account can read; an older one of that name goes."""
    # Closing is inside as well: it writes what is still buffered, and on a full disk fails once more.
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=BLOCK) as file:
            yield file


@contextlib.contextmanager
def disk(path: Path | None) -> Iterator[None]:
    """Trouble of the disk that holds the path, as a UserError that says what to do."""
    try:
        yield
    except OSError as error:
        directory = path.parent if path is not None else "?"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"The disk that holds `{directory}` is full. Free space there, then try again.") from error
        raise UserError(f"`{directory}` cannot be written: {error.strerror}. Check its owner and mode.") from error
