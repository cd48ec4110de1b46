"""A clock that stands still until it is moved; sleeping moves it."""

import asyncio
from datetime import UTC, datetime, timedelta

from actions.ports import Clock

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class MemoryClock(Clock):
    """Aware UTC time of a test."""

    def __init__(self, start: datetime = START) -> None:
        self._now = start

    def now(self) -> datetime:
        return self._now

    def advance(self, duration: timedelta) -> None:
        self._now += duration

    async def sleep(self, duration: timedelta) -> None:
        self.advance(duration)
        await asyncio.sleep(0)


class TravellingClock(Clock):
    """The machine's clock, put forward by `ahead`; waiting takes real time."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.sleep(duration.total_seconds())
