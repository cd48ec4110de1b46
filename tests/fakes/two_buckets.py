"""Base backups in two buckets of different regions, small and signed; nothing in them can be opened."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from actions.adapters.pg_waldump import PgWaldump
from actions.adapters.postgres_physical import PhysicalPrograms
from actions.adapters.scratch_server import ScratchPrograms
from actions.backup.manifest import StoredObject
from actions.backup.native import NativeEngine
from actions.backup.native_catalogue import BaseFolder
from actions.backup.physical import PhysicalEntry, PhysicalManifest
from actions.backup.signing import Signed
from actions.ports import ObjectStore
from actions.site import Bucket, PhysicalPolicy, Server, Site
from tests.dump_world import Keys
from tests.fakes.clock import START, MemoryClock
from tests.fakes.entries import an_entry
from tests.fakes.s3 import MemoryObject
from tests.fakes.secrets import MemorySecrets
from tests.wal_world import UnsteadyObjects

NEAR, FAR, SERVER = "near", "far", "main"


@dataclass
class TwoBuckets:
    """A server of which `put` stores backups into one bucket, as a run does that has died before its copy."""

    directory: Path
    keys: Keys = field(default_factory=Keys)
    clock: MemoryClock = field(default_factory=MemoryClock)
    objects: UnsteadyObjects = field(default_factory=lambda: UnsteadyObjects(NEAR, FAR))

    def __post_init__(self) -> None:
        self.policy = PhysicalPolicy(
            server=SERVER,
            bucket=NEAR,
            copy_bucket=FAR,
            wal_buckets=(NEAR, FAR),
            recipients=(self.keys.recipient,),
            identity="env:IDENTITY",
            signing_key="env:SIGNING",
            trusted_signers=(self.keys.signer,),
        )
        self.site = Site(
            servers={SERVER: Server(name=SERVER, admin_dsn="env:DSN")},
            buckets={
                name: Bucket(name=name, region=f"{name}-1", access_key="env:A", secret_key="env:S")
                for name in (NEAR, FAR)
            },
            physical={SERVER: self.policy},
        )

    def engine(self, objects: ObjectStore | None = None) -> NativeEngine:
        """A worker of its own, which remembers nothing."""
        secrets = MemorySecrets({"env:IDENTITY": self.keys.identity, "env:SIGNING": self.keys.pem})
        return NativeEngine(
            self.site,
            objects=objects or self.objects,
            secrets=secrets,
            clock=self.clock,
            tools=PhysicalPrograms(self.site, secrets, private_directory=self.directory / "private"),
            servers=ScratchPrograms(self.site),
            records=lambda _: PgWaldump(),
            scratch_directory=self.directory / "scratch",
            work_directory=self.directory / "spool",
        )

    async def put(
        self,
        name: str,
        at: datetime = START - timedelta(hours=1),
        *,
        parent: str | None = None,
        bucket: str = NEAR,
        keys: Keys | None = None,
        segment: int = 3,
    ) -> None:
        folder, body, files = (
            BaseFolder(self.policy, name),
            f"base of {name}".encode() * 99,
            f"files of {name}".encode(),
        )
        found = an_entry(name, at, parent=parent, segment=segment).manifest
        update = {
            "system_id": "7",
            "stored": _stored(folder.base, body),
            "files": _stored(folder.files, files),
        }
        manifest = found.model_copy(update=update)
        await self.objects.put(bucket, folder.base, body)
        await self.objects.put(bucket, folder.files, files)
        signed = Signed[PhysicalManifest].sign(manifest, (keys or self.keys).signing)
        await self.objects.put(bucket, folder.manifest, signed.body())

    def bodies(self, bucket: str, backup: str) -> dict[str, bytes]:
        """By the name of the object; records left out."""
        folder = BaseFolder(self.policy, backup)
        wanted = (folder.base, folder.files, folder.manifest)
        return {key: self.objects.buckets[bucket][key].body for key in wanted if key in self.objects.buckets[bucket]}

    def flip(self, bucket: str, key: str) -> None:
        """One bit of a stored object."""
        stored = self.objects.buckets[bucket][key]
        place = len(stored.body) // 2
        body = stored.body[:place] + bytes([stored.body[place] ^ 1]) + stored.body[place + 1 :]
        self.objects.buckets[bucket][key] = MemoryObject(body, stored.modified_at)

    def base(self, backup: str) -> str:
        return BaseFolder(self.policy, backup).base

    async def entry(self, backup: str) -> PhysicalEntry:
        entries = await self.engine().catalogue(SERVER)
        return next(entry for entry in entries if entry.manifest.id == backup)


def _stored(key: str, body: bytes) -> StoredObject:
    return StoredObject(bucket=NEAR, key=key, bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
