"""A third engine: base backups and WAL in a folder that the server and the worker both see, such as a share.

It stands for every engine that somebody adds: one file, put where `actions.engines` looks, and its contract case.

<folder>/base/<id>/base.tar       as `pg_basebackup` writes it
<folder>/base/<id>/files          the server's own list of all files
<folder>/base/<id>/manifest.json  signed, written last
<folder>/base/<id>/notes.json     signed: its last verification, a pin
<folder>/wal/                     `archive_command = 'test ! -e FOLDER/wal/%f && cp %p FOLDER/wal/%f'`
"""

from __future__ import annotations

import asyncio
import hashlib
import shlex
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import AwareDatetime, ValidationError

from actions.backup.chain import base_for, chain, parent_of_next, usable, with_chains
from actions.backup.crypto import signing_key
from actions.backup.dead_ends import dead_ends, leading, living_way
from actions.backup.finder import databases_of, files_of, find, find_points
from actions.backup.manifest import StoredObject
from actions.backup.native_retention import stored_segments, stretches
from actions.backup.native_take import Span
from actions.backup.native_window import start_of, window
from actions.backup.physical import (
    SEGMENT,
    BackupKind,
    BaseRequest,
    DeadEnd,
    Expiry,
    FindRequest,
    Lack,
    Lsn,
    Moment,
    NamedPoint,
    Phase,
    PhysicalEntry,
    PhysicalManifest,
    Place,
    PlaceRequest,
    PointRequest,
    RecoveryTarget,
    RecoveryWindow,
    ScratchRequest,
    ScratchRestored,
)
from actions.backup.physical_tools import Replay
from actions.backup.places import find_places
from actions.backup.retention import retained, why_it_stays
from actions.backup.scratch_budget import claim
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
from actions.backup.segments import Segment, Timelines, history_name, history_of
from actions.backup.signing import Signed
from actions.backup.standby import Brought, feed
from actions.backup.tar_stream import Extraction, FileList, TarReader
from actions.backup.unpacking import Plain
from actions.backup.wal import WalListing, WalStart
from actions.backup.wal_coming import copying_from
from actions.engine import Engine, Means, Stored, Wanted
from actions.errors import UserError, VerificationError
from actions.plan_values import Part, Text
from actions.ports import ObjectFacts, PhysicalBackups, Progress, ProgressReport
from actions.site import Frozen, PhysicalPolicy
from actions.steps import byhand
from actions.steps.stored_chain import replay_by_hand

TAR, FILES, MANIFEST, NOTES = "base.tar", "files", "manifest.json", "notes.json"
BLOCK = 1 << 20


class FolderKeys(Part):
    """Where the copies are."""

    folder: Text = ""
    """Folder for base backups and WAL that the server and the worker both see."""


class FolderNote(Frozen):
    """What became known of a backup after it was made."""

    backup: str
    verified_at: AwareDatetime | None = None
    pinned: str = ""


