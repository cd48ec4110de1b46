"""A site on the tests' PostgreSQL and S3 servers, with an engine of logical backups on it."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyrage
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from actions.adapters.clock import SystemClock
from actions.adapters.postgres import PostgresServers
from actions.adapters.postgres_tables import PostgresTables
from actions.adapters.postgres_tools import PostgresPrograms
from actions.adapters.s3 import S3Store
from actions.adapters.secrets import SecretReferences
from actions.backup.loading import DISK_RESERVE
from actions.backup.logical import LogicalEngine
from actions.ports import ObjectStore
from actions.site import BackupPolicy, Bucket, Database, DatabaseRef, Invariant, Server, Site

SERVER = "main"


@dataclass
class Keys:
    """An age identity and a signing key of one test."""

    identity: str = field(default_factory=lambda: str(pyrage.x25519.Identity.generate()))
    signing: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def recipient(self) -> str:
        return str(pyrage.x25519.Identity.from_str(self.identity).to_public())

    @property
    def pem(self) -> str:
        return self.signing.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    @property
    def signer(self) -> str:
        return base64.b64encode(self.signing.public_key().public_bytes_raw()).decode()


@dataclass
class DumpWorld:
    """One protected database. `values` are the secrets by name of the environment."""

    site: Site
    values: dict[str, str]
    directory: Path
    database: str
    bucket: str
    keys: Keys

    def __post_init__(self) -> None:
        self.secrets = SecretReferences(self.values)
        self.postgres = PostgresServers(self.site, self.secrets)
        self.objects = S3Store(self.site, self.secrets)
        programs = PostgresPrograms(self.site, self.secrets, private_directory=self.directory / "private")
        self.tables = PostgresTables(self.site, self.secrets, programs)
        self.engine = self.engine_over(self.objects)

    def engine_over(self, objects: ObjectStore, *, disk_reserve: int = DISK_RESERVE) -> LogicalEngine:
        return LogicalEngine(
            self.site,
            postgres=self.postgres,
            objects=objects,
            secrets=self.secrets,
            clock=SystemClock(),
            tools=PostgresPrograms(self.site, self.secrets, private_directory=self.directory / "private"),
            work_directory=self.directory / "spool",
            disk_reserve=disk_reserve,
        )

    @property
    def ref(self) -> DatabaseRef:
        return self.site.database(self.database).ref

    @property
    def policy(self) -> BackupPolicy:
        return self.site.backup(self.database)

    def with_policy(self, **changes: object) -> DumpWorld:
        """The same world under another backup policy."""
        policy = self.policy.model_copy(update=changes)
        site = self.site.model_copy(update={"backups": {self.database: policy}})
        return DumpWorld(site, self.values, self.directory, self.database, self.bucket, self.keys)

    def job_command(self) -> list[str]:
        """An argv prefix that runs a job on this world in a process of its own."""
        path = self.directory / "world.json"
        path.write_text(
            json.dumps(
                {
                    "site": self.site.model_dump(mode="json"),
                    "values": self.values,
                    "directory": str(self.directory),
                    "database": self.database,
                    "bucket": self.bucket,
                }
            )
        )
        return [sys.executable, "-m", "tests.dump_job", str(path)]

    def job_environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(Path(__file__).parent.parent), "PATH": os.environ["PATH"]}


def a_dump_world(
    directory: Path,
    *,
    dsn: str,
    endpoint: str,
    access_key: str,
    secret_key: str,
    bucket: str,
    database: str,
    owner: str = "app",
    invariants: tuple[Invariant, ...] = (),
    local: bool = False,
) -> DumpWorld:
    """A site with one server, one database, one bucket."""
    keys = Keys()
    values = {"DSN": dsn, "ACCESS": access_key, "SECRET": secret_key, "IDENTITY": keys.identity, "SIGNING": keys.pem}
    site = Site(
        servers={SERVER: Server(name=SERVER, admin_dsn="env:DSN")},
        databases={database: Database(name=database, server=SERVER, owner=owner, invariants=invariants)},
        buckets={bucket: Bucket(name=bucket, endpoint=endpoint, access_key="env:ACCESS", secret_key="env:SECRET")},
        backups={
            database: BackupPolicy(
                database=database,
                bucket=bucket,
                recipients=(keys.recipient,),
                identity="env:IDENTITY",
                signing_key="env:SIGNING",
                trusted_signers=(keys.signer,),
                local_directory=str(directory / "local") if local else None,
            )
        },
    )
    return DumpWorld(site, values, directory, database, bucket, keys)
