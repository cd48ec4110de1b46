"""How long the application was away, seen from outside: its health address, asked a few times a second.

Not more often: each question is a new connection to the database there, which is work it does not have when away.
"""

from __future__ import annotations

import asyncio
import time
from enum import Enum
from types import TracebackType
from typing import Self

import aiohttp

EVERY_S = 0.25
DAMAGED_TEXT = "superprismora does not work"


class Answer(Enum):
    GOOD = "good"
    DAMAGED = "damaged"  # the application runs and says what is wrong with its data
    AWAY = "away"  # nobody answers for it


class HealthWatch:
    """`async with` watches. Moments are monotonic seconds; the application counts as away from the first question
    nobody answered, until the first good answer after it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._task: asyncio.Task[None] | None = None
        self.seen: list[tuple[float, Answer]] = []
        """Every change of the answer, with its moment."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def last(self) -> Answer | None:
        return self.seen[-1][1] if self.seen else None

    def downtime(self) -> float | None:
        """Seconds; None when it was never away, or has not come back."""
        left = next((at for at, answer in self.seen if answer is Answer.AWAY), None)
        if left is None:
            return None
        back = next((at for at, answer in self.seen if at > left and answer is Answer.GOOD), None)
        return None if back is None else back - left

    async def until(self, wanted: Answer, *, within: float) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(within):
            while self.last is not wanted:  # noqa: ASYNC110 - the watch itself looks only every so often
                await asyncio.sleep(EVERY_S)

    async def _watch(self) -> None:
        timeout = aiohttp.ClientTimeout(total=5)
        # A connection kept open would go on reaching a pod that is no longer in service.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            while True:
                asked = time.monotonic()
                answer = await self._ask(session)
                if answer is not self.last:
                    self.seen.append((asked if answer is not Answer.GOOD else time.monotonic(), answer))
                await asyncio.sleep(EVERY_S)

    async def _ask(self, session: aiohttp.ClientSession) -> Answer:
        try:
            async with session.get(self._url) as response:
                if response.status == 200:
                    return Answer.GOOD
                return Answer.DAMAGED if DAMAGED_TEXT in await response.text() else Answer.AWAY
        except (aiohttp.ClientError, TimeoutError):
            return Answer.AWAY
