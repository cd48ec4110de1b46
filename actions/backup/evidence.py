"""Files that are evidence, encrypted into a bucket: hashed on their way, read back, and read again when somebody asks.

The object has a name of our own; what the file is called never becomes a path.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from secrets import token_hex
from typing import IO

from actions.backup.crypto import Recipients
from actions.backup.packing import Packed, pack
from actions.backup.stages import BLOCK
from actions.errors import DrError, UserError, VerificationError
from actions.ports import ObjectStore
from actions.site import EvidencePolicy

_PASSED = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
"""How a folder on the way is opened: an account may pass through one that it cannot list."""


class UnsafeFileError(UserError):
    """What was named is not a plain file that can be opened without following a link."""


class Condition(StrEnum):
    """How a stored copy is found."""

    OK = "ok"
    ALTERED = "altered"
    MISSING = "missing"
    UNVERIFIABLE = "unverifiable"


@dataclass(frozen=True)
class Copy:
    """What was stored of a file, and the hashes of both."""

    bucket: str
    key: str
    packed: Packed


@dataclass(frozen=True)
class Source:
    """An open file, and what it was when it was opened."""

    file: IO[bytes]
    bytes: int
    changed_ns: int

    def unchanged(self, read: int) -> None:
        """Raise UserError when it was written to since, or not read whole."""
        now = os.fstat(self.file.fileno())
        if (now.st_size, now.st_mtime_ns, read) != (self.bytes, self.changed_ns, self.bytes):
            raise UserError(
                "The file was written to while it was read. Stop what writes it, or copy it, then try again."
            )


@contextmanager
def opened(path: str) -> Iterator[Source]:
    """The file, opened component by component, none of which may be a link. Raises UnsafeFileError, UserError."""
    *folders, name = Path(os.path.abspath(path)).parts  # noqa: PTH100 - `Path.absolute` keeps `..`
    at = os.open("/", _PASSED)
    try:
        for folder in folders[1:]:
            inner = os.open(folder, _PASSED | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = inner
        # Not blocking: somebody could have put a pipe there.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    except (OSError, ValueError) as error:
        raise _unsafe(path, error) from error
    finally:
        os.close(at)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise UnsafeFileError(f"`{printable(path)}` is no plain file. Pack it (`tar`) and name the archive.")
    with os.fdopen(descriptor, "rb") as file:
        yield Source(file, found.st_size, found.st_mtime_ns)


def _unsafe(path: str, error: Exception) -> UserError:
    real = os.path.realpath(path) if "\0" not in path else path
    if real != os.path.abspath(path):  # noqa: PTH100 - as above
        return UnsafeFileError(
            f"`{printable(path)}` goes through a symbolic link, and whoever can change the link chooses what becomes "
            f"evidence. If this is the file you mean, name it as `{printable(real)}`."
        )
    why = error.strerror if isinstance(error, OSError) else "it has a NUL in it"
    return UserError(f"`{printable(path)}` cannot be read: {why}. Name a file that this account can read.")


def printable(path: str) -> str:
    """A path as it can be stored and shown."""
    text = os.fsencode(path).decode(errors="replace")
    return "".join(sign if sign.isprintable() and sign != "`" else "?" for sign in text)


async def sha256_of(source: Source) -> str:
    """The SHA-256 of a file, in hex. Raises UserError when it changes meanwhile."""

    def read() -> str:
        made, total = hashlib.sha256(), 0
        while block := source.file.read(BLOCK):
            made.update(block)
            total += len(block)
        source.unchanged(total)
        return made.hexdigest()

    return await asyncio.to_thread(read)


class Vault:
    """The bucket of the plan that keeps evidence."""

    def __init__(self, objects: ObjectStore, policy: EvidencePolicy) -> None:
        self._objects = objects
        self._policy = policy

    async def keep(self, source: Source, folder: str) -> Copy:
        """Store a file compressed and encrypted to the recipients of the plan, and read it back. Raises
        VerificationError when other bytes come back, UserError when the file changes meanwhile."""
        bucket, key = self._policy.bucket, f"{self._policy.prefix}evidence/{folder}/{token_hex(12)}.zst.age"
        read = 0

        def done(total: int) -> None:
            nonlocal read
            read = total

        packed = await pack(
            source.file.read,
            lambda: source.unchanged(read),
            lambda: None,
            recipients=Recipients(self._policy.recipients),
            store=lambda chunks: self._objects.put_stream(bucket, key, chunks),
            local=None,
            watcher=_Nobody(),
            done=done,
        )
        if await self._hash(bucket, key) != packed.stored_sha256:
            raise VerificationError(f"Bucket `{bucket}` gives back other bytes than were stored as `{key}`. Try again.")
        return Copy(bucket, key, packed)

    async def look(self, bucket: str, key: str, sha256: str) -> tuple[Condition, str]:
        """How the stored copy is found, and for what cannot be told, why."""
        try:
            if await self._objects.head(bucket, key) is None:
                return Condition.MISSING, ""
            found = await self._hash(bucket, key)
        except DrError as error:
            return Condition.UNVERIFIABLE, str(error)
        return (Condition.OK if found == sha256 else Condition.ALTERED), ""

    async def _hash(self, bucket: str, key: str) -> str:
        made = hashlib.sha256()
        async for chunk in self._objects.get_stream(bucket, key):
            made.update(chunk)
        return made.hexdigest()


class _Nobody:
    """The stream of a file is watched by nobody: it may be anything."""

    def feed(self, block: bytes, /) -> None:
        pass

    def end(self) -> None:
        pass