class FolderBackups(PhysicalBackups):
    """Reads and writes the folder in threads; the server itself copies its WAL there."""

    def __init__(self, means: Means) -> None:
        self._means, self._tools, self._clock = means, means.tools, means.clock

    # ------------------------------------------------------------ the folder

    def _policy(self, server: str) -> PhysicalPolicy:
        return self._means.site.physical_of(server)

    def _base(self, server: str, backup: str) -> Path:
        return _folder(self._policy(server)) / "base" / backup

    async def catalogue(self, server: str) -> Sequence[PhysicalEntry]:
        return await asyncio.to_thread(self._entries, self._policy(server))

    def _entries(self, policy: PhysicalPolicy) -> list[PhysicalEntry]:
        found = [_entry(path.parent, policy) for path in (_folder(policy) / "base").glob(f"*/{MANIFEST}")]
        return sorted(with_chains(found), key=lambda entry: entry.manifest.finished_at, reverse=True)

    async def _known(self, server: str, backup: str) -> PhysicalEntry:
        for entry in await self.catalogue(server):
            if entry.manifest.id == backup:
                return entry
        raise UserError(f"There is no base backup `{backup}` of `{server}`. Choose one of the catalogue.")

    async def _write(self, path: Path, document: Frozen, policy: PhysicalPolicy) -> None:
        key = signing_key(await self._means.secrets.resolve(policy.signing_key), policy.signing_key)
        body = Signed[type(document)].sign(document, key).body()  # type: ignore[misc]  # the very class is signed
        part = path.with_suffix(".part")
        await asyncio.to_thread(part.write_bytes, body)
        await asyncio.to_thread(part.rename, path)

    # ------------------------------------------------------------ backups

    async def take(self, request: BaseRequest, progress: Progress) -> PhysicalEntry:
        policy, entries = self._policy(request.server), await self.catalogue(request.server)
        there = next((entry for entry in entries if entry.manifest.id == request.id), None)
        if there is not None:
            return there
        facts = await self._tools.facts(request.server)
        parent = _parent(request, entries, facts.system_id, self._clock.now())
        target = self._base(request.server, request.id)
        await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
        await asyncio.to_thread(target.mkdir, parents=True)
        begin = None if parent is None else self._base(request.server, parent.manifest.id) / FILES
        source = await self._tools.base(request.server, f"drbot {request.id}", begin)
        try:
            size, digest, listed = await asyncio.to_thread(_stored, source.read, source.finish, target / TAR, progress)
        finally:
            await asyncio.to_thread(source.close)
        await asyncio.to_thread((target / FILES).write_bytes, listed)
        span, state = Span.of(listed, facts.system_id), await self._tools.state(request.server, sorted(facts.databases))
        manifest = PhysicalManifest(
            id=request.id,
            server=request.server,
            kind=request.kind,
            parent=None if parent is None else parent.manifest.id,
            system_id=facts.system_id,
            server_version=facts.server_version,
            timeline_id=span.timeline_id,
            start_lsn=span.start,
            stop_lsn=span.stop,
            started_at=facts.now,
            finished_at=state.now,
            stored=StoredObject(bucket="", key=str(target / TAR), bytes=size, sha256=digest),
            plain_bytes=size,
            plain_sha256=digest,
            compression="none",
            server_bytes=facts.bytes,
            checksums=facts.checksums,
            segment_bytes=facts.segment_bytes,
            databases=tuple(sorted(facts.databases)),
            database_oids=facts.databases,
            superuser=facts.superuser,
            snapshot=state.snapshot,
            relfilenodes=state.relfilenodes,
            requested_by=request.requested_by,
        )
        await self._write(target / MANIFEST, manifest, policy)
        return await self._known(request.server, request.id)

    async def verify(self, server: str, backup: str, progress: Progress) -> PhysicalEntry:
        entry = await self._known(server, backup)
        if entry.problem is not None:
            raise VerificationError(entry.problem)
        with TemporaryDirectory(prefix="drbot-folder-") as folder:
            await self._unpacked(entry, Path(folder) / "data")
        now, size = self._clock.now(), entry.manifest.stored.bytes
        await self._noted(entry, verified_at=now)
        progress(ProgressReport(done=size, total=size, phase="verify"))
        return entry.model_copy(update={"verified_at": now})

    async def _unpacked(self, entry: PhysicalEntry, into: Path) -> None:
        """Into a new folder, every file checked. Raises VerificationError."""
        manifest = entry.manifest
        source = _File(self._base(manifest.server, manifest.id) / TAR)
        await asyncio.to_thread(Extraction(into).run, source)
        if source.hash.hexdigest() != manifest.stored.sha256:
            raise VerificationError(f"Base backup `{manifest.id}` was changed since it was made. Use another one.")
        await self._tools.check_files(manifest.server, manifest.id, into)

    async def _noted(self, entry: PhysicalEntry, **changes: object) -> None:
        folder, policy = self._base(entry.manifest.server, entry.manifest.id), self._policy(entry.manifest.server)
        await self._write(folder / NOTES, _note(folder, policy).model_copy(update=changes), policy)

    async def pin(self, server: str, backup: str, *, reason: str) -> None:
        await self._noted(await self._known(server, backup), pinned=reason)

    # ------------------------------------------------------------ WAL

    def _listing(self, policy: PhysicalPolicy) -> WalListing:
        segments, histories = {}, {}
        for path in (_folder(policy) / "wal").iterdir():
            facts = path.stat()
            found = ObjectFacts(
                key=path.name, bytes=facts.st_size, modified_at=datetime.fromtimestamp(facts.st_mtime, UTC)
            )
            if len(path.name) == 24 and facts.st_size >= SEGMENT:  # the server may be copying it just now
                segments[path.name] = found
            elif (timeline_id := history_of(path.name)) is not None:
                histories[timeline_id] = found
        return WalListing(str(_folder(policy)), segments, histories)

    async def _way(
        self, policy: PhysicalPolicy, entries: Sequence[PhysicalEntry], listing: WalListing
    ) -> tuple[Timelines | None, Mapping[str, DeadEnd]]:
        async def history(timeline_id: int) -> Timelines:
            if timeline_id not in listing.histories:
                return Timelines.alone(timeline_id)
            return Timelines.parse(timeline_id, (_folder(policy) / "wal" / history_name(timeline_id)).read_text())

        ours = [each for each in entries if each.problem is None]
        way = await living_way(history, ours, [listing])
        return way, dead_ends(ours, way, [listing])

    async def windows(self, server: str) -> Sequence[RecoveryWindow]:
        policy, entries = self._policy(server), await self.catalogue(server)
        listing = await asyncio.to_thread(self._listing, policy)
        way, dead = await self._way(policy, entries, listing)
        way = way or Timelines.alone(max((entry.manifest.timeline_id for entry in entries), default=1))
        last = max(way.numbers(list(listing.segments), SEGMENT), default=None)
        newest = None if last is None else next(each for each in way.choices(last, SEGMENT) if each in listing)
        found = window(
            policy,
            entries,
            listing,
            way,
            newest=None if newest is None else listing.segments[str(newest)].modified_at,
            newest_lsn=None if newest is None else newest.end,
            now=self._clock.now(),
        )
        return [found.model_copy(update={"dead_ends": dead})]

    async def _wal(self, policy: PhysicalPolicy, start: WalStart, into: Path) -> tuple[Timelines, Segment | None, int]:
        """All WAL from there on, copied. Raises VerificationError where a segment is missing."""
        listing = await asyncio.to_thread(self._listing, policy)
        way, _ = await self._way(policy, await self.catalogue(policy.server), listing)
        if way is None or not way.reaches(start.timeline_id, start.lsn):
            way = Timelines.alone(start.timeline_id)
        last, count = None, 0
        await asyncio.to_thread(into.mkdir, mode=0o700, parents=True, exist_ok=True)
        for number in range(start.segment.number, max(way.numbers(list(listing.segments), SEGMENT), default=-1) + 1):
            last = next((each for each in way.choices(number, SEGMENT) if each in listing), None)
            if last is None:
                missing = way.choices(number, SEGMENT)[0]
                raise VerificationError(f"WAL segment `{missing}` of `{policy.server}` is missing. Use a later backup.")
            await asyncio.to_thread(shutil.copyfile, _folder(policy) / "wal" / str(last), into / str(last))
            count += 1
        if way.timeline_id in listing.histories:
            name = history_name(way.timeline_id)
            await asyncio.to_thread(shutil.copyfile, _folder(policy) / "wal" / name, into / name)
        return way, last, count * SEGMENT

    # ------------------------------------------------------------ restore

    async def restore(self, request: ScratchRequest, progress: Progress) -> ScratchRestored:
        place = ScratchPlace(self._means.scratch_directory, request.id)
        return await in_place(place, request, lambda: self._restored(request, place, progress))

    async def _restored(self, request: ScratchRequest, place: ScratchPlace, progress: Progress) -> ScratchRestored:
        policy, seconds = self._policy(request.server), Seconds()
        members = await self._members(request)
        base, plain = members[-1].manifest, sum(each.manifest.plain_bytes for each in members)
        budget = self._means.site.scratch
        wanted = claim_of(request, base, self._clock.now(), budget, plain=plain, wal=0)
        await asyncio.to_thread(claim, self._means.scratch_directory, place, wanted, budget)
        progress(ProgressReport(phase="fetch", total=plain))
        with seconds.of(Phase.FETCH):
            folders = [place.folder / "members" / str(number) for number in range(len(members))]
            for member, folder in zip(members, folders, strict=True):
                await self._unpacked(member, folder)
            way, last, wal_bytes = await self._wal(policy, start_of(members[-1]), place.wal)
        end = Lsn(0) if last is None else last.end
        check_span(base.stop_lsn, base.id, str(end), str(last or ""))
        with seconds.of(Phase.COMBINE):
            if len(folders) == 1:
                await asyncio.to_thread(folders[0].rename, place.data)
            else:
                await self._tools.combine(request.server, folders, place.data)
            await asyncio.to_thread(shutil.rmtree, place.folder / "members")
        order = Replay(
            target=request.target,
            timeline_id=request.target.timeline_id or way.timeline_id,
            start_lsn=base.start_lsn,
            end_lsn=str(end),
            restore_command=copying_from(place.wal),
            amcheck=request.amcheck,
        )
        with seconds.of(Phase.REPLAY):
            reached = await replayed(self._means.servers, place, order, progress, reaches=True)
        with seconds.of(Phase.CHECK):
            checked = await self._tools.check_pages(request.server, place.data)
        restored = ScratchRestored(
            id=request.id,
            backup=base.id,
            target=request.target,
            reached_lsn=reached.lsn,
            reached_at=reached.at,
            timeline_id=await asyncio.to_thread(timeline_at, reached.place, order.timeline_id, place.wal),
            checked_pages=checked,
            without_checksums=not checked,
            checked_indexes=reached.checked_indexes,
            seconds=seconds.spent,
            bytes=plain + wal_bytes,
            plain_bytes=plain,
            wal_bytes=max(0, reached.place - Lsn.parse(base.start_lsn)),
        )
        await asyncio.to_thread(place.write_restored, restored)
        return restored

    async def _members(self, request: ScratchRequest) -> list[PhysicalEntry]:
        entries = await self.catalogue(request.server)
        if request.backup is None:
            (found,) = await self.windows(request.server)
            base = base_for(entries, request.target, found.dead_ends)
            if base is None:
                raise nothing_before(request.server, entries, request.target)
        else:
            base = await self._known(request.server, request.backup)
        members = chain(entries, base)
        if members is None:
            raise VerificationError(base.problem or f"The chain of base backup `{base.manifest.id}` is broken.")
        return members

    async def feed(self, server: str, scratch: str) -> None:
        place, policy = ScratchPlace(self._means.scratch_directory, scratch), self._policy(server)

        async def fetch(start: WalStart) -> Brought:
            way, last, _ = await self._wal(policy, start, place.wal)
            newest = max([way.timeline_id, *(await asyncio.to_thread(self._listing, policy)).histories])
            if last is None:
                return Brought(way=way.timeline_id, newest_way=newest)
            return Brought(way=way.timeline_id, newest_way=newest, closed=str(last), end_lsn=str(last.end))

        await feed(place, fetch, self._clock.now(), reserve=0)

    # ------------------------------------------------------------ the finder

    async def find(self, request: FindRequest, progress: Progress) -> Sequence[Moment]:
        entries = leading(usable(await self.catalogue(request.server)), (await self._window(request.server)).dead_ends)
        maps = [entry.manifest.relfilenodes.get(request.database, {}) for entry in entries]
        oids = databases_of(request, (entry.manifest.database_oids for entry in entries))
        files, records = files_of(request.table, maps, now=request.relfilenode), self._means.records(request.server)
        async with self._looked_through(request.server, entries, request.since) as folder:
            for oid in oids:
                if found := await asyncio.to_thread(find, records, folder, request, database_oid=oid, files=files):
                    return found
        return ()

    async def find_points(self, request: PointRequest, progress: Progress) -> Sequence[NamedPoint]:
        entries = usable(await self.catalogue(request.server))
        async with self._looked_through(request.server, entries, request.since) as folder:
            return await asyncio.to_thread(find_points, self._means.records(request.server), folder, request)

    async def find_places(self, request: PlaceRequest, progress: Progress) -> Sequence[Place]:
        entries = usable(await self.catalogue(request.server))
        async with self._looked_through(request.server, entries, None) as folder:
            return await asyncio.to_thread(find_places, self._means.records(request.server), folder, request)

    async def _window(self, server: str) -> RecoveryWindow:
        (found,) = await self.windows(server)
        return found

    @asynccontextmanager
    async def _looked_through(
        self, server: str, entries: Sequence[PhysicalEntry], since: datetime | None
    ) -> AsyncIterator[Path]:
        """A folder with all WAL since the newest backup that ends before the moment, or since the oldest one."""
        if not entries:
            raise UserError(f"`{server}` has no base backup that can be used, so nothing can be looked through.")
        before = [entry for entry in entries if since is not None and entry.manifest.finished_at <= since]
        with TemporaryDirectory(prefix="drbot-folder-") as folder:
            await self._wal(self._policy(server), start_of(before[0] if before else entries[-1]), Path(folder))
            yield Path(folder)

    # ------------------------------------------------------------ retention

    async def expiry(self, server: str) -> Expiry:
        policy, entries = self._policy(server), await self.catalogue(server)
        dead = (await self._window(server)).dead_ends
        found = retained([entry for entry in entries if entry.trusted], policy, self._clock.now(), dead)
        gone = tuple(entry.manifest.id for entry in found.gone)
        left = [entry.manifest for entry in entries if entry.manifest.id not in gone]
        oldest = min((Lsn.parse(manifest.start_lsn) for manifest in left), default=Lsn(0))
        archived = stored_segments([await asyncio.to_thread(self._listing, policy)], SEGMENT)
        segments = sorted((each for each in archived if each.end <= oldest), key=lambda each: each.number)
        return Expiry(
            server=server,
            backups=gone,
            segments=len(segments),
            wal=tuple((str(first), str(last)) for first, last in stretches(segments)),
            bytes=sum(entry.manifest.stored.bytes for entry in found.gone) + sum(archived[each] for each in segments),
            kept=found.kept,
        )

    async def expire(self, server: str, expiry: Expiry) -> None:
        now = await self.expiry(server)  # nothing that has become needed meanwhile
        for backup in now.backups:
            if backup in expiry.backups:
                await asyncio.to_thread(shutil.rmtree, self._base(server, backup))
        shown = {(first, last) for first, last in expiry.wal}
        for first, last in (stretch for stretch in now.wal if stretch in shown):
            segment = Segment.parse(first)
            while str(segment) <= last:
                name = _folder(self._policy(server)) / "wal" / str(segment)
                await asyncio.to_thread(name.unlink, missing_ok=True)
                segment = segment.next()

    async def remove(self, server: str, backup: str) -> None:
        entries, dead = await self.catalogue(server), (await self._window(server)).dead_ends
        if why := why_it_stays(entries, backup, self._policy(server), dead):
            raise UserError(why)
        # Its manifest goes with the folder's name, so half of a backup is never listed.
        target, trash = self._base(server, backup), self._base(server, f".{backup}.gone")
        if await asyncio.to_thread(target.exists):
            await asyncio.to_thread(target.rename, trash)
            await asyncio.to_thread(shutil.rmtree, trash)

    async def lacks(self, server: str) -> Sequence[Lack]:
        wal = _folder(self._policy(server)) / "wal"
        if wal.is_dir():
            return ()
        return [Lack(what=f"the folder `{wal}` is not there", next="Make it, or mount the share it is on.")]


