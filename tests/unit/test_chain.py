"""What rests on what: parents of incrementals, and the base for a target."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from actions.backup.chain import base_for, chain, parent_of_next, usable, with_chains
from actions.backup.physical import SEGMENT, Lsn, RecoveryTarget
from tests.fakes.entries import an_entry

DAY = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)

FULL = an_entry("full", DAY)
NINE = an_entry("nine", DAY.replace(hour=9, minute=0, second=20), parent="full")
QUARTER = an_entry("quarter", DAY.replace(hour=9, minute=15), parent="nine")


@pytest.mark.parametrize(
    ("hour", "minute", "parent"),
    [(9, 15, "nine"), (9, 45, "nine"), (10, 0, "full"), (10, 15, "full")],
)
def test_quarters_rest_on_their_hour_and_hours_on_the_full(hour: int, minute: int, parent: str) -> None:
    found = parent_of_next([QUARTER, NINE, FULL], DAY.replace(hour=hour, minute=minute), "7")
    assert found is not None
    assert found.manifest.id == parent


def test_the_newest_full_of_this_server_is_rested_on() -> None:
    later = an_entry("later", DAY + timedelta(days=1))
    found = parent_of_next([later, QUARTER, NINE, FULL], DAY + timedelta(days=1, hours=1), "7")
    assert found == later
    assert parent_of_next([later], DAY, "another server") is None
    assert parent_of_next([an_entry("bad", DAY, problem="gone")], DAY, "7") is None


def test_a_chain_is_whole_or_nothing() -> None:
    assert [each.manifest.id for each in chain([FULL, NINE, QUARTER], QUARTER) or []] == ["full", "nine", "quarter"]
    assert chain([FULL, QUARTER], QUARTER) is None
    bad = NINE.model_copy(update={"problem": "gone"})
    assert chain([FULL, bad, QUARTER], QUARTER) is None
    assert usable([FULL, bad, QUARTER]) == [FULL]


def test_a_problem_reaches_all_that_rest_on_it() -> None:
    bad = FULL.model_copy(update={"problem": "It is gone."})
    problems = [entry.problem or "" for entry in with_chains([QUARTER, NINE, bad])]
    assert "rests on backup `nine`, which must not be used" in problems[0]
    assert problems[1].endswith("It is gone.")
    circle = an_entry("a", DAY, parent="b"), an_entry("b", DAY, parent="a")
    assert all(entry.problem for entry in with_chains(circle))


def test_pages_with_checksums_never_rest_on_pages_without() -> None:
    bare = FULL.model_copy(update={"manifest": FULL.manifest.model_copy(update={"checksums": False})})
    [quarter, nine, full] = with_chains([QUARTER, NINE, bare])
    assert (full.problem, usable([quarter, nine, full])) == (None, [full])
    assert (
        nine.problem == "Incremental `nine` has page checksums, backup `full` that it rests on has none. Use another."
    )
    assert "rests on backup `nine`, which must not be used" in (quarter.problem or "")


@pytest.mark.parametrize(
    ("target", "base"),
    [
        (RecoveryTarget(time=DAY.replace(hour=9, minute=15)), "quarter"),
        (RecoveryTarget(time=DAY.replace(hour=9, minute=10)), "nine"),
        (RecoveryTarget(time=DAY - HOUR), None),
        (RecoveryTarget(latest=True), "quarter"),
        (RecoveryTarget(name="before"), "quarter"),
        (RecoveryTarget(lsn=str(Lsn(4 * SEGMENT))), "quarter"),
        (RecoveryTarget(lsn="0/1"), None),
    ],
)
def test_the_newest_that_certainly_ends_before_the_target(target: RecoveryTarget, base: str | None) -> None:
    found = base_for([FULL, NINE, QUARTER], target)
    assert (found.manifest.id if found else None) == base


@pytest.mark.parametrize(
    ("snapshot", "xid", "usable_for"),
    [
        ("100:105:101,103", 105, True),  # not begun
        ("100:105:101,103", 103, True),  # at work
        ("100:105:101,103", 104, False),  # done
        ("100:105:", 99, False),
        (f"{(7 << 32) + 100}:{(7 << 32) + 105}:", 105, True),  # numbers of this time round
        (f"{(7 << 32) + 100}:{(7 << 32) + 105}:", 104, False),
        (f"{(7 << 32) + 3}:{(7 << 32) + 5}:", (1 << 32) - 9, False),  # of the last time round
        ("", 105, False),  # nothing is known
    ],
)
def test_a_transaction_that_had_ended_needs_an_earlier_base(snapshot: str, xid: int, usable_for: bool) -> None:
    found = base_for([an_entry("full", DAY, snapshot=snapshot)], RecoveryTarget(xid=xid))
    assert (found is not None) is usable_for
