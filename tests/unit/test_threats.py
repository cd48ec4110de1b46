"""The threat model names the tests that show its claims; they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`")


def defined_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_that_is_named_exists() -> None:
    named = NAMED.findall((ROOT / "docs/reference/threats.md").read_text())
    assert len(named) > 30
    missing = [f"{file}::{name}" for file, name in named if name not in defined_in(ROOT / file)]
    assert missing == []


def test_every_stolen_thing_says_what_it_can_do() -> None:
    """A section without a plain `can` would promise that the thing is worth nothing."""
    text = (ROOT / "docs/reference/threats.md").read_text().partition("## What each stolen thing is worth")[2]
    sections = text.split("\n### ")[1:]
    assert len(sections) >= 12
    assert [section.splitlines()[0] for section in sections if "**can**" not in section] == []
