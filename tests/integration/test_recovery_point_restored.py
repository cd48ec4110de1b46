"""A recovery point of a real server brought back by its one plan: the cluster and the files in memory."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from actions import registry
from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.backup.jobs import Engines
from actions.backup.physical import RecoveryTarget
from actions.backup.point_parts import Parts
from actions.backup.points import RecoveryPoints
from actions.catalog.point_restore import RestorePointParams
from actions.errors import UserError
from actions.ports import Ports
from actions.runner import Outcome
from actions.site import Database, Service
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.executor import MemoryExecutor
from tests.fakes.world import API, APP_DIGEST, HEALTH, World, a_world
from tests.fixtures.physical import standing
from tests.physical_world import MARK, SERVER, PhysicalWorld

pytestmark = pytest.mark.integration

POINT = "point-1"


def sql(server: EmbeddedPostgres, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(make_conninfo(server.dsn(), dbname="shop"), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def joined(real: PhysicalWorld, memory: World) -> Ports:
    """Servers, base backups and scratch instances are real; files, cluster and registry are not."""
    site = memory.site.model_copy(
        update={
            "servers": real.site.servers,
            "databases": {"shop": Database(name="shop", server=SERVER, owner="app", service="shop")},
            "services": {"shop": Service(name="shop", workloads=(API,), health_url=HEALTH)},
            "buckets": {**memory.site.buckets, **real.site.buckets},
            "physical": real.site.physical,
            "backups": {},
        }
    )
    logical, tables = real.logical(site, real.directory)
    parts = Parts(
        site,
        backups=logical,
        physical=real.engine,
        files=memory.files,
        buckets=memory.buckets,
        cluster=memory.cluster,
        escrow=memory.escrow,
        manifests=memory.manifests,
        registry=memory.registry,
        live=memory.live,
        clock=real.clock,
    )
    there = {part.name: getattr(memory, part.name) for part in dataclasses.fields(Ports)}
    return Ports(
        **{
            **there,
            "site": site,
            "postgres": real.postgres,
            "backups": logical,
            "physical": real.engine,
            "scratch": real.scratch,
            "tables": tables,
            "clock": real.clock,
            "executor": MemoryExecutor(Engines(logical, real.engine, real.prover, tables, memory.files)),
            "points": RecoveryPoints(site, parts, memory.objects, memory.point_secrets, real.clock),
        }
    )


async def test_a_real_database_comes_back_with_its_files_and_images(run_directory: Path) -> None:
    with standing(run_directory) as real:
        server = real.server
        real.sql("CREATE ROLE app", "CREATE DATABASE shop OWNER app")
        sql(server, "CREATE TABLE users (id int PRIMARY KEY)")
        sql(server, "ALTER TABLE users OWNER TO app")
        await real.take("base")
        sql(server, "INSERT INTO users SELECT generate_series(1, 100)")
        await real.archive()
        memory = a_world()
        api = memory.cluster.workloads[API]
        api.images = (f"app@{APP_DIGEST}", "sidecar:1")
        ports = joined(real, memory)
        point = await ports.points.record(POINT)

        sql(server, "DELETE FROM users")
        await real.archive()
        api.images = ("app:2", "sidecar:1")
        memory.buckets.arrange("uploads", "b/tax.pdf", None, at=point.moment + timedelta(seconds=1))
        action, params = registry.action("restore.recovery_point"), RestorePointParams(point=POINT)
        with pytest.raises(UserError, match="/dr-restore point shop --at"):
            await action.plan(params, ports, PLAN_ID)
        await real.restore(RecoveryTarget(time=point.moment))
        await real.scratch.start("s1")
        plan = await action.plan(params, ports, PLAN_ID)
        result = await run(plan, ports, MemoryJournal())
        await real.scratch.discard("s1", mark=MARK)

        assert result.outcome is Outcome.SUCCEEDED, result.message
        assert sql(server, "SELECT count(*) FROM users") == [(100,)]
        assert {line.name: line.value for line in plan.observations}["shop: comes back"] == "`public.users`"
        names = [row[0] for row in real.sql("SELECT datname FROM pg_database ORDER BY 1")]
        assert f"shop_quarantine_{PLAN_ID}" in names
        assert api.images == (f"app@{APP_DIGEST}", "sidecar:1")
        assert await memory.objects.get("uploads", "b/tax.pdf") == b"tax"
