"""What the actions may act on: the site as the plan file describes it, without people, policy or Slack.

`bot.bootstrap` builds a `Site` from `dr-plan.yml`; actions only read it. Secrets are references
(`env:NAME`, `file:/path`, `k8s:namespace/name/key`, `vault:path#key`), resolved by the `Secrets` port.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from actions.errors import UNKNOWN_NAME, RefusedError


class Frozen(BaseModel):
    """A value: immutable, compared by content, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_timedelta="float")


T = TypeVar("T")

SecretRef = str
"""A reference to a secret, never the secret itself."""


class DatabaseRef(NamedTuple):
    """One database on one PostgreSQL server, both by the names of the plan file or of PostgreSQL."""

    server: str
    name: str

    def __str__(self) -> str:
        return f"{self.server}/{self.name}"


class WorkloadKind(StrEnum):
    DEPLOYMENT = "Deployment"
    STATEFUL_SET = "StatefulSet"
    CRON_JOB = "CronJob"


class WorkloadRef(NamedTuple):
    """One workload in one namespace of one cluster."""

    cluster: str
    namespace: str
    kind: WorkloadKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name} in {self.cluster}/{self.namespace}"


class Server(Frozen):
    """A PostgreSQL server. `admin_dsn` resolves to a libpq connection string of an administrator."""

    name: str
    admin_dsn: SecretRef
    tools: str = ""  # directory of pg_dump, pg_restore; empty: the bundled ones
    host: str | None = None  # what applications connect to; None: the address the server itself reports
    workload: WorkloadRef | None = None  # what runs it, where it runs in a cluster


class Invariant(Frozen):
    """One scalar. A restored dump must give what the dump's snapshot gave; what is restored to a moment must give an
    answer, and `expect` where people know it."""

    name: str
    sql: str
    # Left out where nothing is expected: a plan that was signed before it could be keeps its digest.
    expect: str = Field(default="", exclude_if=operator.not_)  # the answer as PostgreSQL writes it; empty: any


class Database(Frozen):
    """A database the bot protects."""

    name: str  # its name in PostgreSQL
    server: str
    owner: str  # unprivileged role that owns it
    service: str | None = None
    spare_server: str | None = None
    invariants: tuple[Invariant, ...] = ()
    quarantine: timedelta = timedelta(days=7)
    restore_jobs: int = Field(default=4, ge=1)
    rpo: timedelta = timedelta(minutes=15)
    rto: timedelta = timedelta(hours=1)

    @property
    def ref(self) -> DatabaseRef:
        return DatabaseRef(self.server, self.name)


class Service(Frozen):
    """An application: its workloads in stop order and how it is checked from outside."""

    name: str
    workloads: tuple[WorkloadRef, ...] = ()
    health_url: str | None = None
    database_dsn: SecretRef | None = None  # the connection the application itself uses
    config_map: str | None = None  # ConfigMap that holds the database host
    config_key: str = "DATABASE_HOST"


class LockMode(StrEnum):
    """Who may delete a locked version before its time: anybody, those with a special right, nobody."""

    OFF = "off"
    GOVERNANCE = "governance"
    COMPLIANCE = "compliance"


class BucketPosture(Frozen):
    """How a bucket is expected to be set up, by the plan."""

    purpose: str = ""
    versioning: bool = False
    object_lock: LockMode = LockMode.OFF
    locks_for: timedelta | None = None  # what a new version is to get by default; None: as long as `kept` at most
    kept: Mapping[str, timedelta] = {}  # what is stored here and deleted by the bot -> how long the plan keeps it
    encryption: str = ""  # what the store encrypts with, such as AES256; asked for with every object that is stored
    replicates_to: str = ""  # the bucket at the other end
    keep_versions: timedelta | None = None  # how long a replaced or deleted version must stay
    used: tuple[str, ...] = ()  # prefixes whose objects the bot needs and deletes itself when their time has come


