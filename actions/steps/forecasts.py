"""What follows from how long a plan is forecast to take: limits that leave it the time, and a word where the RTO does
not. Pure."""

from __future__ import annotations

import math
from datetime import timedelta

from actions.contract import Finding, Verdict
from actions.runner import OUTCOME_LIMIT

COUNT_RATE = 200_000_000
"""Bytes of a database per second that counting every row of it reads; assumed, nothing measures it."""

SLOWER = 3
"""How much slower than forecast something may be before it is ended."""

HOUR = timedelta(hours=1)


def patience(forecast: timedelta, *, at_least: timedelta) -> timedelta:
    """The limit for what is forecast to take so long: so many times that, in whole hours, where that is more."""
    needed = SLOWER * forecast
    return at_least if needed <= at_least else HOUR * math.ceil(needed / HOUR)


def counting(size: int) -> timedelta:
    """How long a check counts a restored database of so many bytes: once to prove that all of it can be read, and then
    both sides to compare them, for which nobody waits longer than `OUTCOME_LIMIT`."""
    once = timedelta(seconds=size / COUNT_RATE)
    return timedelta(seconds=round((once + min(2 * once, OUTCOME_LIMIT)).total_seconds()))


def rto_findings(takes: timedelta, rto: timedelta, words: str, *, instead: str) -> list[Finding]:
    """That the RTO cannot be met, and what can be had; nothing where it can. `words`: the forecast."""
    if takes <= rto:
        return []
    detail = f"The RTO cannot be met by this: {words}."
    return [Finding(check="RTO", verdict=Verdict.WARN, detail=detail, hint=instead)]
