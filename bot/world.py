"""The adapters of the world, made from settings and plan file: the composition root of what has no database of the bot.

A job needs nothing else, and starts in half the time without Slack and the services.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from actions.adapters.clock import SystemClock
from actions.adapters.executor import SubprocessExecutor
from actions.adapters.postgres import PostgresServers
from actions.adapters.postgres_tools import PostgresPrograms
from actions.adapters.s3 import S3Store
from actions.adapters.secrets import SecretReferences
from actions.backup.jobs import main as job_main
from actions.backup.logical import LogicalEngine
from actions.ports import Clock, ObjectStore, Ports, PostgresAdmin, Secrets
from actions.site import Site
from bot.plan_file import DrPlan, load
from bot.redaction import texts
from bot.settings import Settings
from bot.site import site_of

if TYPE_CHECKING:  # slow to import, and a job has no business with it
    from storage.session import Database


async def job(settings: Settings, spec: Path) -> int:
    """Run one heavy step; the exit code says how it went."""
    plan = load(settings.plan_file)
    references = secret_references(settings, plan)
    site = await site_of(plan, SecretReferences())
    postgres, objects = PostgresServers(site, references), S3Store(site, references)
    engine = _engine(settings, site, postgres, objects, references, SystemClock())
    return await job_main(spec, engine, hide=settings.mask)


async def ports(settings: Settings, plan: DrPlan, database: Database) -> Ports:
    """Everything an action may touch, on the site of the plan file; `database` is the bot's own."""
    # Not needed by a job, and slow to import.
    from actions.adapters.kubernetes import KubernetesCluster
    from actions.adapters.service_check import ServiceProbe
    from actions.registry import ACTIONS, kinds
    from bot.services.approvals import Policy
    from bot.services.own_runs import OwnRuns
    from bot.services.plan_versions import StoredPlanVersions

    references = secret_references(settings, plan)
    site = await site_of(plan, SecretReferences())
    clock = SystemClock()
    postgres, objects = PostgresServers(site, references), S3Store(site, references)
    command = [sys.executable, "-m", "bot.cli", "job"]
    jobs = settings.data_directory.resolve() / "jobs"
    return Ports(
        site=site,
        postgres=postgres,
        objects=objects,
        backups=_engine(settings, site, postgres, objects, references, clock),
        executor=SubprocessExecutor(jobs, command, environment=_without_own_secrets()),
        cluster=KubernetesCluster(site, references),
        service=ServiceProbe(references),
        secrets=references,
        clock=clock,
        runs=OwnRuns(database, Policy(plan), kinds(), clock),
        plan_versions=StoredPlanVersions(database, actions=[kind.name for kind in ACTIONS]),
    )


def secret_references(settings: Settings, plan: DrPlan) -> SecretReferences:
    """References whose values are hidden from now on in all that this process writes. The addresses of a site are
    references too, but people must be able to read them: those are resolved elsewhere."""
    settings.mask.publish(texts(plan.model_dump(mode="json")))
    return SecretReferences(seen=settings.mask.learn)


def _engine(
    settings: Settings, site: Site, postgres: PostgresAdmin, objects: ObjectStore, secrets: Secrets, clock: Clock
) -> LogicalEngine:
    directory = settings.data_directory.resolve()
    return LogicalEngine(
        site,
        postgres=postgres,
        objects=objects,
        secrets=secrets,
        clock=clock,
        tools=PostgresPrograms(site, secrets, private_directory=directory / "private"),
        work_directory=directory / "spool",
    )


def _without_own_secrets() -> dict[str, str]:
    """What a job sees of our environment: the references of the plan file, but neither Slack nor the bot's database."""
    own = {"DATABASE_URL", "SLACK_BOT_TOKEN", "SLACK_APP_TOKEN", "SLACK_SIGNING_SECRET", "SLACK_API_URL"}
    own |= {f"DRBOT_{role.upper()}_DATABASE_URL" for role in ("slack", "worker", "clock", "cli")}
    return {name: value for name, value in os.environ.items() if name not in own}
