"""A copy that has other files than its source is told, unless what changed while it was made explains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from actions import registry
from actions.buckets import Comparison, FilesCopyRequest, ObjectVersion, OpenedObject
from actions.catalog.files import FilesParams
from actions.contract import Verdict
from actions.errors import UserError
from actions.ports import no_progress
from tests.fakes.buckets import MemoryBuckets
from tests.fakes.clock import MemoryClock
from tests.fakes.files import memory_files
from tests.fakes.world import START, World, a_world

LATER = START + timedelta(hours=1)


class Refusing(MemoryBuckets):
    """Refuses to give one file or all away, as a store does where the keys have no right to it."""

    refused = ""
    busy = False
    """Somebody writes between any two looks."""

    async def versions(self, bucket: str, prefix: str) -> Sequence[ObjectVersion]:
        found = await super().versions(bucket, prefix)
        if self.busy and not prefix:
            await self.put(bucket, "bird.jpg", b"picture")
            self.busy = False
        return found

    async def open(self, bucket: str, key: str, version: str) -> OpenedObject:
        if self.refused in (key, "all"):
            raise UserError(f"The keys of bucket `{bucket}` may not read `{key}`.")
        return await super().open(bucket, key, version)


def compared(**found: object) -> Comparison:
    same = {"source_objects": 5, "copy_objects": 5, "source_newest": START, "copy_newest": START}
    return Comparison.model_validate({"compared_at": START, **same, **found})


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (compared(), ""),
        (compared(copy_objects=4), "it has 4 files, its source 5"),
        (compared(copy_objects=4, meanwhile=1), ""),
        (compared(copy_objects=3, meanwhile=1), "it has 3 files, its source 5"),
        (compared(source_newest=LATER), "its newest file is not the newest one"),
        (compared(source_newest=LATER, meanwhile=2), ""),
    ],
)
def test_what_changed_while_it_was_made_explains_a_difference(found: Comparison, said: str) -> None:
    assert found.unlike.startswith(said)
    assert bool(found.unlike) is bool(said)


def refusing(which: str) -> World:
    world = a_world(files_damaged=False)
    clock = MemoryClock()
    clock.advance(world.clock.now() - clock.now())
    store = Refusing("uploads", "uploads-copy", clock=clock)
    store.refused = which
    return replace(world, buckets=store, files=memory_files(world.site, store, clock))


@pytest.mark.parametrize("refused", ["", "cat.jpg"])
async def test_a_file_that_could_not_be_read_is_told(refused: str) -> None:
    world = refusing(refused)
    for key in ("cat.jpg", "dog.jpg"):
        await world.buckets.put("uploads", key, b"picture")
    await world.files.copy(FilesCopyRequest(id="uploads-1", name="uploads"), no_progress)

    report = await registry.query("status.files").read(FilesParams(), world)

    found = [(each.verdict, "1 files of its source, `cat.jpg` among them" in each.detail) for each in report.findings]
    assert found == ([(Verdict.WARN, True)] if refused else [])


async def test_a_file_that_is_refused_is_not_taken_for_deleted_however_much_else_changes() -> None:
    """Its key was copied before; then its policy changed, in a bucket that is written to all the time."""
    world = refusing("")
    for key in ("cat.jpg", "dog.jpg"):
        await world.buckets.put("uploads", key, b"picture")
    await world.files.copy(FilesCopyRequest(id="uploads-1", name="uploads"), no_progress)
    await world.buckets.put("uploads", "cat.jpg", b"another")
    await world.buckets.delete("uploads", "dog.jpg")
    assert isinstance(world.buckets, Refusing)
    world.buckets.refused, world.buckets.busy = "cat.jpg", True

    made = (await world.files.copy(FilesCopyRequest(id="uploads-2", name="uploads"), no_progress)).manifest

    assert (made.objects, made.tombstones, made.comparison.refused) == (0, 1, 1)
    assert made.comparison.meanwhile
    assert made.comparison.unlike.startswith("1 files of its source, `cat.jpg` among them")


async def test_a_bucket_of_which_nothing_could_be_read_makes_no_copy() -> None:
    world = refusing("all")
    await world.buckets.put("uploads", "cat.jpg", b"picture")

    with pytest.raises(UserError, match="No file of bucket `uploads` could be read"):
        await world.files.copy(FilesCopyRequest(id="uploads-1", name="uploads"), no_progress)

    assert list(await world.files.copies("uploads")) == []


async def test_an_empty_bucket_makes_an_empty_copy() -> None:
    world = refusing("")

    copy = await world.files.copy(FilesCopyRequest(id="uploads-1", name="uploads"), no_progress)

    assert (copy.problem, copy.manifest.objects) == (None, 0)
