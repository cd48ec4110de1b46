"""What pgBackRest says when it fails, told with who must act and what is next."""

from __future__ import annotations

import pytest

from actions.adapters.pgbackrest_errors import translated
from actions.adapters.programs import ProgramError, ProgramTimeoutError
from actions.backup.patience import AwayError
from actions.errors import DrError, PermanentError, TemporaryError, UserError, VerificationError

REFUSED = """ERROR: [039]: HTTP request failed with 403 (Forbidden):
              *** Path/Query ***:
              GET /bucket?delimiter=%2F
              *** Request Headers ***:
              authorization: <redacted>
"""


@pytest.mark.parametrize(
    ("stderr", "code", "kind", "words"),
    [
        ("ERROR: [049]: unable to connect to 'store.example:443'", 49, AwayError, "can be reached"),
        ("ERROR: [050]: unable to acquire lock on file '/tmp/x.lock'", 50, TemporaryError, "wait for its end"),
        (
            "ERROR: [055]: unable to load info file '/archive/main/archive.info'\n       HINT: has a stanza-create",
            55,
            UserError,
            "stanza-create",
        ),
        ("ERROR: [056]: unable to find primary cluster - cannot proceed", 56, TemporaryError, "pg1-"),
        ("ERROR: [062]: stop file exists for all stanzas", 62, UserError, "pgbackrest start"),
        ("ERROR: [026]: error restoring '/x/1': actual checksum 'a' does not match", 26, VerificationError, "another"),
        ("ERROR: [082]: WAL segment 00 was not archived before the 60000ms timeout", 82, PermanentError, "pg_stat"),
        (
            "ERROR: [042]: timeout after 10000ms waiting for read from 'store.example:443'",
            42,
            AwayError,
            "`store.example:443` does not answer. Check that it runs",
        ),
        (REFUSED, 39, UserError, "keys of the repository"),
        ("ERROR: [095]: unable to flush", 95, UserError, "pass phrase"),
        ("ERROR: [025]: it broke\nHINT: tell the authors.", 25, PermanentError, "Tell the authors"),
    ],
)
def test_an_error_names_who_acts_and_what_is_next(stderr: str, code: int, kind: type[DrError], words: str) -> None:
    error = translated(ProgramError("pgbackrest", code=code, stderr=stderr), "list its backups")
    assert type(error) is kind
    assert words in str(error)
    assert "list its backups" in str(error)
    assert "\n" not in str(error)


def test_a_program_that_is_missing_is_named() -> None:
    missing = ProgramError("pgbackrest", code=None, stderr="", reason="is not installed or may not be executed")
    error = translated(missing, "list its backups")
    assert isinstance(error, UserError)
    assert "is not installed" in str(error)


def test_a_program_that_takes_too_long_may_be_tried_again() -> None:
    late = ProgramTimeoutError("pgbackrest", code=None, stderr="", reason="was ended after 5 s, its time limit")
    assert isinstance(translated(late, "list its backups"), TemporaryError)
