"""Where the data of an archive's entries is, however its bytes are cut."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actions.backup.archive import DATA, LARGE_OBJECTS, Places
from actions.errors import VerificationError

BEGIN = 1000  # bytes of a header that is not looked at

chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=5)
rows = st.lists(st.text(st.characters(min_codepoint=1, max_codepoint=127), min_size=1, max_size=300).map(str.encode))
objects = st.lists(st.tuples(st.integers(1, 2**31 - 1), chunks), max_size=3)


def integer(value: int) -> bytes:
    return struct.pack("<?i", value < 0, abs(value))


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(integer(len(piece)) + piece for piece in pieces) + integer(0)


def table(number: int, rows: list[bytes]) -> bytes:
    return bytes([DATA]) + integer(number) + chunked(rows)


def large_objects(number: int, found: list[tuple[int, list[bytes]]]) -> bytes:
    each = b"".join(integer(oid) + chunked(pieces) for oid, pieces in found)
    return bytes([LARGE_OBJECTS]) + integer(number) + each + integer(0)


objects_or = objects.map(lambda all_: (large_objects, all_))
cuts_of = st.lists(st.integers(1, 60), min_size=1)


@given(st.lists(st.one_of(chunks.map(lambda pieces: (table, pieces)), objects_or)), cuts_of)
def test_every_entry_is_found_however_the_archive_is_cut(entries: list[tuple[object, object]], cuts: list[int]) -> None:
    _found_however_cut(entries, cuts, plain=False)


@given(st.lists(st.one_of(rows.map(lambda texts: (table, texts)), objects_or)), cuts_of)
def test_the_same_holds_for_rows_that_are_not_compressed(entries: list[tuple[object, object]], cuts: list[int]) -> None:
    _found_however_cut(entries, cuts, plain=True)


def _found_however_cut(entries: list[tuple[object, object]], cuts: list[int], *, plain: bool) -> None:
    data, wanted = b"", {}
    for number, (write, content) in enumerate(entries, start=7):
        begin = BEGIN + len(data)
        data += write(number, content)  # type: ignore[operator]
        wanted[number] = range(begin, BEGIN + len(data))
    places = Places(BEGIN, plain=plain)
    turn = 0
    while data:
        size = cuts[turn % len(cuts)]
        places.feed(data[:size])
        data, turn = data[size:], turn + 1
    assert places.found == wanted


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(b"\x07" + integer(5) + integer(0), "block type 7", id="no block"),
        pytest.param(bytes([DATA]) + integer(5) + struct.pack("<xi", -4), "negative", id="a length under zero"),
    ],
)
def test_what_is_no_data_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(VerificationError, match=says):
        Places(0).feed(data)
