"""A witness that is a file: lines are added at its end and reach the disk before a call returns.

It is as good as the machine it lies on: best one where nobody who administers the bot's database has an account, with
the append-only attribute (`chattr +a`) set.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from actions.errors import TemporaryError

T = TypeVar("T")

TAIL = 1 << 20  # bytes read from the end at first; a checkpoint under load carries some 100 kB
PAGE = 1000  # lines


class FileWitness:
    """Lines in one file. Several processes may write to it."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._path = path

    async def publish(self, number: int, lines: Sequence[str]) -> None:  # noqa: ARG002 - the lines carry it
        """Append the lines, unless they are its last ones already."""
        await self._threaded(lambda: self._append([line.encode() for line in lines]))

    async def newest(self, limit: int) -> Sequence[str]:
        """The last lines, newest first; none when there is no file yet."""
        return await self._threaded(lambda: [line.decode(errors="replace") for line in self._tail(limit)])

    async def everything(self) -> AsyncIterator[str]:
        """All lines, in the order they were written."""
        place = 0
        while True:
            lines, place = await self._threaded(lambda start=place: self._page(start))  # type: ignore[misc]
            if not lines:
                return
            for line in lines:
                yield line

    async def _threaded(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            text = f"Witness `{self.name}` cannot use `{self._path}`: {error.strerror}. Check the folder and its disk."
            raise TemporaryError(text) from error

    def _append(self, lines: Sequence[bytes]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if self._tail(len(lines)) == list(reversed(lines)):
                return
            size = file.seek(0, os.SEEK_END)
            # A crash in the middle of a line leaves it without its end; what follows must not be glued to it.
            broken = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            file.write((b"\n" if broken else b"") + b"\n".join([*lines, b""]))
            file.flush()
            os.fsync(file.fileno())

    def _tail(self, limit: int) -> list[bytes]:
        """The last whole lines, newest first."""
        if not self._path.exists():
            return []
        wanted = TAIL
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            while True:
                start = file.seek(max(0, size - wanted))
                lines = file.read(size - start).split(b"\n")
                whole = lines if start == 0 else lines[1:]
                if start == 0 or len(whole) > limit:
                    return [line for line in reversed(whole) if line][:limit]
                wanted *= 4

    def _page(self, place: int) -> tuple[list[str], int]:
        """Lines from a byte on, and where the next page begins."""
        if not self._path.exists():
            return [], place
        with self._path.open("rb") as file:
            file.seek(place)
            lines = [line for _, line in zip(range(PAGE), file, strict=False)]
            return [line.decode(errors="replace").rstrip("\n") for line in lines], file.tell()
