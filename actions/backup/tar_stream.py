"""The tar stream of a base backup, read as it passes: its own list of files found in it, and its way onto a disk."""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from actions.backup.stages import disk
from actions.backup.unpacking import Plain, Sink
from actions.errors import VerificationError

RECORD = 512
FILE_LIST = "backup_manifest"
LARGEST_LIST = 1 << 30


class Members(Protocol):
    """Takes the members of a tar stream, one after the other."""

    def begin(self, member: tarfile.TarInfo, /) -> None: ...

    def data(self, piece: memoryview, /) -> None: ...

    def finish(self) -> None:
        """The member is complete."""


class TarReader:
    """Cuts a tar stream into its members. Blocks may be cut anywhere. Raises VerificationError when it is no tar."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._header = bytearray()
        self._left = self._padding = 0  # of the member that is passing
        self._zeros = 0  # empty records in a row; two are the end
        self._open = False

    def feed(self, block: bytes, /) -> None:
        view, place = memoryview(block), 0
        while place < len(view):
            if self._left:
                size = min(self._left, len(view) - place)
                self._members.data(view[place : place + size])
                self._left -= size
            elif self._padding:
                size = min(self._padding, len(view) - place)
                self._padding -= size
            else:
                size = min(RECORD - len(self._header), len(view) - place)
                self._header += view[place : place + size]
                if len(self._header) == RECORD:
                    self._begin()
            place += size
            if self._open and not self._left:
                self._open = False
                self._members.finish()

    def end(self) -> None:
        """Raises VerificationError when the stream was cut off."""
        if self._left or self._header or self._zeros < 2:
            raise VerificationError("The base backup ends before its end: it was cut off.")

    def _begin(self) -> None:
        record, self._header = bytes(self._header), bytearray()
        if self._zeros or not record.strip(b"\0"):
            self._zeros += 1
            return
        try:
            member = tarfile.TarInfo.frombuf(record, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise VerificationError(f"The base backup is no tar archive: {error}.") from error
        self._left = member.size if member.isreg() else 0
        self._padding = -self._left % RECORD
        self._open = True
        self._members.begin(member)


class FileList(Members):
    """Collects `backup_manifest`, PostgreSQL's own list of all files with their checksums."""

    def __init__(self) -> None:
        self.body = b""
        self._parts: list[bytes] | None = None

    def begin(self, member: tarfile.TarInfo, /) -> None:
        self._parts = [] if member.name == FILE_LIST and member.size <= LARGEST_LIST else None

    def data(self, piece: memoryview, /) -> None:
        if self._parts is not None:
            self._parts.append(bytes(piece))

    def finish(self) -> None:
        if self._parts is not None:
            self.body = b"".join(self._parts)


class Extraction(Sink, Members):
    """Writes the members under a new folder. Nothing is ever written outside it, and no link is followed or made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None
        self._path = folder

    def run(self, source: Plain, /) -> None:
        with disk(self._folder):
            _make(self._folder.parent)
            self._folder.mkdir(mode=0o700)
        reader = TarReader(self)
        try:
            while block := source.get():
                reader.feed(block)
            reader.end()
        finally:
            if self._file is not None:
                os.close(self._file)

    def begin(self, member: tarfile.TarInfo, /) -> None:
        self._path = self._folder.joinpath(*_parts(member.name))
        with self._on_disk(member.name):
            if member.isdir():
                _make(self._path)
            elif member.isreg():
                _make(self._path.parent)
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            else:
                raise VerificationError(f"The base backup holds `{member.name}`, which is neither file nor directory.")

    def data(self, piece: memoryview, /) -> None:
        if self._file is not None:
            with disk(self._path):
                while piece:
                    piece = piece[os.write(self._file, piece) :]

    def finish(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @contextlib.contextmanager
    def _on_disk(self, name: str) -> Iterator[None]:
        with disk(self._path):
            try:
                yield
            except FileExistsError as error:
                raise VerificationError(f"The base backup holds `{name}` twice.") from error


def _make(folder: Path) -> None:
    """The folder and those above it, for this account alone."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)  # members of one chain are written side by side


def _parts(name: str) -> list[str]:
    """The folders of a member's name. Raises VerificationError when they lead anywhere else."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise VerificationError(f"The base backup holds `{name}`, which leads out of its folder.")
    return parts
