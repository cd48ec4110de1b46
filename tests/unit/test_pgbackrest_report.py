"""Reports of `pgbackrest verify`, which ends with code 0 whatever it found. As 2.45 wrote them."""

from __future__ import annotations

import pytest

from actions.backup.pgbackrest_report import verified

FULL, OTHER, DIFF = "20261127-081304F", "20261127-081322F", "20261127-081322F_20261127-081344D"
NOTHING = "missing: 0, checksum invalid: 0, size invalid: 0, other: 0"
GOOD = f"""P00   INFO: stanza: main
            status: ok
              archiveId: 15-1, total WAL checked: 5, total valid WAL: 5
                {NOTHING}
              backup: {FULL}, status: valid, total files checked: 965, total valid files: 965
                {NOTHING}
"""
BAD = f"""P02   INFO: invalid checksum '{OTHER}/pg_data/base/4/2838.zst'
P01   INFO: invalid result 15-1/0000000100000000/000000010000000000000007-{"9" * 40}.zst: [29] raised from local-1
            protocol: zst error: [-20] Data corruption detected
            [FormatError] on retry after 0ms
P00   INFO: stanza: main
            status: error
              archiveId: 15-1, total WAL checked: 7, total valid WAL: 6
                missing: 0, checksum invalid: 0, size invalid: 0, other: 1
              backup: {FULL}, status: valid, total files checked: 965, total valid files: 965
                {NOTHING}
              backup: {OTHER}, status: invalid, total files checked: 965, total valid files: 964
                missing: 0, checksum invalid: 1, size invalid: 0, other: 0
              backup: {DIFF}, status: invalid, total files checked: 967, total valid files: 966
                missing: 0, checksum invalid: 1, size invalid: 0, other: 0
"""


def test_a_whole_backup_is_good() -> None:
    found = verified(GOOD, FULL)
    assert (found.problem, found.wal) == ("", ())


@pytest.mark.parametrize("label", [OTHER, DIFF])
def test_a_damaged_backup_and_what_rests_on_it_are_named_with_the_file(label: str) -> None:
    found = verified(BAD, label)
    assert found.problem.startswith("1 of ")
    assert f"`{OTHER}/pg_data/base/4/2838.zst`" in found.problem


def test_a_good_backup_beside_a_damaged_one_is_good_and_damaged_wal_is_named() -> None:
    found = verified(BAD, FULL)
    assert (found.problem, found.wal) == ("", ("000000010000000000000007",))


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ("", "no report"),
        ("stanza: main\nstatus: ok\n  archiveId: none found\n  backup: none found\n", "did not look at"),
        (GOOD.replace("status: ok", "status: error"), "does not say why"),
        (GOOD.replace("valid WAL: 5", "valid WAL: 4"), "does not say why"),
        (GOOD.replace("status: valid", "status: manifest missing"), "manifest missing"),
        (GOOD.replace("965", "0"), "0 of 0"),
        (GOOD.replace("total valid files: 965", "total valid files: 964"), "1 of 965"),
    ],
)
def test_what_is_not_shown_to_be_good_is_not_good(report: str, said: str) -> None:
    assert said in verified(report, FULL).problem