class _File(Plain):
    """The bytes of a file, hashed as they pass."""

    def __init__(self, path: Path) -> None:
        self._stream, self.hash = path.open("rb"), hashlib.sha256()

    def get(self) -> bytes:
        block = self._stream.read(BLOCK)
        self.hash.update(block)
        if not block:
            self._stream.close()
        return block


def _folder(policy: PhysicalPolicy) -> Path:
    folder = getattr(policy.own, "folder", "")
    if not folder:
        raise UserError(f"Say in the plan file which `folder` takes the backups of server `{policy.server}`.")
    return Path(folder)


def _stored(
    read: Callable[[int], bytes], finish: Callable[[], None], path: Path, progress: Progress
) -> tuple[int, str, bytes]:
    files, size, hashed = FileList(), 0, hashlib.sha256()
    reader = TarReader(files)
    with path.open("xb") as stream:
        while block := read(BLOCK):
            reader.feed(block)
            hashed.update(block)
            size += stream.write(block)
            progress(ProgressReport(done=size, phase="base"))
    finish()
    reader.end()
    return size, hashed.hexdigest(), files.body


def _parent(
    request: BaseRequest, entries: Sequence[PhysicalEntry], system_id: str, now: datetime
) -> PhysicalEntry | None:
    if request.kind is BackupKind.FULL:
        return None
    known = {entry.manifest.id: entry for entry in entries}
    parent = known.get(request.parent) if request.parent else parent_of_next(entries, now, system_id)
    if parent is None:
        raise UserError(f"There is no base backup `{request.parent}` of `{request.server}`. Take a full one first.")
    if parent.problem is not None:
        raise VerificationError(parent.problem)
    return parent


