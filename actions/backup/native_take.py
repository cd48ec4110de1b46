"""Making a base backup: `pg_basebackup` through SHA-256, zstd and age into the bucket; the signed manifest last."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import zstandard

from actions.backup.chain import chain, parent_of_next, usable
from actions.backup.crypto import Recipients, signing_key
from actions.backup.manifest import StoredObject
from actions.backup.native_catalogue import BaseFolder, NativeCatalogue, checked, server_prefix
from actions.backup.native_lacks import no_summaries, of_backups
from actions.backup.native_records import BaseRecords
from actions.backup.packing import Packed, pack
from actions.backup.patience import PATIENCE, AwayError, patiently
from actions.backup.physical import BackupKind, BaseRequest, Lsn, PhysicalEntry, PhysicalManifest
from actions.backup.physical_tools import PhysicalTools, SourceServer, UnknownChangesError
from actions.backup.progress import Shown
from actions.backup.segments import Segment
from actions.backup.signing import Signed
from actions.backup.stages import disk, private
from actions.backup.tar_stream import LARGEST_LIST, FileList, TarReader
from actions.backup.uploads import sweep_uploads
from actions.backup.wal import WalArchive
from actions.errors import DrError, PermanentError, TemporaryError, UserError, VerificationError
from actions.ports import Clock, ObjectStore, Progress, Secrets
from actions.site import Frozen, PhysicalPolicy

T = TypeVar("T")

FORMAT = "drbot physical 1"
WAL_PATIENCE = timedelta(minutes=2)
LOOK = 0.5  # seconds between two looks at the archive


class Span(Frozen):
    """The WAL that a base backup needs to be consistent."""

    timeline_id: int
    start: str
    stop: str

    @classmethod
    def of(cls, file_list: bytes, system_id: str) -> Span:
        """As the server's own list of files says. Raises VerificationError when it does not, or is another server's."""
        try:
            said = json.loads(file_list)
            ranges = [(item["Timeline"], item["Start-LSN"], item["End-LSN"]) for item in said["WAL-Ranges"]]
            found = cls(timeline_id=ranges[-1][0], start=ranges[0][1], stop=ranges[-1][2])
            Lsn.parse(found.start), Lsn.parse(found.stop)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise VerificationError("The base backup has no list of its files. Take it again.") from error
        if str(said.get("System-Identifier", system_id)) != system_id:
            raise VerificationError("The base backup is of another server than the one that was asked. Take it again.")
        return found

    def segments(self, size: int) -> list[Segment]:
        first = Segment.holding(Lsn.parse(self.start), self.timeline_id, size)
        last = Segment.holding(Lsn(max(Lsn.parse(self.start), Lsn.parse(self.stop) - 1)), self.timeline_id, size)
        return [Segment(self.timeline_id, number, size) for number in range(first.number, last.number + 1)]


class Taking:
    """`work_directory` takes the list of files of a parent; `patience` is how long a backup that is uploaded waits for
    a store that went away."""

    def __init__(
        self,
        *,
        objects: ObjectStore,
        secrets: Secrets,
        clock: Clock,
        tools: PhysicalTools,
        catalogue: NativeCatalogue,
        records: BaseRecords,
        work_directory: Path,
        wal_patience: timedelta = WAL_PATIENCE,
        patience: timedelta = PATIENCE,
    ) -> None:
        self._objects, self._secrets, self._clock, self._tools = objects, secrets, clock, tools
        self._catalogue, self._records = catalogue, records
        self._work, self._wal_patience, self._patience = work_directory, wal_patience, patience

    async def take(self, policy: PhysicalPolicy, request: BaseRequest, progress: Progress) -> PhysicalEntry:
        found = await self._catalogue.read(policy)
        entries = found.entries
        entry = next((each for each in entries if each.manifest.id == request.id), None)
        if entry is None:
            entry = await self._made_somehow(_into(policy, found.silent), request, entries, progress)
        elif entry.problem is not None:
            raise VerificationError(entry.problem)
        await self._await_wal(policy, entry.manifest, progress)
        return entry

    async def _made_somehow(
        self, policy: PhysicalPolicy, request: BaseRequest, entries: list[PhysicalEntry], progress: Progress
    ) -> PhysicalEntry:
        """A full one where an incremental is asked for and cannot be: after a failover the new primary has no summaries
        of the WAL from before it was made."""
        try:
            return await self._made(policy, request, entries, progress)
        except UnknownChangesError as error:
            facts = await self._tools.facts(policy.server)
            _refuse_another(policy.server, entries, facts.timeline_id, error)
            full = request.model_copy(update={"kind": BackupKind.FULL, "parent": None})
            return await self._made(policy, full, entries, progress, because=str(error))

    async def _made(
        self,
        policy: PhysicalPolicy,
        request: BaseRequest,
        entries: list[PhysicalEntry],
        progress: Progress,
        because: str = "",
    ) -> PhysicalEntry:
        folder, begun = BaseFolder(policy, request.id), self._clock.now()
        recipients = Recipients(policy.recipients)
        key = signing_key(await self._secrets.resolve(policy.signing_key), policy.signing_key)
        facts = await self._tools.facts(policy.server)
        tools = await self._tools.versions(policy.server)
        _refuse(policy.server, facts, tools["pg_basebackup"])
        parent = _parent(policy, request, entries, facts, begun)
        await sweep_uploads(self._objects, policy.bucket, own=folder.prefix, everything=server_prefix(policy))
        shown = Shown(progress, request.kind.value, facts.bytes if parent is None else None)
        file_list = FileList()
        parent_list = self._work / f"parent-{request.id}.list" if parent is not None else None
        try:
            if parent is not None and parent_list is not None:
                await self._fetch_list(policy, parent, parent_list)
            packed = await self._pack(policy, request, folder, recipients, file_list, parent_list, shown)
        finally:
            if parent_list is not None:
                await asyncio.to_thread(parent_list.unlink, missing_ok=True)
        span = Span.of(file_list.body, facts.system_id)
        state = await self._tools.state(policy.server, sorted(facts.databases))
        manifest = PhysicalManifest(
            id=request.id,
            server=policy.server,
            kind=request.kind,
            parent=parent.manifest.id if parent is not None else None,
            full_because=because,
            system_id=facts.system_id,
            server_version=facts.server_version,
            timeline_id=span.timeline_id,
            start_lsn=span.start,
            stop_lsn=span.stop,
            started_at=facts.now,
            finished_at=state.now,
            stored=StoredObject(
                bucket=policy.bucket, key=folder.base, bytes=packed.stored_bytes, sha256=packed.stored_sha256
            ),
            plain_bytes=packed.plain_bytes,
            plain_sha256=packed.plain_sha256,
            recipients=policy.recipients,
            files=await self._uploaded(lambda: self._keep_list(policy, folder, file_list.body)),
            server_bytes=facts.bytes,
            checksums=facts.checksums,
            segment_bytes=facts.segment_bytes,
            databases=tuple(sorted(facts.databases)),
            database_oids=facts.databases,
            relfilenodes=state.relfilenodes,
            superuser=facts.superuser,
            snapshot=state.snapshot,
            tools={**tools, "format": FORMAT},
            requested_by=request.requested_by,
        )
        body = Signed[PhysicalManifest].sign(manifest, key).body()
        return await self._uploaded(lambda: self._publish(policy, folder, manifest, body))

    async def _uploaded(self, work: Callable[[], Awaitable[T]]) -> T:
        """What is stored beside gigabytes that lie there already waits for a store that went away."""
        return await patiently(work, self._patience, AwayError)

    async def _pack(
        self,
        policy: PhysicalPolicy,
        request: BaseRequest,
        folder: BaseFolder,
        recipients: Recipients,
        file_list: FileList,
        parent_list: Path | None,
        shown: Shown,
    ) -> Packed:
        async def store(chunks: AsyncIterator[bytes]) -> None:
            await self._objects.put_stream(policy.bucket, folder.base, chunks)

        source = await self._tools.base(policy.server, f"drbot {request.id}", parent_list)
        try:
            return await pack(
                *(source.read, source.finish, source.stop),
                recipients=recipients,
                store=store,
                local=None,
                watcher=TarReader(file_list),
                done=shown.bytes,
            )
        finally:
            await asyncio.to_thread(source.close)

    async def _keep_list(self, policy: PhysicalPolicy, folder: BaseFolder, body: bytes) -> StoredObject:
        stored = await asyncio.to_thread(zstandard.ZstdCompressor(level=3).compress, body)
        await self._objects.put(policy.bucket, folder.files, stored)
        return StoredObject(
            bucket=policy.bucket, key=folder.files, bytes=len(stored), sha256=hashlib.sha256(stored).hexdigest()
        )

    async def _fetch_list(self, policy: PhysicalPolicy, entry: PhysicalEntry, path: Path) -> None:
        parent = entry.manifest
        if parent.files is None:
            raise UserError(f"Base backup `{parent.id}` has no list of files to rest on. Take a full backup.")
        stored = await self._stored_list(policy, entry, parent.files)
        body = zstandard.ZstdDecompressor().decompress(stored, max_output_size=LARGEST_LIST)
        await asyncio.to_thread(_write, path, body)

    async def _stored_list(self, policy: PhysicalPolicy, entry: PhysicalEntry, wanted: StoredObject) -> bytes:
        """From the first bucket that gives it as it was stored."""
        backup = entry.manifest.id
        failed: list[DrError] = []
        for bucket in entry.whole_in:
            try:
                stored = await self._objects.get(bucket, BaseFolder(policy, backup).files)
            except DrError as error:
                failed.append(error)
                continue
            if hashlib.sha256(stored).hexdigest() == wanted.sha256:
                return stored
            problem = (
                f"The list of files of base backup `{backup}` in bucket `{bucket}` was changed: it does not have the "
                "SHA-256 of its manifest. Take a full backup."
            )
            failed.append(VerificationError(problem))
            if policy.copy_bucket:
                await self._records.damaged(policy, entry, bucket, problem)
        raise failed[0]

    async def _publish(
        self, policy: PhysicalPolicy, folder: BaseFolder, manifest: PhysicalManifest, body: bytes
    ) -> PhysicalEntry:
        """Write the manifest, which makes the stored objects a backup."""
        found = await self._objects.head(policy.bucket, folder.base)
        if found is None or found.bytes != manifest.stored.bytes:
            raise TemporaryError(f"Bucket `{policy.bucket}` did not keep `{folder.base}` as it was sent.")
        try:
            await self._objects.put(policy.bucket, folder.manifest, body, only_if_absent=True)
        except UserError:
            # A second try of this very backup was quicker, and its object is the one that is there.
            there = checked(await self._objects.get(policy.bucket, folder.manifest), policy, manifest.id)
            if there.stored.sha256 != manifest.stored.sha256:
                raise
        digest = hashlib.sha256(body).hexdigest()
        return PhysicalEntry(manifest=manifest, manifest_sha256=digest, whole_in=(policy.bucket,))

    async def _await_wal(self, policy: PhysicalPolicy, manifest: PhysicalManifest, progress: Progress) -> None:
        """Return once a bucket has the WAL of the backup's own span: without it nothing can be restored from it."""
        archive = WalArchive(self._objects, policy)
        span = Span(timeline_id=manifest.timeline_id, start=manifest.start_lsn, stop=manifest.stop_lsn)
        missing = span.segments(manifest.segment_bytes)
        shown = Shown(progress, "wal", None)
        limit = self._clock.now() + self._wal_patience
        while missing:
            if await self._archived(archive, policy, str(missing[0])):
                missing.pop(0)
            elif self._clock.now() >= limit:
                raise TemporaryError(
                    f"Base backup `{manifest.id}` is stored, but WAL segment `{missing[0]}` is not in the archive, and "
                    f"without it nothing can be restored from it. Look whether `drbot wal` runs for `{policy.server}`."
                )
            else:
                shown.bytes(0)
                await asyncio.sleep(LOOK)

    async def _archived(self, archive: WalArchive, policy: PhysicalPolicy, segment: str) -> bool:
        failures: list[DrError] = []
        for bucket in policy.wal_buckets:
            try:
                if await self._objects.head(bucket, archive.key(segment)) is not None:
                    return True
            except TemporaryError as error:
                failures.append(error)
        if failures and len(failures) == len(policy.wal_buckets):
            raise failures[0]
        return False


