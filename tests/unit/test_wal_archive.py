"""The archive of WAL: what is listed, what is missing, and what a restore gets out of it."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import IO

import pytest

from actions.backup import wal_fetch
from actions.backup.crypto import Identity
from actions.backup.physical import Gap, Lsn, RecoveryTarget
from actions.backup.sealed import SealedHeader, unseal
from actions.backup.segments import Segment, Timelines
from actions.backup.wal import FORGED, WalArchive
from actions.errors import TemporaryError, UserError, VerificationError
from tests.dump_world import Keys
from tests.fakes.clock import START
from tests.fakes.s3 import MemoryObject, MemoryObjects
from tests.fakes.wal import HERE, MINUTE, OPEN, SIZE, THERE, MemoryWal, plain_of

LATEST = RecoveryTarget(latest=True)
FORK = f"1\t{Lsn(3 * SIZE + 100)}\tno recovery target specified\n"


@pytest.fixture
def wal() -> MemoryWal:
    return MemoryWal()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def name(number: int, timeline_id: int = 1) -> str:
    return str(Segment(timeline_id, number, SIZE))


async def test_segments_come_back_as_they_went(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(*range(8))
    fetched = await wal.fetch(tmp_path, LATEST)
    assert names(tmp_path) == [name(number) for number in range(1, 8)]
    assert all((tmp_path / name(n)).read_bytes() == plain_of(Segment(1, n, SIZE)) for n in range(1, 8))
    assert all((tmp_path / name(n)).stat().st_mode & 0o77 == 0 for n in range(1, 8))
    assert (fetched.segments, fetched.first, fetched.last) == (7, name(1), name(7))
    assert (fetched.end_lsn, fetched.newest_at) == (str(Lsn(8 * SIZE)), START + 7 * MINUTE)
    assert (fetched.reaches, fetched.open_segment, fetched.problems) == (True, "", ())


async def test_a_time_takes_what_was_closed_until_then_and_one_more(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(*range(10))
    fetched = await wal.fetch(tmp_path, RecoveryTarget(time=START + 3 * MINUTE + timedelta(seconds=20)))
    assert (fetched.last, fetched.reaches) == (name(5), True)


async def test_segments_that_were_stored_late_do_not_end_a_fetch_early(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(*range(10))
    for bucket in (HERE, THERE):
        for key, found in wal.objects.buckets[bucket].items():
            wal.objects.buckets[bucket][key] = MemoryObject(found.body, START + 30 * MINUTE)
    fetched = await wal.fetch(tmp_path, RecoveryTarget(time=START + 6 * MINUTE))
    assert fetched.last == name(8)


async def test_a_time_after_the_archive_is_told(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(*range(4))
    fetched = await wal.fetch(tmp_path, RecoveryTarget(time=START + 4 * MINUTE))
    assert (fetched.last, fetched.reaches, fetched.newest_at) == (name(3), False, START + 3 * MINUTE)


async def test_an_lsn_takes_its_segment_and_one_more(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(*range(10))
    fetched = await wal.fetch(tmp_path, RecoveryTarget(lsn=str(Lsn(4 * SIZE + 8))))
    assert (fetched.last, fetched.reaches) == (name(5), True)
    beyond = await wal.fetch(tmp_path, RecoveryTarget(lsn=str(Lsn(10 * SIZE + 8))))
    assert (beyond.last, beyond.reaches) == (name(9), False)


async def test_the_open_segment_is_put_together_and_padded(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(1, 2)
    await wal.opened(3, 0, 100, 8192, 9000)
    await wal.opened(3, 50, 8000)  # a restarted archiver sends some of it again
    fetched = await wal.fetch(tmp_path, LATEST)
    plain = plain_of(Segment(1, 3, SIZE))
    assert (tmp_path / name(3)).read_bytes() == plain[:9000] + bytes(SIZE - 9000)
    assert (fetched.open_segment, fetched.end_lsn) == (name(3), str(Lsn(3 * SIZE + 9000)))
    assert fetched.newest_at == START + 3 * MINUTE


async def test_an_open_segment_ends_where_a_range_is_missing_or_damaged(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(1, 2)
    await wal.opened(3, 0, 100, 200, 300)
    wal.flip(OPEN, wal.archive.range_key(name(3), 100, 200), -1)
    fetched = await wal.fetch(tmp_path, LATEST)
    assert fetched.end_lsn == str(Lsn(3 * SIZE + 100))
    assert "SHA-256" in fetched.problems[0]
    await wal.objects.delete(OPEN, wal.archive.range_key(name(3), 0, 100))
    assert (await wal.fetch(tmp_path / "again", LATEST)).last == name(2)


@pytest.mark.corruption
async def test_a_range_that_somebody_puts_far_ahead_hides_nothing_of_the_open_segment(
    wal: MemoryWal, tmp_path: Path
) -> None:
    await wal.closed(1, 2)
    await wal.opened(3, 0, 100)
    await wal.objects.put(OPEN, wal.archive.range_key(name(900), 0, 5), b"forged")
    await wal.objects.put(HERE, wal.key(901), b"forged")
    fetched = await wal.fetch(tmp_path, LATEST)
    assert (fetched.last, fetched.end_lsn) == (name(3), str(Lsn(3 * SIZE + 100)))


class Closing(MemoryObjects):
    """The archiver closes a segment, and removes its ranges, while somebody reads them."""

    async def get(self, bucket: str, key: str) -> bytes:
        if bucket == OPEN and self.closing is not None:
            closing, self.closing = self.closing, None
            await closing()
        return await super().get(bucket, key)

    closing: Callable[[], Awaitable[None]] | None = None


async def test_a_segment_that_is_closed_while_it_is_read_is_taken_whole(wal: MemoryWal, tmp_path: Path) -> None:
    objects = Closing(clock=wal.clock)
    objects.buckets = wal.objects.buckets
    await wal.closed(1, 2)
    await wal.opened(3, 0, 100, 200)

    async def close() -> None:
        await wal.closed(3)
        await wal.opened(4, 0, 50)
        await wal.archive.drop_ranges((await wal.archive.open_ranges())[name(3)])

    objects.closing = close
    fetched = await wal.fetch(tmp_path, LATEST, objects=objects)
    assert (tmp_path / name(3)).read_bytes() == plain_of(Segment(1, 3, SIZE))
    assert (fetched.end_lsn, fetched.open_segment) == (str(Lsn(4 * SIZE + 50)), name(4))


async def test_the_second_bucket_gives_what_the_first_lacks_or_has_damaged(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(1, 2, 3, 4)
    await wal.objects.delete(HERE, wal.key(2))
    wal.flip(HERE, wal.key(3), -1)
    fetched = await wal.fetch(tmp_path, LATEST)
    assert fetched.last == name(4)
    assert [HERE in problem for problem in fetched.problems] == [True, True]


async def test_one_bucket_is_enough(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(1, 2)
    del wal.objects.buckets[HERE]
    assert (await wal.fetch(tmp_path, LATEST)).segments == 2
    wal.objects.down = True
    with pytest.raises(TemporaryError, match="does not answer"):
        await wal.fetch(tmp_path, LATEST)


class Leaving(MemoryObjects):
    """Neither bucket gives out this object the first two times."""

    def __init__(self, wal: MemoryWal, key: str) -> None:
        super().__init__(clock=wal.clock)
        self.buckets, self.key, self.refused = wal.objects.buckets, key, list[str]()

    async def get(self, bucket: str, key: str) -> bytes:
        if key == self.key and len(self.refused) < 2 * len((HERE, THERE)):
            self.refused.append(bucket)
            raise TemporaryError(f"Bucket `{bucket}` does not answer.")
        return await super().get(bucket, key)


@pytest.mark.corruption
async def test_a_segment_waits_for_buckets_that_went_away(
    wal: MemoryWal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actions.backup.patience.FIRST_PAUSE", 0.01)
    await wal.closed(1, 2, 3)
    objects = Leaving(wal, wal.key(2))
    fetched = await wal.fetch(tmp_path, LATEST, objects=objects, patience=timedelta(minutes=1))
    assert (fetched.segments, objects.refused) == (3, [HERE, THERE, HERE, THERE])


@pytest.mark.corruption
async def test_a_missing_segment_is_named(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(1, 2, 4, 5)
    with pytest.raises(VerificationError, match=f"`{name(3)}` of `main` is missing in every bucket"):
        await wal.fetch(tmp_path, LATEST)
    # What lies before the hole can be reached all the same.
    assert (await wal.fetch(tmp_path / "before", RecoveryTarget(time=START + MINUTE))).last == name(2)


@pytest.mark.corruption
@pytest.mark.parametrize("place", [0, 40, 200, -1, -SIZE // 2])
async def test_a_flipped_bit_is_found_and_the_segment_named(wal: MemoryWal, tmp_path: Path, place: int) -> None:
    await wal.closed(1, 2, 3)
    for bucket in (HERE, THERE):
        wal.flip(bucket, wal.key(2), place)
    with pytest.raises(VerificationError, match=f"`{name(2)}` is in no bucket as it was stored"):
        await wal.fetch(tmp_path, LATEST)
    assert name(2) not in names(tmp_path)


@pytest.mark.corruption
async def test_a_segment_that_was_cut_off_is_found(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(1, 2)
    for bucket in (HERE, THERE):
        stored = wal.objects.buckets[bucket][wal.key(2)]
        wal.objects.buckets[bucket][wal.key(2)] = MemoryObject(stored.body[:-100], stored.modified_at)
    with pytest.raises(VerificationError, match="cut off"):
        await wal.fetch(tmp_path, LATEST)


@pytest.mark.corruption
async def test_a_forged_segment_is_refused_and_a_forged_end_is_passed_over(wal: MemoryWal, tmp_path: Path) -> None:
    forger = MemoryWal(keys=Keys(wal.keys.identity))  # knows the recipients, has a key of its own
    await wal.closed(1, 2, 3)
    await forger.closed(2, 9)
    for number in (2, 9):
        for bucket in (HERE, THERE):
            wal.objects.buckets[bucket][wal.key(number)] = forger.objects.buckets[HERE][wal.key(number)]
    with pytest.raises(VerificationError, match=rf"{name(2)}.*a key the plan file does not trust"):
        await wal.fetch(tmp_path, LATEST)
    assert (await wal.fetch(tmp_path, LATEST, start=wal.start(3))).last == name(3)


def rewritten(wal: MemoryWal, stored: bytes, *, sign: bool, **changes: object) -> None:
    """Segment 2 with another header over what was stored, in both buckets. `sign`: by the trusted key."""
    head, _, body = stored.partition(b"\n")
    line = json.loads(head)
    header = SealedHeader.model_validate(line["header"] | changes)
    line |= {"header": header.model_dump(mode="json"), "signer": wal.keys.signer}
    if sign:
        line["signature"] = base64.b64encode(wal.keys.signing.sign(header.canonical())).decode()
    for bucket in (HERE, THERE):
        wal.objects.buckets[bucket][wal.key(2)] = MemoryObject(json.dumps(line).encode() + b"\n" + body, START)


@pytest.mark.corruption
async def test_a_segment_that_only_says_it_is_of_a_trusted_key_is_refused(wal: MemoryWal, tmp_path: Path) -> None:
    forger = MemoryWal(keys=Keys(wal.keys.identity))
    await wal.closed(1, 2)
    await forger.closed(2)
    rewritten(wal, forger.objects.buckets[HERE][wal.key(2)].body, sign=False)
    with pytest.raises(VerificationError, match=f"{name(2)}.* does not match its signature"):
        await wal.fetch(tmp_path, LATEST)


@pytest.mark.corruption
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stored_sha256": "0" * 64}, "The stored bytes of"),
        ({"plain_sha256": "0" * 64}, "The plain bytes of"),
        ({"plain_bytes": SIZE - 1}, f"holds {SIZE - 1} bytes and is no whole segment"),
    ],
)
async def test_a_segment_that_its_header_does_not_speak_of_is_refused(
    wal: MemoryWal, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    await wal.closed(1, 2)
    rewritten(wal, wal.objects.buckets[HERE][wal.key(2)].body, sign=True, **changes)
    with pytest.raises(VerificationError, match=said):
        await wal.fetch(tmp_path, LATEST)
    assert name(2) not in names(tmp_path)


async def test_a_fetch_that_fails_leaves_nobody_writing(
    wal: MemoryWal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await wal.closed(1, 2, 3)
    for bucket in (HERE, THERE):
        wal.flip(bucket, wal.key(2), 200)
    begun, ended = list[str](), list[str]()

    def slowly(body: bytes, header: SealedHeader, key: str, identity: Identity, out: IO[bytes]) -> None:
        begun.append(key)
        if key == wal.key(3):
            time.sleep(0.3)
        try:
            unseal(body, header, key, identity, out)
        finally:
            ended.append(key)

    monkeypatch.setattr(wal_fetch, "unseal", slowly)
    with pytest.raises(VerificationError, match=name(2)):
        await wal.fetch(tmp_path, LATEST)
    assert wal.key(3) in begun
    assert sorted(begun) == sorted(ended)


@pytest.mark.corruption
async def test_true_objects_under_other_names_are_refused(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(1, 2, 3)
    for bucket in (HERE, THERE):
        wal.objects.buckets[bucket][wal.key(2)] = wal.objects.buckets[bucket][wal.key(3)]
    with pytest.raises(VerificationError, match="moved or renamed"):
        await wal.fetch(tmp_path, LATEST)


@pytest.mark.corruption
async def test_wal_of_another_server_is_refused(wal: MemoryWal, tmp_path: Path) -> None:
    wal.system_id = "7000000000000000002"
    await wal.closed(1, 2)
    with pytest.raises(VerificationError, match="of another server"):
        await wal.fetch(tmp_path, LATEST)


@pytest.mark.corruption
async def test_another_identity_is_told(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(1, 2)
    wal.secrets.values["env:IDENTITY"] = Keys().identity
    with pytest.raises(UserError, match="is not among its 1 recipients"):
        await wal.fetch(tmp_path, LATEST)


async def test_a_fetch_follows_a_new_timeline_and_leaves_out_what_came_after_the_switch(
    wal: MemoryWal, tmp_path: Path
) -> None:
    await wal.closed(1, 2, 3, 4, 5)  # the old primary went on for a while
    await wal.history(2, FORK)
    await wal.closed(3, 4, timeline_id=2)
    fetched = await wal.fetch(tmp_path, LATEST)
    assert names(tmp_path) == [name(1), name(2), "00000002.history", name(3, 2), name(4, 2)]
    assert (fetched.timeline_id, fetched.last) == (2, name(4, 2))
    assert (tmp_path / "00000002.history").read_text() == FORK
    old = await wal.fetch(tmp_path / "old", RecoveryTarget(latest=True, timeline_id=1))
    assert (old.timeline_id, old.last) == (1, name(5))


async def test_a_timeline_that_has_only_begun_gives_what_was_before(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(1, 2, 3)
    await wal.history(2, FORK)
    fetched = await wal.fetch(tmp_path, LATEST)
    before = plain_of(Segment(1, 3, SIZE))[:100]
    assert (fetched.timeline_id, fetched.last) == (2, name(3))
    assert (tmp_path / name(3)).read_bytes() == before + bytes(SIZE - 100)
    assert fetched.end_lsn == str(Lsn(3 * SIZE + 100))
    await wal.opened(3, 0, 400, timeline_id=2)
    fetched = await wal.fetch(tmp_path / "more", LATEST)
    assert (fetched.last, fetched.end_lsn) == (name(3, 2), str(Lsn(3 * SIZE + 400)))
    # What was closed of the new timeline is not there yet, and the next one is open.
    await wal.opened(4, 0, 500, timeline_id=2)
    fetched = await wal.fetch(tmp_path / "next", LATEST)
    assert (fetched.last, fetched.end_lsn) == (name(3, 2), str(Lsn(3 * SIZE + 400)))
    await wal.opened(3, 400, SIZE, timeline_id=2)
    fetched = await wal.fetch(tmp_path / "whole", LATEST)
    assert (fetched.last, fetched.end_lsn) == (name(4, 2), str(Lsn(4 * SIZE + 500)))


async def test_a_timeline_that_the_base_is_no_part_of_is_refused(wal: MemoryWal, tmp_path: Path) -> None:
    await wal.closed(1, 2, 3, 4, 5)
    await wal.history(2, FORK)
    with pytest.raises(UserError, match="does not come from timeline id 1"):
        await wal.fetch(tmp_path, RecoveryTarget(latest=True, timeline_id=2), start=wal.start(4))
    assert (await wal.fetch(tmp_path, LATEST, start=wal.start(4))).last == name(5)
    with pytest.raises(VerificationError, match=r"00000003\.history"):
        await wal.fetch(tmp_path, RecoveryTarget(latest=True, timeline_id=3))


def a_gap(first: int, last: int, *, seen: int, loose: bool = False) -> Gap:
    """The segment after it was stored `seen` minutes after START; `loose`: nothing but that is known of it."""
    before = START + (seen if loose else last + 1) * MINUTE
    after = START + (first - 1) * MINUTE
    return Gap(
        timeline_id=1,
        first=name(first),
        last=name(last),
        after=after,
        before=before,
        loose=loose,
        seen_at=START + seen * MINUTE,
    )


class Counting(MemoryObjects):
    """What is read whole, and of what the beginning alone."""

    def __init__(self, objects: MemoryObjects) -> None:
        super().__init__()
        self.buckets, self.whole, self.begun = objects.buckets, list[str](), list[str]()

    async def get(self, bucket: str, key: str) -> bytes:
        self.whole.append(key)
        return await super().get(bucket, key)

    async def get_first(self, bucket: str, key: str, count: int) -> bytes:
        self.begun.append(key)
        return (await super().get(bucket, key))[:count]


async def test_gaps_of_a_bucket_that_was_filled_later_are_dated_by_its_segments(wal: MemoryWal) -> None:
    """By a beginning of each of the two beside it alone."""
    await wal.closed(1, 2, 3, 6, 7, 8, buckets=(HERE,))
    wal.at(START + 100 * MINUTE)
    for number in (1, 2, 3, 6, 7, 8):
        await wal.objects.put(THERE, wal.key(number), await wal.objects.get(HERE, wal.key(number)))
    objects = Counting(wal.objects)
    archive = WalArchive(objects, wal.policy)
    assert list(await archive.gaps(wal.start(), await archive.listing(THERE))) == [a_gap(4, 5, seen=100)]
    assert sorted(objects.begun) == [wal.key(3), wal.key(6)]
    assert objects.whole == []


@pytest.mark.corruption
@pytest.mark.parametrize("fault", ["forged", "cut off", "moved", "of another server", "gone"])
async def test_a_gap_whose_neighbour_says_nothing_is_dated_by_when_that_was_stored_and_says_so(
    wal: MemoryWal, fault: str
) -> None:
    await wal.closed(1, 2, 4)
    wal.at(START + 100 * MINUTE)
    true = await wal.objects.get(HERE, wal.key(4))
    stranger = replace(wal.what(Segment(1, 4, SIZE)), system_id="8")
    bodies = {
        "forged": b"forged",
        "cut off": true[:-1],
        "moved": await wal.objects.get(HERE, wal.key(2)),
        "of another server": wal.sealer.seal(stranger, io.BytesIO(bytes(SIZE)), START)[1],
        "gone": true,
    }
    await wal.objects.put(HERE, wal.key(4), bodies[fault])
    listing = await wal.archive.listing(HERE)
    if fault == "gone":
        await wal.objects.delete(HERE, wal.key(4))
    assert list(await wal.archive.gaps(wal.start(), listing)) == [a_gap(3, 3, seen=100, loose=True)]


async def test_gaps_are_found_by_a_listing(wal: MemoryWal) -> None:
    await wal.closed(1, 2, 5, 6, 8)
    listing = await wal.archive.listing(HERE)
    assert list(await wal.archive.gaps(wal.start(), listing)) == [
        a_gap(3, 4, seen=5),
        a_gap(7, 7, seen=8),
    ]
    assert list(await wal.archive.gaps(wal.start(8), listing)) == []
    assert [gap.first for gap in await wal.archive.gaps(wal.start(0), listing)] == [name(0), name(3), name(7)]


async def test_gaps_are_found_across_a_switch(wal: MemoryWal) -> None:
    await wal.closed(1, 2, 3)
    await wal.closed(4, 5, timeline_id=2)
    [lost] = await wal.archive.gaps(wal.start(), await wal.archive.listing(HERE))
    assert (lost.timeline_id, lost.first, lost.last) == (2, "00000002.history", name(5, 2))
    await wal.history(2, FORK)
    [gap] = await wal.archive.gaps(wal.start(), await wal.archive.listing(HERE))
    assert (gap.first, gap.last) == (name(3, 2), name(3, 2))
    await wal.closed(3, timeline_id=2)
    assert list(await wal.archive.gaps(wal.start(), await wal.archive.listing(HERE))) == []


@pytest.mark.parametrize("left", [3, 15, 16, 17, 200])
async def test_what_a_server_left_that_was_made_anew_is_no_gap_of_the_new_one(
    wal: MemoryWal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """It counted further than the new one: as a gap it would have a base backup asked for every hour."""
    await wal.closed(1, 2, 4, 5)
    ours, wal.system_id = wal.system_id, "99"
    await wal.closed(*range(40, 40 + left), buckets=(HERE,))
    wal.system_id = ours
    listing, reads, read = await wal.archive.listing(HERE), list[str](), wal.objects.get_first

    async def counted(bucket: str, key: str, count: int) -> bytes:
        reads.append(key)
        return await read(bucket, key, count)

    monkeypatch.setattr(wal.objects, "get_first", counted)
    genuine = await wal.archive.genuine(wal.start(), Timelines.alone(1), listing)
    assert sorted(genuine.segments) == [name(1), name(2), name(4), name(5)]
    assert len(reads) <= FORGED + 9
    assert (await wal.fetch(tmp_path, LATEST, start=wal.start(4))).last == name(5)


@pytest.mark.corruption
@pytest.mark.timeout(20)
async def test_what_somebody_puts_far_ahead_makes_no_gap_and_nobody_waits_for_it(
    wal: MemoryWal, tmp_path: Path
) -> None:
    await wal.closed(1, 2, 4, 5)
    last = Segment(1, (1 << 40) - 1, SIZE)
    await wal.objects.put(HERE, wal.archive.key(str(last)), b"forged")
    await wal.objects.put(OPEN, wal.archive.range_key(str(last), 0, 100), b"forged")
    listing = await wal.archive.listing(HERE)
    way = Timelines.alone(1)
    assert [gap.first for gap in await wal.archive.gaps(wal.start(), listing)] == [name(3), name(6)]
    genuine = await wal.archive.genuine(wal.start(), way, listing)
    assert max(genuine.segments) == name(5)
    assert [gap.first for gap in await wal.archive.gaps(wal.start(), genuine)] == [name(3)]
    assert (await wal.fetch(tmp_path, LATEST, start=wal.start(4))).last == name(5)


async def test_storing_again_changes_nothing_and_other_bytes_are_refused(wal: MemoryWal) -> None:
    await wal.closed(1)
    first = wal.objects.buckets[HERE][wal.key(1)]
    await wal.closed(1)
    assert wal.objects.buckets[HERE][wal.key(1)] == first
    other = wal.sealer.seal(wal.what(Segment(1, 1, SIZE)), io.BytesIO(bytes(SIZE)), START)
    with pytest.raises(VerificationError, match="Two servers write the same archive"):
        await wal.archive.put(HERE, *other)
    segment, wal.system_id = Segment(1, 1, SIZE), "7000000000000000002"  # the same bytes of another server
    with pytest.raises(VerificationError, match="Two servers write the same archive"):
        await wal.archive.put(HERE, *wal.sealer.seal(wal.what(segment), io.BytesIO(plain_of(segment)), START))
    assert wal.objects.buckets[HERE][wal.key(1)] == first


async def test_a_forged_object_does_not_keep_the_true_one_out(wal: MemoryWal, tmp_path: Path) -> None:
    for bucket in (HERE, THERE):
        await wal.objects.put(bucket, wal.key(2), b"forged")
    await wal.closed(1, 2)
    assert (await wal.fetch(tmp_path, LATEST)).last == name(2)
