"""S3 goes away in the middle of a restore and of an upload, for seconds here and for two minutes in `make soak`: the
work waits, goes on where it was, and nothing is fetched or stored twice."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from actions.adapters.s3 import PART
from actions.backup.patience import PATIENCE
from actions.backup.physical import RecoveryTarget
from actions.errors import PermanentError, TemporaryError
from actions.site import DatabaseRef
from tests.fakes.s3 import MemoryObjects
from tests.fixtures.away import AWAY, Watched
from tests.fixtures.physical import Past
from tests.fixtures.proxy import Proxy
from tests.fixtures.shared_s3 import S3
from tests.physical_world import BUCKET, SERVER

pytestmark = [pytest.mark.integration, pytest.mark.corruption]


@pytest.mark.parametrize("away", AWAY)
async def test_a_restore_goes_on_where_it_was(
    past: Past, store: Watched, bucket: str, server_directory: Path, away: timedelta
) -> None:
    known = past.world.objects
    assert isinstance(known, MemoryObjects)
    for key, stored in known.buckets[BUCKET].items():
        await store.put(bucket, key, stored.body)
    world = replace(past.world, directory=server_directory, objects=store, bucket=bucket, patience=PATIENCE)
    world.archived = set(past.world.archived)
    await world.engine.catalogue(SERVER)  # what is written once is read once
    store.streams.clear()
    store.leave_in, store.leave_for = 3, away

    begun = time.monotonic()
    restored = await world.restore(RecoveryTarget(time=past.commits[4].after))
    assert time.monotonic() - begun > away.total_seconds()
    assert (restored.backup, restored.passed_over) == ("quarter", ())
    bases = [key for key in store.streams if key.endswith("/base.age")]
    assert len(bases) >= 3
    assert store.away is not None
    assert store.away.done()
    await world.scratch.start("s1")
    found = await world.postgres.query(DatabaseRef("scratch-s1", "postgres"), "SELECT row FROM ledger ORDER BY row")
    assert [int(each["row"]) for each in found] == [1, 2, 3, 4]
    await world.scratch.stop("s1")


@pytest.mark.parametrize("away", AWAY)
async def test_streams_go_on_where_they_were(
    store: Watched, s3: S3, bucket: str, away: timedelta, caplog: pytest.LogCaptureFixture
) -> None:
    store.leave_for = away
    body = bytes(range(256)) * (PART // 64)

    async def chunks() -> AsyncIterator[bytes]:
        for place in range(0, len(body), PART // 2):
            if place == 2 * PART:
                await store.leave()
            yield body[place : place + PART // 2]

    with caplog.at_level(logging.WARNING):
        assert await store.put_stream(bucket, "large", chunks()) == len(body)
    assert "store_away_for_" in caplog.text
    assert "Uploads" not in s3.client().list_multipart_uploads(Bucket=bucket)
    store.away, store.leave_in = None, 1
    assert b"".join([chunk async for chunk in store.get_stream(bucket, "large")]) == body
    assert store.streams == ["large"]


async def test_one_that_stays_away_is_told_in_the_end(s3: S3, bucket: str, road: Proxy) -> None:
    store = Watched(s3, road, bucket, patience=timedelta(seconds=1))
    await store.hasten()
    body = bytes(3 * PART)

    async def chunks(part: int) -> AsyncIterator[bytes]:
        for number in range(3):
            if number == part:
                await road.cut()
            yield body[:PART]

    assert await store.put_stream(bucket, "whole", chunks(9)) == len(body)
    with pytest.raises(TemporaryError, match="does not answer"):
        await store.put_stream(bucket, "half", chunks(2))
    with pytest.raises(TemporaryError, match="does not answer"):
        await store.get(bucket, "whole")
    road.heal()
    got = 0

    async def read() -> None:
        nonlocal got
        async for chunk in store.get_stream(bucket, "whole"):
            if not got:
                await road.cut()
            got += len(chunk)

    with pytest.raises(TemporaryError, match="does not answer"):
        await read()
    assert 0 < got < len(body)
    road.heal()
    assert await store.head(bucket, "half") is None
    store.close()


async def test_an_object_that_was_replaced_meanwhile_is_not_gone_on_with(store: Watched, s3: S3, bucket: str) -> None:
    store.leave_for = timedelta(seconds=1)
    store.leave_in = 1
    body = bytes(3 * PART)
    s3.client().put_object(Bucket=bucket, Key="k", Body=body)

    async def read() -> None:
        async for _ in store.get_stream(bucket, "k"):
            s3.client().put_object(Bucket=bucket, Key="k", Body=body[:-1] + b"1")

    with pytest.raises(PermanentError, match=r"did not read `k`: (412|PreconditionFailed)"):
        await read()


@pytest.mark.parametrize("other", [b"", bytes(2 * PART)], ids=["nothing-before", "another-of-its-size"])
async def test_an_upload_whose_last_answer_is_lost_is_whole_and_never_another_object(
    store: Watched, s3: S3, bucket: str, other: bytes
) -> None:
    if other:
        s3.client().put_object(Bucket=bucket, Key="k", Body=other)
    body = bytes([1]) * (2 * PART)
    client = await store._client(bucket)
    complete = client.complete_multipart_upload
    asked = 0

    def lost(**what: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            complete(**what)
            raise EndpointConnectionError(endpoint_url="the answer")
        code = {"Error": {"Code": "NoSuchUpload", "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": 404}}
        raise ClientError(code, "CompleteMultipartUpload")  # type: ignore[arg-type]

    def never(**_: Any) -> Any:
        raise ClientError({"Error": {"Code": "NoSuchUpload", "Message": ""}}, "CompleteMultipartUpload")

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    client.complete_multipart_upload = never  # type: ignore[method-assign]
    with pytest.raises(PermanentError, match="NoSuchUpload"):
        await store.put_stream(bucket, "k", chunks())
    client.complete_multipart_upload = lost  # type: ignore[method-assign]
    assert await store.put_stream(bucket, "k", chunks()) == len(body)
    assert (asked, await store.get(bucket, "k")) == (2, body)