def _entry(folder: Path, policy: PhysicalPolicy) -> PhysicalEntry:
    body, name = (folder / MANIFEST).read_bytes(), folder.name
    digest, problem, trusted = hashlib.sha256(body).hexdigest(), None, True
    try:
        manifest = Signed[PhysicalManifest].parse(body, policy.trusted_signers, what=f"The manifest of `{name}`")
    except VerificationError as error:
        try:
            manifest = Signed[PhysicalManifest].model_validate_json(body).document
        except ValidationError:
            raise error from None
        problem, trusted = str(error), False
    size = (folder / TAR).stat().st_size if (folder / TAR).exists() else -1
    if problem is None and (manifest.id, manifest.server, manifest.stored.bytes) != (name, policy.server, size):
        problem = f"The file of base backup `{name}` is not what its manifest says. Use another."
    note = _note(folder, policy)
    return PhysicalEntry(
        manifest=manifest,
        manifest_sha256=digest,
        verified_at=note.verified_at,
        pinned=note.pinned,
        problem=problem,
        trusted=trusted,
    )


def _note(folder: Path, policy: PhysicalPolicy) -> FolderNote:
    if not (folder / NOTES).exists():
        return FolderNote(backup=folder.name)
    what = f"What is noted of `{folder.name}`"
    return Signed[FolderNote].parse((folder / NOTES).read_bytes(), policy.trusted_signers, what=what)


