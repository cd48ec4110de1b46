"""A dump and a restore through Kubernetes Jobs that run the real `drbot job`, on real PostgreSQL and S3 servers."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from actions import registry
from actions.adapters.executor_beside import BesideExecutor
from actions.adapters.executor_kubernetes import KubernetesExecutor
from actions.adapters.kubernetes_jobs import LABEL
from actions.contract import Plan
from actions.errors import DrError
from actions.ports import JobKind, JobSpec, Ports, no_progress
from actions.runner import Outcome, Runner, RunResult
from bot.demo.cluster import ClusterStandIn
from bot.demo.cluster import kinds as k
from bot.demo.keys import make_keys
from bot.demo.plan import Addresses, demo_plan
from bot.plan_file import DrPlan, JobClaim, Jobs, JobSecret, dump
from bot.settings import ExecutorKind, Settings
from bot.world import ports
from storage.session import Database as Memory
from tests.contract.kit import MemoryJournal
from tests.fixtures.postgres import Database
from tests.fixtures.shared_s3 import S3

pytestmark = pytest.mark.integration

IMAGE = "registry.superprismora.example/drbot@sha256:0123"
ROWS = 2500


@dataclass
class Site:
    plan: DrPlan
    ports: Ports
    cluster: ClusterStandIn
    database: Database
    copies: Path

    async def run(self, action: str, params: dict[str, Any], plan_id: str) -> tuple[Plan, RunResult]:
        kind = registry.action(action)
        made = await kind.plan(kind.params.model_validate(params), self.ports, plan_id)
        return made, await Runner(made, self.ports, MemoryJournal()).run()

    def rows(self, database: str) -> int:
        with psycopg.connect(self.database.server.dsn(database)) as connection:
            found = connection.execute("SELECT count(*) FROM orders").fetchone()
        assert found is not None
        return int(found[0])

    def pods(self) -> list[dict[str, Any]]:
        found = self.cluster.objects.all(k.POD, "production")
        return [pod for pod in found if LABEL in pod["metadata"]["labels"]]


def fill(database: Database) -> None:
    with psycopg.connect(database.server.dsn(), autocommit=True) as connection:
        known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'jobs_owner'").fetchone()
        if known is None:
            connection.execute("CREATE ROLE jobs_owner LOGIN")
        connection.execute(f"ALTER DATABASE {database.name} OWNER TO jobs_owner".encode())
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("SET ROLE jobs_owner")
        connection.execute("CREATE TABLE orders (id bigserial PRIMARY KEY, note text NOT NULL)")
        connection.execute("INSERT INTO orders (note) SELECT 'note ' || n FROM generate_series(1, %s) n", [ROWS])


def secret(name: str, values: dict[str, str]) -> dict[str, Any]:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": "production"},
        "data": data,
    }


def plan_of(base: DrPlan, name: str, bucket: str) -> DrPlan:
    """The demo's plan for one small database without an application, with references that jobs can resolve."""
    [database], [store], [backup] = base.databases, base.buckets, base.backups.databases
    small = database.model_copy(
        update={"name": name, "owner": "jobs_owner", "application": None, "spare_server": None, "invariants": ()}
    )
    kept = backup.model_copy(
        update={
            "database": name,
            "dump": backup.dump.model_copy(update={"stores": ("local", bucket)}),
            **dict.fromkeys(("base", "incremental", "wal")),
        }
    )
    backups = base.backups.model_copy(
        update={
            "databases": (kept,),
            "local_directory": "env:JOBS_COPIES",
            "identity": "env:JOBS_IDENTITY",
            "signing_key": "env:JOBS_SIGNING_KEY",
            "recovery_points": None,
        }
    )
    keys = {"access_key": "env:JOBS_ACCESS_KEY", "secret_key": "env:JOBS_SECRET_KEY", "name": bucket}
    return base.model_copy(
        update={
            "databases": (small,),
            "services": (),
            "servers": (base.servers[0].model_copy(update={"admin_dsn": "env:JOBS_DSN"}),),
            "buckets": (store.model_copy(update=keys),),
            "backups": backups,
            "jobs": Jobs(
                cluster=base.clusters[0].name,
                namespace="production",
                image=IMAGE,
                claims=(JobClaim(name="drbot-data", path="/var/lib/drbot"),),
                secrets=(
                    JobSecret(name="drbot-references"),
                    JobSecret(name="drbot-identity", kinds=(JobKind.LOAD, JobKind.VERIFY, JobKind.ADOPT)),
                ),
            ),
        }
    )


