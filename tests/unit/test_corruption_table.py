"""docs/reference/corruption.md against the tests there are, and against their marks."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fixtures.doc_tables import ROOT, functions_of, named

TABLE = ROOT / "docs" / "reference" / "corruption.md"
MARK = "pytest.mark.corruption"
FAULTS = {
    "flipped byte": {"full backup", "incremental", "WAL", "dump", "manifest", "backup and WAL of pgBackRest"},
    "damaged index": {"production", "under valid page checksums"},
    "forged manifest": {"base backup", "dump"},
    "missing member": {"chain of base backups"},
    "truncated upload": {"base backup", "dump"},
    "wrong identity": {"base backup", "dump", "WAL"},
    "missing segment": {"WAL"},
    "disk lost": {"archiver"},
    "disk full": {"scratch instances", "spool of a load", "disk of production's data", "archiver"},
    "S3 away for a moment": {
        *("manifest of a base backup", "manifest of a dump", "WAL of a restore", "WAL of a restore by pgBackRest"),
    },
    "S3 away for two minutes": {
        *("restore", "uploads", "downloads", "base backup", "dump", "its load", "archiver", "pgBackRest"),
    },
    "S3 full": {"base backup", "dump", "archiver"},
}
"""In what each fault is made."""

IN_FULL = "S3 away for two minutes"


def rows() -> Sequence[tuple[str, str, str, str]]:
    """Fault, in what, guards, tests."""
    cell = r" ([^|]+) \|"
    found = re.findall(rf"^\|{cell}{cell} [^|]+ \|{cell}{cell}$", TABLE.read_text(), re.MULTILINE)
    return [each for each in found if each[0] != "Fault"]


@functools.cache
def marks_of(path: Path) -> dict[str, str]:
    """Every test of a file, with its own marks and those of the file as they are written."""
    tree = ast.parse(path.read_text())
    whole = ""
    for node in tree.body:
        if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node.targets[0]):
            whole = ast.unparse(node.value)
    return {
        node.name: " ".join([whole, *map(ast.unparse, node.decorator_list)])
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_fault_is_made_once_in_everything_it_can_be_in() -> None:
    made: dict[str, list[str]] = {}
    for fault, places, _, _ in rows():
        made.setdefault(fault, []).extend(places.split(", "))
    assert {fault: sorted(places) for fault, places in made.items()} == {
        fault: sorted(places) for fault, places in FAULTS.items()
    }


@pytest.mark.parametrize(("fault", "tests"), [(fault, tests) for fault, _, _, tests in rows()])
def test_the_tests_of_a_fault_are_part_of_the_suite(fault: str, tests: str) -> None:
    for path, name in named(tests):
        marks = marks_of(path)
        assert name in marks, f"{path} has no test {name}"
        assert MARK in marks[name], f"{name} is not marked"
        if fault == IN_FULL:
            assert "'away', AWAY" in marks[name], f"{name} does not play two minutes"


@pytest.mark.parametrize(("fault", "guards"), [(fault, guards) for fault, _, guards, _ in rows()])
def test_the_guards_against_a_fault_exist(fault: str, guards: str) -> None:
    for path, name in named(guards):
        assert name in functions_of(path), f"{fault}: {path} has no {name}"
