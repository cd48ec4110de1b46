"""What pgBackRest lacks on a server, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from actions.backup.pgbackrest_lacks import of_archive, of_version
from actions.backup.pgbackrest_tools import Version
from actions.backup.physical import RecoveryTarget
from actions.steps.scratch import RestoreScratch

GOOD = {
    "mode": "on",
    "timeout": timedelta(seconds=60),
    "command": "pgbackrest --stanza=main archive-push %p",
    "fails": False,
    "failed_wal": None,
}


@pytest.mark.parametrize(
    ("version", "major", "said"),
    [
        ((2, 45, 0), 15, ""),
        ((2, 45, 0), 16, "2.46"),
        ((2, 46, 0), 16, ""),
        ((2, 53, 0), 17, "2.53.1"),
        ((2, 53, 1), 17, ""),
        ((2, 54, 0), 18, "2.55"),
        ((2, 60, 0), 18, ""),
        ((2, 39, 0), 15, "2.41"),
        ((2, 45, 0), 13, "or dumps alone"),
        ((2, 45, 0), None, ""),
    ],
)
def test_a_version_must_know_the_server(version: tuple[int, int, int], major: int | None, said: str) -> None:
    found = of_version(Version(major=version[0], minor=version[1], patch=version[2]), major)
    assert bool(found) == bool(said)
    assert all(said in lack.next and lack.stops for lack in found)


@pytest.mark.parametrize(
    ("changes", "said", "stops"),
    [
        ({}, None, True),
        ({"mode": "off"}, "archives nothing", True),
        ({"command": "cp %p /archive/%f"}, "does not call pgBackRest", True),
        ({"fails": True, "failed_wal": "000000010000000000000007"}, "`000000010000000000000007`", True),
        ({"timeout": timedelta(0)}, "only when 16 MB are full", False),
        ({"timeout": timedelta(hours=1)}, "only every 3600 s", False),
    ],
)
def test_the_archive_must_work_and_be_quick_enough(changes: Mapping[str, Any], said: str | None, stops: bool) -> None:
    found = of_archive({**GOOD, **changes}, stanza="main", rpo=timedelta(minutes=15))
    if said is None:
        assert not found
    else:
        (lack,) = found
        assert said in lack.what
        assert lack.stops == stops


def test_the_restore_by_hand_is_pgbackrest_where_it_has_the_backup() -> None:
    step = RestoreScratch(
        job="j",
        scratch="s1",
        server="primary",
        target=RecoveryTarget(xid=7, inclusive=False),
        target_words="before transaction 7",
        backup="base-1",
        bucket="backups",
        endpoint=None,
        key="backup/main/20261127-080000F/",
        sha256="",
        stanza="main",
        amcheck=False,
        keep=None,
        mark="drbot:scratch:plan1",
    )
    _, restore, *others = step.by_hand()
    assert restore.startswith("pgbackrest --stanza=main ")
    assert "--set=20261127-080000F" in restore
    assert any("recovery_target_xid = '\"'\"'7" in line for line in others)
    assert any('archive-get %f "%p"' in line for line in others)