@pytest.fixture
async def site(
    server_directory: Path,
    pg_database: Database,
    s3: S3,
    bucket: str,
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Site]:
    directory = server_directory
    entry = [sys.executable, "-m", "bot.cli"]
    async with ClusterStandIn(directory / "cluster", custom_resources=False, images={IMAGE: entry}) as cluster:
        await asyncio.to_thread(fill, pg_database)
        keys = make_keys(directory)
        nothing = directory / "nothing"
        base = demo_plan(
            Addresses(
                workspace="T0000000000",
                channel="C0000000000",
                production_dsn=nothing,
                production_host="127.0.0.1",
                spare_dsn=nothing,
                spare_host="127.0.0.1",
                application_dsn=nothing,
                health_url="http://127.0.0.1:9/",
                kubeconfig=cluster.kubeconfig,
                s3_endpoint=s3.endpoint,
                s3_access_key=nothing,
                s3_secret_key=nothing,
                copies=nothing,
                keys=keys,
            )
        )
        plan = plan_of(base, pg_database.name, bucket)
        copies = directory / "cluster" / "claims" / "production.drbot-data" / "copies"
        references = {
            "JOBS_DSN": pg_database.server.dsn(),
            "JOBS_ACCESS_KEY": s3.access_key,
            "JOBS_SECRET_KEY": s3.secret_key,
            "JOBS_SIGNING_KEY": await asyncio.to_thread(keys.signing_key.read_text),
            "JOBS_COPIES": str(copies),
        }
        identity = {"JOBS_IDENTITY": (await asyncio.to_thread(keys.identity.read_text)).strip()}
        for name, value in references.items():
            monkeypatch.setenv(name, value)  # what the worker sees; the identity is for jobs alone
        claim = {"metadata": {"name": "drbot-data", "namespace": "production"}, "spec": {}}
        cluster.apply(
            secret("drbot-references", references),
            secret("drbot-identity", identity),
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **claim},
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "drbot-plan", "namespace": "production"},
                "data": {"dr-plan.yml": dump(plan)},
            },
        )
        settings = Settings(data_directory=directory / "worker", executor=ExecutorKind.KUBERNETES)
        yield Site(plan, await ports(settings, plan, memory), cluster, pg_database, copies)


@pytest.mark.timeout(180)
async def test_database_is_dumped_and_restored_by_jobs_of_the_cluster(site: Site) -> None:
    executor = site.ports.executor
    assert isinstance(executor, BesideExecutor)
    assert isinstance(executor._elsewhere, KubernetesExecutor)
    assert list(await site.ports.executor.problems()) == []
    name = site.database.name
    _, dumped = await site.run("backup.dump", {"database": name}, "plan-a")
    assert dumped.outcome is Outcome.SUCCEEDED, dumped.message
    [entry] = await site.ports.backups.catalogue(name)
    assert entry.problem is None
    assert list(site.copies.rglob("*.age"))  # the local copy is on the claim
    with psycopg.connect(site.database.dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM orders")

    _, restored = await site.run("restore.dump", {"database": name}, "plan-b")
    try:
        assert restored.outcome is Outcome.SUCCEEDED, restored.message
        assert site.rows(name) == ROWS
        [quarantine] = [
            facts
            for facts in await site.ports.postgres.databases("primary")
            if facts.name.startswith(f"{name}_quarantine_")
        ]
        assert not quarantine.allows_connections
    finally:
        with psycopg.connect(site.database.server.dsn(), autocommit=True) as connection:
            for facts in await site.ports.postgres.databases("primary"):
                if facts.name.startswith(f"{name}_"):
                    connection.execute(f'DROP DATABASE "{facts.name}" WITH (FORCE)'.encode())

    # Two pods: the dump saw no identity, the restore did; no secret is in either.
    sources = [{ref["secretRef"]["name"] for ref in pod["spec"]["containers"][0]["envFrom"]} for pod in site.pods()]
    assert sources == [{"drbot-references"}, {"drbot-references", "drbot-identity"}]
    text = str(site.cluster.objects.all(k.JOB)) + str(site.pods())
    assert "AGE-SECRET-KEY" not in text
    assert site.database.server.dsn() not in text


async def test_job_with_another_plan_than_the_workers_is_refused(site: Site) -> None:
    other = dump(site.plan.model_copy(update={"owner": "somebody else"}))
    found = site.cluster.objects.get(k.CONFIG_MAP, "production", "drbot-plan")
    site.cluster.objects.edit(k.CONFIG_MAP, found, lambda fresh: fresh["data"].update({"dr-plan.yml": other}))
    spec = JobSpec(
        name="job-1",
        kind=JobKind.DUMP,
        request={"id": "b1", "database": site.database.name, "requested_by": ""},
        timeout=timedelta(minutes=1),
    )
    await site.ports.executor.start(spec)
    state = await site.ports.executor.wait("job-1", no_progress)
    assert "is not the one the worker goes by" in state.error
    assert await site.ports.backups.catalogue(site.database.name) == []


async def test_kubernetes_without_a_place_for_jobs_is_refused_at_start(site: Site, memory: Memory) -> None:
    settings = Settings(executor=ExecutorKind.KUBERNETES)
    with pytest.raises(DrError, match="the plan file has no `jobs`"):
        await ports(settings, site.plan.model_copy(update={"jobs": None}), memory)