class Folder(Engine):
    """Copies on a share, for a server that archives there itself."""

    name = "folder"
    title = "the folder engine"
    about = "copies in a folder that server and worker share"
    keys = FolderKeys
    archived_by_us = False
    verified = "signatures and hashes"

    def make(self, means: Means) -> PhysicalBackups:
        return FolderBackups(means)

    def label(self, policy: PhysicalPolicy) -> str:
        return str(_folder(policy))

    def archive_again(self, policy: PhysicalPolicy) -> str:
        return f"set `archive_mode = on` and `archive_command = '{archive_command(_folder(policy))}'` and restart it"

    def take_by_hand(self, wanted: Wanted) -> tuple[str, ...]:
        source, target = byhand.conninfo(wanted.server, "postgres"), f"{wanted.label}/manual/{wanted.backup}"
        return (shlex.join(["pg_basebackup", "-d", source, "-D", target, "-X", "none", "-c", "fast"]),)

    def restore_by_hand(self, stored: Stored, target: RecoveryTarget) -> tuple[str, ...]:
        base, wal, members = (
            shlex.quote(f"{stored.label}/base"),
            shlex.quote(f"{stored.label}/wal"),
            '"$PGDATA.members"',
        )
        parent = f"""$(sed -n 's/^ *"parent": "\\(.*\\)",$/\\1/p' {base}/$backup/{MANIFEST})"""
        unpacked = f"tar -x -C {members}/$backup -f {base}/$backup/{TAR} && pg_verifybackup -n {members}/$backup"
        return (
            f'echo "{stored.sha256}  "{shlex.quote(stored.key)} | sha256sum -c && umask 077 && mkdir {members}',
            f'backup={stored.backup} && while [ -n "$backup" ]; do chain="$backup $chain" && backup={parent}; done',
            f"for backup in $chain; do mkdir {members}/$backup && {unpacked}; done",
            f'(cd {members} && pg_combinebackup --no-manifest --output "$PGDATA" $chain)',
            *replay_by_hand(target, superuser=stored.superuser, restore_command=f"cp {wal}/%f %p"),
        )

    def check_by_hand(self, stored: Stored) -> tuple[str, ...]:
        return (f'echo "{stored.sha256}  "{shlex.quote(stored.key)} | sha256sum -c',)

    def remove_by_hand(self, stored: Stored) -> tuple[str, ...]:
        return (shlex.join(["rm", "-r", str(Path(stored.key).parent)]),)


def archive_command(folder: Path) -> str:
    """Of the server. The name is taken once the copy is whole."""
    wal = shlex.quote(f"{folder}/wal")
    return f"test ! -e {wal}/%f && cp %p {wal}/%f.part && mv {wal}/%f.part {wal}/%f"


ENGINE = Folder()
