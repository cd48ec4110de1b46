"""How far the WAL of a bucket leads is told as a restore finds it: closed segments, forks, and what is still open."""

from __future__ import annotations

from pathlib import Path

import pytest

from actions.backup.native_newest import Newest, OpenEnd, newest_closed
from actions.backup.physical import Lsn, RecoveryTarget
from actions.backup.segments import Segment
from tests.fakes.clock import START
from tests.fakes.wal import HERE, MINUTE, OPEN, SIZE, SYSTEM, MemoryWal

FORK = f"1\t{Lsn(3 * SIZE + 100)}\tno recovery target specified\n"


@pytest.fixture
def wal() -> MemoryWal:
    return MemoryWal()


async def told(wal: MemoryWal) -> Newest:
    listing = await wal.archive.listing(HERE)
    way = await wal.archive.timelines(wal.start(), None, [listing])
    closed, newest = await newest_closed(wal.archive, listing, way, SIZE, SYSTEM)
    assert closed is not None
    return await OpenEnd(wal.objects, wal.archive, way, SYSTEM).after(closed, newest)


async def as_restored(wal: MemoryWal, folder: Path) -> tuple[Newest, str]:
    """What is told, which must be what a restore gets."""
    newest = await told(wal)
    fetched = await wal.fetch(folder, RecoveryTarget(latest=True))
    assert newest == Newest(fetched.newest_at, Lsn.parse(fetched.end_lsn))
    return newest, fetched.last


async def test_the_open_segment_counts_as_far_as_its_ranges_follow_each_other(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(1, 2)
    assert (await as_restored(wal, tmp_path / "1"))[0] == Newest(START + 2 * MINUTE, Lsn(3 * SIZE))
    await wal.opened(3, 0, 100, 200)
    await wal.opened(3, 300, 400)
    assert (await as_restored(wal, tmp_path / "2"))[0] == Newest(START + 3 * MINUTE, Lsn(3 * SIZE + 200))


async def test_at_a_fork_the_open_segment_of_the_new_timeline_counts(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(1, 2, 3)  # the old primary went on for a while
    await wal.opened(4, 0, 700)
    await wal.history(2, FORK)
    assert (await as_restored(wal, tmp_path / "1"))[0].end == Lsn(3 * SIZE + 100)
    await wal.opened(3, 0, 4000, timeline_id=2)
    assert await as_restored(wal, tmp_path / "2") == (
        Newest(START + 3 * MINUTE, Lsn(3 * SIZE + 4000)),
        str(Segment(2, 3, SIZE)),
    )


async def test_at_a_fork_in_an_open_segment_the_new_timeline_counts_first_and_the_old_one_up_to_it(
    wal: MemoryWal, tmp_path: Path
) -> None:
    await wal.closed(1, 2)
    await wal.opened(3, 0, 900)
    await wal.history(2, FORK)
    assert (await as_restored(wal, tmp_path / "1"))[0].end == Lsn(3 * SIZE + 100)
    await wal.opened(3, 0, 4000, timeline_id=2)
    assert (await as_restored(wal, tmp_path / "2"))[0].end == Lsn(3 * SIZE + 4000)
    # Whole, while it waits for its bucket as a closed one: the next one follows on it.
    await wal.opened(3, 4000, SIZE, timeline_id=2)
    await wal.opened(4, 0, 50, timeline_id=2)
    assert (await as_restored(wal, tmp_path / "3"))[0].end == Lsn(4 * SIZE + 50)


async def test_what_lies_behind_a_hole_of_the_open_segments_does_not_count(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(1, 2)
    await wal.opened(4, 0, 50)
    assert (await as_restored(wal, tmp_path / "1"))[0].end == Lsn(3 * SIZE)


@pytest.mark.corruption
async def test_a_forged_range_hides_nothing_of_the_true_ones(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(1, 2)
    await wal.opened(3, 0, 100, 200)
    for first, last in ((0, SIZE), (150, 300)):
        await wal.objects.put(OPEN, wal.archive.range_key(str(Segment(1, 3, SIZE)), first, last), b"forged")
    assert (await as_restored(wal, tmp_path / "1"))[0].end == Lsn(3 * SIZE + 200)
