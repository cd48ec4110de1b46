"""What people read of a check of indexes that did not end well."""

from __future__ import annotations

from pathlib import Path

from actions.adapters.index_check import DAMAGED, TOLD, _said
from actions.adapters.programs import ProgramError


def told(tmp_path: Path, report: str, *, code: int | None = DAMAGED, reason: str | None = None) -> str:
    path = tmp_path / "amcheck.log"
    path.write_text(report)
    return _said(ProgramError("pg_amcheck", code=code, stderr=report, reason=reason), "shop", path)


def test_one_that_could_not_look_is_not_told_as_damage(tmp_path: Path) -> None:
    missing = told(tmp_path, "", code=None, reason="is not installed or may not be executed")
    assert missing.startswith("`pg_amcheck` could not check database `shop`: it is not installed")
    lost = told(tmp_path, "pg_amcheck: error: connection to server was lost", code=1)
    assert "connection to server was lost" in lost
    assert "damage" not in missing + lost


def test_tables_and_indexes_are_named_once_and_counted(tmp_path: Path) -> None:
    rows = "".join(f'heap table "shop.public.doc", block 0, offset {row}:\n    it is wrong\n' for row in (1, 2))
    indexes = "".join(f'btree index "shop.public.i{number}":\n    ERROR:  out of order\n' for number in range(TOLD))
    said = told(tmp_path, rows + indexes)
    assert said.count("`shop.public.doc`") == 1
    assert f"`shop.public.i{TOLD - 2}` and 1 more" in said
    assert "restore from an earlier backup" in said
