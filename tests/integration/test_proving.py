"""Restore tests on a real server with the native engine: a proof measured and signed, and each way to fail told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from actions import registry
from actions.backup.physical import BackupKind, Proof
from actions.backup.proofs import Proofs
from actions.catalog.backup_status import BackupsParams
from actions.catalog.base import BaseParams, CheckBaseParams
from actions.catalog.proof import ProveParams, When
from actions.contract import Report
from actions.errors import UserError
from actions.ports import Ports
from actions.runner import Outcome, RunResult
from actions.site import Database, Frozen, Invariant
from tests.contract.kit import MemoryJournal, run
from tests.fakes.executor import MemoryExecutor
from tests.fakes.s3 import MemoryObject, MemoryObjects
from tests.fakes.world import a_world
from tests.fixtures.physical import Past
from tests.physical_world import BUCKET, SERVER, PhysicalWorld

pytestmark = pytest.mark.integration


@dataclass
class Proving:
    """The world of a restore test, and what it leaves."""

    world: PhysicalWorld
    ports: Ports
    name: str  # of the database

    async def do(self, action: str, params: Frozen, plan: str = "k7m2n3p4q5") -> RunResult:
        made = await registry.action(action).plan(params, self.ports, plan)
        return await run(made, self.ports, MemoryJournal())

    async def proofs(self) -> list[Proof]:
        return list(await Proofs(self.ports.objects, self.ports.secrets).newest(self.world.policy))

    async def status(self) -> Report:
        return await registry.query("status.backups").read(BackupsParams(), self.ports)


class ReadOnly(MemoryObjects):
    """The same buckets by a key that can only list and read."""

    def __init__(self, whole: MemoryObjects) -> None:
        super().__init__()
        self.buckets = whole.buckets

    async def put(self, bucket: str, key: str, body: bytes, *, only_if_absent: bool = False) -> None:
        raise UserError(f"Bucket `{bucket}` refused to store `{key}`.")

    async def delete(self, bucket: str, key: str) -> None:
        raise UserError(f"Bucket `{bucket}` refused to delete `{key}`.")


@pytest.fixture
async def proving(past: Past, server_directory: Path) -> AsyncIterator[Proving]:
    restores = past.anew(server_directory)
    # Restore tests have an identity of their own, and see no other.
    apart: dict[str, object] = {"identity": "env:OF_RESTORES", "prover_identity": "env:IDENTITY"}
    world = replace(restores, policy_changes=apart)
    world.archived = restores.archived
    assert isinstance(world.objects, MemoryObjects)
    prover = replace(world, objects=ReadOnly(world.objects)).prover
    [[name]] = world.sql("SELECT current_database()")
    counted = Invariant(name="documents", sql="SELECT count(*) FROM doc")
    database = Database(name=str(name), server=SERVER, owner="app", invariants=(counted,))
    memory = a_world()
    parts: dict[str, Any] = {part.name: getattr(memory, part.name) for part in fields(Ports)}
    checking = {SERVER: world.policy.model_copy(update={"amcheck": True})}
    parts |= {
        "site": world.site.model_copy(update={"databases": {"shop": database}, "physical": checking}),
        "postgres": world.postgres,
        "objects": world.objects,
        "physical": world.engine,
        "scratch": world.scratch,
        "executor": MemoryExecutor(replace(memory.executor._engines, physical=restores.engine, prover=prover)),
        "secrets": world.secrets,
        "clock": world.clock,
    }
    ports = Ports(**parts)
    yield Proving(world, ports, str(name))
    for facts in await world.scratch.instances():
        await world.scratch.stop(facts.id)


@pytest.mark.parametrize("moment", list(When))
async def test_the_backups_alone_bring_the_server_back(proving: Proving, moment: When) -> None:
    result = await proving.do("backup.prove", ProveParams(moment=moment))
    assert result.outcome is Outcome.SUCCEEDED, result.message

    [proof] = await proving.proofs()
    assert proof.problem is None
    assert proof.backup in ("full", "hour", "quarter")
    assert timedelta(0) < proof.rto < timedelta(minutes=2)
    assert proof.checks["shop: documents"] == "2000"
    assert proof.checks["page checksums"] == "every page"
    assert proof.checks["indexes"] == f"every one compared with its table in `{proving.name}`"
    assert proof.plain_bytes > 0
    assert not await proving.world.scratch.instances()
    report = await proving.status()
    [row] = [row for row in report.rows if row[1] == "restore test"]
    assert row[6].startswith("passed: RTO ")
    proven = {entry.manifest.id: entry.proven_at for entry in await proving.world.engine.catalogue(SERVER)}
    assert proven[proof.backup] == proof.proven_at


async def test_a_damaged_base_fails_the_test_by_name_and_leaves_nothing(proving: Proving) -> None:
    objects = proving.world.objects
    assert isinstance(objects, MemoryObjects)
    for key, known in list(objects.buckets[BUCKET].items()):
        if key.endswith("base.age"):
            body = bytearray(known.body)
            body[len(body) // 2] ^= 1
            objects.buckets[BUCKET][key] = MemoryObject(bytes(body), known.modified_at)
    result = await proving.do("backup.prove", ProveParams())

    assert result.outcome is Outcome.FAILED
    [proof] = await proving.proofs()
    assert proof.problem is not None
    assert proof.problem in result.message
    assert not await proving.world.scratch.instances()
    report = await proving.status()
    assert any(finding.check == "failed-proof" for finding in report.findings)


async def test_a_base_backup_is_made_and_checked_as_a_plan(proving: Proving) -> None:
    archiving = asyncio.create_task(proving.world._archive_soon())  # a backup ends once its WAL is in the bucket
    made = await proving.do("backup.base", BaseParams(server="shop"), "b8m2n3p4q5")
    changed = await proving.do("backup.base", BaseParams(kind=BackupKind.INCREMENTAL), "d9m2n3p4q5")
    archiving.cancel()
    await asyncio.gather(archiving, return_exceptions=True)
    assert made.outcome is Outcome.SUCCEEDED, made.message
    assert changed.outcome is Outcome.SUCCEEDED, changed.message
    last, newest = [entry.manifest for entry in (await proving.world.engine.catalogue(SERVER))[:2]]
    assert (last.kind, last.parent, newest.id) == (BackupKind.INCREMENTAL, newest.id, "main-b8m2n3p4q5")
    checked = await proving.do("backup.check_base", CheckBaseParams(server=SERVER), "c9m2n3p4q5")  # the newest full one
    assert checked.outcome is Outcome.SUCCEEDED, checked.message
    entries = await proving.world.engine.catalogue(SERVER)
    assert {entry.manifest.id: entry.verified_at is not None for entry in entries}[newest.id]


async def test_the_status_says_what_a_loss_of_the_region_would_cost(proving: Proving) -> None:
    report = await proving.status()

    assert report.lines[0].startswith("`shop` on `main`: ")
    assert "measured in bucket `backups`" in report.lines[0]
    assert "without a gap" in report.lines[0]
    assert [row[1] for row in report.rows] == ["full", "incremental", "restore test"]
    assert {finding.check for finding in report.findings} >= {"archiver-silent"}
