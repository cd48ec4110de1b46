"""Turns the database's NOTIFY into events that the loops of this process wait for."""

from __future__ import annotations

import asyncio
from collections import defaultdict

QUEUES = ("request", "signature", "order", "outbox", "seal")


class Wake:
    """One event a queue. An empty queue name wakes all: a notification may have been lost."""

    def __init__(self) -> None:
        self._events: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def __call__(self, queue: str) -> None:
        for name in [queue] if queue else QUEUES:
            self._events[name].set()

    async def wait(self, queue: str) -> None:
        """Return at the next wake-up since the last return."""
        event = self._events[queue]
        await event.wait()
        event.clear()
