"""The newest moment in reach of a pgBackRest archive, where the last segments hold no commit."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from actions.backup.manifest import StoredObject
from actions.backup.pgbackrest_info import Repository
from actions.backup.pgbackrest_tools import ArchivePlace, PgBackRest
from actions.backup.pgbackrest_wal import BACK, FURTHER, PgBackRestWal
from actions.backup.physical import SEGMENT, BackupKind, Lsn, PhysicalEntry, PhysicalManifest, RecoveryTarget
from actions.backup.segments import Segment, Timelines
from actions.backup.wal import FORGED, WalListing, WalStart
from actions.errors import PermanentError, VerificationError
from actions.ports import ObjectFacts

START = datetime(2026, 11, 23, 10, tzinfo=UTC)
PLACE = ArchivePlace(
    server="primary",
    repository=Repository(),
    archive="15-1",
    bucket="repo1",
    system_id="7",
    version="15",
    segment_bytes=SEGMENT,
)


def head(number: int, system_id: str = "7") -> bytes:
    """How a segment of the server begins."""
    return struct.pack("<HHIQI4xQI", 0xD110, 2, 1, number * SEGMENT, 0, int(system_id), SEGMENT)


class Program:
    """Gives out every segment, sparse; those of `heads` begin so, and those of `broken` do not open."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.heads: dict[str, bytes] = {}
        self.broken: set[str] = set()

    async def own(self, folder: Path) -> None:
        assert folder.name.startswith("drbot-wal-")

    async def fetch(self, place: ArchivePlace, name: str, into: Path) -> bool:
        assert place == PLACE
        self.fetched.append(name)
        if name in self.broken:
            raise PermanentError(f"pgBackRest could not give out `{name}`.")
        (into / name).write_bytes(self.heads.get(name, b""))
        os.truncate(into / name, SEGMENT)
        return True


class Records:
    """One commit a second in these segments, dated by their number."""

    def __init__(self, numbers: Collection[int]) -> None:
        self._numbers = numbers

    def lines(self, directory: Path, first: str, last: str, *, resources: Sequence[str]) -> Iterator[str]:
        assert (directory / first).exists()
        assert (first, tuple(resources)) == (last, ("Transaction",))
        number = Segment.parse(first).number
        if number in self._numbers:
            yield f"rmgr: Transaction desc: COMMIT {moment(number):%Y-%m-%d %H:%M:%S} UTC"


def moment(number: int) -> datetime:
    return START + timedelta(seconds=number)


def archive(first: int, last: int, *ahead: int) -> tuple[Program, PgBackRestWal]:
    names = [str(Segment(1, number)) for number in (*range(first, last + 1), *ahead)]
    facts = {name: ObjectFacts(key=name, bytes=SEGMENT, modified_at=START, etag="") for name in names}
    program = Program()
    return program, PgBackRestWal(cast("PgBackRest", program), PLACE, WalListing("repo1", facts))


def base(number: int, *, ends: int | None = None) -> PhysicalEntry:
    manifest = PhysicalManifest(
        id=f"base-{number}",
        server="primary",
        kind=BackupKind.FULL,
        system_id="7",
        server_version=150000,
        timeline_id=1,
        start_lsn=str(Lsn(number * SEGMENT + 40)),
        stop_lsn=str(Lsn((number if ends is None else ends) * SEGMENT + 400)),
        started_at=moment(number),
        finished_at=moment(number) + timedelta(milliseconds=500),
        stored=StoredObject(bucket="repo1", key="x", bytes=1, sha256=""),
        plain_bytes=1,
        plain_sha256="",
    )
    return PhysicalEntry(manifest=manifest, manifest_sha256="")


