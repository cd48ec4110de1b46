"""An engine of backups in memory: a dump is a copy of the fake database's fingerprint, with a signed manifest."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from actions.backup.manifest import Fingerprint, Globals, Manifest, Provenance, SignedManifest, StoredObject
from actions.errors import UserError, VerificationError
from actions.ports import (
    AdoptRequest,
    BackupEngine,
    CatalogueEntry,
    Clock,
    DumpRequest,
    LoadRequest,
    Progress,
    ProgressReport,
)
from actions.site import Site
from tests.fakes.clock import MemoryClock
from tests.fakes.postgres import SCRATCH, MemoryPostgres

SIGNING_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SIGNER = base64.b64encode(SIGNING_KEY.public_key().public_bytes_raw()).decode()


class MemoryBackups(BackupEngine):
    """`found` is what `adopt` may adopt: object key -> what a restore of it would measure. `spoil` breaks a backup."""

    def __init__(self, site: Site, postgres: MemoryPostgres, clock: Clock | None = None) -> None:
        self._site, self._postgres = site, postgres
        self._clock = clock or MemoryClock()
        self.entries: dict[tuple[str, str], CatalogueEntry] = {}
        self.found: dict[str, Fingerprint] = {}

    def spoil(self, database: str, backup: str, problem: str) -> None:
        """From now on this backup must not be used."""
        entry = self.entries[database, backup]
        self.entries[database, backup] = entry.model_copy(update={"problem": problem})

    async def catalogue(self, database: str) -> Sequence[CatalogueEntry]:
        self._site.backup(database)
        mine = [entry for (name, _), entry in self.entries.items() if name == database]
        return sorted(mine, key=lambda entry: entry.manifest.snapshot_at, reverse=True)

    async def find(self, database: str, backup: str) -> CatalogueEntry | None:
        self._site.backup(database)
        return self.entries.get((database, backup))

    async def dump(self, request: DumpRequest, progress: Progress) -> SignedManifest:
        database = self._site.database(request.database)
        known = self.entries.get((request.database, request.id))
        if known is None:
            measured = await self._postgres.fingerprint(database.ref, database.invariants)
            progress(ProgressReport(done=1000, total=1000, phase="dump"))
            known = await self._catalogued(request.id, request.database, measured, Provenance.ATTESTED)
        return SignedManifest.sign(known.manifest, SIGNING_KEY)

    async def load(self, request: LoadRequest, progress: Progress) -> None:
        entry = self._usable(request.database, request.backup)
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
            known = await self._catalogued(
                request.id, request.database, self.found[request.source_key], Provenance.ADOPTED
            )
            await self._postgres.discard(request.scratch, mark=mark)
        return SignedManifest.sign(known.manifest, SIGNING_KEY)

    def _usable(self, database: str, backup: str) -> CatalogueEntry:
        entry = self.entries.get((database, backup))
        if entry is None:
            raise UserError(f"There is no backup `{backup}` of `{database}`. Choose one of the catalogue.")
        if entry.problem is not None:
            raise VerificationError(entry.problem)
        return entry

    async def _catalogued(
        self, backup: str, name: str, measured: Fingerprint, provenance: Provenance
    ) -> CatalogueEntry:
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
        entry = CatalogueEntry(manifest=manifest, manifest_sha256=hashlib.sha256(body).hexdigest())
        self.entries[name, backup] = entry
        return entry
