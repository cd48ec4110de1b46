"""Restore tests of dumps on a real server: loaded whole beside production, compared, signed; each failure named."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from actions.adapters.postgres_installation import installation
from actions.adapters.postmaster import Postmaster
from actions.adapters.scratch_empty import EmptyScratch
from actions.adapters.scratch_server import ScratchPrograms
from actions.backup.crypto import signing_key
from actions.backup.dump_test import DumpTest
from actions.backup.manifest import SignedManifest
from actions.backup.physical import ScratchState
from actions.backup.scratch_place import ScratchPlace
from actions.errors import UserError
from actions.ports import ProgressReport, no_progress
from actions.runner import Outcome
from actions.site import ScratchBudget
from tests.fakes.s3 import MemoryObject
from tests.fixtures.physical import Past
from tests.fixtures.proving_dumps import KEY, DumpProving, dump_proving_of
from tests.physical_world import BUCKET, SERVER

pytestmark = pytest.mark.integration


@pytest.fixture
async def proving(past: Past, server_directory: Path) -> AsyncIterator[DumpProving]:
    async with dump_proving_of(past, server_directory) as made:
        yield made


def asked(proving: DumpProving, backup: str, **changes: object) -> DumpTest:
    wanted = {"id": "s1", "database": KEY, "backup": backup, "name": proving.name, "mark": "drbot:scratch:s1"}
    return DumpTest.model_validate({**wanted, "jobs": 2, **changes})


async def test_a_dump_is_proven_by_loading_it_whole_and_production_is_not_touched(proving: DumpProving) -> None:
    backup = await proving.dump()
    before = [each.name for each in await proving.world.postgres.databases(SERVER)]
    result = await proving.prove()
    assert result.outcome is Outcome.SUCCEEDED, result.message

    [proof] = await proving.proofs()
    assert (proof.problem, proof.backup, proof.database, proof.server) == (None, backup, KEY, SERVER)
    assert timedelta(0) < proof.rto < timedelta(minutes=2)
    assert timedelta(0) < proof.rpo <= timedelta(days=1, minutes=1)
    assert proof.checks["rows"].startswith("4000 rows in ")
    assert proof.checks["shop: total"] == "3001500.0"
    assert proof.bytes > 0 < proof.plain_bytes
    assert set(proof.seconds) == {"server", "fetch", "load"}
    assert proof.tools["postgres"] == proof.known["PostgreSQL"]
    assert proof.known["pg_restore"]
    assert not await proving.world.scratch.instances()
    assert [each.name for each in await proving.world.postgres.databases(SERVER)] == before
    assert proving.world.clean() == []
    report = await proving.status()
    [row] = [row for row in report.rows if row[1] == "dump test"]
    assert row[6].startswith("passed: RTO ")


async def test_the_policy_has_indexes_compared_too(past: Past, server_directory: Path) -> None:
    async with dump_proving_of(past, server_directory, amcheck=True) as proving:
        await proving.dump()
        result = await proving.prove(server=KEY, dump="newest")
        assert result.outcome is Outcome.SUCCEEDED, result.message
        [proof] = await proving.proofs()
        assert proof.checks["indexes"] == f"every one compared with its table in `{proving.name}`"


@pytest.mark.corruption
async def test_a_damaged_dump_fails_the_test_by_name_and_leaves_nothing(proving: DumpProving) -> None:
    backup = await proving.dump()
    bucket = proving.objects.buckets[BUCKET]
    [key] = [key for key in bucket if key.endswith(f"{backup}/dump.age")]
    body = bytearray(bucket[key].body)
    body[len(body) // 2] ^= 1
    bucket[key] = MemoryObject(bytes(body), bucket[key].modified_at)
    result = await proving.prove()

    assert result.outcome is Outcome.FAILED
    [proof] = await proving.proofs()
    assert proof.problem is not None
    assert proof.problem in result.message
    assert backup in proof.problem
    assert proof.known["pg_restore"]
    assert proving.world.clean() == []
    found = {finding.check: finding.detail for finding in (await proving.status()).findings}
    assert found["failed-proof"].startswith(f"The restore test of the dumps of `{KEY}` of ")
    assert proof.problem in found["failed-proof"]


async def test_a_dump_that_is_not_what_its_manifest_promises_fails_the_test(proving: DumpProving) -> None:
    """Whoever holds the key that signs manifests can promise anything; and a dump may be made wrong."""
    backup = await proving.dump()
    bucket = proving.objects.buckets[BUCKET]
    [key] = [key for key in bucket if key.endswith(f"{backup}/manifest.json")]
    known = SignedManifest.model_validate_json(bucket[key].body).manifest
    rows = {**known.fingerprint.rows, "public.doc": 2001}
    lie = known.model_copy(update={"fingerprint": known.fingerprint.model_copy(update={"rows": rows})})
    signed = SignedManifest.sign(lie, signing_key(proving.world.keys.pem, "ours"))
    bucket[key] = MemoryObject(signed.model_dump_json().encode(), bucket[key].modified_at)
    result = await proving.prove()

    assert result.outcome is Outcome.FAILED
    [proof] = await proving.proofs()
    assert proof.problem is not None
    assert "table public.doc has 2000 rows, the dump has 2001" in proof.problem
    assert proving.world.clean() == []


async def test_a_load_that_is_broken_off_leaves_neither_a_server_nor_files(proving: DumpProving) -> None:
    backup, loads = await proving.dump(), asyncio.Event()

    def seen(report: ProgressReport, /) -> None:
        if report.phase == "restore":
            loads.set()

    place = ScratchPlace(proving.world.scratch_directory, "s1")
    load = asyncio.create_task(proving.tests.load(asked(proving, backup), seen))
    await loads.wait()
    process = Postmaster(place.data).process()
    assert process is not None
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    assert not process.is_running()
    assert proving.world.clean() == []
    # And the same again is a whole one.
    assert (await proving.tests.load(asked(proving, backup), no_progress)).backup == backup


async def test_what_was_loaded_is_found_again_and_takes_nobodys_place(proving: DumpProving) -> None:
    backup, scratch = await proving.dump(), proving.world.scratch
    made = await proving.tests.load(asked(proving, backup), no_progress)
    assert await proving.tests.load(asked(proving, backup), no_progress) == made
    with pytest.raises(UserError, match="made for something else"):
        await proving.tests.load(asked(proving, backup, mark="drbot:scratch:other"), no_progress)
    facts = await scratch.find("s1")
    assert facts is not None
    assert (facts.state, facts.loaded, facts.address) == (ScratchState.LOADED, made, "")
    started = await scratch.start("s1")
    assert (started.state, bool(started.address)) == (ScratchState.LOADED, True)
    for refused in (scratch.promote("s1"), scratch.follow("s1", delay=timedelta(0))):
        with pytest.raises(UserError, match="holds a dump for a restore test"):
            await refused

    async def by_nobody(_: str) -> bool:
        return False

    assert await scratch.sweep(by_nobody) == []  # its time is not over
    await scratch.discard("s1", mark="drbot:scratch:s1")
    assert proving.world.clean() == []


async def test_a_dump_without_room_in_the_budget_is_not_loaded(past: Past, server_directory: Path) -> None:
    async with dump_proving_of(past, server_directory) as proving:
        backup = await proving.dump()
        budget = ScratchBudget(disk=64 << 20)
        proving.tests._site = proving.tests._site.model_copy(update={"scratch": budget})
        with pytest.raises(UserError, match=r"raise `backups\.scratch\.disk`"):
            await proving.tests.load(asked(proving, backup), no_progress)
        assert proving.world.clean() == []


async def test_what_this_machine_lacks_of_production_fails_the_test_and_is_named(
    proving: DumpProving, server_directory: Path
) -> None:
    """Nothing tells before a disaster that the machine of the restores has not the extensions of production."""
    programs = usable_programs_without(server_directory, "amcheck")
    servers = {SERVER: proving.ports.site.servers[SERVER].model_copy(update={"tools": str(programs)})}
    poorer = proving.tests._site.model_copy(update={"servers": servers})
    proving.tests._servers = EmptyScratch(ScratchPrograms(poorer))
    await proving.dump()
    result = await proving.prove()

    assert result.outcome is Outcome.FAILED
    [proof] = await proving.proofs()
    assert proof.problem is not None
    assert "has no extension `amcheck`, which the dump needs. Install its package there" in proof.problem
    assert proving.world.clean() == []


def usable_programs_without(directory: Path, extension: str) -> Path:
    """PostgreSQL as on a machine where somebody forgot to install that extension."""
    wheel = installation().parent
    shutil.copytree(wheel, directory / wheel.name, symlinks=True)
    for libraries in wheel.parent.glob(f"{wheel.name}.libs"):
        shutil.copytree(libraries, directory / libraries.name)
    for path in (directory / wheel.name).rglob(f"{extension}.control"):
        path.unlink()
    return directory / wheel.name / "pginstall" / "bin"