class Bucket(Frozen):
    """An S3-compatible bucket."""

    name: str
    endpoint: str | None = None
    region: str = "us-east-1"
    access_key: SecretRef
    secret_key: SecretRef
    prover_access_key: SecretRef = ""  # reads it for a restore test; empty: `access_key` does
    prover_secret_key: SecretRef = ""
    posture: BucketPosture = BucketPosture()


class BackupPolicy(Frozen):
    """How one database is dumped and who can read the dump."""

    database: str
    bucket: str
    prefix: str = "dumps/"
    local_directory: str | None = None
    recipients: tuple[str, ...]  # age public keys, at least one
    identity: SecretRef  # age identity that opens dumps for a restore
    prover_identity: SecretRef = ""  # opens them for a restore test; empty: `identity` does
    signing_key: SecretRef  # Ed25519 private key, PEM, signs manifests
    trusted_signers: tuple[str, ...]  # Ed25519 public keys, base64 of the 32 raw bytes
    proof_signing_key: SecretRef = ""  # signs the results of restore tests; empty: `signing_key` does
    proof_signers: tuple[str, ...] = ()  # trusted for those alone, besides `trusted_signers`
    retention: timedelta = timedelta(days=30)
    schedule: str = "02:00 UTC"


DEFAULT_ENGINE = "native"
"""Makes base backups where the plan file does not say."""


class PhysicalPolicy(Frozen):
    """How one server is backed up physically: base backups, incrementals and WAL of all its databases at once."""

    server: str
    engine: str = DEFAULT_ENGINE  # by its name in `actions.engines`
    bucket: str  # of base backups and incrementals
    copy_bucket: str = ""  # in another region, for a copy of each of them; empty: there is none
    prefix: str = "physical/"
    wal_buckets: tuple[str, ...]  # closed segments go into every one of them, in different regions where there are two
    open_bucket: str = ""  # of the byte ranges of the open segment: a bucket without Object Lock; empty: none are sent
    recipients: tuple[str, ...]  # age public keys, at least one
    identity: SecretRef  # age identity that opens backups and WAL for a restore
    prover_identity: SecretRef = ""  # opens them for a restore test; empty: `identity` does
    signing_key: SecretRef  # Ed25519 private key, PEM
    trusted_signers: tuple[str, ...]  # Ed25519 public keys, base64 of the 32 raw bytes
    proof_signing_key: SecretRef = ""  # signs the results of restore tests; empty: `signing_key` does
    proof_signers: tuple[str, ...] = ()  # trusted for those alone, besides `trusted_signers`
    full_schedule: str = "02:30 UTC"
    incremental_every: timedelta | None = timedelta(minutes=15)  # None: full backups alone
    full_retention: timedelta = timedelta(days=30)
    incremental_retention: timedelta = timedelta(days=7)
    wal_retention: timedelta = timedelta(days=7)
    minimum_fulls: int = Field(default=2, ge=1)  # never fewer usable full backups than this
    amcheck: bool = False  # restores and restore tests compare indexes with tables
    slot: str = "drbot_wal"  # of `drbot wal`
    standbys: tuple[str, ...] = ()  # servers that `drbot wal` keeps its slot on as well, for after a failover
    synchronous: bool = False  # commits wait until the archiver's disk has them
    own: BaseModel | None = None  # keys that this engine alone has, as it declares them

    @property
    def base_buckets(self) -> tuple[str, ...]:
        """Where base backups are: the one they are made into first."""
        return (self.bucket, self.copy_bucket) if self.copy_bucket else (self.bucket,)


class FilesPolicy(Frozen):
    """How the files of one bucket are kept: copied into a bucket of another region, or by their own old versions."""

    name: str  # what commands call it
    component: str  # what the written plan calls it
    bucket: str
    prefix: str = ""  # of the files; empty: all of the bucket
    copy_bucket: str = ""  # empty: there is no copy, the versions in their own bucket are the backup
    copy_prefix: str = ""  # of everything the bot writes there
    schedule: str = "03:00 UTC"
    retention: timedelta = timedelta(days=30)  # of a copy; of old versions where there is none
    signing_key: SecretRef  # Ed25519 private key, PEM, signs the manifest of a copy
    trusted_signers: tuple[str, ...]  # Ed25519 public keys, base64 of the 32 raw bytes


