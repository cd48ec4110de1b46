"""docs/reference/traps.md against the tests there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "reference" / "traps.md"
WANTED = [*(str(number) for number in range(1, 22)), *(f"P{number}" for number in range(1, 6))]


def rows() -> list[tuple[str, str]]:
    """Number and test, in their order."""
    return re.findall(r"^\| (P?\d+) \| .* \| (.*) \|$", TABLE.read_text(), re.MULTILINE)


def test_every_trap_stands_once_in_its_order() -> None:
    assert [number for number, _ in rows()] == WANTED


@pytest.mark.parametrize(("number", "test"), rows())
def test_the_test_of_a_trap_exists(number: str, test: str) -> None:
    if test.startswith("does not apply: "):
        return
    path, _, name = test.strip("`").partition("::")
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, functions)}, number
