"""Dumps loaded for a restore test, in memory."""

from __future__ import annotations

from actions.backup.dump_test import DumpLoaded, DumpTest
from actions.backup.physical import ScratchFacts, ScratchState
from actions.errors import UserError, VerificationError
from actions.ports import Clock, DumpTests, Progress, ProgressReport
from actions.site import Site
from tests.fakes.backups import MemoryBackups
from tests.fakes.physical import MemoryScratch


class MemoryDumpTests(DumpTests):
    """What `backups` has, as scratch instances of `scratch`."""

    def __init__(self, site: Site, backups: MemoryBackups, scratch: MemoryScratch, clock: Clock) -> None:
        self._site, self._backups, self._scratch, self._clock = site, backups, scratch, clock

    async def load(self, request: DumpTest, progress: Progress) -> DumpLoaded:
        made = self._scratch.made.get(request.id)
        if made is not None and made.loaded is not None:
            if (made.mark, made.loaded.backup) != (request.mark, request.backup):
                raise UserError(f"Scratch instance `{request.id}` is there, made for something else.")
            return made.loaded
        entry = await self._backups.find(request.database, request.backup)
        if entry is None:
            raise UserError(f"There is no backup `{request.backup}` of `{request.database}`.")
        if entry.problem is not None:
            raise VerificationError(entry.problem)
        manifest, now = entry.manifest, self._clock.now()
        progress(ProgressReport(done=manifest.plain_bytes, total=manifest.plain_bytes, phase="restore"))
        loaded = DumpLoaded(
            id=request.id,
            database=request.database,
            backup=request.backup,
            name=request.name,
            seconds={"fetch": 1.0, "load": 2.0},
            bytes=manifest.stored.bytes,
            plain_bytes=manifest.plain_bytes,
            tools={"pg_restore": "18.2", "postgres": "18.2"},
        )
        self._scratch.contents[request.id] = {request.name: manifest.fingerprint}
        self._scratch.made[request.id] = ScratchFacts(
            id=request.id,
            server=self._site.database(request.database).server,
            mark=request.mark,
            state=ScratchState.LOADED,
            loaded=loaded,
            bytes=manifest.database_bytes,
            made_at=now,
            expires_at=now + self._site.scratch.lifetime,
        )
        return loaded


class NoDumpTests(DumpTests):
    """For jobs of other kinds."""

    async def load(self, request: DumpTest, progress: Progress) -> DumpLoaded:
        raise UserError("No dump is tested here.")
