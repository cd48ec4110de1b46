"""Base backups in two buckets of S3: whatever happens to one of them, the server comes back from the other."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from actions.adapters.s3 import S3Store
from actions.adapters.secrets import SecretReferences
from actions.backup.native_catalogue import BaseFolder
from actions.backup.physical import BackupKind, FindRequest, Lsn, RecoveryTarget, ScratchRequest
from actions.backup.segments import Segment
from actions.errors import TemporaryError, VerificationError
from actions.ports import ObjectFacts, no_progress
from actions.site import Bucket, DatabaseRef, Site
from tests.fakes.s3 import MemoryObjects
from tests.fixtures.hanging import hanging
from tests.fixtures.physical import Past
from tests.fixtures.shared_s3 import S3
from tests.physical_world import BUCKET, MARK, SERVER, PhysicalWorld

pytestmark = pytest.mark.integration

SCRATCH = DatabaseRef("scratch-s1", "postgres")


@pytest.fixture
async def world(
    past: Past, s3: S3, bucket: str, far_bucket: str, server_directory: Path
) -> AsyncIterator[PhysicalWorld]:
    """The past of one bucket, its WAL in both; base backups are to be in both from now on."""
    buckets = {
        name: Bucket(
            name=name, endpoint=s3.endpoint, region=s3.region, access_key="env:ACCESS", secret_key="env:SECRET"
        )
        for name in (bucket, far_bucket)
    }
    secrets = SecretReferences({"ACCESS": s3.access_key, "SECRET": s3.secret_key})
    store, known = S3Store(Site(buckets=buckets), secrets), past.world.objects
    assert isinstance(known, MemoryObjects)
    for key, stored in known.buckets[BUCKET].items():
        for name in (bucket, far_bucket) if "/wal/" in key else (bucket,):
            await store.put(name, key, stored.body)
    made = replace(
        past.world,
        directory=server_directory,
        objects=store,
        bucket=bucket,
        policy_changes={"copy_bucket": far_bucket, "wal_buckets": (bucket, far_bucket)},
    )
    made.archived = set(past.world.archived)
    yield made
    for facts in await made.scratch.instances():
        await made.scratch.stop(facts.id)
    store.close()


async def rows(world: PhysicalWorld) -> list[int]:
    await world.scratch.start("s1")
    found = await world.postgres.query(SCRATCH, "SELECT row FROM ledger ORDER BY row")
    return [int(each["row"]) for each in found]


async def test_the_server_comes_back_once_the_first_bucket_is_gone(
    past: Past, world: PhysicalWorld, s3: S3, far_bucket: str
) -> None:
    far, _ = await world.engine.windows(SERVER)
    assert (far.bucket, far.oldest) == (far_bucket, None)  # WAL that can be replayed on nothing
    await world.take("next", BackupKind.INCREMENTAL)
    copied = await world.engine.copy(SERVER, "next", no_progress)
    assert (copied[0], sorted(copied)) == ("full", ["full", "hour", "next", "quarter"])
    assert (await world.engine.uncopied(SERVER)).complete
    await world.engine.pin(SERVER, "full", reason="case 4711")

    client, here = s3.client(), world.bucket
    for facts in await world.objects.list(here, ""):
        client.delete_object(Bucket=here, Key=facts.key)
    client.delete_bucket(Bucket=here)

    entries = {entry.manifest.id: entry for entry in await world.engine.catalogue(SERVER)}
    assert {name: (entry.problem, entry.whole_in) for name, entry in entries.items()} == dict.fromkeys(
        ("next", "quarter", "hour", "full"), (None, (far_bucket,))
    )
    assert entries["full"].pinned == "case 4711"
    assert list((await world.engine.uncopied(SERVER)).silent) == [here]
    far, near = await world.engine.windows(SERVER)
    assert near.oldest is None
    assert far.oldest is not None
    assert far.oldest <= past.commits[4].after
    restored = await world.restore(RecoveryTarget(time=past.commits[4].after))
    assert (restored.backup, restored.passed_over) == ("quarter", ())
    assert await rows(world) == [1, 2, 3, 4]
    request = FindRequest(server=SERVER, database="postgres", table="ledger")
    assert await world.engine.find(request, no_progress) == ()
    # Where the WAL of the newest one was in the lost bucket alone, the search begins at an older one.
    begin = Lsn.parse(entries["next"].manifest.start_lsn)
    for facts in await world.objects.list(far_bucket, ""):
        name = facts.key.rpartition("/")[2].partition(".")[0]
        if re.fullmatch("[0-9A-F]{24}", name) and Segment.parse(name, 16 << 20).end > begin:
            client.delete_object(Bucket=far_bucket, Key=facts.key)
    assert await world.engine.find(request, no_progress) == ()


async def test_a_bucket_that_hangs_is_waited_for_once_and_the_other_one_is_searched(
    world: PhysicalWorld, s3: S3, far_bucket: str
) -> None:
    await world.engine.copy(SERVER, "quarter", no_progress)
    secrets = SecretReferences({"ACCESS": s3.access_key, "SECRET": s3.secret_key})
    async with hanging() as frozen:
        endpoints = {world.bucket: f"http://127.0.0.1:{frozen.port}", far_bucket: s3.endpoint}
        entries = {
            name: Bucket(name=name, endpoint=at, region=s3.region, access_key="env:ACCESS", secret_key="env:SECRET")
            for name, at in endpoints.items()
        }
        store = S3Store(Site(buckets=entries), secrets, answered_within=timedelta(seconds=0.5))
        away = replace(world, objects=store)
        entries_there = await away.engine.catalogue(SERVER)
        far, near = await away.engine.windows(SERVER)
        search = FindRequest(server=SERVER, database="postgres", table="ledger")
        assert await away.engine.find(search, no_progress) == ()
        assert frozen.connections <= 4  # the tries of one question, which are so many only where each is short
        store.close()
    assert {(entry.problem, entry.whole_in) for entry in entries_there} == {(None, (far_bucket,))}
    assert far.oldest is not None
    assert f"Bucket `{world.bucket}` does not answer" in near.problem


async def test_a_bucket_that_fails_while_a_member_is_fetched_is_passed_over(
    past: Past, world: PhysicalWorld, far_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answered when the catalogue was read. A restore test does the same with the keys of the prover."""
    await world.engine.copy(SERVER, "quarter", no_progress)
    here, head, stream = world.bucket, world.objects.head, world.objects.get_stream

    async def lost(bucket: str, key: str) -> ObjectFacts | None:
        return None if bucket == here and "/hour/" in key else await head(bucket, key)

    async def broken(bucket: str, key: str) -> AsyncIterator[bytes]:
        async for chunk in stream(bucket, key):
            if bucket == here and "/quarter/base.age" in key:
                yield chunk[: len(chunk) // 2]
                raise TemporaryError(f"Bucket `{bucket}` does not answer.")
            yield chunk

    monkeypatch.setattr(world.objects, "head", lost)
    monkeypatch.setattr(world.objects, "get_stream", broken)
    target = RecoveryTarget(time=past.commits[4].after)
    restored = await world.prover.restore(ScratchRequest(id="s1", server=SERVER, target=target, mark=MARK), no_progress)
    assert restored.backup == "quarter"
    said = " ".join(sorted(restored.passed_over))
    assert f"`hour` was not taken from bucket `{here}`: The object of base backup `hour` is missing" in said
    assert f"`quarter` was not taken from bucket `{here}`: Bucket `{here}` does not answer." in said
    assert await rows(world) == [1, 2, 3, 4]


async def test_base_backups_go_on_in_the_second_bucket_while_the_first_is_away(
    world: PhysicalWorld, far_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.engine.copy(SERVER, "full", no_progress)
    here, listed = world.bucket, world.objects.list

    async def away(bucket: str, prefix: str) -> Sequence[ObjectFacts]:
        if bucket == here:
            raise TemporaryError(f"Bucket `{bucket}` does not answer.")
        return await listed(bucket, prefix)

    monkeypatch.setattr(world.objects, "list", away)
    entry = await world.take("next", BackupKind.INCREMENTAL)
    assert (entry.manifest.stored.bucket, entry.whole_in, entry.manifest.full_because) == (
        far_bucket,
        (far_bucket,),
        "",
    )
    with pytest.raises(TemporaryError, match="`next` is whole in"):
        await world.engine.copy(SERVER, "next", no_progress)

    monkeypatch.undo()
    assert dict((await world.engine.uncopied(SERVER)).backups)["next"] == (here,)
    await world.engine.copy(SERVER, "next", no_progress)
    assert (await world.engine.uncopied(SERVER)).complete
    assert (await world.restore(RecoveryTarget(latest=True), backup="next")).backup == "next"


@pytest.mark.corruption
async def test_a_flipped_byte_in_the_first_bucket_is_named_and_the_second_one_restored(
    past: Past, world: PhysicalWorld, far_bucket: str
) -> None:
    await world.engine.copy(SERVER, "quarter", no_progress)
    key = BaseFolder(world.policy, "hour").base
    body = await world.objects.get(world.bucket, key)
    await world.objects.put(world.bucket, key, body[:-100] + bytes([body[-100] ^ 1]) + body[-99:])

    restored = await world.restore(RecoveryTarget(time=past.commits[4].after))
    assert restored.backup == "quarter"
    [said] = restored.passed_over
    assert said.startswith(f"Base backup `hour` was not taken from bucket `{world.bucket}`: ")
    assert await rows(world) == [1, 2, 3, 4]

    hour = next(entry for entry in await world.engine.catalogue(SERVER) if entry.manifest.id == "hour")
    assert (hour.problem, hour.whole_in) == (None, (far_bucket,))
    assert "found when it was read" in hour.spoiled[world.bucket]
    assert "hour" in (await world.engine.uncopied(SERVER)).spoiled
    # Removed by people, it is brought anew, and counts again.
    await world.objects.delete(world.bucket, key)
    assert await world.engine.copy(SERVER, "quarter", no_progress) == ["hour"]
    assert await world.objects.get(world.bucket, key) == body
    hour = next(entry for entry in await world.engine.catalogue(SERVER) if entry.manifest.id == "hour")
    assert (hour.whole_in, dict(hour.spoiled)) == ((world.bucket, far_bucket), {})


@pytest.mark.corruption
async def test_a_complete_reading_reads_both_and_names_the_one_that_is_damaged(
    world: PhysicalWorld, far_bucket: str
) -> None:
    await world.engine.copy(SERVER, "full", no_progress)
    entry = await world.engine.verify(SERVER, "full", no_progress)
    assert entry.verified_at is not None
    key = BaseFolder(world.policy, "full").base
    body = await world.objects.get(far_bucket, key)
    await world.objects.put(far_bucket, key, body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(VerificationError, match=f"Bucket `{far_bucket}`: .*Bucket `{world.bucket}` has it whole"):
        await world.engine.verify(SERVER, "full", no_progress)
    full = next(entry for entry in await world.engine.catalogue(SERVER) if entry.manifest.id == "full")
    assert (full.problem, full.whole_in, list(full.spoiled)) == (None, (world.bucket,), [far_bucket])


async def test_an_incremental_rests_on_the_list_of_files_of_the_bucket_that_has_it(
    world: PhysicalWorld, far_bucket: str
) -> None:
    await world.engine.copy(SERVER, "full", no_progress)
    files = BaseFolder(world.policy, "full").files
    listed = await world.objects.get(world.bucket, files)
    await world.objects.put(world.bucket, files, listed[:-1] + bytes([listed[-1] ^ 1]))
    entry = await world.take("next", BackupKind.INCREMENTAL, "full")
    assert (entry.manifest.parent, entry.manifest.full_because) == ("full", "")
    full = next(entry for entry in await world.engine.catalogue(SERVER) if entry.manifest.id == "full")
    assert full.whole_in == (far_bucket,)
    assert "The list of files of base backup `full`" in full.spoiled[world.bucket]
