"""Where the processes of a demo listen, and whom they talk to, looked at again and again while it runs."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from bot.demo.sweeper import belonging

EVERY_S = 0.5


class Connections:
    """`with` looks until it is left. A connection that is over between two looks is not seen."""

    def __init__(self, root: int, directory: Path) -> None:
        """`root` is the process that started the demo, `directory` the demo's."""
        self._root, self._directory = root, directory
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.listening: set[tuple[str, str]] = set()  # program, address
        self.outside: set[tuple[str, str]] = set()  # program, address of another machine
        self.looks = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            for process in self._processes():
                self._look(process)
            self.looks += 1

    def _processes(self) -> Iterator[psutil.Process]:
        try:
            root = psutil.Process(self._root)
            yield root
            yield from root.children(recursive=True)
        except psutil.NoSuchProcess:
            return
        if self.looks % 10 == 0:  # jobs may have outlived who started them; to find those takes long
            yield from belonging(self._directory)

    def _look(self, process: psutil.Process) -> None:
        try:
            name, found = process.name(), process.net_connections("inet")
        except psutil.Error:
            return
        for item in found:
            if item.status == psutil.CONN_LISTEN:
                self.listening.add((name, item.laddr.ip))
            elif item.raddr and not ipaddress.ip_address(item.raddr.ip.removeprefix("::ffff:")).is_loopback:
                self.outside.add((name, item.raddr.ip))
