"""The archiver's disk: how far an open segment was written, and where `pg_receivewal` is told to go on."""

from __future__ import annotations

import random
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actions.backup.segments import Segment
from actions.backup.wal_files import PAGE, read_first_page, read_written
from actions.backup.wal_spool import SpoolState, WalSpool
from actions.errors import UserError, VerificationError

SIZE = 1 << 16
SYSTEM = 7_000_000_000_000_000_001


def wal_bytes(segment: Segment, *, system_id: int = SYSTEM) -> bytes:
    """A whole segment with the headers that PostgreSQL writes."""
    noise = bytearray(random.Random(str(segment)).randbytes(segment.size))
    for place in range(0, segment.size, PAGE):
        struct.pack_into("<HHIQ", noise, place, 0xD118, 2, segment.timeline_id, segment.start + place)
    struct.pack_into("<I4xQII", noise, 16, 0, system_id, segment.size, PAGE)
    return bytes(noise)


def segment(number: int, timeline_id: int = 1) -> Segment:
    return Segment(timeline_id, number, SIZE)


@pytest.fixture
def spool(tmp_path: Path) -> WalSpool:
    made = WalSpool(tmp_path / "spool")
    with made.alone():
        pass
    made.remember(SpoolState(system_id=str(SYSTEM), segment_bytes=SIZE))
    return made


def received(spool: WalSpool, *numbers: int, timeline_id: int = 1, suffix: str = "", until: int = SIZE) -> None:
    for number in numbers:
        each = segment(number, timeline_id)
        plain = wal_bytes(each)[:until]
        (spool.receive / f"{each}{suffix}").write_bytes(plain + bytes(SIZE - until))


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


