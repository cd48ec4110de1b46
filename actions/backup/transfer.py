"""A database copied as it is from one server to another, over a spool file; nothing is stored."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pyrage

from actions.backup.crypto import Identity
from actions.backup.loading import Loading
from actions.backup.progress import Shown
from actions.backup.stages import BLOCK
from actions.backup.tools import ArchiveSource, PostgresTools
from actions.backup.unpacking import Spooling, unpack
from actions.ports import CopyRequest, Progress


class Transfer:
    """`work` takes a spool file as large as the dump is plain."""

    def __init__(self, tools: PostgresTools, loading: Loading, work: Path) -> None:
        self._tools, self._loading, self._work = tools, loading, work

    async def copy(self, request: CopyRequest, owner: str, progress: Progress) -> None:
        """As `BackupEngine.copy` promises. `owner` takes what superusers owned."""
        spool = self._work / f"copy-{hashlib.sha256(str(request.into).encode()).hexdigest()[:16]}.dump"
        wanted = await self._tools.globals_of(request.source)
        owners = await self._loading.owners(request.into.server, wanted, owner)
        try:
            async with self._tools.snapshot(request.source) as snapshot:
                shown = Shown(progress, "dump", snapshot.facts.database_bytes)
                source = await snapshot.archive()
                try:
                    spooling = Spooling(spool, owners.header)
                    await unpack(
                        _blocks(source),
                        backup=str(request.source),
                        # It is in plain and never leaves this machine: there is nothing to open.
                        identity=Identity(str(pyrage.x25519.Identity.generate()), "none"),
                        sink=spooling,
                        done=shown.bytes,
                    )
                    contents = spooling.contents(str(request.source))
                finally:
                    await asyncio.to_thread(source.close)
            shown.phase("restore", snapshot.facts.database_bytes)
            await self._loading.load(
                request.into,
                mark=request.mark,
                jobs=request.jobs,
                spool=spool,
                contents=contents,
                owners=owners,
                cluster_globals=wanted,
                extensions=contents.extensions(),
                shown=shown,
            )
        finally:
            await asyncio.to_thread(spool.unlink, missing_ok=True)


async def _blocks(source: ArchiveSource) -> AsyncIterator[bytes]:
    """All of it; an end that is no good end is an error."""
    while block := await asyncio.to_thread(source.read, BLOCK):
        yield block
    await asyncio.to_thread(source.finish)
