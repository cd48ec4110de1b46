"""The end of a real old primary: asked by SQL, started again by a supervisor, scaled away with its StatefulSet."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from actions.adapters.clock import SystemClock
from actions.adapters.embedded_postgres import EmbeddedPostgres, Start
from actions.adapters.kubernetes import KubernetesCluster
from actions.adapters.postgres import PostgresServers
from actions.adapters.postmaster import Postmaster
from actions.adapters.secrets import SecretReferences
from actions.backup.physical import ScratchState
from actions.contract import JournalState, Plan, Risk, Step
from actions.ports import Ports
from actions.runner import Outcome, Runner, RunResult
from actions.site import ClusterAccess, Server, Site, WorkloadKind, WorkloadRef
from actions.steps import old_primary
from actions.steps.old_primary import StopPrimary
from actions.steps.old_primary_scene import look_at_stop
from actions.steps.writers import Writer
from bot.demo.cluster import ClusterStandIn
from bot.demo.cluster.containers import COMMAND
from tests.contract.kit import MemoryJournal
from tests.fakes.history import SCRATCH_ID, with_a_scratch
from tests.fixtures.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

OLD, NEW = "primary", f"scratch-{SCRATCH_ID}"
SETTINGS = {"shared_buffers": "16MB"}
CLAIM, NAMESPACE = "pgdata", "production"
POSTGRES = WorkloadRef("main", NAMESPACE, WorkloadKind.STATEFUL_SET, "postgres")


@dataclass
class Pair:
    """An old primary, closed, with a row in it, and a new one that serves. That one is known as a server of the site,
    and to the port of scratch instances as one that was promoted."""

    old: EmbeddedPostgres
    ports: Ports

    async def step(self, workload: Writer | None = None) -> StopPrimary:
        facts = await self.ports.postgres.server(OLD)
        return StopPrimary(
            server=OLD,
            scratch=SCRATCH_ID,
            system_id=facts.system_id,
            timeline_id=facts.timeline_id,
            address=facts.address,
            directory=str(self.old.data),
            workload=workload,
            mark="p1",
            optional=True,
        )

    async def run(self, step: Step) -> tuple[RunResult, str]:
        """How it ended, and what it says of the old one."""
        plan = Plan(
            id="p1",
            action="restore.promote",
            summary="promote",
            risk=Risk.DESTRUCTIVE,
            target="shop",
            params={},
            steps=(step,),
            made_at=self.ports.clock.now(),
        )
        journal = MemoryJournal()
        result = await Runner(plan, self.ports, journal).run()
        return result, "".join(line.detail for line in journal.lines if line.state is JournalState.VERIFIED)

    async def comes_up_closed(self) -> None:
        fence = await self.ports.postgres.fencing(OLD)
        assert (fence.read_only, fence.open) == (True, ())
        with psycopg.connect(self.old.dsn(), autocommit=True) as connection:
            assert connection.execute("SELECT * FROM kept").fetchall() == [(1,)]
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute("INSERT INTO kept VALUES (2)")


@asynccontextmanager
async def paired(old: EmbeddedPostgres, directory: Path, **more: Any) -> AsyncIterator[Pair]:
    async with EmbeddedPostgres(directory / "new", durable=False, settings=SETTINGS) as new:
        with psycopg.connect(old.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS i")
        world = with_a_scratch()
        found = world.scratch.made[SCRATCH_ID]
        world.scratch.made[SCRATCH_ID] = found.model_copy(
            update={"state": ScratchState.PROMOTED, "address": f"127.0.0.1:{new.port}", "opened": True}
        )
        servers = {name: Server(name=name, admin_dsn=f"env:{ref}") for name, ref in ((OLD, "OLD"), (NEW, "NEW"))}
        site = Site(servers=servers, **more.pop("site", {}))
        postgres = PostgresServers(site, SecretReferences({"OLD": old.dsn(), "NEW": new.dsn()}))
        await postgres.fence(OLD)
        yield Pair(old, replace(world, site=site, postgres=postgres, clock=SystemClock(), **more))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _watched_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(old_primary, "WATCH", old_primary.WATCH / 5)


async def test_it_ends_and_everything_of_it_is_kept(server_directory: Path) -> None:
    async with (
        EmbeddedPostgres(server_directory / "old", durable=False, settings=SETTINGS) as old,
        paired(old, server_directory) as pair,
    ):
        step = await pair.step()
        result, said = await pair.run(step)

        assert result.outcome is Outcome.SUCCEEDED, result.message
        assert old.postmaster() is None
        assert f"Its data is kept in `{old.data}`" in said
        again, _ = await pair.run(step)
        assert again.outcome is Outcome.SUCCEEDED, again.message
        await old.stop()  # as an object: nothing runs
        assert await old.start() is Start.NEW
        await pair.comes_up_closed()


async def test_one_that_a_supervisor_starts_again_is_told_and_is_closed(server_directory: Path) -> None:
    async with (
        EmbeddedPostgres(server_directory / "old", durable=False, settings=SETTINGS) as old,
        paired(old, server_directory) as pair,
    ):
        before = (await pair.ports.postgres.server(OLD)).started_at

        async def supervise() -> None:
            while True:
                if not old.running():
                    await old.stop()
                    await old.start()
                await asyncio.sleep(0.1)

        supervisor = asyncio.create_task(supervise())
        try:
            result, said = await pair.run(await pair.step())
        finally:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)

        assert result.outcome is Outcome.SUCCEEDED, result.message
        assert said.startswith("NOT STOPPED: the old primary")
        assert (await pair.ports.postgres.server(OLD)).started_at != before
        await pair.comes_up_closed()


async def test_one_that_runs_open_is_not_asked_to_end_and_people_are(server_directory: Path) -> None:
    async with (
        EmbeddedPostgres(server_directory / "old", durable=False, settings=SETTINGS) as old,
        paired(old, server_directory) as pair,
    ):
        step = await pair.step()
        with psycopg.connect(old.dsn(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            connection.execute("SELECT pg_reload_conf()")
        result, _ = await pair.run(step)

        assert result.outcome is Outcome.ASKING
        assert "may take writes: its transactions are not read only" in result.message
        assert old.running()


def stateful_set(old: EmbeddedPostgres, folder: Path) -> dict[str, Any]:
    """`folder` is where the stand-in keeps the claim: the container sees it by the same path."""
    command = [str(old.tool("postgres")), "-D", str(old.data), "-p", str(old.port)]
    command += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={old.socket_directory}"]
    container = {
        "name": "postgres",
        "image": "postgres:18",
        "volumeMounts": [{"name": "data", "mountPath": str(folder)}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": POSTGRES.name, "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            "serviceName": POSTGRES.name,
            "selector": {"matchLabels": {"app": POSTGRES.name}},
            "template": {
                "metadata": {"labels": {"app": POSTGRES.name}, "annotations": {COMMAND: json.dumps(command)}},
                "spec": {
                    "terminationGracePeriodSeconds": 20,
                    "containers": [container],
                    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": CLAIM}}],
                },
            },
        },
    }


async def test_in_a_cluster_its_stateful_set_goes_to_zero_and_the_volume_stays(server_directory: Path) -> None:
    folder = server_directory / "cluster" / "claims" / f"{NAMESPACE}.{CLAIM}"
    folder.mkdir(parents=True)
    for each in (folder, folder.parent, folder.parent.parent):
        each.chmod(0o755)
    old = EmbeddedPostgres(folder, durable=False, settings=SETTINGS)
    await old.start()
    await old.stop()
    async with AsyncExitStack() as stack:
        stand_in = await stack.enter_async_context(ClusterStandIn(server_directory / "cluster", account=old.account))
        stack.push_async_callback(old.kill)
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": CLAIM, "namespace": NAMESPACE},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        stand_in.apply(claim, stateful_set(old, folder))

        async def ready() -> bool:
            return Postmaster(old.data).status() == "ready"

        await eventually(ready)
        access = {"main": ClusterAccess(name="main", kubeconfig=f"file:{stand_in.kubeconfig}")}
        site = Site(clusters=access)
        cluster = KubernetesCluster(site, SecretReferences({}))
        stack.callback(cluster.close)
        pair = await stack.enter_async_context(
            paired(old, server_directory, site={"clusters": access}, cluster=cluster)
        )
        server = pair.ports.site.servers[OLD].model_copy(update={"workload": POSTGRES})
        known = pair.ports.site.model_copy(update={"servers": {**pair.ports.site.servers, OLD: server}})
        pair.ports = replace(pair.ports, site=known)

        scene = await look_at_stop(pair.ports, OLD)
        assert (scene.refusal, scene.facts.directory) == ("", str(old.data))
        assert scene.place is not None
        assert scene.place.lasting == (str(folder),)
        result, said = await pair.run(await pair.step(Writer(ref=POSTGRES, replicas=1)))

        assert result.outcome is Outcome.SUCCEEDED, result.message
        assert old.postmaster() is None
        assert "scale statefulset/postgres --replicas=1" in said
        placed = await cluster.workload(POSTGRES)
        assert placed is not None
        assert (placed.replicas, placed.recorded) == (0, 1)
        await cluster.give_back(POSTGRES, mark="p1")
        await eventually(ready)
        await pair.comes_up_closed()
