"""The adapters of the world, made from settings and plan file: the composition root of what has no database of the bot.

A job needs nothing else, and starts in half the time without Slack and the services.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from actions.adapters.clock import SystemClock
from actions.adapters.containment import Limits
from actions.adapters.executor import SubprocessExecutor
from actions.adapters.executor_beside import BesideExecutor
from actions.adapters.pg_waldump import PgWaldump
from actions.adapters.postgres import PostgresServers
from actions.adapters.postgres_physical import PhysicalPrograms
from actions.adapters.postgres_tables import PostgresTables
from actions.adapters.postgres_tools import PostgresPrograms
from actions.adapters.s3_buckets import S3Buckets
from actions.adapters.scratch import ScratchInstances
from actions.adapters.scratch_empty import EmptyScratch
from actions.adapters.scratch_server import ScratchPrograms
from actions.adapters.secrets import SecretReferences
from actions.backup.dump_scratch import DumpScratch
from actions.backup.engines import PhysicalEngines
from actions.backup.files import FileCopies
from actions.backup.finder import WalRecords
from actions.backup.jobs import SPOOL, Engines
from actions.backup.jobs import main as job_main
from actions.backup.logical import LogicalEngine
from actions.engine import Means
from actions.engines import engine_of
from actions.errors import UserError
from actions.ports import Clock, Executor, ObjectStore, Ports, PostgresAdmin, Secrets
from actions.site import Site
from bot.plan_file import DrPlan, load
from bot.redaction import texts
from bot.settings import ExecutorKind, Settings
from bot.site import site_of

if TYPE_CHECKING:  # slow to import, and a job has no business with it
    from storage.session import Database


async def job(settings: Settings, spec: Path, *, folder: Path | None = None, message: Path | None = None) -> int:
    """Run one heavy step; the exit code says how it went. Raises UserError for another plan than the worker's."""
    plan = load(settings.plan_file)
    if settings.plan_digest not in ("", digest(plan)):
        raise UserError(
            f"The plan file of this job (`{settings.plan_file}`) is not the one the worker goes by. Put that one "
            "back, or activate the new one; in a cluster, replace the ConfigMap of the jobs."
        )
    references = secret_references(settings, plan)
    site = await site_of(plan, SecretReferences())
    postgres = PostgresServers(site, references, scratch=_scratch(settings))
    objects, clock = S3Buckets(site, references), SystemClock()
    spool = (folder or spec.parent.resolve()) / SPOOL
    engine = _engine(settings, site, postgres, objects, references, clock, spool=spool)
    physical = _physical(settings, site, postgres, objects, references, clock, spool=spool)
    tables, files = _tables(settings, site, references, spool), _files(site, objects, references)
    proving = site.as_prover()
    prover = _physical(settings, proving, postgres, S3Buckets(proving, references), references, clock, spool=spool)
    tested = _engine(settings, proving, postgres, S3Buckets(proving, references), references, clock, spool=spool)
    dumps = DumpScratch(proving, tested, EmptyScratch(ScratchPrograms(proving)), clock, directory=_scratch(settings))
    engines = Engines(engine, physical, prover, dumps, tables, files)
    return await job_main(spec, engines, hide=settings.mask, folder=folder, message=message)


async def ports(settings: Settings, plan: DrPlan, database: Database, *, prover: bool = False) -> Ports:
    """Everything an action may touch, on the site of the plan file; `database` is the bot's own. For a prover with the
    keys of restore tests alone."""
    # Not needed by a job, and slow to import.
    from actions.adapters.git_branches import GitBranches
    from actions.adapters.kubernetes import KubernetesCluster
    from actions.adapters.live_objects import ClusterObjects
    from actions.adapters.registry import HttpRegistry
    from actions.adapters.sealing_keys import ClusterSealingKeys
    from actions.adapters.secret_objects import ClusterSecrets
    from actions.adapters.service_check import ServiceProbe
    from actions.backup.escrow import Escrows
    from actions.backup.manifest_branches import ManifestBranches
    from actions.backup.manifest_mirrors import ManifestMirrors
    from actions.backup.point_parts import Parts
    from actions.backup.points import RecoveryPoints
    from actions.backup.secret_copies import EscrowedSecrets
    from actions.registry import kinds
    from bot.services.approvals import Policy
    from bot.services.drills import Drills
    from bot.services.own_runs import OwnRuns
    from bot.services.plan_versions import StoredPlanVersions

    references = secret_references(settings, plan)
    whole = await site_of(plan, SecretReferences())
    site = whole.as_prover() if prover else whole
    clock = SystemClock()
    postgres, objects = PostgresServers(site, references, scratch=_scratch(settings)), S3Buckets(site, references)
    cluster = KubernetesCluster(site, references)
    backups = _engine(settings, site, postgres, objects, references, clock)
    physical, files = _physical(settings, site, postgres, objects, references, clock), _files(site, objects, references)
    escrow = Escrows(site, ClusterSealingKeys(site, references), objects, references, clock)
    directory = settings.data_directory.resolve()
    live, git = ClusterObjects(site, references), GitBranches(directory / "manifests", references)
    copies = EscrowedSecrets(site, ClusterSecrets(site, references), live, objects, references, clock)
    manifests = ManifestMirrors(
        site,
        git,
        live,
        cluster=cluster,
        objects=objects,
        secrets=references,
        clock=clock,
        work=directory / SPOOL,
    )
    registry = HttpRegistry(site.images, references)
    parts = Parts(
        site,
        backups=backups,
        physical=physical,
        files=files,
        buckets=objects,
        cluster=cluster,
        escrow=escrow,
        manifests=manifests,
        registry=registry,
        live=live,
        clock=clock,
    )
    policy = Policy(plan)
    return Ports(
        site=site,
        postgres=postgres,
        objects=objects,
        buckets=objects,
        files=files,
        escrow=escrow,
        secret_copies=copies,
        manifests=manifests,
        branches=ManifestBranches(site, git, manifests, objects=objects, secrets=references, work=directory / SPOOL),
        registry=registry,
        points=RecoveryPoints(site, parts, copies, objects, references, clock),
        backups=backups,
        physical=physical,
        scratch=ScratchInstances(site, _scratch(settings), clock),
        tables=_tables(settings, site, references),
        executor=_executor(settings, plan, site, references),
        cluster=cluster,
        service=ServiceProbe(references),
        secrets=references,
        clock=clock,
        runs=OwnRuns(database, policy, kinds(), clock, Drills(database, plan, policy, clock)),
        plan_versions=StoredPlanVersions(database),
    )


