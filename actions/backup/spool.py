"""A dump on the disk of the machine that restores it: as it was stored, so encrypted, and read as often as needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from actions.backup.archive import Contents, Places, ranges
from actions.backup.crypto import Identity
from actions.backup.manifest import Manifest
from actions.backup.stages import BLOCK, Header, disk, private
from actions.backup.tools import Archive
from actions.backup.unpacking import EnoughError, GoneError, Plain, Sink, replay, unpack_checked
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
            self._places = Places(len(contents.header), plain=contents.compression == 0)
            self._places.feed(self._header.bytes[len(contents.header) :])

    @property
    def complete(self) -> bool:
        """Whether the whole table of contents has passed."""
        return self._header.contents is not None

    def contents(self, backup: str) -> Contents:
        """The archive's header. Raises VerificationError when it was cut off."""
        if self._header.contents is None:
            raise VerificationError(f"Backup `{backup}` ends before its table of contents. Use another backup.")
        return self._header.contents

    @property
    def places(self) -> Mapping[int, range]:
        """Entry -> the bytes of its data."""
        return self._places.found if self._places is not None else {}

    @property
    def noted(self) -> tuple[tuple[int, int], ...]:
        """Entry and where its data begins, as manifests say it."""
        return tuple((number, place.start) for number, place in self.places.items())


class _Beginning(Survey):
    """Looks no further than the table of contents."""

    def __init__(self) -> None:
        super().__init__(follow=False)

    def feed(self, block: bytes, /) -> None:
        super().feed(block)
        if self.complete:
            raise EnoughError


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

    async def contents(self) -> Contents:
        """The archive's header. Raises VerificationError when there is none."""
        beginning = _Beginning()
        await self.replay(beginning, _nothing_to_stop)
        return beginning.contents(self.backup)

    async def checked(self, manifest: Manifest, sink: Sink, stop: Callable[[], None]) -> None:
        """The plain bytes, to their end whatever the sink needs; raises VerificationError unless they are what the
        manifest says."""
        chunks = file_chunks(self.path)
        await unpack_checked(
            chunks, manifest=manifest, identity=self._identity, sink=sink, done=lambda _: None, stop=stop
        )

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

    async def check(self) -> None:
        pass  # it was, by whoever looked at it to its end


class StoredArchive(Archive):
    """A dump in the spool whose stored bytes are those of its signed manifest, which also says where its data lies.

    The plain bytes are measured by the first who reads them: a restore need not wait for it.
    """

    def __init__(self, spool: Spool, contents: Contents, manifest: Manifest) -> None:
        self._spool, self._manifest = spool, manifest
        self._measured = False
        self.contents = contents
        self.places = ranges(manifest.places, manifest.plain_bytes)

    async def replay(self, sink: Sink, stop: Callable[[], None]) -> None:
        if self._measured:
            await self._spool.replay(sink, stop)
        else:
            self._measured = True
            try:
                await self._spool.checked(self._manifest, sink, stop)
            except GoneError:
                self._measured = False  # whoever took them says why; nobody waits for the rest

    async def check(self) -> None:
        if not self._measured:
            self._measured = True
            await self._spool.checked(self._manifest, _Nothing(), _nothing_to_stop)


class _Nothing(Sink):
    def run(self, _source: Plain, /) -> None:
        raise EnoughError


def _nothing_to_stop() -> None:
    pass


async def file_chunks(path: Path) -> AsyncIterator[bytes]:
    """A file's bytes. Raises UserError when it cannot be read."""
    with disk(path):
        file = await asyncio.to_thread(path.open, "rb")
        with file:
            while block := await asyncio.to_thread(file.read, 4 * BLOCK):
                yield block
