"""A dump on the disk of the machine that restores it: as it was stored, so encrypted, and read as often as needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from actions.backup.archive import Contents, Places
from actions.backup.crypto import Identity
from actions.backup.stages import BLOCK, Header, disk, private
from actions.backup.tools import Archive
from actions.backup.unpacking import Plain, Sink, replay
from actions.errors import VerificationError


class Survey(Sink):
    """Looks at a dump that passes: its table of contents and, with `follow`, where the data of each entry lies."""

    def __init__(self, *, follow: bool) -> None:
        self._follow = follow
        self._header = Header()
        self._places: Places | None = None

    def run(self, source: Plain, /) -> None:
        while block := source.get():
            self.feed(block)
        self.end()

    def feed(self, block: bytes, /) -> None:
        if self._places is not None:
            self._places.feed(block)
        elif self._header.feed(block):
            self._begin()

    def end(self) -> None:
        if self._header.end():
            self._begin()

    def _begin(self) -> None:
        contents = self._header.contents
        if self._follow and contents is not None:
            self._places = Places(len(contents.header))
            self._places.feed(self._header.bytes[len(contents.header) :])

    def contents(self, backup: str) -> Contents:
        """The archive's header. Raises VerificationError when it was cut off."""
        if self._header.contents is None:
            raise VerificationError(f"Backup `{backup}` ends before its table of contents. Use another backup.")
        return self._header.contents

    @property
    def places(self) -> Mapping[int, range]:
        """Entry -> the bytes of its data."""
        return self._places.found if self._places is not None else {}


class Spool:
    """A private file with the stored bytes of a backup, which `identity` opens."""

    def __init__(self, path: Path, identity: Identity, backup: str) -> None:
        self.path, self.backup, self._identity = path, backup, identity

    async def kept(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass the stored bytes on, and keep them."""
        with private(self.path) as file:
            async for chunk in chunks:
                with disk(self.path):
                    await asyncio.to_thread(file.write, chunk)
                yield chunk

    async def replay(self, sink: Sink, stop: Callable[[], None]) -> None:
        """The plain bytes once more."""
        await replay(file_chunks(self.path), backup=self.backup, identity=self._identity, sink=sink, stop=stop)

    async def remove(self) -> None:
        await asyncio.to_thread(self.path.unlink, missing_ok=True)


class SpooledArchive(Archive):
    """A dump that was looked at to its end, and lies in the spool."""

    def __init__(self, spool: Spool, survey: Survey) -> None:
        self._spool = spool
        self.contents = survey.contents(spool.backup)
        self.places = survey.places

    async def replay(self, sink: Sink, stop: Callable[[], None]) -> None:
        await self._spool.replay(sink, stop)


async def file_chunks(path: Path) -> AsyncIterator[bytes]:
    """A file's bytes. Raises UserError when it cannot be read."""
    with disk(path):
        file = await asyncio.to_thread(path.open, "rb")
        with file:
            while block := await asyncio.to_thread(file.read, 4 * BLOCK):
                yield block
