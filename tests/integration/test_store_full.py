"""The disk of a real S3 server is full, or runs full, while a backup is taken or WAL is archived: the bucket is named,
nothing half of it is listed, and the same goes through once there is room."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actions.adapters.s3 import S3Store
from actions.adapters.secrets import SecretReferences
from actions.errors import TemporaryError
from actions.ports import DumpRequest, no_progress
from actions.site import Bucket, Site
from bot.demo.seaweedfs import SeaweedFs
from tests.dump_world import DumpWorld, a_dump_world
from tests.fixtures.ample import DATABASE
from tests.fixtures.small_disk import fill
from tests.fixtures.waiting import eventually
from tests.physical_world import BUCKET, SERVER, PhysicalWorld

pytestmark = [
    pytest.mark.integration,
    pytest.mark.corruption,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("ample"),
]

MB = 1 << 20
TOLD_WITHIN = 60.0  # seconds; a person waits for it


@pytest.fixture
def server(small_store: SeaweedFs) -> SeaweedFs:
    small_store.client().create_bucket(Bucket=BUCKET)
    return small_store


@pytest.fixture
def store(server: SeaweedFs) -> Iterator[S3Store]:
    entry = Bucket(name=BUCKET, endpoint=server.endpoint, access_key="env:A", secret_key="env:S")
    made = S3Store(Site(buckets={BUCKET: entry}), SecretReferences({"A": server.access_key, "S": server.secret_key}))
    yield made
    made.close()


ROOM = [pytest.param(0, id="full-before"), pytest.param(16 * MB, id="full-in-the-middle")]
"""Of a backup of more than 16 MB, stored."""
FIRST = pytest.param(-1, id="full-before-its-first-object", marks=pytest.mark.soak)
"""The server looks half a minute for room for a bucket that has none yet, before it says no."""
NAMED = r"Bucket `backups` did not store .*Its disk may be full.*look at the storage, then try again"


@pytest.mark.parametrize("room", ROOM)
async def test_a_base_backup_is_named_not_listed_and_taken_again(
    ample: PhysicalWorld, server: SeaweedFs, store: S3Store, store_disk: Path, server_directory: Path, room: int
) -> None:
    world = replace(ample, directory=server_directory / "world", objects=store)
    world.archive_from_now()
    await world.archive()
    ballast = fill(store_disk, room)
    begun = time.monotonic()
    with pytest.raises(TemporaryError, match=NAMED):
        await world.take("b1")
    assert time.monotonic() - begun < TOLD_WITHIN
    assert await world.engine.catalogue(SERVER) == []
    assert world.clean() == []
    assert "Uploads" not in server.client().list_multipart_uploads(Bucket=BUCKET)
    ballast.unlink()

    async def taken() -> bool:  # a store that was full may say so a moment longer; a step tries again
        with contextlib.suppress(TemporaryError):
            await world.take("b1")
        return [(each.manifest.id, each.problem) for each in await world.engine.catalogue(SERVER)] == [("b1", None)]

    await eventually(taken, within=60)
    assert (await world.engine.verify(SERVER, "b1", no_progress)).problem is None


@pytest.fixture
def dumps(ample: PhysicalWorld, server: SeaweedFs, tmp_path: Path) -> Iterator[DumpWorld]:
    made = a_dump_world(
        tmp_path,
        dsn=ample.server.dsn(),
        endpoint=server.endpoint,
        access_key=server.access_key,
        secret_key=server.secret_key,
        bucket=BUCKET,
        database=DATABASE,
    )
    yield made
    made.objects.close()


@pytest.mark.parametrize("room", [*ROOM, FIRST])
async def test_a_dump_is_named_not_listed_and_made_again(
    dumps: DumpWorld, server: SeaweedFs, store_disk: Path, room: int
) -> None:
    if room >= 0:
        server.client().put_object(Bucket=BUCKET, Key="earlier", Body=b"x")
    ballast = fill(store_disk, room)
    begun = time.monotonic()
    with pytest.raises(TemporaryError, match=NAMED):
        await dumps.engine.dump(DumpRequest(id="b1", database=DATABASE), no_progress)
    assert time.monotonic() - begun < TOLD_WITHIN
    assert await dumps.engine.catalogue(DATABASE) == []
    assert "Uploads" not in server.client().list_multipart_uploads(Bucket=BUCKET)
    ballast.unlink()

    async def made() -> bool:
        with contextlib.suppress(TemporaryError):
            await dumps.engine.dump(DumpRequest(id="b1", database=DATABASE), no_progress)
        return [(each.manifest.id, each.problem) for each in await dumps.engine.catalogue(DATABASE)] == [("b1", None)]

    await eventually(made, within=60)
    assert (await dumps.engine.verify(DATABASE, "b1", no_progress)).problem is None