class EscrowPolicy(Frozen):
    """Where the keys of the clusters are kept for a cluster that is to replace them."""

    bucket: str
    prefix: str = ""
    schedule: str = "04:00 UTC"
    retention: timedelta = timedelta(days=90)
    minimum: int = Field(default=3, ge=1)  # of each cluster: so many of the newest usable ones stay whatever their age
    recipients: tuple[str, ...]  # age public keys, at least one
    identity: SecretRef = ""  # age identity by which the bot gives back what is in it; empty: custodians alone do
    secrets: bool = False  # whether a recovery point seals the Secrets of the services that nothing else brings back
    signing_key: SecretRef  # Ed25519 private key, PEM
    trusted_signers: tuple[str, ...]  # Ed25519 public keys, base64 of the 32 raw bytes


class EvidencePolicy(Frozen):
    """Where files that are evidence are kept."""

    bucket: str
    prefix: str = ""
    recipients: tuple[str, ...]  # age public keys, at least one


class ManifestsPolicy(Frozen):
    """The repository that holds manifests of a cluster, and where its mirror is kept."""

    name: str  # what commands call it
    url: str
    branch: str = "main"
    path: str = ""  # folder of the manifests; empty: all of the repository
    cluster: str = ""  # the one they describe; empty: it is not there yet
    namespace: str = "default"  # of objects that name none
    username: SecretRef = ""  # empty: git
    password: SecretRef = ""  # or token; empty: nobody logs in
    push: SecretRef = ""  # token that may write; empty: nothing is ever pushed
    bucket: str
    prefix: str = ""
    every: timedelta = timedelta(minutes=15)
    recipients: tuple[str, ...]  # age public keys, at least one
    identity: SecretRef = ""  # age identity that opens bundles; empty: custodians alone do
    signing_key: SecretRef  # Ed25519 private key, PEM
    trusted_signers: tuple[str, ...]  # Ed25519 public keys, base64 of the 32 raw bytes


class ImagesPolicy(Frozen):
    """The registry that a cluster in the recovery region pulls from."""

    url: str
    username: SecretRef = ""
    password: SecretRef = ""
    mirrors: Mapping[str, str] = {}  # prefix of an image's name -> prefix of its repository there
    retention: timedelta = timedelta(days=90)  # then the registry lets an image go, unless it is on the bot's list


class PointsPolicy(Frozen):
    """Where recovery points are recorded."""

    bucket: str
    prefix: str = ""
    every: timedelta = timedelta(hours=1)
    retention: timedelta = timedelta(days=90)
    minimum: int = Field(default=24, ge=1)  # so many of the newest usable ones stay whatever their age
    signing_key: SecretRef  # Ed25519 private key, PEM
    trusted_signers: tuple[str, ...]  # Ed25519 public keys, base64 of the 32 raw bytes


class ScratchBudget(Frozen):
    """What scratch instances may take on the machine of the worker."""

    disk: int = 200 << 30  # bytes, all of them together
    instances: int = Field(default=3, ge=1)
    lifetime: timedelta = timedelta(hours=12)  # then it is stopped and removed
    advertised_host: str = ""  # what applications reach the machine of the worker by; empty: nobody outside of it
    ports: tuple[int, int] | None = None  # first and last that they may listen on; None: any that is free


class ClusterAccess(Frozen):
    """A Kubernetes cluster. `kubeconfig` resolves to the text of a kubeconfig."""

    name: str
    kubeconfig: SecretRef
    context: str | None = None
    sealed_secrets: str = ""  # namespace of the SealedSecrets controller; empty: none


class JobSecret(Frozen):
    """A Secret that jobs in the cluster see: as files under `path`, or as environment variables where that is empty."""

    name: str
    path: str = ""
    kinds: tuple[str, ...] = ()  # jobs that get it, by `JobKind`; empty: all


class JobClaim(Frozen):
    """A PersistentVolumeClaim that jobs mount."""

    name: str
    path: str


