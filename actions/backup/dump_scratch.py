"""A dump loaded into an empty server of its own: what a restore test of dumps rests on.

The server is a scratch instance like any other: claimed within the budget before the first byte is fetched, found and
removed after a crash. It is made anew for each test, so that nothing which a dump needs can be there by chance.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from actions.backup.dump_test import DumpLoaded, DumpTest
from actions.backup.manifest import Manifest
from actions.backup.physical import SCRATCH
from actions.backup.physical_tools import EmptyServers
from actions.backup.scratch_budget import RESERVE, claim
from actions.backup.scratch_place import Claim, ScratchPlace
from actions.backup.scratch_restore import SPARE, Seconds
from actions.errors import UserError, VerificationError
from actions.ports import (
    BackupEngine,
    Clock,
    DumpTests,
    LoadRequest,
    Progress,
    ProgressReport,
)
from actions.site import DatabaseRef, Site

EMPTY = 128 << 20
"""Bytes of a server without any database of people, with its first WAL."""

WAL = 1 << 30
"""Bytes of WAL that a load may have beside the tables: `max_wal_size` of these servers."""


def room_for(manifest: Manifest) -> int:
    """Bytes that the instance which this dump is loaded into may take."""
    return EMPTY + int(manifest.database_bytes * SPARE) + min(manifest.database_bytes, WAL)


class LoadPhase(StrEnum):
    """What a load for a test spends its time on."""

    SERVER = "server"  # an empty one made and started
    FETCH = "fetch"
    LOAD = "load"
    CHECK = "check"


class DumpScratch(DumpTests):
    """`backups` opens dumps with what restore tests have; `directory` holds the scratch instances, and `reserve` are
    bytes of its disk that stay free."""

    def __init__(
        self,
        site: Site,
        backups: BackupEngine,
        servers: EmptyServers,
        clock: Clock,
        *,
        directory: Path,
        reserve: int = RESERVE,
    ) -> None:
        self._site, self._backups, self._servers, self._clock = site, backups, servers, clock
        self._directory, self._reserve = directory, reserve

    async def load(self, request: DumpTest, progress: Progress) -> DumpLoaded:
        place = ScratchPlace(self._directory, request.id)
        with place.held():
            there = await asyncio.to_thread(_made_before, place, request)
            if there is not None:
                return there
            await asyncio.to_thread(place.clear)
            try:
                loaded = await self._loaded(request, place, progress)
                await asyncio.to_thread(place.write_loaded, loaded)
            except BaseException:
                await asyncio.shield(asyncio.to_thread(place.remove))
                raise
            return loaded

    async def _loaded(self, request: DumpTest, place: ScratchPlace, progress: Progress) -> DumpLoaded:
        manifest = await self._manifest(request)
        wanted = self._claim(request, manifest, self._clock.now())
        await asyncio.to_thread(claim, self._directory, place, wanted, self._site.scratch, self._reserve)
        seconds, into = Seconds(), DatabaseRef(f"{SCRATCH}{request.id}", request.name)
        try:
            progress(ProgressReport(phase="server"))
            with seconds.of(LoadPhase.SERVER):
                await self._servers.make(place)
            order = LoadRequest(
                backup=request.backup, database=request.database, into=into, mark=request.mark, jobs=request.jobs
            )
            with _split(seconds, progress) as split:
                await self._backups.load(order, split)
            checked: tuple[str, ...] = ()
            if request.amcheck:
                progress(ProgressReport(phase="check", unit="steps"))
                with seconds.of(LoadPhase.CHECK):
                    checked = await self._servers.check_indexes(place)
            return DumpLoaded(
                id=request.id,
                database=request.database,
                backup=request.backup,
                name=request.name,
                checked_indexes=checked,
                seconds=seconds.spent,
                bytes=manifest.stored.bytes,
                plain_bytes=manifest.plain_bytes,
                tools={**await self._backups.versions(request.database), **await self._servers.versions(place)},
            )
        finally:
            await asyncio.shield(self._servers.stop(place))

    async def _manifest(self, request: DumpTest) -> Manifest:
        entry = await self._backups.find(request.database, request.backup)
        if entry is None:
            raise UserError(
                f"There is no backup `{request.backup}` of `{request.database}`. Choose one of the catalogue."
            )
        if entry.problem is not None:
            raise VerificationError(entry.problem)
        return entry.manifest

    def _claim(self, request: DumpTest, manifest: Manifest, now: datetime) -> Claim:
        return Claim(
            id=request.id,
            server=self._site.database(request.database).server,
            mark=request.mark,
            made_at=now,
            expires_at=now + self._site.scratch.lifetime,
            wanted_bytes=room_for(manifest),
        )


class _Split:
    """Passes reports on, and tells fetching from loading by their phase."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.begun = time.monotonic()
        self.loads: float | None = None  # since when

    def __call__(self, report: ProgressReport, /) -> None:
        if self.loads is None and report.phase == "restore":
            self.loads = time.monotonic()
        self._progress(report)


@contextmanager
def _split(seconds: Seconds, progress: Progress) -> Iterator[_Split]:
    split = _Split(progress)
    yield split
    ended = time.monotonic()
    loads = split.begun if split.loads is None else split.loads
    seconds.spent |= {
        LoadPhase.FETCH: round(loads - split.begun, 3),
        LoadPhase.LOAD: round(ended - loads, 3),
    }


def _made_before(place: ScratchPlace, request: DumpTest) -> DumpLoaded | None:
    """What an earlier try of this very test has loaded."""
    loaded, found = place.loaded(), place.claim()
    if loaded is None or found is None:
        return None
    if (found.mark, loaded.backup) != (request.mark, request.backup):
        raise UserError(f"Scratch instance `{request.id}` is there, made for something else. Choose another id.")
    return loaded