@pytest.mark.parametrize("last_with_commit", [19_999, 19_990, 19_970, 19_000, 12_345, 10])
async def test_the_last_commit_is_found_before_any_length_of_bulk_load(last_with_commit: int) -> None:
    program, wal = archive(1, 20_000)
    found = await wal.newest_moment(Timelines.alone(1), Records(range(1, last_with_commit + 1)), [base(1)])
    assert found is not None
    assert found <= moment(last_with_commit)
    # No more than half of what was loaded since is given away, and no more fetched than can be waited for.
    assert moment(last_with_commit) - found <= timedelta(seconds=(20_000 - last_with_commit) / 2 + 1)
    assert len(program.fetched) <= BACK + FURTHER
    assert len(set(program.fetched)) == len(program.fetched)


async def test_without_a_commit_the_end_of_the_newest_base_is_in_reach() -> None:
    program, wal = archive(1, 4_000)
    entries = [base(900), base(2_000)]
    assert await wal.newest_moment(Timelines.alone(1), Records(()), entries) == entries[1].manifest.finished_at
    assert all(Segment.parse(name).number >= 2_000 for name in program.fetched)  # older commits do not matter
    assert len(program.fetched) <= BACK + FURTHER
    # A commit of while the base was made is no end of what it leads to.
    assert await wal.newest_moment(Timelines.alone(1), Records({2_000}), entries) == entries[1].manifest.finished_at


async def test_a_base_whose_own_wal_is_not_there_is_not_in_reach() -> None:
    _, wal = archive(1, 10)
    assert await wal.newest_moment(Timelines.alone(1), Records(()), [base(9, ends=12)]) is None
    assert await wal.newest_moment(Timelines.alone(1), Records(()), []) is None


LATEST = RecoveryTarget(latest=True)
FROM_FIRST = WalStart("7", 1, Lsn(SEGMENT + 40), SEGMENT)


@pytest.mark.corruption
@pytest.mark.parametrize("why", ["does-not-open", "other-place", "other-server", "cut-off"])
async def test_what_lies_far_ahead_and_is_no_wal_of_the_server_is_stepped_over_and_named(why: str) -> None:
    program, wal = archive(1, 4, 9_000)
    far = str(Segment(1, 9_000))
    heads = {"other-place": head(3), "other-server": head(9_000, "8"), "cut-off": head(9_000)[:20]}
    if why == "does-not-open":
        program.broken.add(far)
    else:
        program.heads[far] = heads[why]
    needed = await wal.needed(FROM_FIRST, LATEST)
    assert (str(needed.segments[-1]), needed.reaches, needed.passed_over) == (str(Segment(1, 4)), True, (far,))
    ours = await wal.ours(Timelines.alone(1))
    assert ours.newest(Timelines.alone(1)) == Segment(1, 4)
    assert program.fetched == [far]  # once for both
    assert (await wal.needed(FROM_FIRST, RecoveryTarget(lsn=str(Lsn(4 * SEGMENT + 8))))).reaches


async def test_a_segment_of_the_server_behind_a_hole_is_named_with_what_to_do() -> None:
    program, wal = archive(1, 4, 9_000, 9_001)
    program.heads = {str(Segment(1, number)): head(number) for number in (9_000, 9_001)}
    with pytest.raises(VerificationError) as refused:
        await wal.needed(FROM_FIRST, LATEST)
    told = str(refused.value)
    assert f"`{Segment(1, 5)}` of `primary` is missing in the archive, and `{Segment(1, 9_000)}`, stored 2026-" in told
    assert "Take an earlier moment with `--at`, or a later backup." in told
    assert f"take `15-1/{Segment(1, 9_000)}` out of the repository's archive" in told


async def test_an_archive_without_a_hole_is_not_looked_into() -> None:
    program, wal = archive(1, 40)
    assert len((await wal.needed(FROM_FIRST, LATEST)).segments) == 40
    await wal.ours(Timelines.alone(1))
    assert program.fetched == []


async def test_of_very_many_that_lie_ahead_few_are_looked_at() -> None:
    program, wal = archive(1, 4, *range(9_000, 9_100))
    with pytest.raises(VerificationError, match="is missing in the archive"):
        await wal.needed(FROM_FIRST, LATEST)
    assert len(program.fetched) == FORGED
