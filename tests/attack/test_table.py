"""docs/reference/attacks.md against the tests and the codes there are."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from actions.approval import Code
from bot.services.refusals import Door

pytestmark = pytest.mark.attack

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "reference" / "attacks.md"
ATTACKS = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
WANTED = [
    *(f"I{number}" for number in range(1, 16)),
    *(f"T{number}" for number in range(1, 14)),
    *(f"C{number}" for number in range(1, 15)),
    *(f"J{number}" for number in range(1, 16)),
    *(f"E{number}" for number in range(1, 6)),
    *(f"K{number}" for number in range(1, 6)),
]


CHECKS = ("refused", "refused_by_worker")
"""What asserts all four: the refusal, its code, its row and leaf of the record, and an executor that was not called."""


@dataclass(frozen=True)
class Row:
    name: str
    codes: tuple[str, ...]
    by_construction: bool
    test: str  # empty where it does not apply


def rows() -> list[Row]:
    found = re.findall(r"^\| ([A-Z]\d+) \| .* \| (.*) \| (.*) \|$", TABLE.read_text(), re.MULTILINE)
    return [
        Row(
            name,
            tuple(re.findall(r"`([a-z_]+)`", codes)),
            codes.startswith("by construction: "),
            test.strip("`") if test.startswith("`") else "",
        )
        for name, codes, test in found
    ]


@functools.cache
def functions_in(path: Path) -> dict[str, ast.AST]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, functions)}


def refuses(path: Path, name: str) -> set[str]:
    """The codes with which this function asserts all four; by what it calls of its own module too."""
    known = functions_in(path)
    found: set[str] = set()
    for node in ast.walk(known[name]):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in CHECKS:
            found |= {
                item.value for item in node.args if isinstance(item, ast.Constant) and isinstance(item.value, str)
            }
        elif isinstance(node.func, ast.Name) and called in known and called != name:
            found |= refuses(path, called)
    return found


def named_by(row: Row) -> Iterator[tuple[Path, str]]:
    """The tests that are named by the row, and the one that stands in it."""
    for path in ATTACKS:
        for name in functions_in(path):
            if name.startswith("test_") and f"_{row.name.lower()}_" in name:
                yield path, name
    file, _, name = row.test.partition("::")
    yield ROOT / file, name


def test_every_row_stands_once_in_its_order() -> None:
    assert [row.name for row in rows()] == WANTED


def test_forty_five_rows_and_more_are_refused_with_all_that_belongs_to_it() -> None:
    refused = [row for row in rows() if row.test and not row.by_construction]
    assert all(row.codes for row in refused)
    assert len(refused) >= 45


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_the_test_of_a_row_exists_and_is_an_attack(row: Row) -> None:
    if not row.test:
        assert "does not apply: " in TABLE.read_text().split(f"| {row.name} |")[1].splitlines()[0]
        return
    path, _, name = row.test.partition("::")
    assert name in functions_in(ROOT / path)
    assert re.search(r"^pytestmark = .*pytest\.mark\.attack", (ROOT / path).read_text(), re.MULTILINE)
    if path.startswith("tests/attack/"):
        assert re.search(rf"_{row.name.lower()}_", name), "named by its row"


@pytest.mark.parametrize("row", [row for row in rows() if row.codes], ids=lambda row: row.name)
def test_the_codes_of_a_row_exist_and_its_own_tests_assert_them(row: Row) -> None:
    assert set(row.codes) <= {*Code, *Door}
    told = [refuses(path, name) for path, name in named_by(row)]
    assert set(row.codes) <= set().union(*told)
    if row.name != "J10":  # its own test is the search for what is not refused
        assert told[-1] & set(row.codes), "the test of the row is one of a refusal"


@pytest.mark.parametrize("row", [row for row in rows() if row.by_construction], ids=lambda row: row.name)
def test_what_is_so_by_construction_claims_no_code(row: Row) -> None:
    assert row.test
    assert row.codes == ()


def test_every_test_that_is_named_by_a_row_has_one() -> None:
    named = {
        match[1].upper()
        for path in ATTACKS
        for name in functions_in(path)
        for match in re.finditer(r"_([itcjek]\d+)(?=_)", name)
    }
    assert named <= set(WANTED)
