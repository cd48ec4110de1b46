"""The line of figures under the step that runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from actions.ports import ProgressReport
from bot.services.progress import Meters

START = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


def after(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def dumped(megabytes: int) -> ProgressReport:
    return ProgressReport(done=megabytes * 10**6, total=690 * 10**6, phase="dump")


def counted(rows: int) -> ProgressReport:
    return ProgressReport(done=rows, unit="rows", phase="count")


def test_bytes_and_rows_of_a_dump_keep_rates_of_their_own() -> None:
    meters = Meters()
    for second, megabytes, rows in ((0, 100, 1_000), (2, 300, 5_000)):
        # As a dump reports: now the one, now the other.
        meters.take(0, dumped(megabytes))
        meters.take(0, counted(rows))
        line = meters.draw(after(second))

    assert line == (
        0,
        "dump: 300.0 MB of 690.0 MB, 100.0 MB/s, about 4 seconds left; count: 5,000 rows, 2,000 rows/s",
    )


def test_what_was_counted_stays_when_only_bytes_move_on() -> None:
    meters = Meters()
    meters.take(0, counted(5_000))
    meters.draw(START)
    meters.take(0, dumped(300))

    assert meters.draw(after(2)) == (0, "dump: 300.0 MB of 690.0 MB; count: 5,000 rows")
    assert meters.draw(after(4)) is None  # nothing new to say


def test_the_next_step_and_the_next_phase_begin_anew() -> None:
    meters = Meters()
    meters.take(0, dumped(100))
    meters.draw(START)
    meters.take(0, ProgressReport(done=5_000_000, phase="restore"))
    assert meters.draw(after(2)) == (0, "restore: 5.0 MB")

    meters.take(1, ProgressReport(unit="steps", phase="waiting for api"))
    assert meters.draw(after(4)) == (1, "waiting for api: 0 steps")
