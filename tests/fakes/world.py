"""A whole world in memory: one shop with its database, its workloads and its backups, behind the ports of an action."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import gettempdir

import pyrage

from actions.backup.escrow import Escrows
from actions.backup.files import FileCopies
from actions.backup.jobs import Engines
from actions.backup.manifest import Fingerprint, Sequence
from actions.backup.manifest_branches import ManifestBranches
from actions.backup.manifest_mirrors import ManifestMirrors
from actions.backup.point_parts import Parts
from actions.backup.points import RecoveryPoints
from actions.backup.secret_copies import EscrowedSecrets
from actions.errors import DrError
from actions.ports import Autoscaler, GitOps, Ports
from actions.site import (
    BackupPolicy,
    Bucket,
    ClusterAccess,
    Database,
    DatabaseRef,
    EscrowPolicy,
    FilesPolicy,
    ImagesPolicy,
    Invariant,
    ManifestsPolicy,
    PhysicalPolicy,
    PointsPolicy,
    ScratchBudget,
    Server,
    Service,
    Site,
    WorkloadKind,
    WorkloadRef,
)
from tests.fakes.backups import SIGNER, SIGNING_PEM, MemoryBackups
from tests.fakes.buckets import MemoryBuckets
from tests.fakes.clock import MemoryClock
from tests.fakes.cluster import MemoryCluster
from tests.fakes.dump_tests import MemoryDumpTests
from tests.fakes.executor import MemoryExecutor
from tests.fakes.files import KEY_PEM, KEY_SIGNER, memory_files
from tests.fakes.git import MemoryGit, MemoryLive
from tests.fakes.manifests import an_entry
from tests.fakes.physical import MemoryPhysical, MemoryScratch
from tests.fakes.plan_versions import MemoryPlanVersions
from tests.fakes.postgres import MemoryPostgres
from tests.fakes.registry import MemoryRegistry
from tests.fakes.runs import MemoryRuns
from tests.fakes.sealing_keys import MemorySealingKeys
from tests.fakes.secret_objects import MemorySecretObjects
from tests.fakes.secrets import MemorySecrets
from tests.fakes.service import MemoryServiceCheck
from tests.fakes.tables import MemoryTables

SECRETS = {
    "env:PRIMARY_DSN": "postgresql://admin:canary-primary@primary/postgres",
    "env:SPARE_DSN": "postgresql://admin:canary-spare@spare/postgres",
    "env:APPLICATION_DSN": "postgresql://shop:canary-application@primary/shop",
    "env:S3_KEY": "canary-access-key",
    "env:S3_SECRET": "canary-secret-key",
    "env:IDENTITY": "AGE-SECRET-KEY-CANARY",
    "env:SIGNING_KEY": SIGNING_PEM,
    "env:KUBECONFIG": "canary-kubeconfig",
    "env:PUSH": "canary-push-token",
    "in the cluster": "canary-sealed",  # the beginning of every sealing key
    "in a Secret": "canary-value",
    "in a Secret, as it is stored": "Y2FuYXJ5LXZhbHVl",
}

CUSTODIAN = str(pyrage.x25519.Identity.generate())
CUSTODIAN_KEY = str(pyrage.x25519.Identity.from_str(CUSTODIAN).to_public())

START = datetime.fromisoformat("2026-11-23T10:12:00+00:00")

API = WorkloadRef("main", "shop", WorkloadKind.DEPLOYMENT, "api")
WEB = WorkloadRef("main", "shop", WorkloadKind.DEPLOYMENT, "web")
WORKER = WorkloadRef("main", "shop", WorkloadKind.STATEFUL_SET, "worker")
NIGHTLY = WorkloadRef("main", "shop", WorkloadKind.CRON_JOB, "nightly")

APP_DIGEST = f"sha256:{'a1' * 32}"
COMMIT = "4f2c1e0b9d8a7f6e5d4c3b2a1908f7e6d5c4b3a2"
ADVERTISED = "dr.example"
"""What applications reach the worker's machine by."""
HEALTH = "http://shop.example/health"
ADOPTABLE = "manual/old.dump"

