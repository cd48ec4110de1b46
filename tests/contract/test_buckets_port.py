"""What every `Buckets` keeps: the adapter on a real S3 server, and the fake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest

from actions.adapters.s3 import PART
from actions.adapters.s3_buckets import S3Buckets
from actions.adapters.secrets import SecretReferences
from actions.buckets import LifecycleRule, ObjectAttributes, ObjectVersion
from actions.errors import UserError
from actions.site import Bucket, BucketPosture, LockMode, Site
from tests.fakes.buckets import MemoryBuckets
from tests.fixtures.shared_s3 import S3

BUCKET = "the-bucket"


@dataclass
class World:
    port: S3Buckets | MemoryBuckets
    bucket: str
    s3: S3 | None

    def keep_versions(self) -> None:
        if self.s3 is None:
            assert isinstance(self.port, MemoryBuckets)
            self.port.keep_versions(self.bucket)
            return
        settings = {"Status": "Enabled"}
        self.s3.client().put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration=settings)  # type: ignore[arg-type]


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "fake":
        yield World(MemoryBuckets(BUCKET), BUCKET, None)
        return
    s3: S3 = request.getfixturevalue("s3")
    bucket: str = request.getfixturevalue("bucket")
    store = a_store(s3, bucket)
    yield World(store, bucket, s3)
    store.close()


def a_store(s3: S3, bucket: str, posture: BucketPosture | None = None) -> S3Buckets:
    entry = Bucket(
        name=bucket,
        endpoint=s3.endpoint,
        access_key="env:A",
        secret_key="env:S",
        posture=posture or BucketPosture(),
    )
    return S3Buckets(Site(buckets={bucket: entry}), SecretReferences({"A": s3.access_key, "S": s3.secret_key}))


async def once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def shown(world: World, key: str = "") -> list[ObjectVersion]:
    return list(await world.port.versions(world.bucket, key))


async def test_every_version_and_marker_is_listed_newest_first(world: World) -> None:
    world.keep_versions()
    await world.port.put(world.bucket, "k", b"one")
    await world.port.put(world.bucket, "k", b"second")
    await world.port.delete(world.bucket, "k")
    await world.port.put(world.bucket, "other", b"x")

    found = await shown(world, "k")

    assert next((item.marker, item.bytes, item.latest) for item in found) == (True, 0, True)
    assert {item.bytes for item in found if not item.marker} == {3, 6}
    assert len({item.version for item in found}) == 3
    assert [item.key for item in await shown(world)][-1] == "other"


async def test_a_bucket_without_versions_has_one_of_each(world: World) -> None:
    await world.port.put(world.bucket, "k", b"one")
    await world.port.put(world.bucket, "k", b"second")

    [found] = await shown(world)

    assert (found.version, found.bytes, found.latest, found.marker) == ("null", 6, True, False)
    opened = await world.port.open(world.bucket, "k", found.version)
    assert b"".join([chunk async for chunk in opened.chunks]) == b"second"


@pytest.mark.parametrize("size", [0, 3, PART + 5])
async def test_an_object_keeps_what_it_was_stored_with(world: World, size: int) -> None:
    about = ObjectAttributes(
        headers={"content-type": "image/webp", "cache-control": "no-store"}, metadata={"owner": "ona"}
    )
    body = bytes(size)
    assert await world.port.store(world.bucket, "k", once(body), about) == size

    [found] = await shown(world)
    opened = await world.port.open(world.bucket, "k", found.version)

    assert opened.bytes == size
    assert opened.attributes == about
    assert b"".join([chunk async for chunk in opened.chunks]) == body
    facts = await world.port.head(world.bucket, "k")
    assert facts is not None
    assert facts.metadata == {"owner": "ona"}


async def test_an_old_version_is_put_on_top_and_the_newer_one_stays(world: World) -> None:
    world.keep_versions()
    about = ObjectAttributes(headers={"content-type": "text/x"}, metadata={"owner": "ona"})
    await world.port.store(world.bucket, "k", once(b"old"), about)
    [old] = await shown(world)
    await world.port.put(world.bucket, "k", b"newer")

    await world.port.put_on_top(world.bucket, "k", old.version, note="from before")

    assert await world.port.get(world.bucket, "k") == b"old"
    found = await shown(world)
    assert len(found) == 3
    latest = next(item for item in found if item.latest)
    opened = await world.port.open(world.bucket, "k", latest.version)
    assert opened.attributes.metadata == {"owner": "ona", "drbot-restored": "from before"}
    assert opened.attributes.headers["content-type"] == "text/x"
    assert [chunk async for chunk in opened.chunks] == [b"old"]


async def test_a_deleted_object_is_put_on_top_of_its_marker_which_stays(world: World) -> None:
    world.keep_versions()
    about = ObjectAttributes(metadata={"owner": "o" * 1990})  # no room for a note
    await world.port.store(world.bucket, "k", once(b"one"), about)
    await world.port.delete(world.bucket, "k")
    data = next(item for item in await shown(world, "k") if not item.marker)

    await world.port.put_on_top(world.bucket, "k", data.version, note="from before")

    assert await world.port.get(world.bucket, "k") == b"one"
    found = await shown(world, "k")
    assert sorted(item.marker for item in found) == [False, False, True]
    latest = next(item for item in found if item.latest)
    assert (await world.port.open(world.bucket, "k", latest.version)).attributes.metadata == about.metadata


async def test_a_version_that_is_not_there_is_told(world: World) -> None:
    world.keep_versions()
    await world.port.put(world.bucket, "k", b"one")

    with pytest.raises(UserError, match="no version `nothing`"):
        await world.port.open(world.bucket, "k", "nothing")


async def test_versioning_is_told(world: World) -> None:
    assert (await world.port.facts(world.bucket)).versioning is False
    world.keep_versions()
    assert (await world.port.facts(world.bucket)).versioning is True


async def test_trials_pass_and_leave_nothing(world: World) -> None:
    trials = await world.port.trials(world.bucket, "some/")

    assert [trial.problem for trial in trials] == ["", "", ""]
    assert await world.port.list(world.bucket, "") == []


# ---------------------------------------------------------------- the adapter alone


@pytest.mark.integration
async def test_settings_are_read_as_they_were_made(s3: S3, bucket: str) -> None:
    client = s3.client()
    client.put_bucket_lifecycle_configuration(
        Bucket=bucket,
        LifecycleConfiguration={
            "Rules": [
                {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 7}},
                {"ID": "off", "Status": "Disabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}},
            ]
        },
    )
    store = a_store(s3, bucket)

    facts = await store.facts(bucket)

    assert facts.lifecycle == (LifecycleRule(name="old", prefix="tmp/", deletes_after=timedelta(days=7)),)
    assert facts.object_lock is LockMode.OFF
    assert facts.lockable is False
    # SeaweedFS has no replication of buckets: what it does not answer is never taken as fine.
    assert facts.replicates_to is None or facts.replicates_to == ()
    store.close()


@pytest.mark.integration
async def test_a_default_lock_is_seen(s3: S3) -> None:
    client, name = s3.client(), "locked-by-default"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    store = a_store(s3, name)
    bare = await store.facts(name)
    retention = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 3}}
    client.put_object_lock_configuration(
        Bucket=name,
        ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": retention},  # type: ignore[typeddict-item]
    )

    facts = await store.facts(name)

    assert (bare.lockable, bare.object_lock) == (True, LockMode.OFF)
    assert (facts.lockable, facts.object_lock, facts.locked_for) == (True, LockMode.GOVERNANCE, timedelta(days=3))
    store.close()
    await asyncio.to_thread(client.delete_bucket, Bucket=name)


@pytest.mark.integration
async def test_encryption_is_asked_for_with_every_object(s3: S3, bucket: str) -> None:
    store = a_store(s3, bucket, BucketPosture(encryption="AES256"))

    trials = await store.trials(bucket, "")
    await store.put(bucket, "small", b"x")
    await store.put_stream(bucket, "large", once(bytes(PART)))

    assert [trial.problem for trial in trials] == ["", "", ""]
    for key in ("small", "large"):
        assert s3.client().head_object(Bucket=bucket, Key=key)["ServerSideEncryption"] == "AES256"
    store.close()


@pytest.mark.integration
async def test_a_missing_bucket_is_named(s3: S3) -> None:
    store = a_store(s3, "no-such-bucket")
    with pytest.raises(UserError, match="no bucket `no-such-bucket`"):
        await store.facts("no-such-bucket")
    store.close()
