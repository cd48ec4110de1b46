"""A database copied as it is from one server to another, over a spool file; nothing is stored."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pyrage

from actions.backup.crypto import Identity, Recipients
from actions.backup.loading import Loading
from actions.backup.packing import pack
from actions.backup.progress import Shown
from actions.backup.spool import Spool, SpooledArchive, Survey
from actions.backup.tools import PostgresTools, Snapshot
from actions.ports import CopyRequest, Progress


class Transfer:
    """`work` takes a spool file as large as a dump would be stored."""

    def __init__(self, tools: PostgresTools, loading: Loading, work: Path) -> None:
        self._tools, self._loading, self._work = tools, loading, work

    async def copy(self, request: CopyRequest, owner: str, progress: Progress) -> None:
        """As `BackupEngine.copy` promises. `owner` takes what superusers owned."""
        # Nobody keeps the key: what a crash leaves of the spool cannot be read any more.
        identity = Identity(str(pyrage.x25519.Identity.generate()), "none")
        path = self._work / f"copy-{hashlib.sha256(str(request.into).encode()).hexdigest()[:16]}.dump.age"
        spool = Spool(path, identity, str(request.source))
        wanted = await self._tools.globals_of(request.source)
        owners = await self._loading.owners(request.into.server, wanted, owner)
        try:
            async with self._tools.snapshot(request.source) as snapshot:
                shown = Shown(progress, "dump", snapshot.facts.database_bytes)
                archive = await _spooled(snapshot, spool, Recipients(identity.public_keys), shown)
            shown.phase("restore", snapshot.facts.database_bytes)
            await self._loading.load(
                request.into,
                mark=request.mark,
                jobs=request.jobs,
                archive=archive,
                owners=owners,
                cluster_globals=wanted,
                extensions=archive.contents.extensions(),
                shown=shown,
            )
        finally:
            await spool.remove()


async def _spooled(snapshot: Snapshot, spool: Spool, recipients: Recipients, shown: Shown) -> SpooledArchive:
    source, survey = await snapshot.archive(), Survey(follow=True)
    try:
        await pack(
            *(source.read, source.finish, source.stop),
            recipients=recipients,
            store=_nowhere,
            local=spool.path,
            watcher=survey,
            done=shown.bytes,
        )
    finally:
        await asyncio.to_thread(source.close)
    return SpooledArchive(spool, survey)


async def _nowhere(chunks: AsyncIterator[bytes]) -> None:
    async for _ in chunks:
        pass
