"""Looks through the WAL of a pgBackRest repository: for what harmed a table, and for named restore points."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

from actions.backup.finder import WalRecords, databases_of, files_of, find, find_points
from actions.backup.native_find import beginnings_for
from actions.backup.native_window import start_of
from actions.backup.pgbackrest_archive import place_of
from actions.backup.pgbackrest_info import Stanza
from actions.backup.pgbackrest_relations import RelationRecords
from actions.backup.pgbackrest_tools import PgBackRest
from actions.backup.pgbackrest_wal import PgBackRestWal
from actions.backup.physical import (
    FindRequest,
    Moment,
    NamedPoint,
    PhysicalEntry,
    Place,
    PlaceRequest,
    PointRequest,
    RecoveryTarget,
)
from actions.backup.places import find_places
from actions.errors import UserError
from actions.ports import Progress, ProgressReport
from actions.site import Site

FIND = "find-"
LEFT = timedelta(days=1)  # longer than any search may last


class PgBackRestFinder:
    """`records` gives the reader of WAL for a server; `work_directory` takes the segments while they are read."""

    def __init__(
        self,
        site: Site,
        program: PgBackRest,
        relations: RelationRecords,
        records: Callable[[str], WalRecords],
        work_directory: Path,
    ) -> None:
        self._site, self._program, self._relations = site, program, relations
        self._records, self._work = records, work_directory

    async def find(
        self, stanza: Stanza, entries: Sequence[PhysicalEntry], request: FindRequest, progress: Progress
    ) -> Sequence[Moment]:
        good, begin = _beginning(request.server, entries, request.since)
        labels = {backup.id: backup.label for backup in stanza.backup}
        wanted = [labels[entry.manifest.id] for entry in good[: good.index(begin) + 1]]
        policy = self._site.physical_of(request.server)
        relations = await self._relations.read(policy, wanted, begin.manifest.system_id)
        maps = [dict(each.relfilenodes.get(request.database, {})) for each in relations]
        oids = databases_of(request, (each.database_oids for each in relations))
        files = files_of(request.table, maps, now=request.relfilenode)
        records = self._records(request.server)
        async with self._wal(stanza, request.server, begin, request.until, progress) as folder:
            for oid in oids:
                found = await asyncio.to_thread(find, records, folder, request, database_oid=oid, files=files)
                if found:
                    return found
        return ()

    async def find_points(
        self, stanza: Stanza, entries: Sequence[PhysicalEntry], request: PointRequest, progress: Progress
    ) -> Sequence[NamedPoint]:
        _, begin = _beginning(request.server, entries, request.since)
        async with self._wal(stanza, request.server, begin, None, progress) as folder:
            return await asyncio.to_thread(find_points, self._records(request.server), folder, request)

    async def find_places(
        self, stanza: Stanza, entries: Sequence[PhysicalEntry], request: PlaceRequest, progress: Progress
    ) -> Sequence[Place]:
        good, _ = _beginning(request.server, entries, None)
        for begin in beginnings_for(good, request.target):
            async with self._wal(stanza, request.server, begin, None, progress) as folder:
                found = await asyncio.to_thread(find_places, self._records(request.server), folder, request)
            if found:
                return found
        return ()

    @asynccontextmanager
    async def _wal(
        self, stanza: Stanza, server: str, begin: PhysicalEntry, until: datetime | None, progress: Progress
    ) -> AsyncIterator[Path]:
        """A folder with all WAL since this backup, while it is read."""
        await asyncio.to_thread(_sweep, self._work)
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self._work, prefix=FIND))
        try:
            await self._program.own(folder)
            backup = next(each for each in stanza.backup if each.id == begin.manifest.id)
            archive = stanza.archive_of(backup)
            if archive is None:
                raise UserError(f"The WAL of `{backup.id}` is not archived. Choose another base backup.")
            key = archive.database.key
            bucket = self._program.buckets(server).get(key, f"repo{key}")
            wal = await PgBackRestWal.of(self._program, place_of(stanza, archive, server=server, bucket=bucket))
            target = RecoveryTarget(time=until) if until else RecoveryTarget(latest=True)
            await wal.fetch(await wal.needed(start_of(begin), target), folder, _bytes(progress, "fetch"))
            progress(ProgressReport(phase="find", unit="steps"))
            yield folder
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


def _beginning(
    server: str, entries: Sequence[PhysicalEntry], since: datetime | None
) -> tuple[Sequence[PhysicalEntry], PhysicalEntry]:
    """What can be used, and of that the backup whose WAL begins before that moment: the newest such, or the oldest."""
    good = [entry for entry in entries if entry.problem is None]
    if not good:
        raise UserError(f"`{server}` has no base backup that can be used, so nothing can be looked through.")
    before = [entry for entry in good if since is not None and entry.manifest.finished_at <= since]
    return good, before[0] if before else good[-1]


def _sweep(work: Path) -> None:
    """Remove what searches left that were killed."""
    work.mkdir(mode=0o711, parents=True, exist_ok=True)
    for folder in work.glob(f"{FIND}*"):
        if time.time() - folder.stat().st_mtime > LEFT.total_seconds():
            shutil.rmtree(folder, ignore_errors=True)


def _bytes(progress: Progress, phase: str) -> Callable[[int], None]:
    def shown(done: int) -> None:
        progress(ProgressReport(done=done, phase=phase))

    return shown
