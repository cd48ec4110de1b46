"""A container's log, sent on as it is written until the container has ended."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

LOOK = 0.05  # seconds between two looks at the file


async def followed(
    request: web.Request, path: Path, first: bytes, place: int, ended: Callable[[], bool]
) -> web.StreamResponse:
    """Send `first`, then what comes after `place`."""
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    try:
        await response.prepare(request)
        await response.write(first)
        while True:
            over = ended()  # before the last look, so that nothing written before the end is missed
            more = await asyncio.to_thread(_since, path, place)
            place += len(more)
            if more:
                await response.write(more)
            if over:
                return response
            await asyncio.sleep(LOOK)
    except ConnectionResetError:  # the reader went away
        return response


def _since(path: Path, place: int) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as stream:
        stream.seek(place)
        return stream.read()
