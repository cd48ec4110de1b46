"""What every ObjectStore keeps: the adapter on a real S3 server, and the fake."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest
from botocore.exceptions import ClientError

from actions.adapters.s3 import PART, S3Store
from actions.adapters.secrets import SecretReferences
from actions.errors import TemporaryError, UserError
from actions.ports import ObjectStore
from actions.site import Bucket, Site
from tests.fakes.s3 import MemoryObjects
from tests.fixtures.shared_s3 import S3

BUCKET = "the-bucket"


@dataclass
class World:
    port: ObjectStore
    bucket: str
    s3: S3 | None

    def store(self, **changes: str) -> S3Store:
        """The adapter with another endpoint or other keys."""
        assert self.s3 is not None
        values = {"A": changes.get("access", self.s3.access_key), "S": changes.get("secret", self.s3.secret_key)}
        name = changes.get("bucket", self.bucket)
        endpoint = changes.get("endpoint", self.s3.endpoint)
        entry = Bucket(name=name, endpoint=endpoint, access_key="env:A", secret_key="env:S")
        return S3Store(Site(buckets={name: entry}), SecretReferences(values))


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "fake":
        yield World(MemoryObjects(BUCKET), BUCKET, None)
        return
    made = World(MemoryObjects(), request.getfixturevalue("bucket"), request.getfixturevalue("s3"))
    store = made.store()
    made.port = store
    yield made
    store.close()


async def chunked(body: bytes, size: int) -> AsyncIterator[bytes]:
    for place in range(0, len(body), size):
        yield body[place : place + size]


async def test_put_get_head_list_delete(world: World) -> None:
    keys = ["a/1", "a/ü 'q\" +&.json", "b/2"]
    for key in keys:
        await world.port.put(world.bucket, key, key.encode())
    assert await world.port.get(world.bucket, keys[1]) == keys[1].encode()
    found = await world.port.head(world.bucket, keys[1])
    assert found is not None
    assert found.bytes == len(keys[1].encode())
    assert found.modified_at.tzinfo is not None
    assert [facts.key for facts in await world.port.list(world.bucket, "a/")] == keys[:2]
    await world.port.delete(world.bucket, keys[1])
    await world.port.delete(world.bucket, keys[1])
    assert await world.port.head(world.bucket, keys[1]) is None
    with pytest.raises(UserError, match="has no object"):
        await world.port.get(world.bucket, keys[1])


async def test_the_first_bytes_are_given_out_alone(world: World) -> None:
    for body in (b"", b"short", bytes(range(256)) * 1024):
        await world.port.put(world.bucket, "first", body)
        assert await world.port.get_first(world.bucket, "first", 1000) == body[:1000]
    with pytest.raises(UserError, match=r"has no object `nothing`"):
        await world.port.get_first(world.bucket, "nothing", 1)


async def test_the_same_bytes_have_the_same_etag_in_a_listing_and_alone(world: World) -> None:
    for key, body in (("k", b"one"), ("same", b"one"), ("other", b"two")):
        await world.port.put(world.bucket, key, body)
    listed = {facts.key: facts.etag for facts in await world.port.list(world.bucket, "")}
    assert listed["k"] == listed["same"] != listed["other"]
    for key, etag in listed.items():
        facts = await world.port.head(world.bucket, key)
        assert facts is not None
        assert (facts.etag, facts.replication) == (etag, "")


async def test_put_only_if_absent_never_overwrites(world: World) -> None:
    await world.port.put(world.bucket, "k", b"first", only_if_absent=True)
    with pytest.raises(UserError, match="exists already"):
        await world.port.put(world.bucket, "k", b"second", only_if_absent=True)
    assert await world.port.get(world.bucket, "k") == b"first"


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 3 * PART - 7])
async def test_streams_come_back_as_they_went(world: World, size: int) -> None:
    body = random.Random(size).randbytes(size)
    assert await world.port.put_stream(world.bucket, "s", chunked(body, 5_000_000)) == size
    got = b"".join([chunk async for chunk in world.port.get_stream(world.bucket, "s")])
    assert got == body


async def test_stream_that_breaks_leaves_no_object_and_no_upload(world: World) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield bytes(PART)
        yield bytes(PART)
        raise TemporaryError("the source is gone")

    with pytest.raises(TemporaryError, match="the source is gone"):
        await world.port.put_stream(world.bucket, "broken", breaking())
    assert await world.port.head(world.bucket, "broken") is None
    assert await world.port.sweep_uploads(world.bucket, "", older_than=timedelta(0)) == 0


async def test_uploads_left_behind_are_swept_by_prefix_and_age(world: World) -> None:
    if isinstance(world.port, MemoryObjects):
        now = world.port._clock.now()
        world.port.uploads[world.bucket] = [("old/x", now), ("other/x", now)]
    else:
        assert world.s3 is not None
        for key in ("old/x", "other/x"):
            world.s3.client().create_multipart_upload(Bucket=world.bucket, Key=key)
    assert await world.port.sweep_uploads(world.bucket, "old/", older_than=timedelta(hours=1)) == 0
    assert await world.port.sweep_uploads(world.bucket, "old/", older_than=timedelta(0)) == 1
    assert await world.port.sweep_uploads(world.bucket, "", older_than=timedelta(0)) == 1


async def test_a_legal_hold_is_put_on_and_taken_off(world: World) -> None:
    """Of the version that is there now; in a bucket that can lock."""
    await world.port.put(world.bucket, "k", b"x")
    assert await world.port.held(world.bucket, "k") is None
    assert await world.port.hold(world.bucket, "k", on=True) is False
    port, bucket = world.port, f"{world.bucket}-held"
    if isinstance(port, MemoryObjects):
        port.buckets[bucket] = {}
        port.lockable.add(bucket)
    else:
        assert world.s3 is not None
        world.s3.client().create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
        port = world.store(bucket=bucket)
    await port.put(bucket, "k", b"x")
    assert await port.held(bucket, "k") is False
    for on in (True, True, False, False, True):
        assert await port.hold(bucket, "k", on=on) is True
        assert await port.held(bucket, "k") is on
    for call in (port.hold(bucket, "other", on=True), port.held(bucket, "other")):
        with pytest.raises(UserError, match="has no object `other`"):
            await call
    if world.s3 is None:
        return
    client = world.s3.client()
    [version] = [each["VersionId"] for each in client.list_object_versions(Bucket=bucket)["Versions"]]
    with pytest.raises(ClientError, match="AccessDenied"):
        client.delete_object(Bucket=bucket, Key="k", VersionId=version)
    await port.put(bucket, "k", b"newer")
    assert await port.held(bucket, "k") is False  # a new version is another one
    client.put_object_legal_hold(Bucket=bucket, Key="k", VersionId=version, LegalHold={"Status": "OFF"})
    client.delete_object(Bucket=bucket, Key="k", VersionId=version)


async def test_missing_bucket_is_named(world: World) -> None:
    port = world.port if world.s3 is None else world.store(bucket="no-such-bucket")
    with pytest.raises(UserError, match="no bucket `no-such-bucket`"):
        # Reading: SeaweedFS makes a bucket by itself when an administrator writes.
        await port.list("no-such-bucket", "")


@pytest.mark.integration
async def test_refusals_name_the_reference_and_never_the_secret(s3: S3, bucket: str) -> None:
    world = World(MemoryObjects(), bucket, s3)
    store = world.store(secret="not-the-secret-key")
    with pytest.raises(UserError, match="`env:A` and `env:S`") as told:
        await store.put(bucket, "k", b"x")
    assert "not-the-secret-key" not in str(told.value)
    store.close()
    odd = world.store(endpoint="no address")
    with pytest.raises(UserError, match="as the plan file has it"):
        await odd.list(bucket, "")
    odd.close()
    silent = world.store(endpoint="http://127.0.0.1:9")
    with pytest.raises(TemporaryError, match="does not answer"):
        await silent.list(bucket, "")
    silent.close()
