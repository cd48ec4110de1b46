"""S3 goes away in the middle of a base backup, a dump, a load and of archiving, for seconds here and for two minutes in
`make soak`: each waits, goes on where it was, and what is stored in the end is whole."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from actions.adapters.s3 import S3Store
from actions.backup.patience import PATIENCE, AwayError
from actions.ports import DumpRequest, LoadRequest, no_progress
from actions.site import DatabaseRef
from tests.dump_world import SERVER as DUMPED
from tests.dump_world import DumpWorld, a_dump_world
from tests.fixtures.ample import DATABASE, ROWS
from tests.fixtures.away import AWAY, Watched
from tests.fixtures.shared_s3 import S3
from tests.physical_world import SERVER, PhysicalWorld

pytestmark = [pytest.mark.integration, pytest.mark.corruption, pytest.mark.xdist_group("ample")]

COPY = DatabaseRef(DUMPED, "away_copy")


@pytest.mark.parametrize("away", AWAY)
async def test_a_base_backup_goes_on_where_it_was(
    ample: PhysicalWorld, store: Watched, s3: S3, bucket: str, server_directory: Path, away: timedelta
) -> None:
    world = replace(ample, directory=server_directory, objects=store, bucket=bucket, patience=PATIENCE)
    store.leave_at, store.leave_for = "/base.age", away
    begun = time.monotonic()
    await world.take("b1")
    assert time.monotonic() - begun > away.total_seconds()
    assert store.away is not None
    assert store.away.done()
    assert len(store.uploads) == 1
    assert "Uploads" not in s3.client().list_multipart_uploads(Bucket=bucket)
    [entry] = await world.engine.catalogue(SERVER)
    assert (entry.manifest.id, entry.problem) == ("b1", None)
    assert (await world.engine.verify(SERVER, "b1", no_progress)).problem is None


AWHILE = timedelta(seconds=1)


async def test_a_base_backup_that_is_uploaded_waits_with_its_manifest(
    ample: PhysicalWorld, store: Watched, bucket: str, server_directory: Path
) -> None:
    world = replace(ample, directory=server_directory, objects=store, bucket=bucket, patience=PATIENCE)
    store.leave_at, store.leave_for = "/manifest.json", AWHILE
    begun = time.monotonic()
    await world.take("b1")
    assert time.monotonic() - begun > AWHILE.total_seconds()
    assert len(store.uploads) == 1
    [entry] = await world.engine.catalogue(SERVER)
    assert (entry.manifest.id, entry.problem) == ("b1", None)


@pytest.fixture
async def dumps(ample: PhysicalWorld, s3: S3, bucket: str, tmp_path: Path) -> AsyncIterator[DumpWorld]:
    made = a_dump_world(
        tmp_path,
        dsn=ample.server.dsn(),
        endpoint=s3.endpoint,
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        bucket=bucket,
        database=DATABASE,
    )
    yield made
    made.objects.close()
    with psycopg.connect(ample.server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(COPY.name)))


@pytest.mark.parametrize("away", AWAY)
async def test_a_dump_and_its_load_go_on_where_they_were(
    dumps: DumpWorld, store: Watched, s3: S3, bucket: str, away: timedelta
) -> None:
    engine = dumps.engine_over(store)
    store.leave_at, store.leave_for = "/dump.age", away
    begun = time.monotonic()
    await engine.dump(DumpRequest(id="b1", database=DATABASE), no_progress)
    assert time.monotonic() - begun > away.total_seconds()
    assert len(store.uploads) == 1
    assert "Uploads" not in s3.client().list_multipart_uploads(Bucket=bucket)
    [entry] = await dumps.engine.catalogue(DATABASE)
    assert (entry.manifest.id, entry.problem) == ("b1", None)
    assert (await dumps.engine.verify(DATABASE, "b1", no_progress)).problem is None

    store.away = None
    store.streams.clear()
    begun = time.monotonic()
    wanted = LoadRequest(backup="b1", database=DATABASE, into=COPY, mark="drbot:scratch:plan1", jobs=2)
    await engine.load(wanted, no_progress)
    assert time.monotonic() - begun > away.total_seconds()
    assert store.streams.count(entry.manifest.stored.key) == 1
    assert (await dumps.postgres.fingerprint(COPY, ())).rows == {"public.doc": ROWS}


async def test_a_dump_that_is_uploaded_waits_with_its_manifest(dumps: DumpWorld, store: Watched) -> None:
    store.leave_at, store.leave_for = "/manifest.json", AWHILE
    begun = time.monotonic()
    await dumps.engine_over(store).dump(DumpRequest(id="b1", database=DATABASE), no_progress)
    assert time.monotonic() - begun > AWHILE.total_seconds()
    assert len(store.uploads) == 1
    [entry] = await dumps.engine.catalogue(DATABASE)
    assert (entry.manifest.id, entry.problem) == ("b1", None)


async def test_a_manifest_whose_answer_was_lost_is_not_taken_for_another_s(dumps: DumpWorld) -> None:
    class Losing(S3Store):
        asked = 0

        async def put(self, bucket: str, key: str, body: bytes, *, only_if_absent: bool = False) -> None:
            await super().put(bucket, key, body, only_if_absent=only_if_absent)
            self.asked += 1
            if self.asked == 1:
                raise AwayError(f"Bucket `{bucket}` does not answer.")

    losing = Losing(dumps.site, dumps.secrets)
    signed = await dumps.engine_over(losing).dump(DumpRequest(id="b1", database=DATABASE), no_progress)
    losing.close()
    [entry] = await dumps.engine.catalogue(DATABASE)
    assert (entry.manifest, entry.problem) == (signed.manifest, None)
