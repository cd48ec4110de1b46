"""A running PostgreSQL, found by its data directory: whoever started it, and whether that one still lives or not."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import tempfile
import time
from pathlib import Path

import psutil

SOCKET_PATH_LIMIT = 107  # sun_path of unix(7), without the closing zero
READY, STANDBY = "ready", "standby"  # line 8 of postmaster.pid: takes connections; does not, being a cold standby


class Postmaster:
    """Blocking."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def lines(self) -> list[str]:
        """Of `postmaster.pid`; none when nothing runs."""
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def process(self) -> psutil.Process | None:
        """The server's first process; None when there is none."""
        try:
            process = psutil.Process(int(self.lines()[0]))
            # The number in a stale file may belong to another program by now; PostgreSQL works in its data directory.
            ours = alive(process) and Path(process.cwd()) == self._data.resolve()
        except (FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
            return None
        return process if ours else None

    def status(self) -> str:
        """The server's own word: `ready`, `standby`, `starting`, `stopping`; empty when it does not run."""
        # src/include/utils/pidfile.h
        lines = self.lines()
        return lines[7].strip() if len(lines) >= 8 and self.process() is not None else ""

    def port(self) -> int | None:
        lines = self.lines()
        return int(lines[3]) if len(lines) >= 4 else None

    def stop(self) -> bool:
        """Fast, then immediate (recovery at the next start), then by force. True when it went before force."""
        process = self.process()
        if process is None:
            return True
        for number, patience in ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
                _wake(process)
            if gone(process, patience):
                return True
        self.kill()
        return False

    def kill(self) -> None:
        """End it as a crash would: SIGKILL to every process of it."""
        process = self.process()
        if process is None:
            return
        # PostgreSQL gives every child a session of its own, so a process group does not hold them.
        family = [process]
        with contextlib.suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        limit = time.monotonic() + 10
        while any(map(alive, family)) and time.monotonic() < limit:
            time.sleep(0.005)


def _wake(postmaster: psutil.Process) -> None:
    """A paused recovery looks up once a second; a signal without a reason makes it look now."""
    time.sleep(0.02)  # it must have heard of the shutdown before
    for child in postmaster.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "startup" in " ".join(child.cmdline()):
                child.send_signal(signal.SIGUSR1)


def gone(process: psutil.Process, patience: float) -> bool:
    """Wait up to `patience` seconds for its end."""
    limit = time.monotonic() + patience
    while alive(process) and time.monotonic() < limit:
        time.sleep(0.01)
    return not alive(process)


def alive(process: psutil.Process) -> bool:
    # A zombie holds nothing any more, and an orphan waits for its turn with init.
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def socket_directory(directory: Path) -> Path:
    """Where the server of this directory has its Unix socket: in it, or under /tmp when the path is too long."""
    own = directory / "socket"
    if len(os.fsencode(own / ".s.PGSQL.65535")) <= SOCKET_PATH_LIMIT:
        return own
    name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"drbot-{name}"
