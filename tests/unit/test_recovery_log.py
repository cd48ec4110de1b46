"""What a recovering server says of itself, word for word as PostgreSQL writes it with `lc_messages` C."""

from __future__ import annotations

import pytest

from actions.adapters.recovery_log import stopped_at_target, too_low, why_it_ended
from actions.backup.physical import RecoveryTarget
from actions.errors import TemporaryError, UserError, VerificationError

READY = (
    "LOG:  consistent recovery state reached at 0/3000120\n"
    "LOG:  database system is ready to accept read-only connections\n"
)
PAUSED = "LOG:  pausing at the end of recovery\nHINT:  Execute pg_wal_replay_resume() to promote.\n"
WAITS = (
    "WARNING:  hot standby is not possible because of insufficient parameter settings\n"
    "DETAIL:  max_connections = 50 is a lower setting than on the primary server, where its value was 333.\n"
    "LOG:  recovery has paused\n"
)


@pytest.mark.parametrize(
    "stop",
    [
        "LOG:  recovery stopping before commit of transaction 771, time 2026-11-23 10:12:00.1+00\n",
        "LOG:  recovery stopping after commit of transaction 771, time 2026-11-23 10:12:00.1+00\n",
        'LOG:  recovery stopping at restore point "before_five", time 2026-11-23 10:12:00.1+00\n',
        'LOG:  recovery stopping after WAL location (LSN) "0/4000000"\n',
    ],
)
def test_a_server_is_at_its_target_once_it_says_that_it_stopped_there(stop: str) -> None:
    assert stopped_at_target(READY + stop + PAUSED)


@pytest.mark.parametrize("log", ["", READY, READY + PAUSED, READY + WAITS])
def test_one_that_is_ready_or_paused_has_not_said_so(log: str) -> None:
    assert not stopped_at_target(log)


def test_a_setting_that_is_too_low_is_read_with_the_value_it_needs() -> None:
    assert too_low(READY + WAITS) == {"max_connections": "333"}
    assert too_low(READY) == {}


@pytest.mark.parametrize(
    ("said", "kind", "word"),
    [
        ("FATAL:  could not extend file: No space left on device\n", TemporaryError, "Free space there"),
        (
            "LOG:  could not bind: Address already in use\nFATAL:  could not create any sockets\n",
            UserError,
            "Another program has its port",
        ),
        ("PANIC:  could not locate a valid checkpoint record\n", VerificationError, "Use another backup"),
    ],
)
def test_no_other_backup_is_asked_for_where_the_machine_is_at_fault(said: str, kind: type, word: str) -> None:
    error = why_it_ended(said, RecoveryTarget(latest=True))
    assert (type(error), word in str(error)) == (kind, True)
