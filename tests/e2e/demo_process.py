"""`drbot demo` as a person starts it: a process of its own, read line by line."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from bot.demo import running
from bot.demo.running import RunningDemo
from bot.demo.sweeper import belonging

ROOT = Path(__file__).parents[2]
DRBOT = [sys.executable, "-m", "bot.cli"]


class DemoProcess:
    """`with` starts it and leaves it by SIGTERM. `said` is everything it has printed."""

    def __init__(self, *words: str, within: Path) -> None:
        """`within` is where its folder is made."""
        self._words = words
        self._within = within
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.said: list[str] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [*DRBOT, "demo", *self._words],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(self._within)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()

    @property
    def process(self) -> "subprocess.Popen[str]":
        assert self._process is not None
        return self._process

    def line(self, pattern: str, *, within: float) -> str:
        """Wait for a line that matches; the whole output is in the assertion otherwise."""
        limit = time.monotonic() + within
        while True:
            try:
                line = self._lines.get(timeout=max(0.01, limit - time.monotonic()))
            except queue.Empty:
                line = None
            assert line is not None, f"no line `{pattern}` within {within:g} s:\n{''.join(self.said)}"
            if re.search(pattern, line):
                return line

    def begun(self, *, within: float = 90) -> Path:
        """Wait until it says where its folder is."""
        line = self.line(r"Starting the demo in ", within=within)
        return Path(line.split("Starting the demo in ", 1)[1].split(",", 1)[0])

    def ready(self, directory: Path | None = None, *, within: float = 150) -> RunningDemo:
        """Wait until it is ready, with its folder where that is known by now; where everything is."""
        directory = directory or self.begun()
        self.line(r"^Ready after ", within=within)
        return running.find(directory)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, within: float = 60) -> int:
        """Ask it to end and give its exit code."""
        self.process.send_signal(number)
        return self.wait(within=within)

    def wait(self, *, within: float) -> int:
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            for line in stream:
                self.said.append(line)
                self._lines.put(line)
        self._lines.put(None)


def remains(directory: Path, *, within: float = 0) -> list[Path | psutil.Process]:
    """What is left of a demo that has ended: its folder, if it has not gone `within` seconds, and its processes."""
    limit = time.monotonic() + within
    while directory.exists() and time.monotonic() < limit:
        time.sleep(0.1)
    return [*([directory] if directory.exists() else []), *belonging(directory)]
