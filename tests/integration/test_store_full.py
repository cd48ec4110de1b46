"""The disk of a real S3 server is full, or runs full, while a base backup is taken: the bucket is named, nothing half
of it is listed, and the same backup goes through once there is room."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio

from actions.adapters.s3 import S3Store
from actions.adapters.secrets import SecretReferences
from actions.errors import TemporaryError
from actions.ports import no_progress
from actions.site import Bucket, Site
from bot.demo.seaweedfs import SeaweedFs
from tests.fixtures.physical import standing
from tests.physical_world import BUCKET, SERVER, PhysicalWorld

pytestmark = [pytest.mark.integration, pytest.mark.corruption, pytest.mark.timeout(180)]

MB = 1 << 20
DISK = 256 * MB


@pytest.fixture
def small_disk(server_directory: Path) -> Iterator[Path]:
    """A disk for one S3 server. Skips where this account may not mount one."""
    place = server_directory / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no right to mount a small disk: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest_asyncio.fixture
async def server(small_disk: Path) -> AsyncIterator[SeaweedFs]:
    async with SeaweedFs(small_disk) as started:
        started.client().create_bucket(Bucket=BUCKET)
        yield started


@pytest.fixture
def store(server: SeaweedFs) -> Iterator[S3Store]:
    entry = Bucket(name=BUCKET, endpoint=server.endpoint, access_key="env:A", secret_key="env:S")
    made = S3Store(Site(buckets={BUCKET: entry}), SecretReferences({"A": server.access_key, "S": server.secret_key}))
    yield made
    made.close()


def fill(disk: Path, room: int) -> Path:
    """Take all that is left but `room`."""
    ballast = disk / "ballast"
    free = shutil.disk_usage(disk).free
    ballast.write_bytes(bytes(max(0, free - room)))
    return ballast


@pytest.fixture(scope="module")
def source(run_directory: Path) -> Iterator[PhysicalWorld]:
    """A server with a database of 60 MB that do not compress well."""
    with standing(run_directory) as world:
        world.sql("CREATE ROLE app LOGIN", "CREATE DATABASE shop OWNER app")
        with psycopg.connect(world.server.dsn("shop"), autocommit=True) as connection:
            connection.execute(
                "CREATE TABLE doc AS SELECT g AS id, uuidv4()::text || uuidv4()::text AS body "
                "FROM generate_series(1, 500000) g"
            )
            connection.execute("ALTER TABLE doc OWNER TO app")
        yield world


ROOM = [pytest.param(0, id="full-before"), pytest.param(16 * MB, id="full-in-the-middle")]
"""Of a base backup of 30 MB or more, stored."""


@pytest.mark.parametrize("room", ROOM)
async def test_a_base_backup_is_named_not_listed_and_taken_again(
    source: PhysicalWorld, server: SeaweedFs, store: S3Store, small_disk: Path, server_directory: Path, room: int
) -> None:
    world = replace(source, directory=server_directory / "world", objects=store)
    await world.archive()
    ballast = fill(small_disk, room)
    with pytest.raises(TemporaryError, match=r"Bucket `backups` did not store .*Its disk may be full"):
        await world.take("b1")
    assert await world.engine.catalogue(SERVER) == []
    assert world.clean() == []
    assert "Uploads" not in server.client().list_multipart_uploads(Bucket=BUCKET)
    ballast.unlink()
    await world.take("b1")
    [entry] = await world.engine.catalogue(SERVER)
    assert (entry.manifest.id, entry.problem) == ("b1", None)
    assert (await world.engine.verify(SERVER, "b1", no_progress)).problem is None