@pytest.mark.parametrize("written", [0, 10, 100, PAGE - 1, PAGE, PAGE + 5, PAGE + 24, 3 * PAGE + 777, SIZE])
def test_what_was_written_is_all_that_is_read(tmp_path: Path, written: int) -> None:
    plain = wal_bytes(segment(3))
    path = tmp_path / "open"
    path.write_bytes(plain[:written] + bytes(SIZE - written))
    for after in {0, min(50, written), written // 2, written}:
        piece = read_written(path, segment(3), after)
        # A page is believed once its header is whole; zeros at the end are there anyway.
        assert plain[after:].startswith(piece)
        assert written - (after + len(piece)) <= 16 or not any(plain[after + len(piece) : written])


def test_bytes_of_another_place_are_not_taken_for_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "open"
    path.write_bytes(wal_bytes(segment(3))[:PAGE] + wal_bytes(segment(9))[PAGE:])
    assert len(read_written(path, segment(3), 0)) <= PAGE


def test_the_first_page_says_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "closed"
    path.write_bytes(wal_bytes(segment(3)))
    page = read_first_page(path)
    assert page is not None
    assert (page.system_id, page.timeline_id, page.start, page.segment_bytes) == (
        str(SYSTEM),
        1,
        segment(3).start,
        SIZE,
    )
    path.write_bytes(bytes(SIZE))
    assert read_first_page(path) is None


def test_closed_segments_are_taken_and_the_newest_is_remembered(spool: WalSpool) -> None:
    received(spool, 3, 4)
    received(spool, 5, suffix=".partial")
    assert spool.absorb() == [str(segment(3)), str(segment(4))]
    assert spool.waiting() == [str(segment(3)), str(segment(4))]
    assert spool.waiting_bytes() == 2 * SIZE
    spool.done(str(segment(3)))
    spool.done(str(segment(4)))
    again = WalSpool(spool.directory)
    assert again.newest() == segment(4)
    assert again.opened() is not None
    assert again.waiting() == []


def test_what_waits_is_counted_while_it_is_stored(spool: WalSpool) -> None:
    """Two threads: one says how much there is, the other takes away what a bucket has got."""
    numbers = range(3, 203)
    received(spool, *numbers)
    spool.absorb()

    def store() -> None:
        for number in numbers:
            (spool.closed / str(segment(number))).unlink()

    with ThreadPoolExecutor(1) as pool:
        stored = pool.submit(store)
        while not stored.done():
            assert spool.waiting_bytes() <= len(numbers) * SIZE
    assert spool.waiting_bytes() == 0


@pytest.mark.corruption
def test_wal_of_another_server_is_not_taken(spool: WalSpool) -> None:
    (spool.receive / str(segment(3))).write_bytes(wal_bytes(segment(3), system_id=8))
    with pytest.raises(VerificationError, match="system id 8"):
        spool.absorb()
    (spool.receive / str(segment(3))).write_bytes(wal_bytes(segment(4)))
    with pytest.raises(VerificationError, match="expected was"):
        spool.absorb()
    assert spool.waiting() == []


def test_where_to_go_on_is_said_by_a_file_of_zeros(spool: WalSpool) -> None:
    spool.go_on_at(segment(7))
    assert names(spool.receive) == [str(segment(6))]
    assert (spool.receive / str(segment(6))).stat().st_size == SIZE
    assert spool.absorb() == []  # it is no WAL
    received(spool, 7)
    assert spool.absorb() == [str(segment(7))]
    spool.go_on_at(segment(8))
    assert names(spool.receive) == [str(segment(7))]
    received(spool, 8, suffix=".partial")
    spool.go_on_at(segment(8))
    assert names(spool.receive) == [f"{segment(8)}.partial"]


def test_a_step_back_puts_the_open_segment_aside(spool: WalSpool) -> None:
    received(spool, 9, suffix=".partial")
    (spool.receive / "00000002.history").write_text("1\t0/80000\tx\n")
    spool.go_on_at(segment(8, 2))
    assert names(spool.receive) == ["00000002.history", str(segment(7, 2))]
    assert names(spool.directory / "aside") == [f"{segment(9)}.partial"]
    assert spool.histories() == [(2, "1\t0/80000\tx\n")]


def test_an_old_timeline_s_open_segment_goes_once_the_new_one_s_is_closed(spool: WalSpool) -> None:
    received(spool, 9, suffix=".partial")
    received(spool, 9, timeline_id=2)
    spool.absorb()
    assert names(spool.receive) == []
    assert spool.newest() == segment(9, 2)


def test_an_open_segment_of_the_same_place_is_put_aside_for_the_new_timeline_s(spool: WalSpool) -> None:
    received(spool, 9, suffix=".partial")
    spool.go_on_at(segment(9, 2))
    assert names(spool.receive) == [str(segment(8, 2))]
    received(spool, 9, timeline_id=2, suffix=".partial")
    spool.go_on_at(segment(9, 2))
    assert names(spool.receive) == [f"{segment(9, 2)}.partial"]


def test_a_new_timeline_that_begins_before_what_was_closed_is_the_newest(spool: WalSpool) -> None:
    received(spool, 8, 9)
    spool.absorb()
    received(spool, 8, timeline_id=2)
    spool.absorb()
    assert spool.newest() == segment(8, 2)
    for name in spool.waiting():
        spool.done(name)
    assert WalSpool(spool.directory).newest() == segment(8, 2)


@pytest.mark.corruption
def test_an_open_segment_that_was_not_made_as_long_as_it_must_be_is_removed(spool: WalSpool) -> None:
    """`pg_receivewal` refuses it: it was killed, or its disk was full, while it wrote the zeros of a new segment."""
    partial = spool.receive / f"{segment(9)}.partial"
    partial.write_bytes(bytes(SIZE // 2))
    spool.go_on_at(segment(9))
    assert names(spool.receive) == [str(segment(8))]
    for length in (0, SIZE):
        partial.write_bytes(bytes(length))
        spool.go_on_at(segment(9))
        assert partial.name in names(spool.receive)
    partial.write_bytes(wal_bytes(segment(9))[: SIZE // 2])  # by nobody we know
    spool.go_on_at(segment(9))
    assert names(spool.receive) == [str(segment(8))]
    assert names(spool.directory / "aside") == [partial.name]


def test_what_waits_from_before_a_gap_does_not_say_where_to_go_on(spool: WalSpool) -> None:
    received(spool, 3, 4)
    spool.absorb()
    spool.change(newest="", passed=spool.newest_name())
    assert spool.newest() is None
    assert spool.waiting() == [str(segment(3)), str(segment(4))]
    received(spool, 9)
    spool.absorb()
    assert spool.newest() == segment(9)


@pytest.mark.corruption
def test_what_the_disk_did_not_take_is_written_down_once_it_does(spool: WalSpool) -> None:
    received(spool, 3)
    blocked = spool.directory / "state.json.part"
    blocked.mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        spool.absorb()
    assert spool.newest() == segment(3)
    with pytest.raises(OSError, match="Is a directory"):
        spool.done(str(segment(3)))
    assert WalSpool(spool.directory).newest() == segment(3)  # the file itself says it
    blocked.rmdir()
    spool.save()
    spool.done(str(segment(3)))
    assert WalSpool(spool.directory).newest() == segment(3)
    assert spool.waiting() == []


def test_there_is_one_alone(spool: WalSpool) -> None:
    with spool.alone(), pytest.raises(UserError, match="Another `drbot wal`"), WalSpool(spool.directory).alone():
        pass


def test_the_state_of_a_disk_without_a_gap_is_one_that_an_earlier_archiver_reads(spool: WalSpool) -> None:
    """Unknown keys are refused: an update that is taken back must find nothing that is new."""
    spool.change(newest=str(segment(3)), begun=True)
    text = (spool.directory / "state.json").read_text()
    assert "passed" not in text
    spool.change(newest="", passed=str(segment(3)))
    assert SpoolState.model_validate_json((spool.directory / "state.json").read_bytes()).passed == str(segment(3))
