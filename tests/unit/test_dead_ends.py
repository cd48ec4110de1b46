"""A base backup from beyond a fork leads to the end of a dead branch, and is known to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import pytest

from actions.backup.chain import base_for
from actions.backup.dead_ends import dead_ends, dead_in, leading, living_way
from actions.backup.native_window import start_of, window
from actions.backup.physical import DeadEnd, Lsn, PhysicalEntry, RecoveryTarget, RecoveryWindow
from actions.backup.segments import Timelines
from actions.backup.wal import WalListing
from actions.backup.windows import ends_of
from actions.errors import VerificationError
from tests.fakes.clock import START
from tests.fakes.entries import an_entry
from tests.fakes.wal import HERE, MINUTE, SIZE, SYSTEM, THERE, MemoryWal

FORK = f"1\t{Lsn(3 * SIZE + 100)}\tno recovery target specified\n"


def a_base(name: str, number: int, *, timeline_id: int = 1) -> PhysicalEntry:
    """It begins and ends in the segment of this number, a few bytes from its start."""
    entry = an_entry(name, START + number * MINUTE)
    changes = {
        "system_id": SYSTEM,
        "timeline_id": timeline_id,
        "start_lsn": str(Lsn(number * SIZE + 40)),
        "stop_lsn": str(Lsn(number * SIZE + 80)),
        "segment_bytes": SIZE,
    }
    return entry.model_copy(update={"manifest": entry.manifest.model_copy(update=changes)})


BEFORE, BEYOND = a_base("before", 1), a_base("beyond", 4)
LIVING = a_base("living", 3, timeline_id=2)


@pytest.fixture
async def wal() -> MemoryWal:
    """The old primary archived segments 4 and 5 of timeline 1 after timeline 2 had left it within segment 3."""
    wal = MemoryWal()
    await wal.closed(1, 2, 3, 4, 5)
    await wal.closed(3, 4, timeline_id=2)
    await wal.history(2, FORK)
    return wal


def reader(wal: MemoryWal, listings: Sequence[WalListing]) -> Callable[[int], Awaitable[Timelines]]:
    return lambda timeline_id: wal.archive.history(timeline_id, start_of(BEFORE), listings)


async def found(wal: MemoryWal, *entries: PhysicalEntry) -> dict[str, DeadEnd]:
    listings = await wal.archive.listings()
    return dict(dead_ends(entries, await living_way(reader(wal, listings), entries, listings), listings))


async def test_what_ended_beyond_the_fork_is_dead_and_says_where_its_branch_ends(wal: MemoryWal) -> None:
    assert await found(wal, BEYOND, LIVING, BEFORE) == {
        "beyond": DeadEnd(timeline_id=1, lsn=str(Lsn(6 * SIZE)), forked_at=str(Lsn(3 * SIZE + 100)), living=2)
    }


async def test_a_backup_that_the_fork_cuts_is_dead_wherever_it_began(wal: MemoryWal) -> None:
    manifest = a_base("cut", 3).manifest
    cut = BEFORE.model_copy(update={"manifest": manifest.model_copy(update={"stop_lsn": str(Lsn(3 * SIZE + 200))})})
    assert list(await found(wal, cut)) == ["cut"]


async def test_nothing_is_dead_without_a_fork_or_where_nobody_can_tell() -> None:
    wal = MemoryWal()
    await wal.closed(1, 2, 3, 4)
    assert await found(wal, BEYOND, BEFORE) == {}
    assert await found(wal, LIVING, BEYOND) == {}  # the history of timeline 2 is lost
    assert await found(wal) == {}


async def test_a_damaged_history_is_told(wal: MemoryWal) -> None:
    for bucket in (HERE, THERE):
        wal.flip(bucket, wal.archive.key("00000002.history"), 40)
    with pytest.raises(VerificationError, match="history of timeline id 2 cannot be read"):
        await found(wal, BEFORE)


async def test_the_window_counts_no_dead_backup(wal: MemoryWal) -> None:
    listing = await wal.archive.listing(HERE)
    way = await living_way(reader(wal, [listing]), [BEFORE], [listing])
    assert way is not None

    def of(*entries: PhysicalEntry) -> RecoveryWindow:
        at = START + timedelta(minutes=9)
        return window(wal.policy, entries, listing, way, newest=at, newest_lsn=Lsn(5 * SIZE), now=at)

    both = of(BEYOND, BEFORE)
    assert (both.oldest, both.fulls, both.timeline_id) == (BEFORE.manifest.finished_at, 1, 2)
    alone = of(BEYOND)
    assert (alone.oldest, alone.newest, alone.fulls) == (None, None, 0)
    told = both.model_copy(update={"dead_ends": await found(wal, BEYOND, BEFORE)})
    assert ends_of([BEYOND, BEFORE], told) == (BEFORE.manifest.finished_at,)


def test_a_dead_base_is_taken_only_where_no_other_fits() -> None:
    latest = RecoveryTarget(latest=True)
    assert base_for([BEYOND, BEFORE], latest, {"beyond"}) == BEFORE
    assert base_for([BEYOND], latest, {"beyond"}) == BEYOND
    assert base_for([BEYOND, BEFORE], latest) == BEYOND


async def test_what_happened_on_a_dead_branch_is_not_looked_through(wal: MemoryWal) -> None:
    entries = [BEYOND, BEFORE]
    dead = await dead_in(wal.archive, entries)
    assert list(dead) == ["beyond"]
    assert leading(entries, dead) == [BEFORE]
    spoiled = BEFORE.model_copy(update={"problem": "Its object is missing."})
    assert leading([BEYOND, spoiled], dead) == [BEYOND, spoiled]  # better than nothing
    assert await dead_in(wal.archive, [spoiled]) == {}
