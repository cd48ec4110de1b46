"""Names of WAL segments, and the way through timelines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actions.backup.physical import SEGMENT, Lsn
from actions.backup.segments import Segment, Timelines, history_name, history_of
from actions.errors import VerificationError

SIZES = [1 << 20, SEGMENT, 1 << 30]
FORKS = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-03-01 12:00:00+00\n"


@given(st.integers(1, 0xFFFFFFFF), st.integers(0, 1 << 31), st.sampled_from(SIZES))
def test_a_name_says_what_the_segment_is(timeline_id: int, number: int, size: int) -> None:
    segment = Segment(timeline_id, number, size)
    assert Segment.parse(str(segment), size) == segment
    assert segment.next().start == segment.end
    assert Segment.holding(Lsn(segment.end - 1), timeline_id, size) == segment


def test_names_are_those_of_postgresql() -> None:
    assert str(Segment.holding(Lsn.parse("16/B374D848"), 1)) == "0000000100000016000000B3"
    assert str(Segment.holding(Lsn.parse("1/0"), 0x1F)) == "0000001F0000000100000000"
    assert str(Segment(1, 0xFF).next()) == "000000010000000100000000"
    assert (history_name(26), history_of("0000001A.history")) == ("0000001A.history", 26)
    assert history_of("000000010000000000000001") is None


@pytest.mark.parametrize(
    "name", ["", "00000001000000000000000", "000000010000000000000g01", "0000000100000000000001FF"]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a WAL segment"):
        Segment.parse(name)


def test_a_history_leads_from_the_first_timeline_to_the_last() -> None:
    way = Timelines.parse(3, FORKS)
    assert way.ids == (1, 2, 3)
    assert [str(each) for each in way.choices(3, SEGMENT)] == ["000000020000000000000003", "000000010000000000000003"]
    assert [str(each) for each in way.choices(2, SEGMENT)] == ["000000010000000000000002"]
    assert [str(each) for each in way.choices(9, SEGMENT)] == ["000000030000000000000009"]


def test_what_was_written_after_a_switch_is_no_part_of_it() -> None:
    way = Timelines.parse(3, FORKS)
    assert way.reaches(1, Lsn.parse("0/3000148"))
    assert not way.reaches(1, Lsn.parse("0/3000149"))
    assert way.reaches(3, Lsn.parse("F/0"))
    assert not way.reaches(4, Lsn(0))
    assert way.end_of(Segment(1, 3)) == Lsn.parse("0/3000148")
    assert way.end_of(Segment(3, 7)) == Segment(3, 7).end
    names = [str(Segment(1, number)) for number in range(1, 6)] + [str(Segment(3, 5)), "0000000100000000FFFFFFFF"]
    assert list(way.numbers(names, SEGMENT)) == [1, 2, 3, 5]


@pytest.mark.parametrize(
    ("at", "goes_on"),
    [
        (Segment(1, 2), Segment(1, 2)),
        (Segment(1, 3), Segment(1, 3)),  # the switch lies in it
        (Segment(1, 4), Segment(2, 3)),  # written after the switch
        (Segment(2, 4), Segment(2, 4)),
        (Segment(2, 5), Segment(3, 5)),  # the switch is its very beginning
        (Segment(3, 9), Segment(3, 9)),
        (Segment(4, 1), None),
    ],
)
def test_a_stream_goes_on_where_its_timeline_still_has_something(at: Segment, goes_on: Segment | None) -> None:
    assert Timelines.parse(3, FORKS).go_on(at) == goes_on


def test_a_timeline_on_which_nothing_was_written_is_passed_over() -> None:
    assert Timelines.parse(3, "1\t0/5000000\tx\n2\t0/5000000\tx\n").go_on(Segment(1, 5)) == Segment(3, 5)


@pytest.mark.parametrize("text", ["", "# nothing\n", "1\n", "x\t0/1\n", "1 zero\n", "3\t0/1\n", "2\t0/5\n1\t0/6\n"])
def test_what_is_no_history_is_refused(text: str) -> None:
    with pytest.raises(VerificationError, match=r"00000003\.history"):
        Timelines.parse(3, text)
