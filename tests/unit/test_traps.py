"""docs/reference/traps.md against the tests there are."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "reference" / "traps.md"
WANTED = [*(str(number) for number in range(1, 22)), *(f"P{number}" for number in range(1, 6)), "S1", "S2"]
BARE = "does not apply: "


def rows() -> list[tuple[str, str, str]]:
    """Number, what the product does, tests, in their order."""
    return re.findall(r"^\| ([PS]?\d+) \| .* \| (.*) \| (.*) \|$", TABLE.read_text(), re.MULTILINE)


@functools.cache
def functions_of(path: Path) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions)}


def test_every_trap_stands_once_in_its_order() -> None:
    assert [number for number, _, _ in rows()] == WANTED


@pytest.mark.parametrize(("number", "done", "tests"), rows())
def test_the_tests_of_a_trap_exist(number: str, done: str, tests: str) -> None:
    assert done
    if tests.startswith(BARE):
        return
    named = [cell.strip("`") for cell in tests.split("<br>")]
    assert named
    for test in named:
        path, _, name = test.partition("::")
        assert name.startswith("test_")
        assert name in functions_of(ROOT / path), number
