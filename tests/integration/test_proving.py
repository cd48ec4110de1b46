"""Restore tests on a real server with the native engine: a proof measured and signed, and each way to fail told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from actions.backup.physical import BackupKind
from actions.backup.wal_status import Durable, WalStatus, sign_status, status_place
from actions.catalog.base import BaseParams, CheckBaseParams
from actions.catalog.proof import ProveParams, When
from actions.runner import Outcome
from tests.fakes.s3 import MemoryObject, MemoryObjects
from tests.fixtures.physical import Past
from tests.fixtures.proving import Proving, proving_of
from tests.physical_world import BUCKET, SERVER

pytestmark = pytest.mark.integration


@pytest.fixture
async def proving(past: Past, server_directory: Path) -> AsyncIterator[Proving]:
    async with proving_of(past.anew(server_directory)) as made:
        yield made


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


async def test_the_rpo_of_a_server_on_which_nobody_writes_ends_where_the_archiver_knows_the_archive_to_be_whole(
    proving: Proving,
) -> None:
    """Its newest commit is older than that, and nothing was committed since."""
    world, covered = proving.world, proving.world.clock.now()
    [(system_id,)] = world.sql("SELECT system_identifier::text FROM pg_control_system()")
    told = WalStatus(server=SERVER, at=covered, system_id=str(system_id), buckets={BUCKET: Durable(at=covered)})
    bucket, key = status_place(world.policy)
    await world.objects.put(bucket, key, sign_status(told, world.keys.signing))
    result = await proving.do("backup.prove", ProveParams())
    assert result.outcome is Outcome.SUCCEEDED, result.message

    [proof] = await proving.proofs()
    began = proof.proven_at - proof.rto
    assert abs(proof.rpo - (began - covered)) < timedelta(milliseconds=1)
    assert proof.tools["pg_combinebackup"] == proof.known["pg_combinebackup"] == proof.known["PostgreSQL"]
