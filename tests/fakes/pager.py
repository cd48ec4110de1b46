"""A pager in memory."""

from __future__ import annotations

from actions.ports import Pager


class MemoryPager(Pager):
    """Remembers who was told what; `problem` is raised by the next calls."""

    def __init__(self) -> None:
        self.pages: list[tuple[str, str]] = []  # key, text
        self.problem: Exception | None = None

    async def page(self, text: str, *, key: str) -> None:
        if self.problem is not None:
            raise self.problem
        self.pages.append((key, text))