def _into(policy: PhysicalPolicy, silent: Collection[str]) -> PhysicalPolicy:
    """The same, or with the buckets the other way round while the first one cannot be looked at: after the loss of its
    region a server still gets base backups, and a copy brings them back."""
    if policy.bucket not in silent:
        return policy
    return policy.model_copy(update={"bucket": policy.copy_bucket, "copy_bucket": policy.bucket})


def _refuse(server: str, facts: SourceServer, tools: str) -> None:
    for lack in of_backups(server, facts, tools):
        raise UserError(f"{lack.what} {lack.next}")


def _parent(
    policy: PhysicalPolicy, request: BaseRequest, entries: list[PhysicalEntry], facts: SourceServer, at: datetime
) -> PhysicalEntry | None:
    """What an incremental rests on; None for a full backup. Raises UserError when there is nothing to rest on."""
    if request.kind is BackupKind.FULL:
        return None
    if not facts.summarizes:
        lack = no_summaries(policy.server)
        raise UserError(f"{lack.what} {lack.next}")
    if request.parent is None:
        parent = parent_of_next(entries, at, facts.system_id)
    else:
        parent = next((entry for entry in entries if entry.manifest.id == request.parent), None)
    if parent is None:
        named = f"no base backup `{request.parent}`" if request.parent else "no usable full backup"
        raise UserError(f"There is {named} of `{policy.server}` to rest on. Take a full backup.")
    if parent.problem is not None or chain(entries, parent) is None:
        raise VerificationError(parent.problem or f"The chain of `{parent.manifest.id}` is broken.")
    if parent.manifest.system_id != facts.system_id:
        raise PermanentError(
            f"Server `{policy.server}` is not the one that `{parent.manifest.id}` was made of (its system id is "
            f"{facts.system_id}). Take a full backup."
        )
    if parent.manifest.checksums != facts.checksums:
        # `pg_checksums` writes pages past the WAL, so the incremental would lack them.
        raise UnknownChangesError(
            f"Page checksums of `{policy.server}` were turned {'on' if facts.checksums else 'off'} since "
            f"`{parent.manifest.id}` was made, so nothing can rest on it."
        )
    return parent


def _refuse_another(server: str, entries: list[PhysicalEntry], timeline_id: int, error: UnknownChangesError) -> None:
    """A failover takes one full backup. Where the next incremental cannot be either, something else is wrong, and a
    full one every quarter of an hour would be a load that nobody has asked for."""
    newest = next((each.manifest for each in usable(entries) if each.manifest.kind is BackupKind.FULL), None)
    if newest is not None and newest.full_because and newest.timeline_id == timeline_id:
        raise UserError(
            f"{error} `{newest.id}` was already made full for such a reason, so no other one is. Look there whether "
            "`summarize_wal` stays on and `wal_summary_keep_time` is longer than a day; a full backup now: "
            f"`/dr-backup base {server}`."
        ) from error


def _write(path: Path, body: bytes) -> None:
    with private(path) as stream, disk(path):
        stream.write(body)
