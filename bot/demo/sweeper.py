"""What remains of a demo goes when the demo goes, also after `kill -9`.

`python -m bot.demo.sweeper DIRECTORY` waits until its standard input ends, which happens when the demo that holds the
other end is gone. It then ends every process that has the directory on its command line, in its environment or as its
working directory (jobs of the bot outlive the bot on purpose), and removes the directory.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

GRACE_S = 5.0
PREFIX = "drbot-demo-"


def main() -> None:
    """Entry point."""
    directory = Path(sys.argv[1])
    if not directory.name.startswith(PREFIX) or not directory.is_absolute():
        sys.exit(f"{directory} is not the folder of a demo")
    # Ctrl-C is for the demo; its end is what we wait for.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while sys.stdin.buffer.read(4096):
        pass
    sweep(directory)


def sweep(directory: Path) -> None:
    """End what belongs to the folder and remove it."""
    for _ in range(3):  # what is being ended may have just started something
        left = list(belonging(directory))
        if not left:
            break
        _, stubborn = psutil.wait_procs([process for process in left if _asked_to_end(process)], timeout=GRACE_S)
        for process in stubborn:
            _kill(process)
        psutil.wait_procs(stubborn, timeout=GRACE_S)
    shutil.rmtree(directory, ignore_errors=True)


def belonging(directory: Path) -> Iterator[psutil.Process]:
    """Every live process of the folder but this one and those above it."""
    me = psutil.Process()
    spared = {me.pid, *(process.pid for process in me.parents())}
    for process in psutil.process_iter():
        if process.pid in spared:
            continue
        try:
            if process.status() != psutil.STATUS_ZOMBIE and _mentions(process, directory):
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def _mentions(process: psutil.Process, directory: Path) -> bool:
    # The demo gives everything a session of its own; what has a terminal was started by a person who looks around.
    if process.terminal() is not None:
        return False
    if any(str(directory) in word for word in process.cmdline()):
        return True
    try:
        inside = Path(process.cwd()).is_relative_to(directory)
        return inside or any(str(directory) in value for value in process.environ().values())
    except psutil.AccessDenied:
        return False


def _asked_to_end(process: psutil.Process) -> bool:
    try:
        process.terminate()
    except psutil.Error:
        return False
    return True


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


if __name__ == "__main__":
    main()
