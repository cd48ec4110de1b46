"""The pgBackRest engine: backups, WAL and restores are pgBackRest's own work; here is what is asked of it, and proven.

What is known of a backup beyond pgBackRest's own listing (our id, its last verification, a pin) is an annotation on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from actions.backup.dead_ends import leading
from actions.backup.finder import WalRecords
from actions.backup.native_window import start_of, window
from actions.backup.patience import PATIENCE
from actions.backup.pgbackrest_archive import place_of
from actions.backup.pgbackrest_expiry import Going, going, segments_of
from actions.backup.pgbackrest_find import PgBackRestFinder
from actions.backup.pgbackrest_info import (
    ID,
    PINNED,
    PROBLEM,
    REQUESTED_BY,
    STATE,
    VERIFIED,
    Archive,
    Backup,
    Stanza,
    State,
    entries_of,
    problem_of,
    segment_bytes,
)
from actions.backup.pgbackrest_keys import stanza_name
from actions.backup.pgbackrest_lacks import lacks_of
from actions.backup.pgbackrest_relations import RelationRecords, Relations
from actions.backup.pgbackrest_restore import PgBackRestRestoring
from actions.backup.pgbackrest_tools import ArchivePlace, ExpireOrder, PgBackRest
from actions.backup.pgbackrest_wal import PgBackRestWal, dead_in, usable_in
from actions.backup.physical import (
    BackupKind,
    BaseRequest,
    Expiry,
    FindRequest,
    Lack,
    Moment,
    NamedPoint,
    PhysicalEntry,
    Place,
    PlaceRequest,
    PointRequest,
    RecoveryWindow,
    ScratchRequest,
    ScratchRestored,
)
from actions.backup.physical_tools import PhysicalTools, ScratchServers
from actions.backup.retention import why_it_stays
from actions.backup.scratch_budget import RESERVE
from actions.backup.segments import Timelines
from actions.errors import PermanentError, UserError, VerificationError
from actions.ports import Clock, ObjectStore, PhysicalBackups, PostgresAdmin, Progress, ProgressReport, Secrets
from actions.site import Site

log = logging.getLogger(__name__)

RPO = timedelta(minutes=15)  # where no database of the server says another


class PgBackRestEngine(PhysicalBackups):
    """For servers whose plan says `engine: pgbackrest`. `records` gives the `pg_waldump` of a server's version;
    `reserve` are bytes of the scratch disk that stay free; `patience` is how long a restore that has begun waits for a
    store that went away."""

    def __init__(
        self,
        site: Site,
        program: PgBackRest,
        *,
        postgres: PostgresAdmin,
        objects: ObjectStore,
        secrets: Secrets,
        clock: Clock,
        tools: PhysicalTools,
        servers: ScratchServers,
        records: Callable[[str], WalRecords],
        scratch_directory: Path,
        work_directory: Path,
        reserve: int = RESERVE,
        patience: timedelta = PATIENCE,
    ) -> None:
        self._site, self._program, self._clock, self._tools = site, program, clock, tools
        self._postgres = postgres
        self._records = records
        self._relations = RelationRecords(objects, secrets)
        self._finder = PgBackRestFinder(site, program, self._relations, records, work_directory)
        self._restoring = PgBackRestRestoring(
            program,
            tools=tools,
            servers=servers,
            clock=clock,
            budget=site.scratch,
            directory=scratch_directory,
            reserve=reserve,
            patience=patience,
        )
        self._commits: dict[tuple[ArchivePlace, str, frozenset[str]], datetime | None] = {}  # the newest in reach
        self._judged: dict[tuple[ArchivePlace, str], bool] = {}  # segments behind a gap

    async def catalogue(self, server: str) -> Sequence[PhysicalEntry]:
        return self._entries(server, await self._program.info(server))

    async def versions(self, server: str) -> Mapping[str, str]:  # noqa: ARG002 - one program for all
        return {"pgbackrest": str(await self._program.version())}

    # ------------------------------------------------------------ backups

    async def take(self, request: BaseRequest, progress: Progress) -> PhysicalEntry:
        """INCREMENTAL on a full backup is pgBackRest's `diff`, on another incremental its `incr`. It rests on the
        newest of those, as the entry says."""
        server = request.server
        stanza = await self._program.info(server)
        if not any(backup.id == request.id for backup in stanza.backup):
            notes = {ID: request.id, **({REQUESTED_BY: request.requested_by} if request.requested_by else {})}
            await self._program.backup(server, _type(request, stanza), notes, _percent(progress, "base"))
            stanza = await self._program.info(server)
        made = _known(stanza, server, request.id)
        if STATE not in made.annotation:
            await self._note(server, made)
        return await self._entry(server, request.id)

    async def _note(self, server: str, made: Backup) -> None:
        """What only the server knows: which files its tables have, and which transactions come after this backup."""
        facts = await self._tools.facts(server)
        state = await self._tools.state(server, list(facts.databases))
        relations = Relations(
            label=made.label,
            system_id=facts.system_id,
            database_oids=facts.databases,
            relfilenodes=state.relfilenodes,
        )
        await self._relations.write(self._site.physical_of(server), relations)
        seen = State(
            superuser=facts.superuser,
            snapshot=state.snapshot,
            checksums=facts.checksums,
            version=facts.server_version,
        )
        await self._program.annotate(server, made.label, {STATE: seen.model_dump_json()})

    async def verify(self, server: str, backup: str, progress: Progress) -> PhysicalEntry:
        stanza = await self._program.info(server)
        found = _known(stanza, server, backup)
        if known := problem_of(found, stanza):
            raise VerificationError(known)
        progress(ProgressReport(phase="verify", unit="steps", total=1))
        report = await self._program.verify(server, found.label, found.database.key)
        now = self._clock.now()
        if problem := report.problem or _damaged_span(found, report.wal):
            said = f"`pgbackrest verify` on {now:%Y-%m-%d %H:%M} UTC: {problem}"
            await self._program.annotate(server, found.label, {PROBLEM: said, VERIFIED: ""})
            raise VerificationError(f"Base backup `{backup}` of `{server}` must not be used. {said}.")
        after = [name for name in report.wal if name[8:] > (found.archive.stop or "")[8:]]
        if after:
            raise VerificationError(
                f"`{backup}` is whole, but WAL segment `{after[0]}` after it is damaged: `{server}` cannot be brought "
                "beyond it from this backup. Take a full backup now."
            )
        await self._program.annotate(server, found.label, {VERIFIED: now.isoformat()})
        progress(ProgressReport(phase="verify", unit="steps", done=1, total=1))
        return await self._entry(server, backup)

    async def pin(self, server: str, backup: str, *, reason: str) -> None:
        found = _known(await self._program.info(server), server, backup)
        await self._program.annotate(server, found.label, {PINNED: reason})

    # ------------------------------------------------------------ restore

    async def restore(self, request: ScratchRequest, progress: Progress) -> ScratchRestored:
        stanza = await self._program.info(request.server)
        buckets = self._program.buckets(request.server)
        return await self._restoring.restore(stanza, buckets, request, progress)

    async def feed(self, server: str, scratch: str) -> None:
        await self._restoring.feed(server, scratch)

    async def find(self, request: FindRequest, progress: Progress) -> Sequence[Moment]:
        stanza = await self._program.info(request.server)
        return await self._finder.find(stanza, await self._leading(request.server, stanza), request, progress)

    async def find_points(self, request: PointRequest, progress: Progress) -> Sequence[NamedPoint]:
        stanza = await self._program.info(request.server)
        return await self._finder.find_points(stanza, await self._leading(request.server, stanza), request, progress)

    async def find_places(self, request: PlaceRequest, progress: Progress) -> Sequence[Place]:
        stanza = await self._program.info(request.server)
        return await self._finder.find_places(stanza, await self._leading(request.server, stanza), request, progress)

    async def _leading(self, server: str, stanza: Stanza) -> Sequence[PhysicalEntry]:
        """What happened on a branch that the server has left is no part of its past."""
        entries = self._entries(server, stanza)
        return leading(entries, await dead_in(self._program, stanza, entries, server=server))

    # ------------------------------------------------------------ what can be reached, what may go

    async def windows(self, server: str) -> Sequence[RecoveryWindow]:
        stanza, buckets = await self._program.info(server), self._program.buckets(server)
        found = []
        for key in sorted({facts.key for facts in stanza.repo}, reverse=True):  # the last is the farthest away
            archive = stanza.present(key)
            if archive is None:
                found.append(RecoveryWindow(server=server, bucket=buckets.get(key, f"repo{key}")))
            else:
                found.append(await self._told(server, stanza, archive))
        return found

    async def _told(self, server: str, stanza: Stanza, archive: Archive) -> RecoveryWindow:
        try:
            return await self._window(server, stanza, archive)
        except VerificationError as error:
            problem = f"{error} Put it back: it lies in `pg_wal` of the primary, for `pgbackrest archive-push`."
            return RecoveryWindow(server=server, bucket=self._archive(server, stanza, archive).bucket, problem=problem)

    async def _window(self, server: str, stanza: Stanza, archive: Archive) -> RecoveryWindow:
        place = self._archive(server, stanza, archive)
        wal = await PgBackRestWal.of(self._program, place, judged=self._judged)
        entries = usable_in(stanza, archive, self._entries(server, stanza))
        way, dead = await wal.branches(entries)
        if way is None:
            way = await wal.way(start_of(entries[0]), None) if entries else Timelines.alone(1)
        wal = await wal.ours(way)
        newest = wal.newest(way)
        found = window(
            self._site.physical_of(server),
            entries,
            wal.listing,
            way,
            newest=await self._newest(server, wal, way, [each for each in entries if each.manifest.id not in dead]),
            newest_lsn=newest.end if newest else None,
            now=self._clock.now(),
        )
        return found.model_copy(update={"dead_ends": dead})

    async def _newest(
        self, server: str, wal: PgBackRestWal, way: Timelines, entries: Sequence[PhysicalEntry]
    ) -> datetime | None:
        if (newest := wal.newest(way)) is None:
            return None
        key = (wal.place, str(newest), frozenset(entry.manifest.id for entry in entries))
        if key not in self._commits:
            self._commits[key] = await wal.newest_moment(way, self._records(server), entries)
        return self._commits[key]

    async def expiry(self, server: str) -> Expiry:
        stanza = await self._program.info(server)
        parts = await self._going(server, stanza)
        wal: list[tuple[str, str]] = []
        count = stored = 0
        for part in parts:
            answers = [await self._program.expire(server, order, dry_run=True) for order in part.orders()]
            stretches = list(dict.fromkeys(stretch for answer in answers for stretch in answer.wal))
            archive = stanza.present(part.repository.key)
            if stretches and archive is not None:
                listing = await self._program.archived(self._archive(server, stanza, archive))
                sizes = [
                    listing.segments[str(each)].bytes
                    for each in segments_of(stretches, segment_bytes(stanza))
                    if each in listing
                ]
                count, stored = count + len(sizes), stored + sum(sizes)
            wal += stretches
        gone = [backup for part in parts for backup in part.backups]
        return Expiry(
            server=server,
            backups=tuple(backup.id for backup in gone),
            segments=count,
            wal=tuple(wal),
            bytes=stored + sum(backup.info.repository.delta for backup in gone),
            kept={name: why for part in parts for name, why in part.kept.items()},
        )

    async def _going(self, server: str, stanza: Stanza) -> Sequence[Going]:
        entries = self._entries(server, stanza)
        dead = await dead_in(self._program, stanza, entries, server=server)
        return going(stanza, entries, self._site.physical_of(server), self._clock.now(), dead)

    async def expire(self, server: str, expiry: Expiry) -> None:
        stanza, policy = await self._program.info(server), self._site.physical_of(server)
        ids = {backup.label: backup.id for backup in stanza.backup}
        size = segment_bytes(stanza)
        shown = segments_of(expiry.wal, size)
        # Looked at anew: what has become needed meanwhile stays, and nothing goes that was not shown.
        for part in await self._going(server, stanza):
            for order in part.orders():
                rehearsed = await self._program.expire(server, order, dry_run=True)
                # A folder that is in no listing any more is rubbish, which pgBackRest sweeps with every call.
                if not {ids[label] for label in rehearsed.labels if label in ids} <= set(expiry.backups):
                    continue
                if not segments_of(rehearsed.wal, size) <= shown:
                    log.info("more_wal_would_go_than_was_shown: %s", order.label or "wal")
                    continue
                done = await self._program.expire(server, order, dry_run=False)
                for label in done.labels:
                    await self._relations.delete(policy, label)

    async def remove(self, server: str, backup: str) -> None:
        stanza, policy = await self._program.info(server), self._site.physical_of(server)
        found = next((each for each in stanza.backup if each.id == backup), None)
        if found is None:
            return
        entries = self._entries(server, stanza)
        if why := why_it_stays(entries, backup, policy, await dead_in(self._program, stanza, entries, server=server)):
            raise UserError(why)
        order = ExpireOrder(repository=found.database.key, label=found.label, keep_wal_of=0)
        rehearsed = await self._program.expire(server, order, dry_run=True)
        ours = {each.label for each in stanza.backup} & set(rehearsed.labels)
        if ours != {found.label} or rehearsed.wal:
            raise PermanentError(
                f"pgBackRest would delete more than `{found.label}`: {', '.join(sorted(ours)) or 'nothing of it'}, "
                f"{len(rehearsed.wal)} stretches of WAL. Nothing was deleted; look at `pgbackrest info`."
            )
        await self._program.expire(server, order, dry_run=False)
        await self._relations.delete(policy, found.label)

    async def lacks(self, server: str) -> Sequence[Lack]:
        rpo = min((each.rpo for each in self._site.databases.values() if each.server == server), default=RPO)
        stanza = stanza_name(self._site.physical_of(server))
        return await lacks_of(self._program, self._postgres, server, stanza=stanza, rpo=rpo)

    # ------------------------------------------------------------ inside

    def _entries(self, server: str, stanza: Stanza) -> Sequence[PhysicalEntry]:
        return entries_of(stanza, server=server, buckets=self._program.buckets(server))

    async def _entry(self, server: str, backup: str) -> PhysicalEntry:
        stanza = await self._program.info(server)
        wanted = _known(stanza, server, backup).id
        return next(entry for entry in self._entries(server, stanza) if entry.manifest.id == wanted)

    def _archive(self, server: str, stanza: Stanza, archive: Archive) -> ArchivePlace:
        key = archive.database.key
        bucket = self._program.buckets(server).get(key, f"repo{key}")
        return place_of(stanza, archive, server=server, bucket=bucket)


def _known(stanza: Stanza, server: str, backup: str) -> Backup:
    """By our id or by pgBackRest's label. Raises UserError."""
    for each in stanza.backup:
        if backup in (each.id, each.label):
            return each
    raise UserError(f"There is no base backup `{backup}` of `{server}`. Choose one of the catalogue.")


def _damaged_span(backup: Backup, wal: Sequence[str]) -> str:
    """What is wrong with the WAL that the backup needs for itself; empty when nothing is."""
    start, stop = (backup.archive.start or "")[8:], (backup.archive.stop or "")[8:]
    bad = [name for name in wal if start <= name[8:] <= stop]
    return f"WAL segment `{bad[0]}`, which it needs, is damaged" if bad else ""


def _type(request: BaseRequest, stanza: Stanza) -> str:
    if request.kind is BackupKind.FULL:
        return "full"
    if not any(backup.type == "full" for backup in stanza.backup):
        # pgBackRest would make a full backup of it, without a word.
        raise UserError(f"There is no full backup of `{request.server}` for an incremental to rest on. Take one first.")
    if request.parent is None:
        return "diff"
    parent = _known(stanza, request.server, request.parent)
    if problem := problem_of(parent, stanza):
        raise VerificationError(problem)
    return "diff" if parent.type == "full" else "incr"


def _percent(progress: Progress, phase: str) -> Callable[[int], None]:
    def shown(percent: int) -> None:
        progress(ProgressReport(done=percent, total=100, unit="steps", phase=phase))

    return shown
