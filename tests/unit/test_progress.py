"""The line of figures under the step that runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from actions.contract import Plan, Risk
from actions.ports import ProgressReport
from actions.steps.scratch import StartScratch
from bot.services.plans import measured_end
from bot.services.progress import Meters, expected_end
from storage.tables import RunRow

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


PHASES = (("fetch", timedelta(seconds=60)), ("replay", timedelta(seconds=30)), ("check", timedelta(seconds=10)))


def test_the_rest_of_the_running_phase_is_measured() -> None:
    meters = Meters()
    told = []
    reports = (dumped(100), dumped(200), ProgressReport(done=1, phase="restore"))
    for second, report in zip((0, 2, 4), reports, strict=True):
        meters.take(0, report)
        meters.draw(after(second))
        told.append(meters.rest)
    # No rate yet; 490 MB at 50 MB/s; of the next phase nobody knows the end.
    assert told == [None, ("dump", timedelta(seconds=10)), None]


def test_the_end_is_what_is_left_of_this_phase_and_the_forecast_of_those_after_it() -> None:
    by_estimate = after(100)
    # Half as fast as forecast: 30 s in, 90 s of the 60 s are left.
    assert expected_end("fetch", timedelta(seconds=90), after(30), PHASES, by_estimate) == after(160)
    assert expected_end("fetch", timedelta(seconds=10), after(30), PHASES, by_estimate) == after(80)
    assert expected_end("check", timedelta(seconds=5), after(95), PHASES, by_estimate) == after(100)


def test_the_card_is_given_what_the_worker_has_measured() -> None:
    plan = Plan(
        id="k7m2n3p4q5",
        action="restore.point",
        summary="",
        risk=Risk.REVERSIBLE,
        target="shop",
        params={},
        steps=(StartScratch(scratch="s1"),),
        made_at=START,
        estimate=timedelta(seconds=100),
        phases=PHASES,
    )
    told = {"step": 0, "text": "", "phase": "fetch", "left_s": 90.0, "at": after(30).isoformat()}
    run = RunRow(id=plan.id, plan_schema=1, state="running", started_at=START, progress=told)
    assert measured_end(plan, run) == after(160)
    run.progress = {"step": 0, "text": ""}
    assert measured_end(plan, run) is None
    assert measured_end(plan, None) is None


def test_of_phases_that_nobody_forecast_only_a_miss_is_known() -> None:
    by_estimate = after(100)
    assert expected_end("load", timedelta(seconds=50), after(30), (), by_estimate) is None
    assert expected_end("load", timedelta(seconds=90), after(30), (), by_estimate) == after(120)
