"""A witness in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from actions.errors import TemporaryError


class MemoryWitness:
    """Keeps lines; `away` makes every call fail, as when its machine is gone."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.lines: list[str] = []
        self.away = False

    async def publish(self, number: int, lines: Sequence[str]) -> None:
        self._there()
        if self.lines[-len(lines) :] != list(lines):
            self.lines += lines

    async def newest(self, limit: int) -> Sequence[str]:
        self._there()
        return list(reversed(self.lines[-limit:]))

    async def everything(self) -> AsyncIterator[str]:
        self._there()
        for line in list(self.lines):
            yield line

    def _there(self) -> None:
        if self.away:
            raise TemporaryError(f"Witness `{self.name}` is away.")
