"""Services: one address before the pods that are ready.

A Service with the annotation `demo.superprismora.com/listen: "0"` (or a port number) gets a TCP listener on 127.0.0.1
that passes each connection to the next ready pod; the port it got is written to `demo.superprismora.com/listening`.
With no pod ready the connection is closed at once, as a real one would be refused.
"""

import asyncio
import contextlib
from itertools import count
from typing import Any

from bot.demo.cluster import kinds as k
from bot.demo.cluster.kubelet import PORT
from bot.demo.cluster.objects import Objects
from bot.demo.cluster.selectors import matches
from bot.demo.cluster.workloads import active, is_ready

Json = dict[str, Any]

LISTEN = "demo.superprismora.com/listen"
LISTENING = "demo.superprismora.com/listening"
BUFFER = 64 * 1024


class Services:
    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._servers: dict[str, asyncio.Server] = {}  # by uid
        self._open: set[asyncio.Task[None]] = set()
        self._turn = count()

    async def tick(self) -> None:
        wanted = {
            found["metadata"]["uid"]: found
            for found in self._objects.all(k.SERVICE)
            if LISTEN in (found["metadata"].get("annotations") or {})
        }
        for uid in self._servers.keys() - wanted.keys():
            self._servers.pop(uid).close()
        for uid, found in wanted.items():
            if uid not in self._servers:
                await self._listen(uid, found)

    async def close(self) -> None:
        for server in self._servers.values():
            server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await asyncio.sleep(0)  # the loop closes aborted sockets in its next turn

    async def _listen(self, uid: str, found: Json) -> None:
        namespace, name = found["metadata"]["namespace"], found["metadata"]["name"]

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                self._open.add(task)
                task.add_done_callback(self._open.discard)
            await self._pass_on(namespace, name, reader, writer)

        port = int(found["metadata"]["annotations"][LISTEN])
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        self._servers[uid] = server
        listening = str(server.sockets[0].getsockname()[1])
        self._objects.edit(
            k.SERVICE, found, lambda fresh: fresh["metadata"]["annotations"].update({LISTENING: listening})
        )

    def _port(self, namespace: str, name: str) -> int | None:
        found = self._objects.find(k.SERVICE, namespace, name)
        selector = {"matchLabels": (found or {}).get("spec", {}).get("selector") or {}}
        ports = [
            int(pod["metadata"]["annotations"][PORT])
            for pod in active(self._objects.all(k.POD, namespace))
            if matches(selector, pod["metadata"].get("labels") or {})
            and is_ready(pod)
            and PORT in (pod["metadata"].get("annotations") or {})
        ]
        return ports[next(self._turn) % len(ports)] if ports and selector["matchLabels"] else None

    async def _pass_on(
        self, namespace: str, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        port = self._port(namespace, name)
        writers = [writer]
        try:
            if port is not None:
                there, back = await asyncio.open_connection("127.0.0.1", port)
                writers.append(back)
                await asyncio.gather(_pump(reader, back), _pump(there, writer))
        except OSError:
            pass  # the pod went away; its clients see the connection end
        finally:
            for one in writers:
                one.transport.abort()  # all that was to be sent has been drained


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        sink.transport.set_write_buffer_limits(0)  # so that `drain` means sent
        while chunk := await source.read(BUFFER):
            sink.write(chunk)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
