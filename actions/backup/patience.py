"""Waiting for a store that went away in the middle of something long, which then goes on where it was.

To begin gigabytes anew for a network that was gone for two minutes would cost more than they. What has just begun does
not wait: people are told within seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from actions.errors import TemporaryError

T = TypeVar("T")

PATIENCE = timedelta(minutes=5)
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0  # seconds between two tries

log = logging.getLogger(__name__)


class AwayError(TemporaryError):
    """A store does not answer, or says that it cannot now."""


class Patience:
    """How long one piece of work has waited."""

    def __init__(self, limit: timedelta) -> None:
        self._limit = limit.total_seconds()
        self._since: float | None = None
        self._pause = FIRST_PAUSE

    def over(self) -> None:
        """The store answers."""
        self._since, self._pause = None, FIRST_PAUSE

    async def once_more(self, error: Exception) -> None:
        """Return when it is time for another try. Raises the error when it was waited long enough."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since >= self._limit:
            raise error
        log.warning("store_away_for_%.0f_s: %s", now - self._since, error)
        await asyncio.sleep(min(self._pause, self._limit))
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


async def patiently(
    work: Callable[[], Awaitable[T]], limit: timedelta, kind: type[TemporaryError] = TemporaryError
) -> T:
    """Begin it again while it ends with an error of this kind, which is raised at last."""
    patience = Patience(limit)
    while True:
        try:
            return await work()
        except kind as error:
            await patience.once_more(error)
