"""A backup on its way to the bucket and into the local copy: a dump, or the tar stream of a base backup."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

from actions.backup.crypto import Recipients
from actions.backup.stages import BLOCK, UPLOAD, Blocks, Channel, Stages, Watcher, disk, private

LEVEL, ZSTD_THREADS = 1, 2


@dataclass(frozen=True)
class Packed:
    """What was stored."""

    plain_bytes: int
    plain_sha256: str
    stored_bytes: int
    stored_sha256: str


async def pack(
    read: Callable[[int], bytes],
    finish: Callable[[], None],
    stop: Callable[[], None],
    *,
    recipients: Recipients,
    store: Callable[[AsyncIterator[bytes]], Awaitable[object]],
    local: Path | None,
    watcher: Watcher,
    done: Callable[[int], None],
) -> Packed:
    """Send what `read` gives through the stages into `store`, and into the file `local`.

    `finish` is called at the end of the input and raises when it was no good end; `stop` ends the input at once.
    `watcher` sees the plain bytes pass; `done` is told how many so far. Errors of `store`, of the watcher and of the
    other stages are raised as they are.
    """
    compressed, stored = Channel(), Channel()
    compressing = _Compressing(read, finish, compressed, watcher, done)
    encrypting = _Encrypting(compressed, stored, recipients, local)
    stages = Stages(compressed, stored, stop=stop)

    async def chunks() -> AsyncIterator[bytes]:
        while chunk := await stages.call(stored.get):
            yield chunk

    await stages.run(
        stages.thread(compressing.run), stages.thread(encrypting.run), stages.task(lambda: store(chunks()))
    )
    return Packed(
        plain_bytes=compressing.total,
        plain_sha256=compressing.hash.hexdigest(),
        stored_bytes=encrypting.total,
        stored_sha256=encrypting.hash.hexdigest(),
    )


class _Compressing:
    def __init__(
        self,
        read: Callable[[int], bytes],
        finish: Callable[[], None],
        out: Channel,
        watcher: Watcher,
        done: Callable[[int], None],
    ) -> None:
        self._read, self._finish, self._out, self._watcher, self._done = read, finish, out, watcher, done
        self.hash = hashlib.sha256()
        self.total = 0

    def run(self) -> None:
        zstd = zstandard.ZstdCompressor(level=LEVEL, threads=ZSTD_THREADS).compressobj()
        while block := self._read(BLOCK):
            self.hash.update(block)
            self.total += len(block)
            self._watcher.feed(block)
            if packed := zstd.compress(block):
                self._out.put(packed)
            self._done(self.total)
        self._finish()
        self._watcher.end()
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
                self._file = stack.enter_context(private(self._local))
            sink = Blocks(UPLOAD, self._take)
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
