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
TABLES = ("tcp", "tcp6", "udp", "udp6")
LISTENING = "0A"
LOOPBACK_6 = "00000000000000000000000001000000"
MAPPED_4 = "0000000000000000FFFF0000"


class Connections:
    """`with` looks until it is left. A connection that is over between two looks is not seen."""

    def __init__(self, root: int, directory: Path) -> None:
        """`root` is the process that started the demo, `directory` the demo's."""
        self._root, self._directory = root, directory
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._known: set[tuple[str, ...]] = set()
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
            self._look()
            self.looks += 1

    def _look(self) -> None:
        # Whose a socket is takes a hundred times as long to find as that there is one.
        told = set(_told())
        if told <= self._known:
            return
        self._known |= told
        ours = {process.pid: process for process in self._processes()}
        for item in psutil.net_connections("inet"):
            if item.pid not in ours:
                continue
            if item.laddr and item.status == psutil.CONN_LISTEN:
                seen, address = self.listening, item.laddr.ip
            elif item.raddr and not ipaddress.ip_address(item.raddr.ip.removeprefix("::ffff:")).is_loopback:
                seen, address = self.outside, item.raddr.ip
            else:
                continue
            seen.add((_name(ours[item.pid]), address))

    def _processes(self) -> Iterator[psutil.Process]:
        yield from belonging(self._directory)  # jobs may have outlived who started them
        try:
            root = psutil.Process(self._root)
            yield root
            yield from root.children(recursive=True)
        except psutil.NoSuchProcess:
            return


def _told() -> Iterator[tuple[str, ...]]:
    """Every socket of this machine that listens or has a peer elsewhere: its two addresses and its inode."""
    for table in TABLES:
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, remote, state, *rest = line.split()
            if state == LISTENING or not _here(remote.partition(":")[0]):
                yield local, remote, rest[5]


def _here(address: str) -> bool:
    """Whether the address, as the kernel writes it, is none or on the loopback."""
    if not address.strip("0") or address == LOOPBACK_6:
        return True
    return address.endswith("7F") and (len(address) == 8 or address.startswith(MAPPED_4))


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return "a program that is gone"
