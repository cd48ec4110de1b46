"""docs/reference/attacks.md against the tests and the codes there are."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from actions.approval import Code
from bot.services.refusals import Door

pytestmark = pytest.mark.attack

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "reference" / "attacks.md"
WANTED = [
    *(f"I{number}" for number in range(1, 14)),
    *(f"T{number}" for number in range(1, 14)),
    *(f"C{number}" for number in range(1, 15)),
    *(f"J{number}" for number in range(1, 15)),
]


@dataclass(frozen=True)
class Row:
    name: str
    codes: tuple[str, ...]
    test: str  # empty where it does not apply


def rows() -> list[Row]:
    found = re.findall(r"^\| ([A-Z]\d+) \| .* \| (.*) \| (.*) \|$", TABLE.read_text(), re.MULTILINE)
    return [
        Row(name, tuple(re.findall(r"`([a-z_]+)`", codes)), test.strip("`") if test.startswith("`") else "")
        for name, codes, test in found
    ]


def functions_in(path: Path) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions)}


def test_every_row_stands_once_in_its_order() -> None:
    assert [row.name for row in rows()] == WANTED
    assert sum(bool(row.test) for row in rows()) >= 45


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


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_the_codes_of_a_row_exist_and_are_asserted(row: Row) -> None:
    assert set(row.codes) <= {*Code, *Door}
    if not row.codes:
        return
    asserted = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__))
    for code in row.codes:
        assert f'"{code}"' in asserted or code == Code.POLICY_CHANGED, code


def test_every_test_that_is_named_by_a_row_has_one() -> None:
    named = {
        match[1].upper()
        for path in Path(__file__).parent.glob("test_*.py")
        for name in functions_in(path)
        for match in re.finditer(r"_([itcj]\d+)(?=_)", name)
    }
    assert named <= set(WANTED)
