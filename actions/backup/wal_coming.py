"""WAL that is still on its way while a server replays what has come: it waits for each segment that was announced.

Replay takes one processor and fetching the others, so side by side they end sooner than one after the other.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

MARK = ".coming"


class Coming:
    """`folder` is where segments arrive, whole or not at all. Blocking."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def announce(self, names: Sequence[str]) -> None:
        """These will come. Say so before the server starts: what was not announced it does not wait for, since servers
        also ask for segments of timelines that never had them."""
        for name in names:
            self._mark(name).touch()

    def arrived(self, name: str) -> None:
        """It lies there under its name."""
        self._mark(name).unlink(missing_ok=True)

    def end(self) -> None:
        """Nothing comes any more, whatever was announced."""
        for mark in self.folder.glob(f"*{MARK}"):
            mark.unlink(missing_ok=True)

    def _mark(self, name: str) -> Path:
        return self.folder / (name + MARK)

    @property
    def restore_command(self) -> str:
        """Waits while the segment is announced and its server lives, then copies it."""
        folder = shlex.quote(str(self.folder.absolute())).replace("%", "%%")
        waits = f"while [ -e {folder}/%f{MARK} ] && kill -0 $PPID; do sleep 0.02; done"
        return f"{waits}; {copying_from(self.folder)}"


def copying_from(wal: Path) -> str:
    """A `restore_command` that finds the segments in this folder."""
    folder = shlex.quote(str(wal.absolute())).replace("%", "%%")
    return f"cp {folder}/%f %p"
