"""When something is due, as the plan file writes it: `02:00 UTC`, `mon 09:00 UTC`, `1st mon 09:00 UTC`,
`1 of jan,apr,jul,oct 09:00 UTC`. Pure: a moment in, a moment out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

_DAYS = "mon|tue|wed|thu|fri|sat|sun"
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
PATTERN = (
    rf"^(?:(?P<day>(?:1st|2nd|3rd|4th|5th|last) (?:{_DAYS})|last|[1-9]|[12][0-9]|3[01]|{_DAYS})"
    rf"(?: of (?P<month>(?:{_MONTHS})(?:,(?:{_MONTHS}))*))? )?"
    r"(?P<hour>[01][0-9]|2[0-3]):(?P<minute>[0-5][0-9]) UTC$"
)
_SCHEDULE = re.compile(PATTERN)

_TICK = timedelta(microseconds=1)
_LOOK_BACK = (timedelta(days=2), timedelta(days=8), timedelta(days=32), timedelta(days=367), timedelta(days=10 * 366))


def cron_fields(schedule: str) -> Mapping[str, str]:
    """The keyword arguments of APScheduler's `CronTrigger`, time zone UTC. Raises ValueError for anything else.

    >>> dict(cron_fields("1st mon 09:00 UTC"))
    {'hour': '9', 'minute': '0', 'day': '1st mon'}
    """
    match = _SCHEDULE.fullmatch(schedule)
    if match is None:
        raise ValueError(f"`{schedule}` is not a schedule")
    fields = {"hour": str(int(match["hour"])), "minute": str(int(match["minute"]))}
    if day := match["day"]:
        fields["day_of_week" if re.fullmatch(_DAYS, day) else "day"] = day
    if month := match["month"]:
        fields["month"] = month
    return fields


class Schedule:
    """The instants of one schedule."""

    def __init__(self, text: str) -> None:
        # Whoever only reads the plan file, as every job does, need not wait for this import.
        from apscheduler.triggers.cron import CronTrigger

        self._trigger = CronTrigger(timezone=UTC, **cron_fields(text))

    def after(self, moment: datetime) -> datetime:
        """The first instant later than this moment."""
        return self._from(moment + _TICK) or moment + timedelta(days=10 * 366)  # the 30th of February never comes

    def until(self, moment: datetime) -> datetime | None:
        """The last instant that is not later than this moment; None within ten years."""
        for back in _LOOK_BACK:
            found = list(self.between(moment - back, moment))
            if found:
                return found[-1]
        return None

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """The instants later than `after` and not later than `until`, oldest first."""
        instant = self._from(after + _TICK)
        while instant is not None and instant <= until:
            yield instant
            instant = self._from(instant + _TICK)

    def _from(self, moment: datetime) -> datetime | None:
        found: datetime | None = self._trigger.get_next_fire_time(None, moment)
        return None if found is None else found.astimezone(UTC)


def every(interval: timedelta, moment: datetime) -> datetime:
    """The last instant of a rhythm that starts anew at midnight UTC, not later than this moment: every 15 minutes are
    10:00, 10:15, ..."""
    midnight = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + (moment - midnight) // interval * interval
