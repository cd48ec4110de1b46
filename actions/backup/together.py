"""Several tasks that succeed or fail as one, and threads that nobody leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose first error is raised as it was."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except* Exception as errors:  # noqa: BLE001 - raised again, alone
        raise errors.exceptions[0] from None


async def finished(work: Callable[..., T], *values: object) -> T:
    """`work` in a thread, which has ended when this has, also when it is cancelled: whoever is told so may remove the
    files that the thread writes, or begin anew in the same place."""
    thread = asyncio.ensure_future(asyncio.to_thread(work, *values))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        thread.exception()  # taken note of: whoever cancels does not care
        raise
