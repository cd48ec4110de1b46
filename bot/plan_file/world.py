"""What the plan protects: servers, databases, clusters, services and buckets."""

import re
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from actions.site import WorkloadKind
from bot.plan_file.values import (
    Count,
    Duration,
    Flag,
    Identifier,
    KubernetesName,
    Name,
    Part,
    Positive,
    SecretRef,
    Shape,
    Text,
    TextRef,
    misfit,
)


class ServerRole(StrEnum):
    """What a PostgreSQL server is for."""

    PRIMARY = "primary"
    STANDBY = "standby"
    SPARE = "spare"


class ServerWorkload(Part):
    """What runs a server in a cluster."""

    cluster: Name
    """Cluster that runs the server."""
    namespace: KubernetesName | None = None
    """Namespace of the server; empty: the cluster's."""
    kind: Literal[WorkloadKind.STATEFUL_SET, WorkloadKind.DEPLOYMENT]
    """StatefulSet or Deployment."""
    name: KubernetesName
    """Name of the workload that runs the server."""


class Server(Part):
    """A PostgreSQL server (instance)."""

    name: Name
    """Name of the server in this plan."""
    role: ServerRole = ServerRole.PRIMARY
    """primary, standby, or spare (a server a restore may be sent to)."""
    standby_of: Name | None = None
    """The server it streams from: the archiver of that server keeps its slot here as well, for after a failover."""
    admin_dsn: SecretRef
    """Reference to the connection string of an administrator."""
    tools: str = ""
    """Directory with pg_dump and pg_restore; empty: the bundled ones."""
    host: TextRef | None = None
    """Host name applications use; written to the service's config map when it is repointed."""
    workload: ServerWorkload | None = None
    """What runs it in a cluster, scaled to 0 when another server has taken its place; empty: it runs in none."""


def _single_select(sql: str) -> str:
    statement = sql.strip().rstrip(";").rstrip()
    if ";" in statement:
        raise misfit("this is more than one statement", "give one SELECT without `;` inside")
    if not re.match(r"(?i)(select|with)\b", statement):
        raise misfit("this is not a SELECT", "give one SELECT that returns one value")
    return statement


class Invariant(Part):
    """A fact about the data that is measured with every dump and again after a restore."""

    name: Name
    """Name of the invariant."""
    sql: Annotated[str, AfterValidator(_single_select)]
    """One SELECT that returns one value."""
    expect: Text | None = None
    """The value it must give after a restore to a moment, as PostgreSQL writes it (`"0"`); empty: any but NULL."""
    description: Text
    """What it means, for the person who reads the report."""


class Database(Part):
    """A database the plan protects."""

    name: Identifier
    """Name of the database on its server."""
    server: Name
    """The server it lives on."""
    owner: Identifier
    """Role that owns it."""
    application: Name | None = None
    """The service that uses it and is stopped while a restore is switched in."""
    invariants: tuple[Invariant, ...] = ()
    """What must hold after a restore, besides rows, schema and sequences."""
    quarantine_days: Positive = 7
    """Days the replaced database is kept, renamed."""
    restore_jobs: Positive = 4
    """Parallel jobs of a restore."""
    spare_server: Name | None = None
    """Another server to restore to when the first is suspect or full."""


class Cluster(Part):
    """A Kubernetes cluster."""

    name: Name
    """Name of the cluster in this plan."""
    kubeconfig: SecretRef | None = None
    """Reference to the text of a kubeconfig, such as file:/path; empty: the service account of the pod."""
    context: Text | None = None
    """Context in the kubeconfig; empty: its current one."""
    namespace: KubernetesName
    """Namespace of services that name none."""
    sealed_secrets: KubernetesName | None = None
    """Namespace of its SealedSecrets controller; empty: it has none."""


class Workload(Part):
    """A workload of a service."""

    kind: WorkloadKind
    """Deployment, StatefulSet or CronJob."""
    name: KubernetesName
    """Its name in the namespace."""
    writes_to: tuple[Identifier, ...] = ()
    """Databases it writes to: it is stopped while one of them is replaced."""
    order: Count = 0
    """Stop order: lower first; started in reverse."""


class ConfigMapKey(Part):
    """Where a service reads the host of its database."""

    name: KubernetesName
    """Name of the config map."""
    key: Annotated[str, Shape(r"[A-Za-z0-9._-]+", "use letters, digits, `.`, `_` and `-`")]
    """Key in it."""


class Service(Part):
    """An application."""

    name: Name
    """Name of the service in this plan."""
    cluster: Name
    """The cluster it runs in."""
    namespace: KubernetesName | None = None
    """Its namespace; empty: the cluster's."""
    workloads: tuple[Workload, ...] = Field(min_length=1)
    """What runs."""
    health_url: TextRef | None = None
    """Address that answers 2xx when the service works."""
    database_check: SecretRef | None = None
    """Reference to the connection string the application itself uses."""
    config_map: ConfigMapKey | None = None
    """Where DATABASE_HOST is kept, for repointing."""


class BucketPurpose(StrEnum):
    """What a bucket holds."""

    BACKUPS = "backups"
    FILES = "files"
    EVIDENCE = "evidence"
    IMAGES = "images"
    WITNESS = "witness"


class ObjectLock(StrEnum):
    """The Object Lock mode a bucket is expected to have."""

    OFF = "off"
    GOVERNANCE = "governance"
    COMPLIANCE = "compliance"


class Bucket(Part):
    """A bucket of an S3-compatible store."""

    name: Annotated[
        str,
        Shape(
            r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
            "use a bucket name: 3 to 63 lower case letters, digits, `.` and `-`",
        ),
    ]
    """Name of the bucket at the store."""
    purpose: BucketPurpose
    """backups, files, evidence, images or witness."""
    region: TextRef
    """Region of the bucket."""
    endpoint: TextRef | None = None
    """Address of the store; empty: AWS."""
    prefix: Annotated[str, Shape(r"(?:[^/\s]+/)*", "end the folder in `/`, such as backups/")] = ""
    """Folder the bot writes to, ending in `/`."""
    access_key: SecretRef | None = None
    """Reference to the access key id; empty: the identity of the pod."""
    secret_key: SecretRef | None = None
    """Reference to the secret access key."""
    prover_access_key: SecretRef | None = None
    """Reference to the access key id of restore tests, which only read; empty: `access_key`."""
    prover_secret_key: SecretRef | None = None
    """Reference to their secret access key."""
    versioning: Flag = True
    """Whether versioning is expected."""
    object_lock: ObjectLock = ObjectLock.OFF
    """Expected Object Lock mode; a witness needs `compliance`."""
    object_lock_for: Duration | None = None
    """Expected default retention of Object Lock; empty: as long as the plan keeps anything in the bucket."""
    encryption: Literal["AES256", "aws:kms"] | None = None
    """What the store is asked to encrypt every object with (AES256, aws:kms), beside the bot's own; empty: nothing."""
    replicates_to: Text | None = None
    """Bucket the store itself replicates this one into; both sides are compared, so its keys must read it."""
