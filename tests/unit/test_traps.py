"""docs/reference/traps.md against the tests there are."""

from __future__ import annotations

import re

import pytest

from tests.fixtures.doc_tables import ROOT, functions_of, named

TABLE = ROOT / "docs" / "reference" / "traps.md"
WANTED = [
    *(str(number) for number in range(1, 22)),
    *(f"P{number}" for number in range(1, 6)),
    *(f"S{number}" for number in range(1, 7)),
]
BARE = "does not apply: "


def rows() -> list[tuple[str, str, str, str]]:
    """Number, what the product does, guards, tests, in their order."""
    return re.findall(r"^\| ([PS]?\d+) \| .* \| (.*) \| (.*) \| (.*) \|$", TABLE.read_text(), re.MULTILINE)


def test_every_trap_stands_once_in_its_order() -> None:
    assert [number for number, _, _, _ in rows()] == WANTED


@pytest.mark.parametrize(("number", "done", "guards", "tests"), rows())
def test_the_guards_and_the_tests_of_a_trap_exist(number: str, done: str, guards: str, tests: str) -> None:
    assert done
    if tests.startswith(BARE):
        assert guards == "none"
        return
    for path, name in named(guards):
        assert path.is_file()
        assert not name or name in functions_of(path), number
    for path, name in named(tests):
        assert name.startswith("test_")
        assert name in functions_of(path), number
