"""A recovery point of a real server and a real repository brought back by its one plan: the cluster and the files in
memory."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from actions import registry
from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.git_branches import GitBranches
from actions.backup.escrow import Escrows
from actions.backup.jobs import Engines
from actions.backup.manifest_branches import ManifestBranches
from actions.backup.manifest_mirrors import ManifestMirrors
from actions.backup.physical import RecoveryTarget
from actions.backup.point_parts import Parts
from actions.backup.points import RecoveryPoints
from actions.catalog.point_restore import RestorePointParams
from actions.catalog.scratch import ScratchParams
from actions.errors import UserError
from actions.ports import Ports
from actions.runner import Outcome
from actions.site import Database, Service
from tests.contract.kit import PLAN_ID, MemoryJournal, run, secrets_in
from tests.fakes.cluster import MemoryWorkload
from tests.fakes.dump_tests import NoDumpTests
from tests.fakes.executor import MemoryExecutor
from tests.fakes.history import SEALING, a_secret
from tests.fakes.world import API, APP_DIGEST, HEALTH, MANIFEST, World, a_world
from tests.fixtures.physical import standing
from tests.physical_world import MARK, SERVER, PhysicalWorld

pytestmark = pytest.mark.integration

POINT = "point-1"


def sql(server: EmbeddedPostgres, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(make_conninfo(server.dsn(), dbname="shop"), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


class Repository:
    """A bare repository as a host has it, and the manifests of `api` in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(folder)], check=True)

    def git(self, *arguments: str, text: str = "") -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example")
        argv = ["git", *who, "--git-dir", str(self.folder), *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True, input=text).stdout.strip()

    def push(self, image: str, sealed: str) -> str:
        """One commit more on the branch, of a person."""
        secret = {"apiVersion": "bitnami.com/v1alpha1", "kind": "SealedSecret", "metadata": {"name": "database"}}
        files = {
            "app.yaml": MANIFEST.replace('"app:1"', f'"{image}"'),
            "secret.json": json.dumps({**secret, "spec": {"encryptedData": {"key": sealed}}}),
        }
        blobs = {name: self.git("hash-object", "-w", "--stdin", text=text) for name, text in files.items()}
        folder = self.git("mktree", text="".join(f"100644 blob {oid}\t{name}\n" for name, oid in blobs.items()))
        tree = self.git("mktree", text=f"040000 tree {folder}\tproduction\n")
        before = self.git("for-each-ref", "--format=%(objectname)", "refs/heads/main")
        commit = self.git("commit-tree", tree, *(("-p", before) if before else ()), "-m", image)
        self.git("update-ref", "refs/heads/main", commit)
        return commit

    def follows(self, memory: World) -> None:
        """A controller that applies what the branch says, and seals no Secret open without its key."""

        def applied(found: MemoryWorkload) -> None:
            head = self.git("rev-parse", "refs/heads/main")
            assert found.gitops is not None
            if found.gitops.revision == head:
                return
            found.gitops = found.gitops.model_copy(update={"revision": head})
            image = self.git("show", f"{head}:production/app.yaml").partition('image: "')[2].partition('"')[0]
            found.images = (image, *found.images[1:])
            keys = {key.name for key, _ in memory.sealing.held["main"]}
            if "key-old" in keys:
                memory.live.held[0]["metadata"]["resourceVersion"] += "1"

        memory.cluster.workloads[API].follows = applied


def joined(real: PhysicalWorld, memory: World, repository: Repository) -> Ports:
    """Servers, base backups, scratch instances and the repository are real; files, cluster and registry are not."""
    policy = memory.site.manifests_of("main").model_copy(update={"url": f"file://{repository.folder}"})
    site = memory.site.model_copy(
        update={
            "manifests": {"main": policy},
            "servers": real.site.servers,
            "databases": {"shop": Database(name="shop", server=SERVER, owner="app", service="shop")},
            "services": {"shop": Service(name="shop", workloads=(API,), health_url=HEALTH)},
            "buckets": {**memory.site.buckets, **real.site.buckets},
            "physical": real.site.physical,
            "backups": {},
        }
    )
    logical, tables = real.logical(site, real.directory)
    git = GitBranches(real.directory / "mirrors", memory.point_secrets)
    escrow = Escrows(site, memory.sealing, memory.objects, memory.escrow_secrets, real.clock)
    mirrors = ManifestMirrors(
        site,
        git,
        memory.live,
        cluster=memory.cluster,
        objects=memory.objects,
        secrets=memory.point_secrets,
        clock=real.clock,
        work=real.directory / "work",
    )
    parts = Parts(
        site,
        backups=logical,
        physical=real.engine,
        files=memory.files,
        buckets=memory.buckets,
        cluster=memory.cluster,
        escrow=escrow,
        manifests=mirrors,
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
            "escrow": escrow,
            "manifests": mirrors,
            "branches": ManifestBranches(
                site,
                git,
                mirrors,
                objects=memory.objects,
                secrets=memory.point_secrets,
                work=real.directory / "work",
            ),
            "scratch": real.scratch,
            "tables": tables,
            "clock": real.clock,
            "executor": MemoryExecutor(Engines(logical, real.engine, real.prover, NoDumpTests(), tables, memory.files)),
            "points": RecoveryPoints(
                site, parts, memory.secret_copies, memory.objects, memory.point_secrets, real.clock
            ),
        }
    )


