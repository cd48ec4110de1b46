"""Turns: so many in a while, for each account."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bot.services import rate_limits
from bot.services.rate_limits import RateLimits, Wait

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def test_so_many_turns_and_then_none_until_the_first_is_over() -> None:
    limits = RateLimits(turns=3, within=timedelta(seconds=10))
    assert [limits.take("ana", at(second)) for second in (0, 1, 2)] == [None] * 3
    assert limits.take("ana", at(3)) == Wait(until=at(10), first=True)
    assert limits.take("ana", at(9.9)) == Wait(until=at(10), first=False)
    assert limits.take("ana", at(10)) is None
    assert limits.take("ana", at(10)) == Wait(until=at(11), first=True)


def test_what_was_refused_takes_no_turn() -> None:
    limits = RateLimits(turns=1, within=timedelta(seconds=10))
    assert limits.take("ana", at(0)) is None
    for second in range(1, 10):
        assert limits.take("ana", at(second)) is not None
    assert limits.take("ana", at(10)) is None


def test_everybody_has_turns_of_their_own() -> None:
    limits = RateLimits(turns=1, within=timedelta(seconds=10))
    assert limits.take("ana", at(0)) is None
    assert limits.take("ben", at(0)) is None


def test_accounts_without_end_do_not_fill_the_memory() -> None:
    limits = RateLimits(turns=1)
    for number in range(rate_limits.REMEMBERED + 5):
        limits.take(str(number), at(0))
    assert limits.take(str(rate_limits.REMEMBERED), at(1)) is not None
    assert limits.take("0", at(1)) is None, "whoever was longest silent is forgotten"
