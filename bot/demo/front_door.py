"""The demo's Service: one fixed port before pods that come and go."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

Target = tuple[str, int]
Targets = Callable[[], Awaitable[Sequence[Target]]]

CONNECT_S = 2.0
_NOBODY = b"no pod of the application is ready\n"
_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    b"Content-Length: " + str(len(_NOBODY)).encode() + b"\r\n\r\n" + _NOBODY
)


class FrontDoor:
    """Hands each connection to the next ready pod; answers 503 itself when there is none. `async with` opens it."""

    def __init__(self, targets: Targets, *, port: int = 0) -> None:
        self._targets = targets
        self._turn = itertools.count()
        self._server: asyncio.Server | None = None
        self._visits: set[asyncio.Task[None]] = set()
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._arrive, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for visit in self._visits:
            visit.cancel()
        await asyncio.gather(*self._visits, return_exceptions=True)

    def _arrive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visit = asyncio.get_running_loop().create_task(self._visit(reader, writer))
        self._visits.add(visit)
        visit.add_done_callback(self._visits.discard)

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            pod = await self._pod()
            if pod is None:
                await _first_bytes(reader)
                writer.write(_ANSWER)
                await writer.drain()
                return
            from_pod, to_pod = pod
            try:
                await asyncio.gather(_copy(reader, to_pod), _copy(from_pod, writer))
            finally:
                to_pod.close()
        except OSError:
            return  # one of the two has gone; the other sees the end of the connection
        finally:
            writer.close()

    async def _pod(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        targets = list(await self._targets())
        turn = next(self._turn)
        for offset in range(len(targets)):
            host, port = targets[(turn + offset) % len(targets)]
            try:
                async with asyncio.timeout(CONNECT_S):
                    return await asyncio.open_connection(host, port)
            except (OSError, TimeoutError):
                continue  # it ended a moment ago; the next one may be there
        return None


async def _first_bytes(reader: asyncio.StreamReader) -> None:
    # An answer before the question would be lost when the unread question resets the connection.
    async with asyncio.timeout(CONNECT_S):
        await reader.read(64 * 1024)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(64 * 1024):
        writer.write(chunk)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
