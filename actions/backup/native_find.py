"""Looks through the archived WAL for what harmed a table."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

from actions.backup.chain import usable
from actions.backup.finder import NoWalError, WalRecords, databases_of, files_of, find, find_points
from actions.backup.native_window import start_of
from actions.backup.physical import (
    FindRequest,
    Lsn,
    Moment,
    NamedPoint,
    PhysicalEntry,
    Place,
    PlaceRequest,
    PointRequest,
    RecoveryTarget,
)
from actions.backup.places import find_places
from actions.backup.wal_fetch import WalFetch
from actions.errors import UserError
from actions.ports import ObjectStore, Progress, ProgressReport, Secrets
from actions.site import PhysicalPolicy


class NativeFinder:
    """`records` gives the reader of WAL for a server; `work_directory` takes the segments while they are read."""

    def __init__(
        self, objects: ObjectStore, secrets: Secrets, records: Callable[[str], WalRecords], work_directory: Path
    ) -> None:
        self._objects, self._secrets, self._records, self._work = objects, secrets, records, work_directory

    async def find(
        self, policy: PhysicalPolicy, entries: Sequence[PhysicalEntry], request: FindRequest, progress: Progress
    ) -> Sequence[Moment]:
        good = _usable(policy, entries)
        maps = [entry.manifest.relfilenodes.get(request.database, {}) for entry in good]
        files = files_of(request.table, maps, now=request.relfilenode)
        oids = databases_of(request, (entry.manifest.database_oids for entry in good))
        records = self._records(policy.server)
        lacking: NoWalError | None = None
        searched = False
        for entry in _beginnings(good, request.since):
            async with self._wal(entry, policy, request.until, progress) as folder:
                try:
                    for oid in oids:
                        found = await asyncio.to_thread(find, records, folder, request, database_oid=oid, files=files)
                        if found:
                            return found
                except NoWalError as error:
                    lacking = error  # its own WAL may have been in the bucket that is lost; an older one leads as far
                else:
                    searched = True
        if lacking is not None and not searched:
            raise lacking
        return ()

    async def find_points(
        self, policy: PhysicalPolicy, entries: Sequence[PhysicalEntry], request: PointRequest, progress: Progress
    ) -> Sequence[NamedPoint]:
        records = self._records(policy.server)
        for entry in _beginnings(_usable(policy, entries), request.since):
            async with self._wal(entry, policy, None, progress) as folder:
                found = await asyncio.to_thread(find_points, records, folder, request)
            if found:
                return found
        return ()

    async def find_places(
        self, policy: PhysicalPolicy, entries: Sequence[PhysicalEntry], request: PlaceRequest, progress: Progress
    ) -> Sequence[Place]:
        records = self._records(policy.server)
        for entry in beginnings_for(_usable(policy, entries), request.target):
            async with self._wal(entry, policy, None, progress) as folder:
                found = await asyncio.to_thread(find_places, records, folder, request)
            if found:
                return found
        return ()

    @asynccontextmanager
    async def _wal(
        self, entry: PhysicalEntry, policy: PhysicalPolicy, until: datetime | None, progress: Progress
    ) -> AsyncIterator[Path]:
        """A folder with all WAL since this backup, while it is read."""
        await asyncio.to_thread(self._work.mkdir, mode=0o700, parents=True, exist_ok=True)
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self._work, prefix="find-"))
        try:
            target = RecoveryTarget(time=until) if until is not None else RecoveryTarget(latest=True)
            fetch = WalFetch(self._objects, self._secrets, policy)
            await fetch.fetch(start_of(entry), target, folder, progress)
            progress(ProgressReport(phase="find", unit="steps"))
            yield folder
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


def _usable(policy: PhysicalPolicy, entries: Sequence[PhysicalEntry]) -> Sequence[PhysicalEntry]:
    good = usable(entries)
    if not good:
        raise UserError(f"`{policy.server}` has no base backup that can be used, so nothing can be looked through.")
    return good


def _beginnings(entries: Sequence[PhysicalEntry], since: datetime | None) -> Sequence[PhysicalEntry]:
    """Backups whose WAL is looked through in turn: with a moment given, the newest that ends before it alone; else the
    newest, since harm is mostly of today, and then ever further back."""
    if since is not None:
        before = [entry for entry in entries if entry.manifest.finished_at <= since]
        return [before[0] if before else entries[-1]]
    steps = [2**number - 1 for number in range(len(entries).bit_length()) if 2**number - 1 < len(entries) - 1]
    return [entries[step] for step in [*steps, len(entries) - 1]]


def beginnings_for(entries: Sequence[PhysicalEntry], target: RecoveryTarget) -> Sequence[PhysicalEntry]:
    """Backups whose WAL is looked through in turn for where a target lies; `entries` are usable, the newest first."""
    if target.time is not None:
        return _beginnings(entries, target.time)
    if target.lsn is not None:
        before = [entry for entry in entries if Lsn.parse(entry.manifest.stop_lsn) <= Lsn.parse(target.lsn)]
        return [before[0] if before else entries[-1]]
    return _beginnings(entries, None)
