"""The way of a backup's bytes: PostgreSQL -> SHA-256 -> zstd -> age -> SHA-256 -> bucket and local copy; and back.

Every stage has a thread, with a bounded channel between two of them: zstd, SHA-256 and the pipes release Python's
lock, so the stages run side by side, and memory stays under some 200 MiB whatever the size of the backup.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Protocol

from typing_extensions import Buffer

from actions.backup.archive import Contents, IncompleteError, read_contents
from actions.errors import UserError, VerificationError

BLOCK = 1024 * 1024
UPLOAD = 8 * BLOCK
LARGEST_HEADER = 256 * BLOCK


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


class Blocks(io.RawIOBase):
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


class Stages:
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

    async def task(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
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
            # The threads themselves: whoever is told that it was cancelled may remove what they were writing.
            await asyncio.shield(asyncio.to_thread(self._pool.shutdown))
            raise
        finally:
            self._pool.shutdown(wait=False)
        if self.error is not None:
            raise self.error


class Watcher(Protocol):
    """Sees a stream pass. Blocking; for one thread."""

    def feed(self, block: bytes, /) -> object: ...

    def end(self) -> object:
        """The stream is over. Raises when it must not have ended here."""


class Header:
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
def private(path: Path) -> Iterator[IO[bytes]]:
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
