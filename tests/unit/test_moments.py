"""Moments as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from actions.errors import UserError
from actions.steps.moments import clock, exact, moment_of

NOW = datetime(2026, 11, 23, 10, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-11-23 10:00:00 UTC", "2026-11-23T10:00:00+00:00"),
        ("2026-11-23 10:00:00", "2026-11-23T10:00:00+00:00"),
        ("2026-11-23T10:00:00Z", "2026-11-23T10:00:00+00:00"),
        ("2026-11-23 11:00 +02:00", "2026-11-23T09:00:00+00:00"),
        ("10:09:58.4", "2026-11-23T10:09:58.400000+00:00"),
        ("9:30", "2026-11-23T09:30:00+00:00"),
        ("23:30", "2026-11-22T23:30:00+00:00"),
        ("11:30 +02:00", "2026-11-23T09:30:00+00:00"),
        ("00:05 +14:00", "2026-11-23T10:05:00+00:00"),  # it is the 24th there
        ("23:30 -11:00", "2026-11-22T10:30:00+00:00"),
        ("15m ago", "2026-11-23T09:57:00+00:00"),
        ("2h", "2026-11-23T08:12:00+00:00"),
    ],
)
def test_a_moment_is_read_in_utc(text: str, meant: str) -> None:
    found = moment_of(text, NOW)
    assert found == datetime.fromisoformat(meant)
    assert found.utcoffset() == timedelta(0)


@pytest.mark.parametrize("text", ["yesterday", "25:00", "2026-13-01", "'; DROP", "10:00 CEST"])
def test_what_is_no_moment_is_told_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"is no moment. Write .*a zone by its offset, not by its name"):
        moment_of(text, NOW)


def test_a_moment_to_come_is_refused() -> None:
    with pytest.raises(UserError, match="2026-11-23 10:13:00 UTC is still to come; it is 2026-11-23 10:12:00 UTC now"):
        moment_of("2026-11-23 10:13:00", NOW)


def test_moments_are_shown_with_their_zone() -> None:
    at = datetime(2026, 11, 23, 10, 29, 58, 400_000, tzinfo=UTC)
    assert exact(at) == "2026-11-23 10:29:58.4 UTC"
    assert clock(at) == "10:29:58.4"
