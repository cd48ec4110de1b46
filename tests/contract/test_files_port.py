"""What copies of files keep, on buckets in memory and on a real S3 server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from actions.adapters.s3_buckets import S3Buckets
from actions.adapters.secrets import SecretReferences
from actions.backup.files import FileCopies
from actions.buckets import BringBack, FilesCopy, FilesCopyRequest, FilesSource, ObjectAttributes
from actions.errors import TemporaryError, UserError, VerificationError
from actions.ports import no_progress
from actions.site import Bucket, FilesPolicy, Site
from tests.fakes.buckets import MemoryBuckets
from tests.fakes.clock import MemoryClock
from tests.fakes.files import KEY_PEM, KEY_SIGNER
from tests.fakes.secrets import MemorySecrets
from tests.fixtures.shared_s3 import S3

NAME = "pictures"
FILES = {"a/cat.jpg": b"cat", "a/dog.jpg": b"dog", "a/empty": b"", "b/ü 'q\" +&.pdf": b"tax", "b/" + "x" * 250: b"long"}


@dataclass
class World:
    store: S3Buckets | MemoryBuckets
    clock: MemoryClock
    files: FileCopies
    source: str
    copy: str

    async def put(self, key: str, body: bytes) -> None:
        about = ObjectAttributes(headers={"content-type": "image/webp"}, metadata={"owner": "ona"})
        await self.store.store(self.source, key, once(body), about)

    async def content(self, bucket: str | None = None) -> dict[str, bytes]:
        place = bucket or self.source
        return {facts.key: await self.store.get(place, facts.key) for facts in await self.store.list(place, "")}

    async def copied(self, number: int = 1) -> FilesCopy:
        return await self.files.copy(FilesCopyRequest(id=f"{NAME}-{number}", name=NAME), no_progress)

    def out_of(self, number: int, prefix: str = "") -> FilesSource:
        return FilesSource(name=NAME, copy_id=f"{NAME}-{number}", prefix=prefix)


async def once(body: bytes) -> AsyncIterator[bytes]:
    yield body


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made = next(_worlds(request))
    for key, body in FILES.items():
        await made.put(key, body)
    yield made
    if isinstance(made.store, S3Buckets):
        made.store.close()


@pytest.fixture
async def memory() -> World:
    """For what is decided by the engine and not by the store."""
    clock = MemoryClock()
    made = _world(MemoryBuckets("source", "copies", clock=clock), clock, "source", "copies", {})
    for key, body in FILES.items():
        await made.put(key, body)
    return made


def _worlds(request: pytest.FixtureRequest) -> Iterator[World]:
    clock = MemoryClock()
    if request.param == "fake":
        yield _world(MemoryBuckets("source", "copies", clock=clock), clock, "source", "copies", {})
        return
    s3: S3 = request.getfixturevalue("s3")
    source: str = request.getfixturevalue("bucket")
    copies = source.replace("test-", "copy-")
    s3.client().create_bucket(Bucket=copies)
    entries = {
        name: Bucket(name=name, endpoint=s3.endpoint, access_key="env:A", secret_key="env:S")
        for name in (source, copies)
    }
    store = S3Buckets(Site(buckets=entries), SecretReferences({"A": s3.access_key, "S": s3.secret_key}))
    yield _world(store, clock, source, copies, entries)


def _world(
    store: S3Buckets | MemoryBuckets, clock: MemoryClock, source: str, copies: str, entries: Mapping[str, Bucket]
) -> World:
    policy = FilesPolicy(
        name=NAME,
        component="Pictures",
        bucket=source,
        copy_bucket=copies,
        copy_prefix="safe/",
        signing_key="env:FILES_KEY",
        trusted_signers=(KEY_SIGNER,),
    )
    site = Site(buckets=entries, files={NAME: policy})
    secrets = MemorySecrets({"env:FILES_KEY": KEY_PEM})
    files = FileCopies(site, objects=store, buckets=store, secrets=secrets, clock=clock)
    return World(store, clock, files, source, copies)


def versioned(world: World) -> None:
    if isinstance(world.store, MemoryBuckets):
        world.store.keep_versions(world.source)
        return
    client = next(each for (bucket, _), each in world.store._clients.items() if bucket == world.source)
    client.put_bucket_versioning(Bucket=world.source, VersioningConfiguration={"Status": "Enabled"})


# ---------------------------------------------------------------- copying


async def test_a_lost_bucket_comes_back_from_the_copy_alone(world: World) -> None:
    copy = (await world.copied()).manifest
    for key in FILES:
        await world.store.delete(world.source, key)

    found = await world.files.difference(world.out_of(1))
    left = await world.files.bring_back(BringBack(source=world.out_of(1)), no_progress)

    assert (copy.objects, copy.copied, copy.bytes) == (len(FILES), len(FILES), sum(map(len, FILES.values())))
    assert copy.comparison.sampled == len(FILES)
    assert (found.missing, found.changed, found.same) == (len(FILES), 0, 0)
    assert (left.missing, left.same) == (0, len(FILES))
    assert await world.content() == FILES
    [back] = [item for item in await world.store.versions(world.source, "a/cat.jpg") if item.latest]
    opened = await world.store.open(world.source, "a/cat.jpg", back.version)
    assert opened.attributes.headers["content-type"] == "image/webp"
    assert opened.attributes.metadata["owner"] == "ona"
    assert [chunk async for chunk in opened.chunks] == [b"cat"]


async def test_only_what_is_new_is_copied_again_and_the_deleted_is_said(world: World) -> None:
    await world.copied(1)
    await world.put("a/dog.jpg", b"another dog")
    await world.store.delete(world.source, "a/cat.jpg")

    second = (await world.copied(2)).manifest

    assert (second.copied, second.copied_bytes, second.tombstones) == (1, 11, 1)
    assert (second.objects, second.comparison.meanwhile) == (len(FILES) - 1, 0)
    assert [copy.manifest.id for copy in await world.files.copies(NAME)].count(f"{NAME}-1") == 1
    old = await world.files.difference(world.out_of(1))
    assert (old.missing, old.changed) == (1, 1)


async def test_a_copy_that_broke_off_goes_on_where_it_was(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actions.backup.file_copying.PART_FILES", 2)
    store, seen = type(memory.store).store, []

    async def breaking(self: object, bucket: str, key: str, *rest: object) -> int:
        seen.append(key)
        if len(seen) == 4:
            raise TemporaryError("the line is down")
        return await store(memory.store, bucket, key, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(memory.store), "store", breaking)
    with pytest.raises(TemporaryError, match="line is down"):
        await memory.copied()
    assert await memory.files.copies(NAME) == []
    copy = (await memory.copied()).manifest

    assert copy.objects == len(FILES)
    assert copy.copied < len(FILES)
    assert (await memory.copied()).manifest == copy


async def test_a_damaged_copy_is_found_before_it_is_used(memory: World) -> None:
    await memory.copied()
    [stored] = [facts.key for facts in await memory.store.list(memory.copy, "safe/files/") if "/cat.jpg@" in facts.key]
    await memory.store.put(memory.copy, stored, b"CAT")
    await memory.store.delete(memory.source, "a/cat.jpg")

    with pytest.raises(VerificationError, match="damaged"):
        await memory.files.bring_back(BringBack(source=memory.out_of(1)), no_progress)
    assert await memory.store.head(memory.source, "a/cat.jpg") is None


async def test_a_copy_with_a_damaged_file_is_not_made(memory: World) -> None:
    await memory.copied(1)
    [stored] = [facts.key for facts in await memory.store.list(memory.copy, "safe/files/") if "/cat.jpg@" in facts.key]
    await memory.store.put(memory.copy, stored, b"CAT")

    with pytest.raises(VerificationError, match=r"a/cat\.jpg"):
        await memory.copied(2)
    assert [copy.manifest.id for copy in await memory.files.copies(NAME)] == [f"{NAME}-1"]


@pytest.mark.corruption
@pytest.mark.parametrize("file", ["manifest.json", "part-00001"])
async def test_a_forged_or_changed_list_is_not_believed(memory: World, file: str) -> None:
    await memory.copied()
    key = f"safe/files/{NAME}/copies/{NAME}-1/{file}"
    body = await memory.store.get(memory.copy, key)
    await memory.store.put(memory.copy, key, body.replace(b'"objects":5', b'"objects":4').replace(b"\x28", b"\x29", 1))
    await memory.store.delete(memory.source, "a/cat.jpg")

    with pytest.raises(VerificationError):
        await memory.files.bring_back(BringBack(source=memory.out_of(1)), no_progress)
    [copy] = await memory.files.copies(NAME)
    assert (copy.problem is not None) == (file == "manifest.json")


# ---------------------------------------------------------------- bringing back


async def test_what_is_there_now_is_never_touched_unless_asked(world: World) -> None:
    await world.copied()
    versioned(world)
    await world.put("a/dog.jpg", b"another dog")
    await world.put("new", b"new")
    await world.store.delete(world.source, "b/ü 'q\" +&.pdf")

    left = await world.files.bring_back(BringBack(source=world.out_of(1, "a/")), no_progress)
    assert (left.missing, left.changed) == (0, 1)
    assert (await world.content())["a/dog.jpg"] == b"another dog"
    left = await world.files.bring_back(BringBack(source=world.out_of(1), replace=True), no_progress)

    assert (left.missing, left.changed, left.later) == (0, 0, 1)
    assert await world.content() == {**FILES, "new": b"new"}
    kept = [item for item in await world.store.versions(world.source, "a/dog.jpg") if not item.marker]
    assert {item.bytes for item in kept} == {3, len(b"another dog")}


async def test_nothing_is_replaced_where_no_versions_are_kept(memory: World) -> None:
    await memory.copied()
    await memory.put("a/dog.jpg", b"another dog")

    with pytest.raises(UserError, match="keeps no versions"):
        await memory.files.bring_back(BringBack(source=memory.out_of(1), replace=True), no_progress)
    assert (await memory.content())["a/dog.jpg"] == b"another dog"


async def test_files_come_back_as_of_a_moment(world: World) -> None:
    versioned(world)
    await world.put("a/dog.jpg", b"another dog")
    before = await moment_between(world)
    await world.put("a/dog.jpg", b"encrypted!!")
    await world.put("a/ransom.txt", b"pay")
    await world.store.delete(world.source, "a/cat.jpg")
    source = FilesSource(name=NAME, as_of=before, prefix="a/")

    found = await world.files.difference(source)
    assert (found.wanted, found.missing, found.changed, found.later) == (3, 1, 1, 1)
    left = await world.files.bring_back(BringBack(source=source), no_progress)
    assert (left.missing, left.changed) == (0, 1)
    left = await world.files.bring_back(BringBack(source=source, replace=True), no_progress)

    assert (left.missing, left.changed) == (0, 0)
    content = await world.content()
    assert content == {**FILES, "a/dog.jpg": b"another dog", "a/ransom.txt": b"pay"}
    kept = [item.bytes for item in await world.store.versions(world.source, "a/dog.jpg") if not item.marker]
    assert len(kept) == 4  # nothing was lost
    back = [item.marker for item in await world.store.versions(world.source, "a/cat.jpg")]
    assert sorted(back) == [False, False, True]  # that it was deleted stays to be seen
    assert (await world.files.bring_back(BringBack(source=source), no_progress)).missing == 0
    assert len(await world.store.versions(world.source, "a/cat.jpg")) == 3


async def test_what_was_replaced_is_taken_back_and_nothing_else(world: World) -> None:
    versioned(world)
    await world.put("a/dog.jpg", b"another dog")
    await world.put("a/empty", b"changed by people, before")
    before = await moment_between(world)
    for key in ("a/dog.jpg", "a/empty", "a/ours.txt"):
        await world.put(key, b"now")
    await world.store.delete(world.source, "a/cat.jpg")
    source = FilesSource(name=NAME, as_of=before, prefix="a/")
    asked = BringBack(source=source, replace=True, job="plan1-s4")
    await world.files.bring_back(asked, no_progress)
    await world.put("a/empty", b"written since")
    restored = await world.content()
    assert (restored["a/dog.jpg"], restored["a/cat.jpg"]) == (b"another dog", b"cat")

    for other in ("", "plan1-s5"):
        await world.files.take_back(asked.model_copy(update={"job": other}), no_progress)
        assert await world.content() == restored
    for _ in range(2):
        left = await world.files.take_back(asked, no_progress)
        assert (left.missing, left.changed) == (0, 2)
        assert await world.content() == {**restored, "a/dog.jpg": b"now"}
    kept = [item for item in await world.store.versions(world.source, "a/dog.jpg") if not item.marker]
    assert len(kept) == 5  # nothing was lost, and once was enough

    left = await world.files.bring_back(asked, no_progress)
    assert (left.missing, left.changed) == (0, 0)
    assert (await world.content())["a/dog.jpg"] == b"another dog"


async def test_what_a_copy_has_replaced_is_taken_back_as_well(world: World) -> None:
    await world.copied()
    versioned(world)
    await world.put("a/dog.jpg", b"another dog")
    asked = BringBack(source=world.out_of(1), replace=True, job="plan1-s4")
    assert (await world.files.bring_back(asked, no_progress)).changed == 0
    assert (await world.files.bring_back(asked, no_progress)).changed == 0  # known again by its note
    await world.files.take_back(asked, no_progress)
    assert await world.content() == {**FILES, "a/dog.jpg": b"another dog"}


async def moment_between(world: World) -> datetime:
    """A moment after all that was stored and before all that will be; S3 tells whole seconds."""
    newest = max(item.modified_at for item in await world.store.versions(world.source, ""))
    if isinstance(world.store, MemoryBuckets):
        world.clock.advance(timedelta(minutes=1))
        return newest
    await asyncio.sleep(1.1)
    return newest


# ---------------------------------------------------------------- expiry


async def test_copies_over_their_time_go_with_what_only_they_need(memory: World) -> None:
    await memory.copied(1)
    await memory.put("a/dog.jpg", b"another dog")
    memory.clock.advance(timedelta(days=20))
    await memory.copied(2)
    assert (await memory.files.expiry(NAME)).copies == ()
    memory.clock.advance(timedelta(days=20))

    due = await memory.files.expiry(NAME)
    assert (due.copies, due.objects) == ((f"{NAME}-1",), 1)
    await memory.files.expire(due, no_progress)

    assert [copy.manifest.id for copy in await memory.files.copies(NAME)] == [f"{NAME}-2"]
    for key in FILES:
        await memory.store.delete(memory.source, key)
    await memory.files.bring_back(BringBack(source=memory.out_of(2)), no_progress)
    assert await memory.content() == {**FILES, "a/dog.jpg": b"another dog"}


async def test_the_newest_copy_stays_whatever_its_age(memory: World) -> None:
    await memory.copied(1)
    memory.clock.advance(timedelta(days=400))

    due = await memory.files.expiry(NAME)
    assert due.copies == ()
    with pytest.raises(UserError, match="not to be deleted"):
        await memory.files.expire(due.model_copy(update={"copies": (f"{NAME}-1",)}), no_progress)
