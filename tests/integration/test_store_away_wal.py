"""All of S3 goes away under the archiver, for seconds here and for two minutes in `make soak`: WAL waits on its disk,
it says so, and nothing is missing afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
import pytest_asyncio

from actions.backup.patience import PATIENCE
from actions.backup.wal_source import AlarmKind
from tests.fixtures.away import AWAY, Watched
from tests.fixtures.proxy import Proxy
from tests.fixtures.shared_s3 import S3
from tests.wal_world import HERE, OPEN, THERE, WalWorld, eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.corruption,
    pytest.mark.xdist_group("wal"),
    pytest.mark.asyncio(loop_scope="module"),
]

SEGMENTS = 24  # of an absence of minutes


@pytest_asyncio.fixture(loop_scope="module")
async def store(s3: S3) -> AsyncIterator[Watched]:
    client = s3.client()
    for name in (HERE, THERE, OPEN):
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=name)
    host, _, port = s3.endpoint.removeprefix("http://").partition(":")
    async with Proxy(host, int(port)) as road:
        made = Watched(s3, road, HERE, THERE, OPEN, patience=PATIENCE)
        yield made
        await made.gone()


@pytest.mark.parametrize("away", AWAY)
async def test_wal_waits_on_the_archiver_s_disk(
    wal_world: WalWorld, store: Watched, away: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    if away < timedelta(minutes=1):  # shorter than the patience before an alarm
        monkeypatch.setattr("actions.backup.wal_alarms.BUCKET_PATIENCE", timedelta(seconds=1))
    world = replace(wal_world, objects=store, prefix=f"{wal_world.slot}/")
    async with world.archiving() as archiver:
        await world.following()
        _, start = await world.base()
        await world.archived(world.switch())
        store.leave_for = max(away, timedelta(seconds=4))  # what is written meanwhile has to be received, and told
        await store.leave()
        assert store.away is not None
        kept: list[str] = []
        told = set[str]()
        while not store.away.done():
            world.fill("meanwhile")
            kept.append(world.switch())
            told |= {alarm.text for alarm in archiver.status().alarms if alarm.kind is AlarmKind.BUCKET_AWAY}
            await asyncio.sleep(max(1.0, away.total_seconds() / SEGMENTS))
        assert any(f"`{HERE}` lacks" in text and "does not answer" in text for text in told)
        await world.archived(*kept, within=90)
        await eventually(world.silent)
        await eventually(lambda: not list((world.spool / "closed").iterdir()))
    for bucket in (HERE, THERE):
        assert list(await world.archive.gaps(start, await world.archive.listing(bucket))) == []
