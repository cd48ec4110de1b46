"""An engine of backups in memory: a dump is a copy of the fake database's fingerprint, with a signed manifest."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import timedelta

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from actions.backup.manifest import Fingerprint, Globals, Manifest, Provenance, SignedManifest, StoredObject
from actions.buckets import Hold
from actions.errors import PermanentError, TemporaryError, UserError, VerificationError
from actions.ports import (
    AdoptRequest,
    BackupEngine,
    CatalogueEntry,
    Clock,
    CopyRequest,
    DumpRequest,
    LoadRequest,
    Progress,
    ProgressReport,
)
from actions.site import Site
from tests.fakes.clock import MemoryClock
from tests.fakes.postgres import SCRATCH, MemoryPostgres

SIGNING_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SIGNING_PEM = SIGNING_KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
SIGNER = base64.b64encode(SIGNING_KEY.public_key().public_bytes_raw()).decode()


class MemoryBackups(BackupEngine):
    """`found` is what `adopt` may adopt: object key -> what a restore of it would measure. `spoil` breaks a backup.

    `local` is the local copy, where the policy has one; while `away` the bucket does not answer, while `refused` it
    takes no key, while `odd` it answers with what nobody knows.
    """

    def __init__(self, site: Site, postgres: MemoryPostgres, clock: Clock | None = None) -> None:
        self._site, self._postgres = site, postgres
        self._clock = clock or MemoryClock()
        self.entries: dict[tuple[str, str], CatalogueEntry] = {}
        self.local: dict[tuple[str, str], CatalogueEntry] = {}
        self.away = self.refused = self.odd = False
        self.lockable = False  # the bucket has Object Lock
        self.held: set[tuple[str, str]] = set()  # under legal hold
        self.found: dict[str, Fingerprint] = {}
        self.programs = {"pg_dump": "18.2", "pg_restore": "18.2"}

    def spoil(self, database: str, backup: str, problem: str) -> None:
        """From now on this backup must not be used."""
        entry = self.entries[database, backup]
        self.entries[database, backup] = entry.model_copy(update={"problem": problem})

    def lose(self, database: str, backup: str) -> None:
        """From now on the bucket has the manifest of this backup alone."""
        self.spoil(database, backup, f"The object of backup `{backup}` is missing. Use another.")
        self.entries[database, backup] = self.entries[database, backup].model_copy(update={"lost": True})

    async def catalogue(self, database: str) -> Sequence[CatalogueEntry]:
        self._answering(database)
        mine = [entry for (name, _), entry in self.entries.items() if name == database]
        return sorted(mine, key=lambda entry: entry.manifest.snapshot_at, reverse=True)

    async def find(self, database: str, backup: str) -> CatalogueEntry | None:
        self._answering(database)
        return self.entries.get((database, backup))

    async def copies(self, database: str) -> Sequence[CatalogueEntry]:
        self._site.backup(database)
        mine = [entry for (name, _), entry in self.local.items() if name == database]
        return sorted(mine, key=lambda entry: entry.manifest.snapshot_at, reverse=True)

    async def upload(self, database: str, backup: str, progress: Progress) -> SignedManifest:
        self._answering(database)
        copy = self.entries.get((database, backup)) or self.local.get((database, backup))
        if copy is None:
            raise UserError(f"The local copy holds no whole backup `{backup}` of `{database}`. Make a new dump.")
        progress(ProgressReport(done=1000, total=1000, phase="upload"))
        self.entries[database, backup] = copy
        return SignedManifest.sign(copy.manifest, SIGNING_KEY)

    async def pin(self, database: str, backup: str, *, reason: str) -> None:
        self._answering(database)
        if (database, backup) not in self.entries:
            raise UserError(f"There is no backup `{backup}` of `{database}`. Choose one of the catalogue.")
        pinned = self.entries[database, backup].model_copy(update={"pinned": reason})
        self.entries[database, backup] = pinned
        if self.lockable:
            (self.held.add if reason else self.held.discard)((database, backup))

    async def holds(self, database: str, backup: str) -> Sequence[Hold]:
        self._answering(database)
        if (database, backup) not in self.entries:
            raise UserError(f"There is no backup `{backup}` of `{database}`. Choose one of the catalogue.")
        held = 2 if (database, backup) in self.held else 0
        bucket = self._site.backup(database).bucket
        return (Hold(bucket=bucket, objects=2, held=held, lockable=self.lockable),)

    async def versions(self, database: str) -> Mapping[str, str]:
        self._site.backup(database)
        return self.programs

    async def remove(self, database: str, backup: str) -> None:
        self._answering(database)
        self.entries.pop((database, backup), None)
        self.local.pop((database, backup), None)

    def _answering(self, database: str) -> None:
        bucket = self._site.backup(database).bucket
        if self.away:
            raise TemporaryError(f"Bucket `{bucket}` does not answer.")
        if self.refused:
            raise UserError(f"Bucket `{bucket}` refused its keys. Check them.")
        if self.odd:
            raise PermanentError(f"Bucket `{bucket}` did not list: 301 (Moved).")

    async def dump(self, request: DumpRequest, progress: Progress) -> SignedManifest:
        database = self._site.database(request.database)
        key = (request.database, request.id)
        if not request.copy_only:
            self._answering(request.database)
        known = self.local.get(key) if request.copy_only else self.entries.get(key)
        if known is None:
            measured = await self._postgres.fingerprint(database.ref, database.invariants)
            progress(ProgressReport(done=1000, total=1000, phase="dump"))
            known = await self._made(request.id, request.database, measured, Provenance.ATTESTED)
        if self._site.backup(request.database).local_directory is not None:
            self.local[key] = known
        if not request.copy_only:
            self.entries[key] = known
        return SignedManifest.sign(known.manifest, SIGNING_KEY)

    async def load(self, request: LoadRequest, progress: Progress) -> None:
        key = (request.database, request.backup)
        copied = self.away or self.refused or self.odd or (key in self.entries and self.entries[key].lost)
        if copied and key not in self.local:
            self._answering(request.database)
        entry = self.local[key] if copied and key in self.local else self._usable(*key)
        database = self._site.database(request.database)
        there = await self._postgres.database(request.into)
        if there is not None and there.mark == request.mark and request.mark.startswith(SCRATCH):
            await self._postgres.discard(request.into, mark=request.mark)
        await self._postgres.create(
            request.into, owner=database.owner, cluster_globals=entry.manifest.globals, mark=request.mark
        )
        made = self._postgres.servers[request.into.server].databases[request.into.name]
        made.fingerprint, made.bytes = entry.manifest.fingerprint, entry.manifest.database_bytes
        progress(ProgressReport(done=made.bytes, total=made.bytes, phase="restore"))

    async def verify(self, database: str, backup: str, progress: Progress) -> CatalogueEntry:
        self._answering(database)
        entry = self._usable(database, backup)
        size = entry.manifest.stored.bytes
        progress(ProgressReport(done=size, total=size, phase="verify"))
        self.entries[database, backup] = entry.model_copy(update={"verified_at": self._clock.now()})
        return self.entries[database, backup]

    async def adopt(self, request: AdoptRequest, progress: Progress) -> SignedManifest:
        known = self.entries.get((request.database, request.id))
        if known is None:
            if request.source_key not in self.found:
                bucket = self._site.backup(request.database).bucket
                raise UserError(f"Bucket `{bucket}` has no object `{request.source_key}`.")
            mark, owner = request.mark, self._site.database(request.database).owner
            await self._postgres.create(request.scratch, owner=owner, cluster_globals=Globals(), mark=mark)
            progress(ProgressReport(done=1, total=1, phase="restore"))
            known = self.entries[request.database, request.id] = await self._made(
                request.id, request.database, self.found[request.source_key], Provenance.ADOPTED
            )
            await self._postgres.discard(request.scratch, mark=mark)
        return SignedManifest.sign(known.manifest, SIGNING_KEY)

    async def copy(self, request: CopyRequest, progress: Progress) -> None:
        measured = await self._postgres.fingerprint(request.source, self._site.database(request.database).invariants)
        found = await self._postgres.database(request.into)
        if found is not None and found.mark == request.mark and request.mark.startswith(SCRATCH):
            await self._postgres.discard(request.into, mark=request.mark)
        owner = self._site.database(request.database).owner
        await self._postgres.create(request.into, owner=owner, cluster_globals=Globals(), mark=request.mark)
        progress(ProgressReport(done=1, total=1, phase="restore"))
        self._postgres.servers[request.into.server].databases[request.into.name].fingerprint = measured

    def _usable(self, database: str, backup: str) -> CatalogueEntry:
        entry = self.entries.get((database, backup))
        if entry is None:
            raise UserError(f"There is no backup `{backup}` of `{database}`. Choose one of the catalogue.")
        if entry.problem is not None:
            raise VerificationError(entry.problem)
        return entry

    async def _made(self, backup: str, name: str, measured: Fingerprint, provenance: Provenance) -> CatalogueEntry:
        policy, database = self._site.backup(name), self._site.database(name)
        server = await self._postgres.server(database.server)
        facts = await self._postgres.database(database.ref)
        now = self._clock.now()
        manifest = Manifest(
            id=backup,
            database=name,
            server=database.server,
            provenance=provenance,
            system_id=server.system_id,
            server_version=server.version,
            lsn="0/1000000",
            snapshot_at=now,
            finished_at=now + timedelta(seconds=10),
            duration_ms=10_000,
            stored=StoredObject(
                bucket=policy.bucket, key=f"{policy.prefix}{name}/{backup}/dump.age", bytes=1000, sha256="0" * 64
            ),
            plain_bytes=2000,
            plain_sha256="1" * 64,
            compression="zstd",
            recipients=policy.recipients,
            database_bytes=facts.bytes if facts is not None else 0,
            fingerprint=measured,
            globals=Globals(database_owner=database.owner),
        )
        body = SignedManifest.sign(manifest, SIGNING_KEY).model_dump_json().encode()
        return CatalogueEntry(manifest=manifest, manifest_sha256=hashlib.sha256(body).hexdigest())
