"""A whole world in memory: one shop with its database, its workloads and its backups, behind the ports of an action."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from actions.backup.jobs import Engines
from actions.backup.manifest import Fingerprint, Sequence
from actions.ports import Autoscaler, GitOps, Ports
from actions.site import (
    BackupPolicy,
    Bucket,
    ClusterAccess,
    Database,
    DatabaseRef,
    Invariant,
    PhysicalPolicy,
    Server,
    Service,
    Site,
    WorkloadKind,
    WorkloadRef,
)
from tests.fakes.backups import SIGNER, SIGNING_PEM, MemoryBackups
from tests.fakes.clock import MemoryClock
from tests.fakes.cluster import MemoryCluster
from tests.fakes.executor import MemoryExecutor
from tests.fakes.manifests import an_entry
from tests.fakes.physical import MemoryPhysical, MemoryScratch
from tests.fakes.plan_versions import MemoryPlanVersions
from tests.fakes.postgres import MemoryPostgres
from tests.fakes.runs import MemoryRuns
from tests.fakes.s3 import MemoryObjects
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
}

START = datetime.fromisoformat("2026-11-23T10:12:00+00:00")

API = WorkloadRef("main", "shop", WorkloadKind.DEPLOYMENT, "api")
WEB = WorkloadRef("main", "shop", WorkloadKind.DEPLOYMENT, "web")
WORKER = WorkloadRef("main", "shop", WorkloadKind.STATEFUL_SET, "worker")
NIGHTLY = WorkloadRef("main", "shop", WorkloadKind.CRON_JOB, "nightly")

HEALTH = "http://shop.example/health"
ADOPTABLE = "manual/old.dump"

GOOD = Fingerprint(
    rows={"public.orders": 10, "public.users": 3},
    sequences={"public.orders_id_seq": Sequence(last_value=10, is_called=True)},
    schema_hash="ef" * 32,
    invariants={"users": "3"},
)
DAMAGED = GOOD.model_copy(update={"rows": {"public.orders": 10, "public.users": 0}, "invariants": {"users": "0"}})


@dataclass(frozen=True, kw_only=True)
class World(Ports):
    """The ports of an action, known to be fakes, so that a test can arrange and look behind them."""

    postgres: MemoryPostgres
    objects: MemoryObjects
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
    *, database: str = "shop", service: bool = True, spare: bool = True, local: bool = False, physical: bool = False
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
        buckets={"backups": Bucket(name="backups", access_key="env:S3_KEY", secret_key="env:S3_SECRET")},
        clusters={"main": ClusterAccess(name="main", kubeconfig="env:KUBECONFIG")},
        backups={database: policy},
        physical={"primary": _physical()} if physical else {},
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
) -> World:
    """A shop whose database was damaged after the dump of 02:00 UTC, or is `missing`. It is 10:12 UTC."""
    site = a_site(database=database, service=service, spare=spare, local=local, physical=physical)
    clock = MemoryClock(START)
    postgres = _servers(site.databases[database].ref, missing=missing)
    backups = _catalogue(site, postgres, clock, database)
    objects = MemoryObjects("backups", clock=clock)
    scratch = MemoryScratch(postgres, clock)
    engine = MemoryPhysical(site, postgres, scratch, clock)
    tables = MemoryTables(postgres)
    service_check = MemoryServiceCheck(postgres)
    service_check.connections["env:APPLICATION_DSN"] = site.databases[database].ref
    return World(
        site=site,
        postgres=postgres,
        objects=objects,
        backups=backups,
        physical=engine,
        scratch=scratch,
        tables=tables,
        executor=MemoryExecutor(Engines(backups, engine, tables)),
        cluster=_workloads(gitops=gitops),
        service=service_check,
        secrets=MemorySecrets(SECRETS),
        clock=clock,
        runs=MemoryRuns(),
        plan_versions=MemoryPlanVersions(),
    )


def _servers(ref: DatabaseRef, *, missing: bool) -> MemoryPostgres:
    postgres = MemoryPostgres("primary", "spare")
    if not missing:
        postgres.add(ref, owner="shop", fingerprint=DAMAGED, bytes=3_000_000_000)
        postgres.connect(ref)
    postgres.add(DatabaseRef("primary", "other"), owner="other")
    return postgres


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
    controller = GitOps(tool="argocd", kind="Application", namespace="argocd", name="shop", suspended=False)
    cluster.add(API, replicas=3, gitops=controller if gitops else None)
    cluster.add(WEB, replicas=2, autoscaler=Autoscaler(name="web", minimum=2, maximum=5))
    cluster.add(WORKER, replicas=1)
    cluster.add(NIGHTLY, replicas=1)
    cluster.configs["main", "shop", "shop-config"] = {"DATABASE_HOST": "primary", "COLOUR": "blue"}
    return cluster
