"""What the bot puts beside the backups for the day it is away, used as it says, by a process that has nothing of ours:
out of the bucket, with what a bare machine has."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from actions.adapters.clock import SystemClock
from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.programs import ProgramError
from actions.adapters.s3 import S3Store
from actions.backup.wal import WalArchive
from actions.ports import DumpRequest, Ports, no_progress
from actions.site import DatabaseRef
from actions.steps.restore_kit import kit_places, place_kits
from tests.bare_machine import NEEDED, Bare, commands, refused
from tests.dump_world import SERVER as DUMPED
from tests.dump_world import DumpWorld, a_dump_world
from tests.fakes.s3 import MemoryObjects
from tests.fixtures.physical import Past
from tests.fixtures.proxy import Proxy
from tests.fixtures.shared_s3 import S3
from tests.nasty_database import make_nasty_database
from tests.physical_world import BUCKET, SERVER, PhysicalWorld

pytestmark = [pytest.mark.integration, NEEDED]

NASTY = 'Nästy "db" %s x'
# ---------------------------------------------------------------- a dump


@pytest.fixture
def dumped(pg_server: EmbeddedPostgres, s3: S3, bucket: str, tmp_path: Path) -> Iterator[DumpWorld]:
    make_nasty_database(pg_server.dsn(), NASTY)
    made = a_dump_world(
        tmp_path,
        dsn=pg_server.dsn(),
        endpoint=s3.endpoint,
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        bucket=bucket,
        database=NASTY,
    )
    yield made
    made.objects.close()
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        for name in (NASTY, f"{NASTY}_restored"):
            connection.execute(f'DROP DATABASE IF EXISTS "{name.replace(chr(34), chr(34) * 2)}" WITH (FORCE)'.encode())


def ports_of(world: DumpWorld | PhysicalWorld, objects: S3Store) -> Ports:
    physical = getattr(world, "engine", None) if isinstance(world, PhysicalWorld) else None
    few = SimpleNamespace(
        site=world.site, objects=objects, secrets=world.secrets, clock=SystemClock(), physical=physical
    )
    return cast(Ports, few)


async def test_a_dump_comes_back(
    dumped: DumpWorld, pg_server: EmbeddedPostgres, s3: S3, server_directory: Path
) -> None:
    await dumped.engine.dump(DumpRequest(id="b1", database=NASTY), no_progress)
    await dumped.engine.dump(DumpRequest(id="b2", database=NASTY), no_progress)
    assert len(await place_kits(ports_of(dumped, dumped.objects))) == 1
    bare = Bare(server_directory, pg_server, dumped.keys.identity, s3)
    page = bare.fetched(s3, dumped.bucket, "dumps/")
    [listing], [restoring] = commands(page, "list", "--database"), commands(page, "dump", "--database")
    to = {f"PG{name.upper()}": str(value) for name, value in conninfo_to_dict(pg_server.dsn()).items()}
    to = {{"PGDBNAME": "PGDATABASE"}.get(name, name): value for name, value in to.items()}

    assert [line.split()[0] for line in (await bare.type(listing, **to)).splitlines()] == ["b1", "b2"]
    said = await bare.type(restoring, **to)
    assert "b2, as of" in said
    assert "tables with the rows they had" in said
    invariants = dumped.site.database(NASTY).invariants
    before = await dumped.postgres.fingerprint(DatabaseRef(DUMPED, NASTY), invariants)
    after = await dumped.postgres.fingerprint(DatabaseRef(DUMPED, f"{NASTY}_restored"), invariants)
    assert (after.rows, after.sequences) == (before.rows, before.sequences)

    # Nothing is written over, and what was changed is not used.
    assert "already exists" in await refused(bare, restoring, **to)
    client = s3.client()
    [key] = [
        each["Key"]
        for each in client.list_objects_v2(Bucket=dumped.bucket)["Contents"]
        if each["Key"].endswith("/b2/dump.age")
    ]
    body = bytearray(client.get_object(Bucket=dumped.bucket, Key=key)["Body"].read())
    body[len(body) // 2] ^= 1
    client.put_object(Bucket=dumped.bucket, Key=key, Body=bytes(body))
    assert "is not what was stored" in await refused(bare, restoring, **to)
    stranger = re.sub(r"--trust \S+", "--trust AAAA", restoring)
    assert "which --trust does not name" in await refused(bare, stranger, **to)


# ---------------------------------------------------------------- a server


@pytest.fixture
def stored(past: Past, s3: S3, bucket: str, server_directory: Path) -> Iterator[PhysicalWorld]:
    """The server with a past, in a bucket of a real store."""
    known = past.world.objects
    assert isinstance(known, MemoryObjects)
    client = s3.client()
    for key, found in known.buckets[BUCKET].items():
        client.put_object(Bucket=bucket, Key=key, Body=found.body)
    values = {"ACCESS": s3.access_key, "SECRET": s3.secret_key}
    changes: dict[str, object] = {"bucket": bucket, "wal_buckets": (bucket,), "open_bucket": bucket}
    world = replace(
        past.world,
        directory=server_directory / "world",
        bucket=bucket,
        endpoint=s3.endpoint,
        values={**past.world.values, **values},
        policy_changes=changes,
    )
    store = S3Store(world.site, world.secrets)
    world = replace(world, objects=store)
    yield world
    store.close()


@pytest.fixture
async def bare(stored: PhysicalWorld, s3: S3, server_directory: Path) -> Bare:
    assert isinstance(stored.objects, S3Store)
    assert len(await place_kits(ports_of(stored, stored.objects))) == 1
    folder = server_directory / "bare"
    folder.mkdir()
    return Bare(folder, stored.server, stored.keys.identity, s3)


async def rows(bare: Bare) -> list[int]:
    """Of the server that it has left running, which is ended."""
    data = bare.folder / "restored"
    count = f"psql -XAt -h {data} -U postgres -d postgres -c 'SELECT row FROM ledger ORDER BY row'"
    settings = f"psql -XAt -h {data} -U postgres -d postgres -c 'SHOW archive_mode' -c 'SELECT pg_is_in_recovery()'"
    try:
        assert (await bare.type(settings)).split() == ["off", "t"]
        return [int(row) for row in (await bare.type(count)).split()]
    finally:
        await bare.type(f"pg_ctl stop -w -m immediate -D {data}")


async def test_a_server_comes_back_as_it_was_at_a_moment(
    past: Past, stored: PhysicalWorld, bare: Bare, s3: S3, bucket: str
) -> None:
    page = bare.fetched(s3, bucket, "physical/")
    _, to_moment, to_lsn = commands(page, "server", f"--server {SERVER}")

    listed = await bare.type(commands(page, "list", "--server")[0])
    assert [line.split()[0] for line in listed.splitlines()] == ["full", "hour", "quarter"]
    moment = past.commits[4].after.astimezone(UTC).isoformat()
    said = await bare.type(to_moment.replace("2026-11-23T10:29:58+00:00", moment))
    assert "incremental backup quarter" in said
    assert "every page checked" in said
    assert await rows(bare) == [1, 2, 3, 4]
    assert "must be a folder that is not there yet" in await refused(bare, to_moment)

    shutil.rmtree(bare.folder / "restored")
    await bare.type(to_lsn.replace("16/B374D848", past.commits[2].lsn) + " --backup full")
    assert await rows(bare) == [1, 2]


async def test_a_server_comes_back_to_the_end_with_the_pieces_of_the_open_segment(
    stored: PhysicalWorld, bare: Bare, s3: S3, bucket: str
) -> None:
    archive = WalArchive(stored.objects, stored.policy)
    await stored.reopen_last()

    page = bare.fetched(s3, bucket, "physical/")
    to_end, to_moment, _ = commands(page, "server", f"--server {SERVER}")
    said = await bare.type(to_end)
    assert "rests at" in said
    assert await rows(bare) == [1, 2, 3, 4, 5]

    shutil.rmtree(bare.folder / "restored")
    for each in await stored.objects.list(bucket, archive.open_folder):
        await stored.objects.delete(bucket, each.key)
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    said = await refused(bare, to_moment.replace("2026-11-23T10:29:58+00:00", later))
    assert "The archive ends at" in said
    assert not (bare.folder / "restored").exists()


async def test_what_was_changed_or_is_missing_ends_it_before_it_starts(
    past: Past, stored: PhysicalWorld, bare: Bare, s3: S3, bucket: str
) -> None:
    page = bare.fetched(s3, bucket, "physical/")
    to_end, to_moment, _ = commands(page, "server", f"--server {SERVER}")
    client = s3.client()

    archive = WalArchive(stored.objects, stored.policy)
    names = sorted((await archive.listing(bucket)).segments)
    gone = names[-2]
    held = client.get_object(Bucket=bucket, Key=archive.key(gone))["Body"].read()
    client.delete_object(Bucket=bucket, Key=archive.key(gone))
    said = await refused(bare, f"{to_end} --backup full")
    assert f"WAL segment {gone} is missing" in said or "needs to become consistent is missing" in said

    client.put_object(Bucket=bucket, Key=archive.key(gone), Body=held[:-1] + bytes([held[-1] ^ 1]))
    moment = past.commits[4].after.astimezone(UTC).isoformat()
    said = await refused(bare, to_moment.replace("2026-11-23T10:29:58+00:00", moment) + " --backup full")
    log = bare.folder / "restored.log"
    assert "were changed or cut off" in said + (log.read_text() if log.exists() else "")
    client.put_object(Bucket=bucket, Key=archive.key(gone), Body=held)

    shutil.rmtree(bare.folder / "restored", ignore_errors=True)
    key = "physical/base/main/hour/base.age"
    body = bytearray(client.get_object(Bucket=bucket, Key=key)["Body"].read())
    body[len(body) // 2] ^= 1
    client.put_object(Bucket=bucket, Key=key, Body=bytes(body))
    said = await refused(bare, to_moment.replace("2026-11-23T10:29:58+00:00", moment))
    assert "base/main/hour/base.age is not what was stored" in said
    assert not (bare.folder / "restored" / "postmaster.pid").exists()


async def test_it_comes_back_out_of_another_place_where_the_first_is_gone_or_damaged(
    past: Past, stored: PhysicalWorld, bare: Bare, s3: S3, bucket: str
) -> None:
    """The first bucket does not answer; then it does, with a base backup that was damaged there. The second place is a
    folder with a copy."""
    page = bare.fetched(s3, bucket, "physical/")
    _, to_moment, _ = commands(page, "server", f"--server {SERVER}")
    to_moment = to_moment.replace("2026-11-23T10:29:58+00:00", past.commits[4].after.astimezone(UTC).isoformat())
    copy, client = bare.folder / "copy", s3.client()
    for facts in await stored.objects.list(bucket, "physical/"):
        path = copy / facts.key.removeprefix("physical/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(await stored.objects.get(bucket, facts.key))
    bare.hand_over()
    both = f"{to_moment} --from {copy} --wal {copy}"

    said = await bare.type(re.sub(r"endpoint=[^&']+", "endpoint=http://127.0.0.1:9", both))
    assert "does not answer" in said
    assert await rows(bare) == [1, 2, 3, 4]

    shutil.rmtree(bare.folder / "restored")
    body = bytearray(client.get_object(Bucket=bucket, Key="physical/base/main/hour/base.age")["Body"].read())
    body[len(body) // 2] ^= 1
    client.put_object(Bucket=bucket, Key="physical/base/main/hour/base.age", Body=bytes(body))
    said = await bare.type(both)
    assert "base/main/hour/base.age is not what was stored" in said
    assert await rows(bare) == [1, 2, 3, 4]


async def test_it_comes_back_although_connections_are_cut_in_the_middle(
    past: Past, stored: PhysicalWorld, bare: Bare, s3: S3, bucket: str
) -> None:
    """No answer of the store is longer than 1 MB."""
    page = bare.fetched(s3, bucket, "physical/")
    _, to_moment, _ = commands(page, "server", f"--server {SERVER}")
    to_moment = to_moment.replace("2026-11-23T10:29:58+00:00", past.commits[4].after.astimezone(UTC).isoformat())
    base = await stored.objects.head(bucket, "physical/base/main/full/base.age")
    assert base is not None
    assert base.bytes > 2 << 20
    async with Proxy("127.0.0.1", urlsplit(s3.endpoint).port or 80, most=1 << 20) as proxy:
        said = await bare.type(re.sub(r"endpoint=[^&']+", f"endpoint=http://127.0.0.1:{proxy.port}", to_moment))
        assert "every page checked" in said
        assert await rows(bare) == [1, 2, 3, 4]


# ---------------------------------------------------------------- the page itself


@pytest.mark.needs("jq", "openssl")
async def test_the_page_shows_how_its_own_signature_is_checked(
    stored: PhysicalWorld, bare: Bare, s3: S3, bucket: str
) -> None:
    page = bare.fetched(s3, bucket, "physical/")
    [place] = kit_places(stored.site)
    block = page.split("```")[1].splitlines()[1:]
    lines = [f"KEY={shlex.quote(place.trusted_signers[0])}", *block[1:]]
    assert "Verified Successfully" in await bare.type(*lines)
    (bare.folder / "RESTORE.md").write_text(page.replace("--server", "--servers"))
    assert "did NOT match" in await refused(bare, *lines)
    (bare.folder / "RESTORE.md").write_text(page)
    kit = (bare.folder / "kit.json").read_text()
    (bare.folder / "kit.json").write_text(kit.replace('"made_at": "2', '"made_at": "3'))
    with pytest.raises(ProgramError):
        await bare.type(*lines)
