"""What every BackupEngine keeps: the logical engine on real servers, and the fake."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from actions.backup.catalogue import Folder
from actions.backup.engines import PhysicalEngines
from actions.backup.jobs import Engines, run_job
from actions.errors import UserError, VerificationError
from actions.ports import (
    BackupEngine,
    DumpRequest,
    JobKind,
    JobSpec,
    LoadRequest,
    PostgresAdmin,
    ProgressReport,
    no_progress,
)
from actions.site import BackupPolicy, Database, DatabaseRef, Site
from tests.dump_world import SERVER, DumpWorld, a_dump_world
from tests.fakes.backups import SIGNER, MemoryBackups
from tests.fakes.clock import MemoryClock
from tests.fakes.dump_tests import NoDumpTests
from tests.fakes.files import memory_files
from tests.fakes.postgres import EMPTY, MemoryPostgres
from tests.fakes.tables import MemoryTables

COPY = DatabaseRef(SERVER, "contract_copy")
MARK = "drbot:scratch:contract"


@dataclass
class World:
    port: BackupEngine
    postgres: PostgresAdmin
    database: str
    signers: tuple[str, ...]
    dumps: DumpWorld | None = None

    async def damage(self, backup: str) -> None:
        """Make the backup unusable, so that the catalogue tells: the local copy, which would do instead, goes too."""
        if self.dumps is not None:
            policy = self.dumps.policy
            key = f"{policy.prefix}{self.database}/{backup}/dump.age"
            await self.dumps.objects.delete(policy.bucket, key)
            local = Folder(policy, backup).local_dump
            assert local is not None
            local.unlink()
        else:
            assert isinstance(self.port, MemoryBackups)
            self.port.spoil(self.database, backup, f"The object of backup `{backup}` is missing.")


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "fake":
        memory = MemoryPostgres(SERVER)
        memory.add(DatabaseRef(SERVER, "shop"), fingerprint=EMPTY.model_copy(update={"rows": {"public.t": 7}}))
        policy = BackupPolicy(
            database="shop",
            bucket="b",
            recipients=("age1x",),
            identity="env:I",
            signing_key="env:K",
            trusted_signers=(SIGNER,),
            local_directory="/copies",
        )
        site = Site(databases={"shop": Database(name="shop", server=SERVER, owner="app")}, backups={"shop": policy})
        yield World(MemoryBackups(site, memory), memory, "shop", (SIGNER,))
        return
    server, s3 = request.getfixturevalue("pg_server"), request.getfixturevalue("s3")
    database, bucket = request.getfixturevalue("pg_database"), request.getfixturevalue("bucket")
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        with contextlib.suppress(psycopg.errors.DuplicateObject):
            connection.execute("CREATE ROLE app LOGIN")
        connection.execute("CREATE TABLE public.t AS SELECT g AS id FROM generate_series(1, 7) g")
    made = a_dump_world(
        tmp_path,
        dsn=server.dsn(),
        endpoint=s3.endpoint,
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        bucket=bucket,
        database=database.name,
        local=True,
    )
    yield World(made.engine, made.postgres, database.name, made.policy.trusted_signers, made)
    await made.postgres.discard(COPY, mark=MARK)
    made.objects.close()


async def test_dump_is_catalogued_signed_and_made_once(world: World) -> None:
    asked = DumpRequest(id="b1", database=world.database, requested_by="U1")
    signed = await world.port.dump(asked, no_progress)
    manifest = signed.verified(world.signers)
    assert (manifest.id, manifest.database, manifest.fingerprint.rows) == ("b1", world.database, {"public.t": 7})
    assert (await world.port.dump(asked, no_progress)).manifest == manifest
    entry = await world.port.find(world.database, "b1")
    assert entry is not None
    assert entry.manifest == manifest
    assert entry.problem is None
    assert len(entry.manifest_sha256) == 64
    assert await world.port.find(world.database, "other") is None


async def test_dump_into_the_local_copy_is_uploaded_later(world: World) -> None:
    asked = DumpRequest(id="b1", database=world.database, copy_only=True)
    signed = await world.port.dump(asked, no_progress)
    assert (await world.port.dump(asked, no_progress)).manifest == signed.manifest
    (copy,) = await world.port.copies(world.database)
    assert copy.manifest == signed.manifest
    assert await world.port.find(world.database, "b1") is None
    reports: list[ProgressReport] = []
    for _ in range(2):
        assert (await world.port.upload(world.database, "b1", reports.append)).manifest == signed.manifest
    assert [report.phase for report in reports] == ["upload"] * len(reports) != []
    found = await world.port.find(world.database, "b1")
    assert found is not None
    assert (found.manifest, found.problem) == (signed.manifest, None)
    with pytest.raises(UserError, match="holds no whole backup `b9`"):
        await world.port.upload(world.database, "b9", no_progress)


async def test_catalogue_is_newest_first(world: World) -> None:
    for name in ("b1", "b2"):
        await world.port.dump(DumpRequest(id=name, database=world.database), no_progress)
        if isinstance(world.port, MemoryBackups):
            assert isinstance(world.port._clock, MemoryClock)
            world.port._clock.advance(timedelta(hours=1))
    assert [entry.manifest.id for entry in await world.port.catalogue(world.database)] == ["b2", "b1"]


async def test_what_is_removed_is_gone_in_both_places_and_the_others_stay(world: World) -> None:
    for name in ("b1", "b2"):
        await world.port.dump(DumpRequest(id=name, database=world.database), no_progress)
    for _ in range(2):
        await world.port.remove(world.database, "b1")
    assert [entry.manifest.id for entry in await world.port.catalogue(world.database)] == ["b2"]
    assert [copy.manifest.id for copy in await world.port.copies(world.database)] == ["b2"]
    if world.dumps is not None:
        left = await world.dumps.objects.list(world.dumps.policy.bucket, "")
        assert not any("/b1/" in facts.key for facts in left)


async def test_a_pin_shows_in_the_catalogue_until_it_is_taken_off(world: World) -> None:
    for name in ("b1", "b2"):
        await world.port.dump(DumpRequest(id=name, database=world.database), no_progress)
    for reason in ("case 4711", "case 4711", ""):
        await world.port.pin(world.database, "b1", reason=reason)
        found = {entry.manifest.id: entry.pinned for entry in await world.port.catalogue(world.database)}
        assert found == {"b1": reason, "b2": ""}
        [hold] = await world.port.holds(world.database, "b1")
        assert (hold.objects, hold.held, hold.lockable, hold.problem) == (2, 0, False, "")
    with pytest.raises(UserError, match="no backup `b9`"):
        await world.port.pin(world.database, "b9", reason="x")
    with pytest.raises(UserError, match="no backup `b9`"):
        await world.port.holds(world.database, "b9")


async def test_load_makes_a_marked_equal_database_and_a_rerun_makes_it_anew(world: World) -> None:
    signed = await world.port.dump(DumpRequest(id="b1", database=world.database), no_progress)
    asked = LoadRequest(backup="b1", database=world.database, into=COPY, mark=MARK, jobs=2)
    reports: list[ProgressReport] = []
    await world.port.load(asked, reports.append)
    assert signed.manifest.fingerprint.differences(await world.postgres.fingerprint(COPY, ())) == ()
    first = await world.postgres.database(COPY)
    assert first is not None
    assert (first.mark, first.owner) == (MARK, "app")
    assert reports
    await world.port.load(asked, no_progress)
    again = await world.postgres.database(COPY)
    assert again is not None
    assert again.oid != first.oid
    with pytest.raises(UserError, match="not made by this plan"):
        await world.port.load(asked.model_copy(update={"mark": "drbot:scratch:other"}), no_progress)
    await world.postgres.discard(COPY, mark=MARK)


async def test_verification_shows_in_the_catalogue(world: World) -> None:
    await world.port.dump(DumpRequest(id="b1", database=world.database), no_progress)
    verified = await world.port.verify(world.database, "b1", no_progress)
    assert verified.verified_at is not None
    found = await world.port.find(world.database, "b1")
    assert found is not None
    assert found.verified_at == verified.verified_at


async def test_spoiled_backup_is_listed_with_its_problem_and_never_used(world: World) -> None:
    await world.port.dump(DumpRequest(id="b1", database=world.database), no_progress)
    await world.damage("b1")
    (entry,) = await world.port.catalogue(world.database)
    assert entry.problem is not None
    asked = LoadRequest(backup="b1", database=world.database, into=COPY, mark=MARK, jobs=1)
    with pytest.raises(VerificationError, match="b1"):
        await world.port.load(asked, no_progress)
    with pytest.raises(VerificationError, match="b1"):
        await world.port.verify(world.database, "b1", no_progress)
    assert await world.postgres.database(COPY) is None


async def test_unknown_names_are_told(world: World) -> None:
    with pytest.raises(UserError, match="no backup policy for database `nothing`"):
        await world.port.catalogue("nothing")
    with pytest.raises(UserError, match="no backup `b9`"):
        await world.port.verify(world.database, "b9", no_progress)


async def test_jobs_do_the_same_from_json(world: World) -> None:
    spec = JobSpec(name="j", kind=JobKind.DUMP, request={"id": "b1", "database": world.database})
    none = PhysicalEngines(Site(), {})
    engines = Engines(world.port, none, none, NoDumpTests(), MemoryTables(MemoryPostgres()), memory_files())
    result = await run_job(spec, engines, no_progress)
    assert result["manifest"]["id"] == "b1"
    spec = JobSpec(name="v", kind=JobKind.VERIFY, request={"backup": "b1", "database": world.database})
    assert (await run_job(spec, engines, no_progress))["verified_at"]