def digest(plan: DrPlan) -> str:
    """What the plan says, whatever its comments and the order of its keys."""
    return hashlib.sha256(json.dumps(plan.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _executor(settings: Settings, plan: DrPlan, site: Site, secrets: Secrets) -> Executor:
    here = SubprocessExecutor(
        settings.data_directory.resolve() / "jobs",
        [sys.executable, "-m", "bot.cli", "job"],
        environment={**_without_own_secrets(), **_same_plan(settings, plan)},
        limits=Limits(memory=settings.job_memory_mib << 20),
    )
    if settings.executor is ExecutorKind.SUBPROCESS:
        return here
    from actions.adapters.executor_kubernetes import KubernetesExecutor
    from actions.adapters.kubernetes_sessions import Sessions

    if site.jobs is None:
        raise UserError(
            "DRBOT_EXECUTOR is `kubernetes`, but the plan file has no `jobs`. Add it, or set DRBOT_EXECUTOR=subprocess."
        )
    cluster = KubernetesExecutor(site.jobs, Sessions(site, secrets), plan_digest=digest(plan))
    return BesideExecutor(here, cluster)


def secret_references(settings: Settings, plan: DrPlan) -> SecretReferences:
    """References whose values are hidden from now on in all that this process writes. The addresses of a site are
    references too, but people must be able to read them: those are resolved elsewhere."""
    settings.mask.publish(texts(plan.model_dump(mode="json")))
    return SecretReferences(seen=settings.mask.learn)


def _engine(
    settings: Settings,
    site: Site,
    postgres: PostgresAdmin,
    objects: ObjectStore,
    secrets: Secrets,
    clock: Clock,
    *,
    spool: Path | None = None,
) -> LogicalEngine:
    directory = settings.data_directory.resolve()
    work = spool or directory / SPOOL
    return LogicalEngine(
        site,
        postgres=postgres,
        objects=objects,
        secrets=secrets,
        clock=clock,
        tools=PostgresPrograms(site, secrets, private_directory=work / "private", scratch=_scratch(settings)),
        work_directory=work,
    )


def _tables(settings: Settings, site: Site, secrets: Secrets, spool: Path | None = None) -> PostgresTables:
    private, scratch = (spool or settings.data_directory.resolve() / SPOOL) / "private", _scratch(settings)
    programs = PostgresPrograms(site, secrets, private_directory=private, scratch=scratch)
    return PostgresTables(site, secrets, programs, scratch=scratch)


def _physical(
    settings: Settings,
    site: Site,
    postgres: PostgresAdmin,
    objects: ObjectStore,
    secrets: Secrets,
    clock: Clock,
    *,
    spool: Path | None = None,
) -> PhysicalEngines:
    work = spool or settings.data_directory.resolve() / SPOOL

    def records(server: str) -> WalRecords:
        return PgWaldump(site.servers[server].tools)

    means = Means(
        site=site,
        postgres=postgres,
        objects=objects,
        secrets=secrets,
        clock=clock,
        tools=PhysicalPrograms(site, secrets, private_directory=work / "private"),
        servers=ScratchPrograms(site),
        records=records,
        scratch_directory=_scratch(settings),
        work_directory=work,
        data_directory=settings.data_directory.resolve(),
    )
    wanted = {engine.name: engine for engine in map(engine_of, site.physical.values())}
    return PhysicalEngines(site, {name: engine.make(means) for name, engine in wanted.items()})


def _scratch(settings: Settings) -> Path:
    return settings.data_directory.resolve() / "scratch"


def _files(site: Site, objects: S3Buckets, secrets: Secrets) -> FileCopies:
    return FileCopies(site, objects=objects, buckets=objects, secrets=secrets, clock=SystemClock())


def _same_plan(settings: Settings, plan: DrPlan) -> dict[str, str]:
    """Jobs go by the plan in force, wherever this process found it, and refuse a file that was changed since."""
    return {"DRBOT_PLAN_FILE": str(settings.plan_file.resolve()), "DRBOT_PLAN_DIGEST": digest(plan)}


def _without_own_secrets() -> dict[str, str]:
    """What a job sees of our environment: the references of the plan file, but neither Slack nor the bot's database."""
    own = {"DATABASE_URL", "SLACK_BOT_TOKEN", "SLACK_APP_TOKEN", "SLACK_SIGNING_SECRET", "SLACK_API_URL"}
    own |= {f"DRBOT_{role.upper()}_DATABASE_URL" for role in ("slack", "worker", "clock", "cli", "prover")}
    return {name: value for name, value in os.environ.items() if name not in own}
