"""The disk of a real S3 server is full while WAL is archived into it: the archiver keeps the segments on its own disk,
names the bucket, and stores them once there is room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from actions.adapters.s3 import S3Store
from actions.adapters.secrets import SecretReferences
from actions.backup.wal_source import AlarmKind
from actions.site import Bucket, Site
from bot.demo.seaweedfs import SeaweedFs
from tests.fixtures.small_disk import fill
from tests.wal_world import HERE, OPEN, THERE, WalWorld, eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.corruption,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("wal"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest.fixture
def world(wal_world: WalWorld, small_store: SeaweedFs) -> Iterator[WalWorld]:
    """All three buckets are on one disk."""
    entries = {}
    for name in (HERE, THERE, OPEN):
        small_store.client().create_bucket(Bucket=name)
        entries[name] = Bucket(name=name, endpoint=small_store.endpoint, access_key="env:A", secret_key="env:S")
    secrets = SecretReferences({"A": small_store.access_key, "S": small_store.secret_key})
    store = S3Store(Site(buckets=entries), secrets)
    yield replace(wal_world, objects=store)
    store.close()


async def test_segments_wait_on_the_archiver_s_disk_and_go_once_there_is_room(
    world: WalWorld, store_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actions.backup.wal_alarms.BUCKET_PATIENCE", timedelta(0))
    async with world.archiving() as archiver:
        await world.following()
        _, start = await world.base()
        await world.archived(world.switch())
        ballast = fill(store_disk, 0)
        kept = []
        for note in ("one", "two"):
            world.fill(note)
            kept.append(world.switch())

        def told() -> str:
            # Not out of the bucket: its status lies there as well, and is as old as the last room.
            found = {alarm.kind: alarm.text for alarm in archiver.status().alarms}
            return found.get(AlarmKind.BUCKET_AWAY, "")

        # Each bucket is told of once its own store has answered, which takes one that is full half a minute.
        await eventually(lambda: "Its disk may be full" in told() and f"`{HERE}` lacks" in told())
        # The second one may still be received.
        await eventually(lambda: all((world.spool / "closed" / name).exists() for name in kept))
        assert set(kept) - set(await world.stored(HERE))  # a full disk may still have had room for one
        ballast.unlink()
        await world.archived(*kept)
        await eventually(world.silent)
    for bucket in (HERE, THERE):
        assert list(await world.archive.gaps(start, await world.archive.listing(bucket))) == []
