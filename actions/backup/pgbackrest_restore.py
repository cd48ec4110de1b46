"""From a pgBackRest repository to a server that rests at its target.

`pgbackrest restore` brings the files, each checked against its SHA-1, and `archive-get` the WAL. What it is replayed
to, and the proof that it got there, is the same as for every other engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from actions.backup.chain import base_for
from actions.backup.native_window import start_of
from actions.backup.patience import PATIENCE, AwayError, patiently
from actions.backup.pgbackrest_archive import place_of
from actions.backup.pgbackrest_info import Backup, Stanza, entries_of
from actions.backup.pgbackrest_tools import PgBackRest, RestoreOrder
from actions.backup.pgbackrest_wal import NeededWal, PgBackRestWal, dead_in
from actions.backup.physical import Lsn, Phase, PhysicalEntry, RecoveryTarget, ScratchRequest, ScratchRestored
from actions.backup.physical_tools import PhysicalTools, Replay, ScratchServers
from actions.backup.progress import Shown
from actions.backup.scratch_budget import RESERVE, claim
from actions.backup.scratch_place import ScratchPlace
from actions.backup.scratch_restore import (
    Seconds,
    check_span,
    claim_of,
    in_place,
    nothing_before,
    replayed,
    timeline_at,
)
from actions.backup.standby import Brought, feed
from actions.backup.together import together
from actions.backup.wal import WalStart
from actions.backup.wal_coming import Coming
from actions.errors import UserError, VerificationError
from actions.ports import Clock, Progress, ProgressReport
from actions.site import ScratchBudget

TABLESPACES = "tablespaces"


class PgBackRestRestoring:
    """`directory` holds the scratch instances; `reserve` are bytes of its disk that stay free; `patience` is how long a
    restore that has begun waits for a store that went away."""

    def __init__(
        self,
        program: PgBackRest,
        *,
        tools: PhysicalTools,
        servers: ScratchServers,
        clock: Clock,
        budget: ScratchBudget,
        directory: Path,
        reserve: int = RESERVE,
        patience: timedelta = PATIENCE,
    ) -> None:
        self._program, self._tools, self._servers, self._clock = program, tools, servers, clock
        self._budget, self._directory, self._reserve = budget, directory, reserve
        self._patience = patience

    async def restore(
        self, stanza: Stanza, buckets: Mapping[int, str], request: ScratchRequest, progress: Progress
    ) -> ScratchRestored:
        place = ScratchPlace(self._directory, request.id)
        return await in_place(place, request, lambda: self._restored(stanza, buckets, request, place, progress))

    async def feed(self, server: str, scratch: str) -> None:
        place = ScratchPlace(self._directory, scratch)

        async def fetch(start: WalStart) -> Brought:
            stanza = await self._program.info(server)
            archive = next((found for facts in stanza.repo if (found := stanza.present(facts.key))), None)
            if archive is None:
                raise VerificationError(f"No repository of `{server}` has an archive. Look at `pgbackrest info`.")
            key = archive.database.key
            bucket = self._program.buckets(server).get(key, f"repo{key}")
            where = place_of(stanza, archive, server=server, bucket=bucket)
            wal = await PgBackRestWal.of(self._program, where)
            way = await wal.way(start, None)
            wal = await wal.ours(way)
            newest, ways = wal.newest(way), max((way.timeline_id, *wal.listing.histories))
            if newest is None or newest.number < start.segment.number:
                return Brought(way=way.timeline_id, newest_way=ways)
            await self._program.own(place.wal)
            brought = await wal.needed(start, RecoveryTarget(latest=True))
            await wal.fetch(brought, place.wal, lambda _: None)
            at = wal.listing.segments[str(newest)].modified_at
            return Brought(
                way=way.timeline_id,
                newest_way=ways,
                closed=str(newest),
                end_lsn=str(brought.end),
                newest_at=at,
            )

        await feed(place, fetch, self._clock.now(), reserve=self._reserve)

    async def _restored(
        self,
        stanza: Stanza,
        buckets: Mapping[int, str],
        request: ScratchRequest,
        place: ScratchPlace,
        progress: Progress,
    ) -> ScratchRestored:
        seconds = Seconds()
        backup, base = await self._chosen(stanza, buckets, request)
        archive = stanza.archive_of(backup)
        if archive is None:
            raise VerificationError(f"The WAL of `{base.manifest.id}` is not archived. Use another backup.")
        where = place_of(stanza, archive, server=request.server, bucket=base.manifest.stored.bucket)
        archived = await PgBackRestWal.of(self._program, where, patience=self._patience)
        wal = await archived.needed(start_of(base), request.target)
        check_span(base.manifest.stop_lsn, base.manifest.id, str(wal.end), str(wal.segments[-1]))
        plain = base.manifest.plain_bytes
        wanted = claim_of(request, base.manifest, self._clock.now(), self._budget, plain=plain, wal=wal.plain_bytes)
        await asyncio.to_thread(claim, self._directory, place, wanted, self._budget, self._reserve)
        with seconds.of(Phase.FETCH):
            await self._fetch(request, archived, backup, base, wal, place, progress)
        coming = Coming(place.wal)
        order = Replay(
            target=request.target,
            timeline_id=wal.way.timeline_id,
            start_lsn=base.manifest.start_lsn,
            end_lsn=str(wal.end),
            restore_command=coming.restore_command,
            amcheck=request.amcheck,
        )
        with seconds.of(Phase.REPLAY):
            await asyncio.to_thread(coming.announce, [str(segment) for segment in wal.segments])
            async with together() as group:
                group.create_task(archived.bring(wal, coming, lambda _: None))
                replay = group.create_task(replayed(self._servers, place, order, progress, reaches=wal.reaches))
        reached = replay.result()
        with seconds.of(Phase.CHECK):
            progress(ProgressReport(phase="check", total=plain or None))
            checked = await self._tools.check_pages(request.server, place.data)
        restored = ScratchRestored(
            id=request.id,
            backup=base.manifest.id,
            target=request.target,
            reached_lsn=reached.lsn,
            reached_at=reached.at,
            timeline_id=await asyncio.to_thread(timeline_at, reached.place, wal.way.timeline_id, place.wal),
            checked_pages=checked,
            without_checksums=not checked,
            checked_indexes=reached.checked_indexes,
            seconds=seconds.spent,
            bytes=(backup.info.repository.size or backup.info.size) + wal.bytes,
            plain_bytes=plain,
            wal_bytes=max(0, reached.place - Lsn.parse(base.manifest.start_lsn)),
            passed_over=tuple(
                f"`{name}` lies in the archive behind its end and is no WAL of `{request.server}`: it was left out."
                for name in wal.passed_over
            ),
            tools={"pgbackrest": str(await self._program.version())},
        )
        await asyncio.to_thread(place.write_restored, restored)
        return restored

    async def _chosen(
        self, stanza: Stanza, buckets: Mapping[int, str], request: ScratchRequest
    ) -> tuple[Backup, PhysicalEntry]:
        """Raises UserError when none fits, VerificationError when the one that is wanted must not be used."""
        server = request.server
        entries = entries_of(stanza, server=server, buckets=buckets)
        by_id = {backup.id: backup for backup in stanza.backup}
        if request.backup is None:
            dead = await dead_in(self._program, stanza, entries, server=server)
            base = base_for(entries, request.target, dead)
            if base is None:
                raise nothing_before(server, entries, request.target)
            return by_id[base.manifest.id], base
        for entry in entries:
            if request.backup in (entry.manifest.id, by_id[entry.manifest.id].label):
                if entry.problem is not None:
                    raise VerificationError(entry.problem)
                return by_id[entry.manifest.id], entry
        raise UserError(f"There is no base backup `{request.backup}` of `{server}`. Choose one of the catalogue.")

    async def _fetch(
        self,
        request: ScratchRequest,
        archived: PgBackRestWal,
        backup: Backup,
        base: PhysicalEntry,
        wal: NeededWal,
        place: ScratchPlace,
        progress: Progress,
    ) -> None:
        """Files and history. The WAL comes after them, while it is replayed: side by side with the files its many small
        files, each of which is written through to the disk, would wait for their gigabytes."""
        shown = Shown(progress, "fetch", base.manifest.plain_bytes)
        order = RestoreOrder(
            label=backup.label,
            repository=backup.database.key,
            data=place.data,
            tablespaces=place.folder / TABLESPACES,
        )
        for folder in (place.folder, place.wal):
            await self._program.own(folder)
        await archived.fetch_history(wal.way, place.wal)

        async def files() -> None:
            nonlocal order
            this, order = order, order.model_copy(update={"begun": True})
            await self._program.restore(
                request.server, this, lambda percent: shown.bytes(base.manifest.plain_bytes * percent // 100)
            )

        await patiently(files, self._patience, AwayError)
