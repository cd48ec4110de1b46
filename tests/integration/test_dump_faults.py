"""What goes wrong with backups: each fault ends with a sentence that names the backup, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import psutil
import psycopg
import pyrage
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from actions.adapters.clock import SystemClock
from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.executor import PROCESS, SubprocessExecutor
from actions.adapters.s3 import S3Store
from actions.backup.catalogue import Folder
from actions.backup.jobs import Engines
from actions.backup.manifest import Manifest, SignedManifest
from actions.catalog.restore import Restore, RestoreParams
from actions.contract import JournalState
from actions.errors import TemporaryError, UserError, VerificationError
from actions.ports import DumpRequest, JobKind, JobPhase, JobSpec, LoadRequest, Ports, no_progress
from actions.runner import Outcome, Runner
from actions.site import DatabaseRef, Site
from tests.contract.kit import PLAN_ID, MemoryJournal
from tests.dump_world import SERVER, DumpWorld, Keys, a_dump_world
from tests.fakes.dump_tests import NoDumpTests
from tests.fakes.executor import MemoryExecutor
from tests.fakes.world import a_world
from tests.fixtures.postgres import Database
from tests.fixtures.shared_s3 import S3

pytestmark = pytest.mark.integration

MARK = "drbot:scratch:plan1"
COPY = DatabaseRef(SERVER, "fault_copy")
ROWS = 60_000


@pytest.fixture
def world(
    pg_server: EmbeddedPostgres, pg_database: Database, s3: S3, bucket: str, tmp_path: Path
) -> Iterator[DumpWorld]:
    with psycopg.connect(pg_database.dsn, autocommit=True) as connection:
        with contextlib.suppress(psycopg.errors.DuplicateObject):
            connection.execute("CREATE ROLE app LOGIN")
        connection.execute("CREATE TABLE public.doc (id int PRIMARY KEY, body text)")
        connection.execute(
            "INSERT INTO doc SELECT g, md5(g::text) || md5((g + 1)::text) || md5((g + 2)::text)"
            f" FROM generate_series(1, {ROWS}) g"
        )
        connection.execute("CREATE INDEX ON doc (body)")
    made = a_dump_world(
        tmp_path,
        dsn=pg_server.dsn(),
        endpoint=s3.endpoint,
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        bucket=bucket,
        database=pg_database.name,
    )
    yield made
    made.objects.close()
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(COPY.name)))


async def dumped(world: DumpWorld, backup: str = "b1") -> str:
    """Dump and give the key of the object."""
    signed = await world.engine.dump(DumpRequest(id=backup, database=world.database), no_progress)
    return signed.manifest.stored.key


def load(world: DumpWorld) -> LoadRequest:
    return LoadRequest(backup="b1", database=world.database, into=COPY, mark=MARK, jobs=2)


async def refused(world: DumpWorld, kind: type[Exception], match: str) -> None:
    """A load is refused with this sentence, and leaves no database, no role and no spool file."""
    with pytest.raises(kind, match=match):
        await world.engine.load(load(world), no_progress)
    assert await nothing_left(world)


async def nothing_left(world: DumpWorld) -> bool:
    spool = world.directory / "spool"
    files = list(spool.iterdir()) if spool.exists() else []
    with psycopg.connect(world.values["DSN"]) as connection:
        rows = connection.execute(r"SELECT rolname FROM pg_roles WHERE rolname ~ '^drbot_(load|give)_'").fetchall()
        rows += connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'drbot%'").fetchall()
    return await world.postgres.database(COPY) is None and not files and not rows


@pytest.mark.corruption
@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda body: body[:-100], "has .* bytes, its manifest says"),
        (lambda body: body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 1]) + body[len(body) // 2 + 1 :], "b1"),
        (lambda body: body[:30] + b"X" + body[31:], "b1"),
        (lambda body: body[:-1] + bytes([body[-1] ^ 128]), "b1"),
        (lambda body: bytes(len(body)), "b1"),
    ],
    ids=["truncated", "middle", "header", "last", "zeros"],
)
async def test_damaged_object_is_refused(world: DumpWorld, damage: Callable[[bytes], bytes], match: str) -> None:
    key = await dumped(world)
    await world.objects.put(world.bucket, key, damage(await world.objects.get(world.bucket, key)))
    await refused(world, VerificationError, match)
    with pytest.raises(VerificationError, match="b1"):
        await world.engine.verify(world.database, "b1", no_progress)


@pytest.mark.corruption
async def test_what_a_complete_reading_has_found_is_in_the_catalogue_from_then_on(world: DumpWorld) -> None:
    key = await dumped(world)
    whole = await world.objects.get(world.bucket, key)
    await world.objects.put(world.bucket, key, whole[:-1] + bytes([whole[-1] ^ 128]))
    with pytest.raises(VerificationError, match="b1"):
        await world.engine.verify(world.database, "b1", no_progress)
    (entry,) = await world.engine.catalogue(world.database)
    assert entry.verified_at is None
    assert "found when it was read at" in (entry.problem or "")

    [record] = [facts.key for facts in await world.objects.list(world.bucket, "") if "/verified-" in facts.key]
    assert f"remove `{record}` and check it again" in (entry.problem or "")
    await world.objects.put(world.bucket, key, whole)
    await world.objects.delete(world.bucket, record)
    assert (await world.engine.verify(world.database, "b1", no_progress)).problem is None


@pytest.mark.corruption
async def test_missing_object_is_refused_and_listed(world: DumpWorld) -> None:
    await world.objects.delete(world.bucket, await dumped(world))
    await refused(world, VerificationError, "object of backup `b1` is missing")
    (entry,) = await world.engine.catalogue(world.database)
    assert entry.problem is not None
    assert "missing" in entry.problem


@pytest.mark.corruption
async def test_backup_of_another_key_is_not_among_recipients(world: DumpWorld) -> None:
    await world.objects.delete(world.bucket, await dumped(world))  # there is nothing to fetch, and nobody tries
    world.values["IDENTITY"] = str(pyrage.x25519.Identity.generate())
    await refused(world, UserError, r"`env:IDENTITY` cannot open backup `b1`: it is not among its 1 recipients")


@pytest.mark.attack
@pytest.mark.corruption
async def test_forged_manifests_are_refused_and_listed(world: DumpWorld) -> None:
    key = (await dumped(world)).replace("dump.age", "manifest.json")
    genuine = await world.objects.get(world.bucket, key)

    async def put(body: bytes, match: str) -> None:
        await world.objects.put(world.bucket, key, body)
        await refused(world, VerificationError, match)
        entry = next(entry for entry in await world.engine.catalogue(world.database) if entry.manifest.id == "b1")
        assert entry.problem is not None

    changed = json.loads(genuine)
    changed["manifest"]["fingerprint"]["rows"]["public.doc"] = 1
    await put(json.dumps(changed).encode(), "changed or forged")
    another = SignedManifest.model_validate_json(genuine).manifest.model_copy(update={"id": "b0"})
    await put(SignedManifest.sign(another, world.keys.signing).model_dump_json().encode(), "belongs to `b0` of")
    forger = world.with_policy()
    forger.keys = Keys(identity=world.keys.identity)
    forger.values = {**world.values, "SIGNING": forger.keys.pem}
    forger.__post_init__()
    await world.objects.delete(world.bucket, key)
    await dumped(forger_trusting_itself(forger))
    await put(await world.objects.get(world.bucket, key), "does not trust")
    await put(b"{ not json", "cannot be read")
    other = await dumped(world, "b2")
    await put(await world.objects.get(world.bucket, other.replace("dump.age", "manifest.json")), "belongs to `b2`")


async def noted_otherwise(world: DumpWorld, **changes: object) -> Manifest:
    """The manifest of `b1` with other values, signed as it should be."""
    key = (await dumped(world)).replace("dump.age", "manifest.json")
    signed = SignedManifest.model_validate_json(await world.objects.get(world.bucket, key))
    made = SignedManifest.sign(signed.manifest.model_copy(update=changes), world.keys.signing)
    await world.objects.put(world.bucket, key, made.model_dump_json().encode())
    return made.manifest


@pytest.mark.corruption
async def test_what_changed_before_it_was_stored_is_found_in_the_load(world: DumpWorld) -> None:
    """Memory that flips a bit after the plain bytes were hashed: the stored bytes are those of the manifest."""
    await noted_otherwise(world, plain_sha256="0" * 64)
    await refused(world, VerificationError, "The plain bytes of backup `b1` do not have the size and SHA-256")


@pytest.mark.corruption
async def test_data_that_lies_elsewhere_is_found_in_the_load(world: DumpWorld) -> None:
    ((entry, begin),) = (
        await world.engine.dump(DumpRequest(id="b1", database=world.database), no_progress)
    ).manifest.places
    await noted_otherwise(world, places=((entry, begin + 1),))
    await refused(world, VerificationError, "`pg_restore` into .* failed")


BLIND = (
    "CREATE TABLE word (body text)",
    # It finds `word` by the search path of whoever writes. A load has none, and makes the index over rows that are in.
    """CREATE FUNCTION known(text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS
       'BEGIN RETURN EXISTS (SELECT FROM word); END'""",
    "CREATE TABLE note (body text)",
    "CREATE INDEX blind ON note (known(body))",
    "INSERT INTO note VALUES ('x')",
)


def in_production(world: DumpWorld, *statements: str) -> list[tuple[object, ...]]:
    """The rows of the last statement."""
    with psycopg.connect(make_conninfo(world.values["DSN"], dbname=world.ref.name), autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.mark.corruption
@pytest.mark.parametrize(
    ("statements", "named"),
    [
        (("ALTER TABLE doc ADD CONSTRAINT at_home CHECK (current_database() = '{home}')",), 'constraint "at_home"'),
        (BLIND, 'relation "word" does not exist'),
    ],
    ids=["in the data", "in an index after all data"],
)
async def test_an_error_in_the_load_is_named_and_nothing_is_swapped_in(
    world: DumpWorld, statements: tuple[str, ...], named: str
) -> None:
    """`pg_restore` by itself would go on, tell of `errors ignored on restore: 1`, and leave most of the rows."""
    in_production(world, *(each.replace("{home}", world.ref.name) for each in statements))
    await dumped(world)
    ports, journal = ports_of(world), MemoryJournal()
    before = await world.postgres.databases(SERVER)
    plan = await Restore().plan(RestoreParams(database=world.database), ports, PLAN_ID)
    assert plan.stopped == ()

    result = await Runner(plan, ports, journal).run()

    assert (result.outcome, result.step) == (Outcome.FAILED, 0)
    assert "`pg_restore` into" in result.message
    assert named in result.message
    assert "errors ignored" not in result.message  # it has ended there, not gone on
    assert [line.step for line in journal.lines if line.state is JournalState.VERIFIED] == []
    after = await world.postgres.databases(SERVER)
    assert [(each.name, each.oid, each.mark, each.allows_connections) for each in after] == [
        (each.name, each.oid, each.mark, each.allows_connections) for each in before
    ]
    assert in_production(world, "SELECT count(*) FROM doc") == [(ROWS,)]
    assert await nothing_left(world)


def ports_of(world: DumpWorld) -> Ports:
    fakes = a_world()
    parts = {part.name: getattr(fakes, part.name) for part in fields(Ports)}
    engines = Engines(world.engine, fakes.physical, fakes.physical, NoDumpTests(), world.tables, fakes.files)
    real = {
        "site": world.site,
        "postgres": world.postgres,
        "objects": world.objects,
        "backups": world.engine,
        "executor": MemoryExecutor(engines),
        "clock": SystemClock(),
    }
    return Ports(**{**parts, **real})


async def test_backup_older_than_the_note_of_its_places_comes_back(world: DumpWorld) -> None:
    manifest = await noted_otherwise(world, places=())
    assert b"places" not in manifest.canonical()
    await world.engine.load(load(world), no_progress)
    assert (await world.postgres.fingerprint(COPY, ())).rows == {"public.doc": ROWS}


def forger_trusting_itself(world: DumpWorld) -> DumpWorld:
    made = world.with_policy(trusted_signers=(world.keys.signer,))
    made.values = world.values
    made.__post_init__()
    return made


@pytest.mark.corruption
async def test_spool_disk_without_room_is_told_before_anything(
    world: DumpWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await dumped(world)
    monkeypatch.setattr("actions.backup.stored.SPARE", 10**18)
    await refused(world, UserError, "bytes free; the dump needs")


class Breaking(S3Store):
    """A store that dies after some bytes of a stream."""

    def __init__(self, world: DumpWorld, after: int, *, said: str = "it does not answer") -> None:
        super().__init__(world.site, world.secrets)
        self._after, self._said = after, said

    async def put_stream(self, bucket: str, key: str, chunks: AsyncIterator[bytes]) -> int:
        async def some() -> AsyncIterator[bytes]:
            taken = 0
            async for chunk in chunks:
                taken += len(chunk)
                if taken > self._after:
                    raise TemporaryError(f"Bucket `{bucket}` did not store `{key}`: {self._said}.")
                yield chunk

        return await super().put_stream(bucket, key, some())


@pytest.mark.corruption
@pytest.mark.parametrize("said", ["it does not answer", "InternalError. Its disk may be full"])
async def test_bucket_dying_in_a_dump_leaves_no_backup_and_no_upload(world: DumpWorld, said: str) -> None:
    engine = world.engine_over(Breaking(world, after=1000, said=said))
    with pytest.raises(TemporaryError, match=said):
        await engine.dump(DumpRequest(id="b1", database=world.database), no_progress)
    assert await world.engine.catalogue(world.database) == []
    assert await world.objects.sweep_uploads(world.bucket, "", older_than=timedelta(0)) == 0
    await dumped(world)
    assert (await world.engine.verify(world.database, "b1", no_progress)).problem is None


class Forgetful(S3Store):
    """A store that says it has all, and has none of it."""

    async def put_stream(self, bucket: str, key: str, chunks: AsyncIterator[bytes]) -> int:
        sent = await super().put_stream(bucket, key, chunks)
        await self.delete(bucket, key)
        return sent


@pytest.mark.corruption
async def test_a_dump_that_the_bucket_did_not_keep_is_none(world: DumpWorld) -> None:
    forgetful = Forgetful(world.site, world.secrets)
    with pytest.raises(TemporaryError, match=r"did not keep `.*` as it was sent"):
        await world.engine_over(forgetful).dump(DumpRequest(id="b1", database=world.database), no_progress)
    forgetful.close()
    assert await world.engine.catalogue(world.database) == []


class TwoDaysLater(S3Store):
    """A store whose uploads are two days older than they are."""

    async def sweep_uploads(self, bucket: str, prefix: str, *, older_than: timedelta) -> int:
        since = max(timedelta(0), older_than - timedelta(days=2))
        return await super().sweep_uploads(bucket, prefix, older_than=since)


async def test_half_upload_of_a_dump_that_nobody_tried_again_goes_with_a_later_dump(world: DumpWorld, s3: S3) -> None:
    key = Folder(world.policy, "b0").dump
    s3.client().create_multipart_upload(Bucket=world.bucket, Key=key)
    await dumped(world, "b1")
    uploads = s3.client().list_multipart_uploads(Bucket=world.bucket)
    assert [upload["Key"] for upload in uploads["Uploads"]] == [key]  # it may be at work

    later = TwoDaysLater(world.site, world.secrets)
    await world.engine_over(later).dump(DumpRequest(id="b2", database=world.database), no_progress)
    later.close()
    assert await world.objects.sweep_uploads(world.bucket, "", older_than=timedelta(0)) == 0


@pytest.mark.corruption
async def test_bucket_dying_in_a_dump_leaves_the_local_copy(world: DumpWorld) -> None:
    with_copy = world.with_policy(local_directory=str(world.directory / "local"))
    engine = with_copy.engine_over(Breaking(with_copy, after=1000))
    with pytest.raises(TemporaryError, match=r"local copy `.*dump.age` with `.*manifest.json` is complete") as told:
        await engine.dump(DumpRequest(id="b1", database=world.database), no_progress)
    assert "the bucket has no backup `b1`" in str(told.value)
    assert await world.engine.find(world.database, "b1") is None
    local = world.directory / "local" / world.database / "b1"
    assert sorted(path.name for path in local.iterdir()) == ["dump.age", "manifest.json"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in local.iterdir())
    # Tried again once the bucket answers, the very bytes of the copy go there: nothing is dumped a second time.
    (copy,) = await with_copy.engine.copies(world.database)
    again = await with_copy.engine.dump(DumpRequest(id="b1", database=world.database), no_progress)
    assert again.manifest == copy.manifest
    assert await with_copy.engine.find(world.database, "b1") == copy  # byte for byte, so that a plan pins either
    assert (await world.engine.verify(world.database, "b1", no_progress)).problem is None
    with_copy.objects.close()


def deaf(world: DumpWorld) -> DumpWorld:
    """The same world with a bucket that does not answer."""
    bucket = world.site.buckets[world.bucket].model_copy(update={"endpoint": "http://127.0.0.1:9"})
    return replace(world, site=world.site.model_copy(update={"buckets": {world.bucket: bucket}}))


@pytest.mark.corruption
async def test_dump_goes_into_the_local_copy_while_the_bucket_is_away(world: DumpWorld) -> None:
    with_copy = world.with_policy(local_directory=str(world.directory / "local"))
    away = deaf(with_copy)
    asked = DumpRequest(id="b1", database=world.database, copy_only=True)
    with pytest.raises(TemporaryError, match="does not answer"):
        await away.engine.dump(asked.model_copy(update={"copy_only": False}), no_progress)
    signed = await away.engine.dump(asked, no_progress)
    assert [copy.manifest for copy in await away.engine.copies(world.database)] == [signed.manifest]
    with pytest.raises(TemporaryError, match="does not answer"):
        await away.engine.upload(world.database, "b1", no_progress)
    assert await with_copy.engine.catalogue(world.database) == []
    await with_copy.engine.upload(world.database, "b1", no_progress)
    await with_copy.engine.load(load(world), no_progress)
    assert (await world.postgres.fingerprint(COPY, ())).rows == {"public.doc": ROWS}
    for made in (with_copy, away):
        made.objects.close()


@pytest.mark.corruption
async def test_changed_local_copy_never_becomes_a_backup(world: DumpWorld) -> None:
    with_copy = world.with_policy(local_directory=str(world.directory / "local"))
    await with_copy.engine.dump(DumpRequest(id="b1", database=world.database, copy_only=True), no_progress)
    path = world.directory / "local" / world.database / "b1" / "dump.age"
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    with pytest.raises(VerificationError, match="is not what was dumped"):
        await with_copy.engine.upload(world.database, "b1", no_progress)
    assert await world.objects.list(world.bucket, "") == []
    path.write_bytes(body[:-1])
    assert await with_copy.engine.copies(world.database) == []
    with_copy.objects.close()


async def test_older_pg_dump_than_the_server_is_refused(world: DumpWorld) -> None:
    tools = world.directory / "old-tools"
    tools.mkdir()
    for name in ("pg_dump", "pg_restore"):
        (tools / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) 14.9'\n")
        (tools / name).chmod(0o755)
    old = world.site.servers[SERVER].model_copy(update={"tools": str(tools)})
    site = Site.model_validate({**dict(world.site), "servers": {SERVER: old}})
    with pytest.raises(UserError, match=r"`pg_dump` 14.9 is older than server `main` \(18\)"):
        await replace(world, site=site).engine.dump(DumpRequest(id="b1", database=world.database), no_progress)


async def test_wrong_password_and_dead_server_are_told_apart(world: DumpWorld) -> None:
    dsn = world.values["DSN"]
    world.values["DSN"] = make_conninfo(dsn, password="wrong")
    with pytest.raises(UserError, match="refused the login of `env:DSN`") as told:
        await world.postgres.server(SERVER)
    assert "wrong" not in str(told.value)
    world.values["DSN"] = make_conninfo(dsn, port=9)
    with pytest.raises(TemporaryError, match="does not answer"):
        await world.postgres.server(SERVER)


# ---------------------------------------------------------------- killed


def executor(world: DumpWorld) -> SubprocessExecutor:
    return SubprocessExecutor(world.directory / "jobs", world.job_command(), environment=world.job_environment())


def a_job(world: DumpWorld, kind: JobKind) -> JobSpec:
    asked = (
        DumpRequest(id="b1", database=world.database).model_dump(mode="json")
        if kind is JobKind.DUMP
        else load(world).model_dump(mode="json")
    )
    return JobSpec(name=f"job-{kind}", kind=kind, request=asked)


async def reached(folder: Path, phase: str) -> None:
    """Wait until the job reports this phase."""
    for _ in range(4000):
        if f'"phase": "{phase}"' in (folder / "progress.ndjson").read_text():
            return
        assert not (folder / "result.json").exists()
        await asyncio.sleep(0.01)
    pytest.fail((folder / "log").read_text())


async def killed_amidst(jobs: SubprocessExecutor, world: DumpWorld, spec: JobSpec, phase: str) -> None:
    """Start the job and kill it by -9 when it reports this phase."""
    await jobs.start(spec)
    folder = world.directory / "jobs" / spec.name
    await reached(folder, phase)
    os.kill(json.loads((folder / PROCESS).read_text())["pid"], signal.SIGKILL)
    state = await jobs.wait(spec.name, no_progress)
    assert state.phase is JobPhase.LOST


@pytest.mark.kill
async def test_dump_killed_amidst_is_made_anew(world: DumpWorld) -> None:
    jobs, spec = executor(world), a_job(world, JobKind.DUMP)
    await killed_amidst(jobs, world, spec, "count")
    assert await world.engine.find(world.database, "b1") is None
    await jobs.forget(spec.name)
    await jobs.start(spec)
    state = await jobs.wait(spec.name, no_progress)
    assert state.phase is JobPhase.SUCCEEDED, state.error
    assert await world.objects.sweep_uploads(world.bucket, "", older_than=timedelta(0)) == 0
    assert programs_of(world) == []


@pytest.mark.kill
async def test_load_killed_amidst_is_made_anew(world: DumpWorld) -> None:
    await dumped(world)
    jobs, spec = executor(world), a_job(world, JobKind.LOAD)
    await killed_amidst(jobs, world, spec, "restore")
    await jobs.forget(spec.name)
    await jobs.start(spec)
    state = await jobs.wait(spec.name, no_progress)
    assert state.phase is JobPhase.SUCCEEDED, state.error
    assert (await world.postgres.fingerprint(COPY, ())).rows == {"public.doc": ROWS}
    assert programs_of(world) == []
    await world.postgres.discard(COPY, mark=MARK)
    assert await nothing_left(world)


async def test_load_cancelled_leaves_nothing(world: DumpWorld) -> None:
    await dumped(world)
    jobs, spec = executor(world), a_job(world, JobKind.LOAD)
    await jobs.start(spec)
    folder = world.directory / "jobs" / spec.name
    await reached(folder, "restore")
    await jobs.cancel(spec.name)
    state = await jobs.find(spec.name)
    assert state is not None
    assert state.phase in (JobPhase.LOST, JobPhase.SUCCEEDED)
    assert programs_of(world) == []
    if state.phase is JobPhase.LOST:
        assert await nothing_left(world)


def programs_of(world: DumpWorld) -> list[str]:
    """What a job of this world has left running."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(world.directory) in line and process.status() != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found