async def test_everything_of_a_point_comes_back_by_one_run(run_directory: Path) -> None:
    with standing(run_directory) as real:
        server = real.server
        real.sql("CREATE ROLE app", "CREATE DATABASE shop OWNER app")
        sql(server, "CREATE TABLE users (id int PRIMARY KEY)")
        sql(server, "ALTER TABLE users OWNER TO app")
        await real.take("base")
        sql(server, "INSERT INTO users SELECT generate_series(1, 100)")
        await real.archive()
        memory = a_world(mirrored=True, writable=True)
        memory.live.held += [a_secret("database", version=41), a_secret("mail", version=42)]
        memory.cluster.add(SEALING).images = ("sealed-secrets-controller:0.27",)
        repository = await asyncio.to_thread(Repository, run_directory / "host.git")
        then = repository.push(f"app@{APP_DIGEST}", "AgB-then")
        repository.follows(memory)
        ports = joined(real, memory, repository)
        api = memory.cluster.workloads[API]
        api.settle()
        await ports.escrow.make("main-1", "main")
        await ports.manifests.mirror("mirror-1", "main")
        point = await ports.points.record(POINT)

        sql(server, "DELETE FROM users")
        await real.archive()
        head = repository.push("app:2", "AgB-now")
        api.settle()
        memory.sealing.forget("main", "key-old")
        memory.live.held[1] = a_secret("mail", version=60)
        memory.buckets.arrange("uploads", "b/tax.pdf", None, at=point.moment + timedelta(seconds=1))
        action, params = registry.action("restore.recovery_point"), RestorePointParams(point=POINT)
        with pytest.raises(UserError, match="/dr-restore point shop --at"):
            await action.plan(params, ports, PLAN_ID)
        await real.restore(RecoveryTarget(time=point.moment))
        await real.scratch.start("s1")
        with pytest.raises(UserError, match="never looked through"):
            await action.plan(params, ports, PLAN_ID)
        look = await registry.action("scratch.start").plan(ScratchParams(scratch="s1"), ports, "m9m2n3p4q5")
        looked = await run(look, ports, MemoryJournal())
        assert looked.outcome is Outcome.SUCCEEDED, looked.message
        plan, journal = await action.plan(params, ports, PLAN_ID), MemoryJournal()
        assert repository.git("rev-parse", "refs/heads/main") == head
        result = await run(plan, ports, journal)
        await real.scratch.discard("s1", mark=MARK)

        assert result.outcome is Outcome.SUCCEEDED, result.message
        assert sql(server, "SELECT count(*) FROM users") == [(100,)]
        assert {line.name: line.value for line in plan.observations}["shop: comes back"] == "`public.users`"
        names = [row[0] for row in real.sql("SELECT datname FROM pg_database ORDER BY 1")]
        assert f"shop_quarantine_{PLAN_ID}" in names
        assert api.images == (f"app@{APP_DIGEST}", "sidecar:1")
        assert await memory.objects.get("uploads", "b/tax.pdf") == b"tax"
        assert repository.git("rev-parse", "main~1", "main~2") == f"{head}\n{then}"  # nothing was pushed over
        assert repository.git("diff", "--stat", then, "main") == ""
        assert repository.git("log", "-1", "--format=%an %(trailers:key=Recovery-Plan,valueonly)") == (
            f"superprismora-dr {PLAN_ID}"
        )
        assert {key.name for key in await ports.escrow.current("main")} == {"key-old", "key-new"}
        assert memory.cluster.workloads[SEALING].restarts == 1
        assert api.gitops is not None
        assert (api.gitops.suspended, api.gitops.revision) == (False, repository.git("rev-parse", "main"))
        told = journal.lines[-1].detail
        assert "Secret main/shop/mail" in told
        for brought in ("manifests of main", "sealing keys", "Secret main/shop/database"):
            assert brought not in told
        assert secrets_in(f"{plan.model_dump_json()} {journal.lines}") == []
