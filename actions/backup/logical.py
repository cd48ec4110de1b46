"""Logical backups: `pg_dump` at one snapshot, encrypted, with a signed manifest written last; and the way back."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from actions.backup import holds
from actions.backup.adoption import Adoption
from actions.backup.archive import Contents, readable
from actions.backup.catalogue import VERIFIED, Catalogue, Folder, database_prefix
from actions.backup.crypto import Recipients, signing_key
from actions.backup.loading import DISK_RESERVE, Loading
from actions.backup.manifest import Fingerprint, Manifest, Provenance, SignedManifest
from actions.backup.packing import Packed
from actions.backup.patience import PATIENCE
from actions.backup.pins import Pin, pin_name
from actions.backup.progress import Shown
from actions.backup.signing import Signed
from actions.backup.spool import Survey
from actions.backup.stored import StoredDumps, only_in_the_copy, stored_as, write_private
from actions.backup.together import together
from actions.backup.tools import PostgresTools, Snapshot
from actions.backup.transfer import Transfer
from actions.backup.uploads import sweep_uploads
from actions.backup.verification import SignedVerification, Verification
from actions.buckets import Hold
from actions.errors import DrError, UserError, VerificationError
from actions.ports import (
    AdoptRequest,
    BackupEngine,
    CatalogueEntry,
    Clock,
    CopyRequest,
    DumpRequest,
    LoadRequest,
    ObjectStore,
    PostgresAdmin,
    Progress,
    Secrets,
)
from actions.site import BackupPolicy, Site

FORMAT = "drbot 1"
TINY, TINY_FROM = 0.1, 1024 * 1024  # a dump under a tenth of the previous one, where that had at least 1 MiB


class LogicalEngine(BackupEngine):
    """The engine of `pg_dump` backups. `work_directory` takes spool files as large as a dump is stored; `patience` is
    how long a dump that is uploaded waits for a store that went away before it has its manifest."""

    def __init__(
        self,
        site: Site,
        *,
        postgres: PostgresAdmin,
        objects: ObjectStore,
        secrets: Secrets,
        clock: Clock,
        tools: PostgresTools,
        work_directory: Path,
        disk_reserve: int = DISK_RESERVE,
        patience: timedelta = PATIENCE,
    ) -> None:
        self._site, self._postgres, self._objects = site, postgres, objects
        self._secrets, self._clock, self._tools = secrets, clock, tools
        self._work = work_directory
        self._catalogue = Catalogue(objects)
        self._stored = StoredDumps(objects, secrets, work_directory, patience=patience)
        self._loading = Loading(postgres, tools, disk_reserve=disk_reserve)

    async def catalogue(self, database: str) -> Sequence[CatalogueEntry]:
        return await self._catalogue.entries(self._site.backup(database))

    async def find(self, database: str, backup: str) -> CatalogueEntry | None:
        return await self._catalogue.find(self._site.backup(database), backup)

    async def copies(self, database: str) -> Sequence[CatalogueEntry]:
        return [copy.entry for copy in await self._catalogue.copies(self._site.backup(database))]

    async def pin(self, database: str, backup: str, *, reason: str) -> None:
        policy = self._site.backup(database)
        entry = await self._catalogue.find(policy, backup)
        if entry is None:
            raise UserError(f"There is no backup `{backup}` of `{database}`. Choose one of the catalogue.")
        # Before the document: what is not pinned as it should be is found so, and asked for again.
        await (holds.put_on if reason else holds.take_off)(self._objects, _needed(policy, backup))
        if entry.pinned == reason:
            return
        key = signing_key(await self._secrets.resolve(policy.signing_key), policy.signing_key)
        now = self._clock.now()
        body = Signed[Pin].sign(Pin(backup=backup, reason=reason, at=now), key).body()
        await self._objects.put(policy.bucket, f"{Folder(policy, backup).prefix}{pin_name(now)}", body)

    async def holds(self, database: str, backup: str) -> Sequence[Hold]:
        policy = self._site.backup(database)
        if await self._catalogue.find(policy, backup) is None:
            raise UserError(f"There is no backup `{backup}` of `{database}`. Choose one of the catalogue.")
        return await holds.look(self._objects, _needed(policy, backup))

    async def versions(self, database: str) -> Mapping[str, str]:
        return await self._tools.versions(self._site.database(database).server)

    async def remove(self, database: str, backup: str) -> None:
        policy = self._site.backup(database)
        await self._stored.remove(policy, Folder(policy, backup))

    # ------------------------------------------------------------ dump

    async def dump(self, request: DumpRequest, progress: Progress) -> SignedManifest:
        policy, database = self._site.backup(request.database), self._site.database(request.database)
        folder = Folder(policy, request.id)
        known = await self._known(policy, request, progress)
        if known is not None:
            return known
        begun = self._clock.now()
        recipients = Recipients(policy.recipients)
        key = signing_key(await self._secrets.resolve(policy.signing_key), policy.signing_key)
        if not request.copy_only:
            await sweep_uploads(self._objects, policy.bucket, own=folder.prefix, everything=database_prefix(policy))
        previous = await self._previous(request)
        async with self._tools.snapshot(database.ref) as snapshot:
            facts = snapshot.facts
            shown = Shown(progress, "dump", previous.plain_bytes if previous else None)
            async with together() as group:
                measuring = group.create_task(snapshot.fingerprint(database.invariants, shown.rows))
                packing = group.create_task(
                    self._pack(snapshot, policy, folder, recipients, shown, copy_only=request.copy_only)
                )
            packed, survey, upload_error = packing.result()
            fingerprint = with_archive(measuring.result(), survey.contents(request.id))
        await self._refuse_tiny(policy, folder, packed, previous, copy_only=request.copy_only)
        finished = self._clock.now()
        manifest = Manifest(
            id=request.id,
            database=request.database,
            server=database.server,
            provenance=Provenance.ATTESTED,
            system_id=facts.system_id,
            server_version=facts.server_version,
            lsn=facts.lsn,
            snapshot_at=facts.taken_at,
            finished_at=finished,
            duration_ms=int((finished - begun) / timedelta(milliseconds=1)),
            stored=stored_as(policy, folder, packed),
            plain_bytes=packed.plain_bytes,
            plain_sha256=packed.plain_sha256,
            compression="zstd",
            recipients=policy.recipients,
            database_bytes=facts.database_bytes,
            places=survey.noted,
            fingerprint=fingerprint,
            relfilenodes=facts.relfilenodes,
            globals=facts.cluster_globals,
            tools={**await self._tools.versions(database.server), "format": FORMAT},
            requested_by=request.requested_by,
        )
        signed = SignedManifest.sign(manifest, key)
        if request.copy_only:
            return await self._stored.keep(folder, signed)
        return await self._stored.publish(policy, folder, signed, upload_error)

    async def _known(self, policy: BackupPolicy, request: DumpRequest, progress: Progress) -> SignedManifest | None:
        """What an earlier try of this very dump has made, in the bucket where it is to be there."""
        copy = await self._copy(policy, request.id)
        if request.copy_only:
            return copy
        if copy is None:
            return await self._catalogue.signed(policy, request.id)
        return await self.upload(request.database, request.id, progress)

    async def _copy(self, policy: BackupPolicy, backup: str) -> SignedManifest | None:
        copies = await self._catalogue.copies(policy)
        return next((copy.signed for copy in copies if copy.entry.manifest.id == backup), None)

    async def upload(self, database: str, backup: str, progress: Progress) -> SignedManifest:
        policy = self._site.backup(database)
        copy, folder = await self._copy(policy, backup), Folder(policy, backup)
        if copy is None:
            if (signed := await self._catalogue.signed(policy, backup)) is not None:
                return signed
            raise UserError(f"The local copy holds no whole backup `{backup}` of `{database}`. Make a new dump.")
        try:
            if (signed := await self._catalogue.signed(policy, backup)) is not None:
                return signed
            await sweep_uploads(self._objects, policy.bucket, own=folder.prefix, everything=database_prefix(policy))
            done = Shown(progress, "upload", copy.manifest.stored.bytes).bytes
            return await self._stored.upload(policy, folder, copy, done)
        except VerificationError:
            raise  # of one of the two copies itself, which then says what to do
        except DrError as error:
            if await self._stored.is_there(policy, folder):
                raise
            raise only_in_the_copy(error, policy, folder, copy) from error

    async def _pack(
        self,
        snapshot: Snapshot,
        policy: BackupPolicy,
        folder: Folder,
        recipients: Recipients,
        shown: Shown,
        *,
        copy_only: bool,
    ) -> tuple[Packed, Survey, DrError | None]:
        source = await snapshot.archive()
        try:
            return await self._stored.store(source, policy, folder, recipients, shown.bytes, copy_only=copy_only)
        finally:
            await asyncio.to_thread(source.close)

    async def _refuse_tiny(
        self, policy: BackupPolicy, folder: Folder, packed: Packed, previous: Manifest | None, *, copy_only: bool
    ) -> None:
        if previous is None or previous.plain_bytes < TINY_FROM or packed.plain_bytes >= TINY * previous.plain_bytes:
            return
        if not copy_only:
            await self._objects.delete(policy.bucket, folder.dump)
        if folder.local_dump is not None:
            await asyncio.to_thread(folder.local_dump.unlink, missing_ok=True)
        raise VerificationError(
            f"The dump of `{policy.database}` has {packed.plain_bytes} bytes, `{previous.id}` had "
            f"{previous.plain_bytes}: it was not kept. Look whether `{policy.database}` still holds its data."
        )

    async def _previous(self, request: DumpRequest) -> Manifest | None:
        if request.copy_only:
            return next((entry.manifest for entry in await self.copies(request.database)), None)
        entries = await self.catalogue(request.database)
        return next((entry.manifest for entry in entries if entry.problem is None), None)

    # ------------------------------------------------------------ load

    async def load(self, request: LoadRequest, progress: Progress) -> None:
        policy, database = self._site.backup(request.database), self._site.database(request.database)
        manifest = await self._catalogue.trusted(policy, request.backup)
        spool = self._work / f"load-{hashlib.sha256(str(request.into).encode()).hexdigest()[:16]}.dump.age"
        owners = await self._loading.owners(request.into.server, manifest.globals, database.owner)
        try:
            shown = Shown(progress, "download", manifest.stored.bytes)
            archive = await self._stored.fetch(policy, manifest, spool, shown.bytes)
            shown.phase("restore", manifest.database_bytes)
            await self._loading.load(
                request.into,
                mark=request.mark,
                jobs=request.jobs,
                archive=archive,
                owners=owners,
                cluster_globals=manifest.globals,
                extensions=manifest.fingerprint.extensions,
                shown=shown,
            )
        finally:
            await asyncio.to_thread(spool.unlink, missing_ok=True)

    # ------------------------------------------------------------ verify, adopt

    async def verify(self, database: str, backup: str, progress: Progress) -> CatalogueEntry:
        policy = self._site.backup(database)
        entry = await self._catalogue.find(policy, backup)
        if entry is None:
            raise UserError(f"There is no backup `{backup}` of `{database}`. Choose one of the catalogue.")
        if entry.problem is not None:
            raise VerificationError(entry.problem)
        key = signing_key(await self._secrets.resolve(policy.signing_key), policy.signing_key)
        shown = Shown(progress, "verify", entry.manifest.stored.bytes)
        try:
            read, contents = await self._stored.read(policy, entry.manifest, shown.bytes)
        except VerificationError as error:
            # Whoever restores next must not have to find it out anew.
            await self._record(policy, Verification(**self._of(entry), problem=str(error)), key)
            raise
        head = self._work / f"verify-{backup}.toc"
        try:
            await asyncio.to_thread(write_private, head, contents.header)
            await self._tools.check_archive(self._site.database(database).server, head)
        finally:
            await asyncio.to_thread(head.unlink, missing_ok=True)
        record = Verification(
            **self._of(entry),
            stored_sha256=read.stored_sha256,
            plain_sha256=read.plain_sha256,
            entries=len(contents.entries),
        )
        await self._record(policy, record, key)
        return entry.model_copy(update={"verified_at": record.verified_at})

    def _of(self, entry: CatalogueEntry) -> dict[str, Any]:
        """What every record of a complete reading says."""
        known = {"backup": entry.manifest.id, "manifest_sha256": entry.manifest_sha256}
        return {**known, "verified_at": self._clock.now()}

    async def _record(self, policy: BackupPolicy, record: Verification, key: Ed25519PrivateKey) -> None:
        name = f"{Folder(policy, record.backup).prefix}{VERIFIED}{record.verified_at:%Y%m%dT%H%M%S%fZ}.json"
        await self._objects.put(policy.bucket, name, SignedVerification.sign(record, key).model_dump_json().encode())

    async def adopt(self, request: AdoptRequest, progress: Progress) -> SignedManifest:
        adoption = Adoption(
            self._site,
            postgres=self._postgres,
            objects=self._objects,
            secrets=self._secrets,
            clock=self._clock,
            tools=self._tools,
            stored=self._stored,
            loading=self._loading,
            work_directory=self._work,
        )
        return await adoption.adopt(request, progress)

    async def copy(self, request: CopyRequest, progress: Progress) -> None:
        database = self._site.database(request.database)
        await Transfer(self._tools, self._loading, self._work).copy(request, database.owner, progress)


# ---------------------------------------------------------------- parts


def with_archive(fingerprint: Fingerprint, contents: Contents) -> Fingerprint:
    """Sequences as the archive sets them. They are not part of a snapshot: they moved on between count and dump."""
    states = {readable(schema, name): state for (schema, name), state in contents.sequences().items()}
    known = {name: states.get(name, state) for name, state in fingerprint.sequences.items()}
    return fingerprint.model_copy(update={"sequences": known})


def _needed(policy: BackupPolicy, backup: str) -> Mapping[str, Sequence[str]]:
    """What a restore reads of it, by bucket."""
    folder = Folder(policy, backup)
    return {policy.bucket: (folder.dump, folder.manifest)}