class JobPlace(Frozen):
    """Where heavy steps run as Kubernetes Jobs, and what they may take."""

    cluster: str
    namespace: str
    image: str
    plan_config_map: str  # holds the plan file under the key `dr-plan.yml`
    service_account: str = ""  # with its token; empty: none, the usual case
    prover_service_account: str = ""  # of restore tests; empty: that of the others
    claims: tuple[JobClaim, ...] = ()
    secrets: tuple[JobSecret, ...] = ()
    cpu: str = "2"
    memory: str = "2Gi"
    ephemeral_storage: str = "1Gi"
    keep_finished: timedelta = timedelta(days=1)


class Site(Frozen):
    """Everything the actions may act on, by name."""

    servers: Mapping[str, Server] = {}
    databases: Mapping[str, Database] = {}
    services: Mapping[str, Service] = {}
    buckets: Mapping[str, Bucket] = {}
    clusters: Mapping[str, ClusterAccess] = {}
    backups: Mapping[str, BackupPolicy] = {}  # by database
    physical: Mapping[str, PhysicalPolicy] = {}  # by server
    files: Mapping[str, FilesPolicy] = {}  # by name
    escrow: EscrowPolicy | None = None
    evidence: EvidencePolicy | None = None
    manifests: Mapping[str, ManifestsPolicy] = {}  # by name
    images: ImagesPolicy | None = None
    points: PointsPolicy | None = None
    scratch: ScratchBudget = ScratchBudget()
    prover_apart: bool = False  # restore tests run where a prover of their own is, with its scratch instances
    jobs: JobPlace | None = None

    def database(self, name: str) -> Database:
        """Raise UserError when the plan file knows no such database."""
        return _known(self.databases, name, "database")

    def service(self, name: str) -> Service:
        """Raise UserError when the plan file knows no such service."""
        return _known(self.services, name, "service")

    def backup(self, database: str) -> BackupPolicy:
        """Raise UserError when the plan file has no backup policy for this database."""
        return _known(self.backups, database, "backup policy for database")

    def files_of(self, name: str) -> FilesPolicy:
        """Raise UserError when the plan file has no files by this name."""
        return _known(self.files, name, "files")

    def manifests_of(self, name: str) -> ManifestsPolicy:
        """Raise UserError when the plan file has no manifests repository by this name."""
        return _known(self.manifests, name, "manifests repository")

    def physical_of(self, server: str) -> PhysicalPolicy:
        """Raise UserError when the plan file has no base backups for this server."""
        return _known(self.physical, server, "base backup for server")

    @property
    def service_clusters(self) -> list[str]:
        """Clusters that workloads of a service run in."""
        return sorted({ref.cluster for service in self.services.values() for ref in service.workloads})

    def endpoint_of(self, bucket: str) -> str | None:
        """The address of the store that has it, for commands by hand; None for the provider's own, and for a bucket
        that the plan file does not know."""
        known = self.buckets.get(bucket)
        return None if known is None else known.endpoint

    def as_prover(self) -> Site:
        """The site as restore tests see it: backups are read and opened with what the prover has, and dumps come from
        their bucket alone, since that is what is tested."""
        proven = {
            server: policy.model_copy(update={"identity": policy.prover_identity or policy.identity})
            for server, policy in self.physical.items()
        }
        dumped = {
            database: policy.model_copy(
                update={"identity": policy.prover_identity or policy.identity, "local_directory": None}
            )
            for database, policy in self.backups.items()
        }
        read = {
            name: bucket.model_copy(
                update={"access_key": bucket.prover_access_key, "secret_key": bucket.prover_secret_key}
            )
            for name, bucket in self.buckets.items()
            if bucket.prover_access_key
        }
        changes = {"physical": proven, "backups": dumped, "buckets": {**self.buckets, **read}}
        return self.model_copy(update=changes)


def _known(table: Mapping[str, T], name: str, noun: str) -> T:
    if name in table:
        return table[name]
    known = ", ".join(f"`{key}`" for key in sorted(table)) or "none"
    raise RefusedError(f"The plan file knows no {noun} `{name}`. Known: {known}.", code=UNKNOWN_NAME)