GOOD = Fingerprint(
    rows={"public.orders": 10, "public.users": 3},
    sequences={"public.orders_id_seq": Sequence(last_value=10, is_called=True)},
    schema_hash="ef" * 32,
    invariants={"users": "3"},
)
DAMAGED = GOOD.model_copy(update={"rows": {"public.orders": 10, "public.users": 0}, "invariants": {"users": "0"}})


MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: shop}
spec:
  replicas: 3
  template:
    spec:
      containers:
        - {name: app, image: "app:1"}
"""


@dataclass(frozen=True, kw_only=True)
class World(Ports):
    """The ports of an action, known to be fakes, so that a test can arrange and look behind them."""

    postgres: MemoryPostgres
    objects: MemoryBuckets
    buckets: MemoryBuckets
    files: FileCopies
    escrow: Escrows
    sealing: MemorySealingKeys
    escrow_secrets: MemorySecrets  # what escrows see of keys
    secret_copies: EscrowedSecrets
    secret_objects: MemorySecretObjects
    manifests: ManifestMirrors
    branches: ManifestBranches
    git: MemoryGit
    live: MemoryLive
    registry: MemoryRegistry
    points: RecoveryPoints
    point_secrets: MemorySecrets  # what recovery points see of keys
    backups: MemoryBackups
    physical: MemoryPhysical
    scratch: MemoryScratch
    tables: MemoryTables
    executor: MemoryExecutor
    cluster: MemoryCluster
    service: MemoryServiceCheck
    secrets: MemorySecrets
    clock: MemoryClock
    runs: MemoryRuns
    plan_versions: MemoryPlanVersions


def a_site(
    *,
    database: str = "shop",
    service: bool = True,
    spare: bool = True,
    local: bool = False,
    physical: bool = False,
    mirrored: bool = False,
    copied: bool = True,
    writable: bool = False,
    sealed: bool = False,
) -> Site:
    """What the plan file of this shop would say. `database` is its key and its name in PostgreSQL."""
    protected = Database(
        name=database,
        server="primary",
        owner="shop",
        service="shop" if service else None,
        spare_server="spare" if spare else None,
        invariants=(Invariant(name="users", sql="SELECT count(*) FROM users"),),
    )
    shop = Service(
        name="shop",
        workloads=(NIGHTLY, WEB, API, WORKER),
        health_url=HEALTH,
        database_dsn="env:APPLICATION_DSN",
        config_map="shop-config",
    )
    policy = BackupPolicy(
        database=database,
        bucket="backups",
        local_directory="/var/copies" if local else None,
        recipients=("age1example",),
        identity="env:IDENTITY",
        signing_key="env:SIGNING_KEY",
        trusted_signers=(SIGNER,),
    )
    return Site(
        servers={name: Server(name=name, admin_dsn=f"env:{name.upper()}_DSN") for name in ("primary", "spare")},
        databases={database: protected},
        services={"shop": shop},
        buckets={
            name: Bucket(name=name, region=region, access_key="env:S3_KEY", secret_key="env:S3_SECRET")
            for name, region in (("backups", "eu-1"), ("uploads", "eu-1"), ("uploads-copy", "us-1"))
        },
        files={
            "uploads": FilesPolicy(
                name="uploads",
                component="Uploads",
                bucket="uploads",
                copy_bucket="uploads-copy" if copied else "",
                signing_key="env:FILES_KEY",
                trusted_signers=(KEY_SIGNER,),
            )
        },
        clusters={"main": ClusterAccess(name="main", kubeconfig="env:KUBECONFIG", sealed_secrets="kube-system")},
        escrow=EscrowPolicy(
            bucket="backups",
            minimum=2,
            recipients=(CUSTODIAN_KEY,),
            identity="env:CUSTODIAN" if writable else "",
            secrets=sealed,
            signing_key="env:FILES_KEY",
            trusted_signers=(KEY_SIGNER,),
        ),
        manifests={"main": _repository(writable=writable)} if mirrored else {},
        images=ImagesPolicy(url="https://registry.example", mirrors={"library/": "mirror/"}),
        points=PointsPolicy(
            bucket="uploads-copy", minimum=2, signing_key="env:FILES_KEY", trusted_signers=(KEY_SIGNER,)
        ),
        backups={database: policy},
        physical={"primary": _physical()} if physical else {},
        scratch=ScratchBudget(advertised_host=ADVERTISED),
    )


def _repository(*, writable: bool) -> ManifestsPolicy:
    return ManifestsPolicy(
        name="main",
        url="https://git.example/shop.git",
        path="production",
        cluster="main",
        namespace="shop",
        push="env:PUSH" if writable else "",
        bucket="backups",
        recipients=(CUSTODIAN_KEY,),
        identity="env:CUSTODIAN" if writable else "",
        signing_key="env:FILES_KEY",
        trusted_signers=(KEY_SIGNER,),
    )


def _physical() -> PhysicalPolicy:
    return PhysicalPolicy(
        server="primary",
        bucket="backups",
        wal_buckets=("backups",),
        recipients=("age1example",),
        identity="env:IDENTITY",
        signing_key="env:SIGNING_KEY",
        trusted_signers=(SIGNER,),
    )


def a_world(
    *,
    database: str = "shop",
    missing: bool = False,
    service: bool = True,
    spare: bool = True,
    gitops: bool = True,
    local: bool = False,
    physical: bool = False,
    files_damaged: bool = True,
    mirrored: bool = False,
    copied: bool = True,
    writable: bool = False,
    sealed: bool = False,
) -> World:
    """A shop whose database was damaged after the dump of 02:00 UTC, or is `missing`. It is 10:12 UTC.

    `writable`: the bot may push manifests and give sealing keys back. `sealed`: points seal Secrets."""
    site = a_site(
        database=database,
        service=service,
        spare=spare,
        local=local,
        physical=physical,
        mirrored=mirrored,
        copied=copied,
        writable=writable,
        sealed=sealed,
    )
    clock = MemoryClock(START)
    postgres = _servers(site.databases[database].ref, missing=missing)
    backups = _catalogue(site, postgres, clock, database)
    objects = _buckets(clock)
    if files_damaged:
        damage_files(objects)
    files = memory_files(site, objects, clock)
    sealing = MemorySealingKeys(clock.now)
    for name, private, days in (("key-old", "canary-sealed-old", 60), ("key-new", "canary-sealed-new", 20)):
        sealing.add_key("main", name, private, at=START - timedelta(days=days))
    signing = MemorySecrets({"env:FILES_KEY": KEY_PEM, "env:CUSTODIAN": CUSTODIAN})
    scratch = MemoryScratch(postgres, clock)
    engine = MemoryPhysical(site, postgres, scratch, clock)
    dump_tests = MemoryDumpTests(site, backups, scratch, clock)
    tables = MemoryTables(postgres)
    service_check = MemoryServiceCheck(postgres)
    service_check.connections["env:APPLICATION_DSN"] = site.databases[database].ref
    service_check.logins["env:APPLICATION_DSN"] = "shop"
    cluster, escrow = _workloads(gitops=gitops), Escrows(site, sealing, objects, signing, clock)
    _connect(cluster, service_check, postgres)
    git, live = MemoryGit(), MemoryLive()
    git.push({"production/app.yaml": MANIFEST})
    secret_objects = MemorySecretObjects(live)
    copies = EscrowedSecrets(site, secret_objects, live, objects, signing, clock)
    manifests = ManifestMirrors(
        site, git, live, cluster=cluster, objects=objects, secrets=signing, clock=clock, work=Path(gettempdir())
    )
    point_secrets = MemorySecrets({**SECRETS, "env:FILES_KEY": KEY_PEM, "env:CUSTODIAN": CUSTODIAN})
    registry = MemoryRegistry()
    registry.add("mirror/app", APP_DIGEST, tag="1")
    parts = Parts(
        site,
        backups=backups,
        physical=engine,
        files=files,
        buckets=objects,
        cluster=cluster,
        escrow=escrow,
        manifests=manifests,
        registry=registry,
        live=live,
        clock=clock,
    )
    return World(
        site=site,
        postgres=postgres,
        objects=objects,
        buckets=objects,
        files=files,
        sealing=sealing,
        escrow=escrow,
        escrow_secrets=signing,
        secret_copies=copies,
        secret_objects=secret_objects,
        manifests=manifests,
        branches=ManifestBranches(
            site, git, manifests, objects=objects, secrets=point_secrets, work=Path(gettempdir())
        ),
        git=git,
        live=live,
        registry=registry,
        points=RecoveryPoints(site, parts, copies, objects, point_secrets, clock),
        point_secrets=point_secrets,
        backups=backups,
        physical=engine,
        scratch=scratch,
        tables=tables,
        executor=MemoryExecutor(Engines(backups, engine, engine, dump_tests, tables, files)),
        cluster=cluster,
        service=service_check,
        secrets=MemorySecrets(SECRETS),
        clock=clock,
        runs=MemoryRuns(),
        plan_versions=MemoryPlanVersions(),
    )


def _buckets(clock: MemoryClock) -> MemoryBuckets:
    """Uploads are kept in versions."""
    buckets = MemoryBuckets("backups", "uploads", "uploads-copy", clock=clock)
    buckets.keep_versions("uploads")
    for number, (key, body) in enumerate((("a/cat.jpg", b"cat"), ("a/dog.jpg", b"dog"), ("b/tax.pdf", b"tax"))):
        buckets.arrange("uploads", key, body, at=START - timedelta(days=50, minutes=number))
    return buckets


def damage_files(buckets: MemoryBuckets) -> None:
    """Two hours ago one upload was replaced, an hour ago one was deleted."""
    buckets.arrange("uploads", "a/dog.jpg", b"DOG", at=START - timedelta(hours=2))
    buckets.arrange("uploads", "a/cat.jpg", None, at=START - timedelta(hours=1))


def _servers(ref: DatabaseRef, *, missing: bool) -> MemoryPostgres:
    postgres = MemoryPostgres("primary", "spare")
    if not missing:
        postgres.add(ref, owner="shop", fingerprint=DAMAGED, bytes=3_000_000_000)
        postgres.connect(ref, "shop")
    postgres.add(DatabaseRef("primary", "other"), owner="other")
    return postgres


def _connect(cluster: MemoryCluster, service: MemoryServiceCheck, postgres: MemoryPostgres) -> None:
    """The pods of `api` hold a session where the ConfigMap says, from their start to their end."""
    [ref] = service.connections.values()

    def started() -> None:
        host = cluster.configs["main", "shop", "shop-config"]["DATABASE_HOST"]
        server = service.addresses.get(host) or service.addresses.get(f"{host}:5432") or host.partition(":")[0]
        with suppress(ConnectionRefusedError, DrError):  # they try again, as those of a database that is not there do
            postgres.connect(DatabaseRef(server, ref.name), "shop")

    api = cluster.workloads[API]
    api.started, api.stopped = started, lambda: postgres.leave("shop")


def _catalogue(site: Site, postgres: MemoryPostgres, clock: MemoryClock, database: str) -> MemoryBackups:
    backups = MemoryBackups(site, postgres, clock)
    taken = START.replace(hour=2, minute=0)
    for name, days, problem in (("b-new", 0, None), ("b-old", 1, None), ("b-bad", 2, "its object is missing.")):
        at = taken - timedelta(days=days)
        backups.entries[database, name] = an_entry(
            id=name, database=database, snapshot_at=at, finished_at=at, fingerprint=GOOD, problem=problem
        )
    backups.found[ADOPTABLE] = GOOD
    return backups


def _workloads(*, gitops: bool) -> MemoryCluster:
    cluster = MemoryCluster()
    controller = GitOps(
        tool="argocd",
        kind="Application",
        namespace="argocd",
        name="shop",
        suspended=False,
        revision=COMMIT,
        automated='{"prune": true, "selfHeal": true}',
    )
    cluster.add(API, replicas=3, gitops=controller if gitops else None)
    cluster.add(WEB, replicas=2, autoscaler=Autoscaler(name="web", minimum=2, maximum=5))
    cluster.add(WORKER, replicas=1)
    cluster.add(NIGHTLY, replicas=1)
    cluster.configs["main", "shop", "shop-config"] = {"DATABASE_HOST": "primary", "COLOUR": "blue"}
    return cluster
