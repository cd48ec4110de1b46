"""What of an archive reaches the program that restores it, however its bytes are cut."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actions.adapters.program_input import ProgramInput
from actions.adapters.programs import Program
from actions.adapters.restore_parts import shares
from actions.backup.unpacking import EnoughError, Plain

ARCHIVE = bytes(range(256)) * 4


class Cut(Plain):
    """An archive in pieces of `size` bytes; counts how much was asked for."""

    def __init__(self, data: bytes, size: int) -> None:
        self._pieces: Iterator[bytes] = (data[at : at + size] for at in range(0, len(data), size))
        self.given = 0

    def get(self) -> bytes:
        piece = next(self._pieces, b"")
        self.given += len(piece)
        return piece


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
@pytest.mark.parametrize(
    "places",
    [
        [range(20, 1024)],
        [range(20, 30), range(30, 31), range(500, 700)],
        [range(1000, 1024)],
        [],
    ],
    ids=["all of it", "some", "the last", "nothing"],
)
def test_the_program_gets_the_header_and_its_own_places(tmp_path: Path, places: list[range], size: int) -> None:
    out = tmp_path / "out"
    source = Cut(ARCHIVE, size)
    with out.open("wb") as file, Program.start(["cat"], stdin=True, stdout=file) as program:
        with pytest.raises(EnoughError):
            ProgramInput(program, b"header", places).run(source)
        program.check()
    assert out.read_bytes() == b"header" + b"".join(ARCHIVE[place.start : place.stop] for place in places)
    assert source.given <= (places[-1].stop if places else 0) + size


def test_a_program_that_has_ended_is_given_no_more() -> None:
    with Program.start(["true"], stdin=True) as program:
        program.wait()
        with pytest.raises(EnoughError):
            ProgramInput(program, b"header", [range(len(ARCHIVE))]).run(Cut(ARCHIVE, 10))
        program.check()


def test_a_program_that_takes_nothing_is_ended() -> None:
    with Program.start(["sleep", "60"], stdin=True) as program:
        data = ProgramInput(program, b"header", [range(1 << 30)])

        def write() -> None:
            with contextlib.suppress(EnoughError):
                data.run(Cut(bytes(8 << 20), 1 << 20))

        writing = threading.Thread(target=write)
        writing.start()
        time.sleep(0.1)
        data.stop()
        writing.join(timeout=10)
        assert not writing.is_alive()
        assert program.code() == -9


def test_a_program_that_has_everything_is_not_ended(tmp_path: Path) -> None:
    words = ["sh", "-c", "cat >/dev/null; sleep 0.2; echo done"]
    with Program.start(words, stdin=True, log=tmp_path / "log") as program:
        data = ProgramInput(program, b"header", [])
        with pytest.raises(EnoughError):
            data.run(Cut(ARCHIVE, 10))
        data.stop()
        program.check()


@given(st.dictionaries(st.integers(1, 30), st.integers(0, 1000), max_size=12), st.integers(1, 5))
def test_shares_hold_every_entry_once_in_the_order_of_the_archive(sizes: dict[int, int], jobs: int) -> None:
    places, at = {}, 50
    for number, size in sizes.items():
        places[number] = range(at, at + size)
        at += size
    found = shares(places, list(sizes), jobs)
    assert sorted(number for share in found for number in share) == sorted(sizes)
    assert len(found) <= jobs
    for share in found:
        assert [places[number].start for number in share] == sorted(places[number].start for number in share)
    largest = max((sum(sizes[number] for number in share) for share in found), default=0)
    assert largest <= sum(sizes.values()) / jobs + max(sizes.values(), default=0)
