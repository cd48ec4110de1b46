"""The standard output of a program as a source of bytes for a backup."""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import Callable
from datetime import timedelta

from actions.adapters.programs import Program, ProgramError
from actions.backup.tools import ArchiveSource
from actions.errors import DrError, PermanentError

PIPE_BYTES = 1024 * 1024


class ProgramOutput(ArchiveSource):
    """`failed` makes the error that is raised when the program did not end well."""

    def __init__(self, program: Program, failed: Callable[[ProgramError], DrError]) -> None:
        self._program, self._failed = program, failed
        self._stopping = threading.Lock()
        if program.stdout is None:
            raise PermanentError(f"`{program.name}` was started without a pipe")
        self._stream = program.stdout
        with contextlib.suppress(OSError, AttributeError):  # not allowed, or no Linux: a small pipe works too
            fcntl.fcntl(self._stream.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def read(self, size: int, /) -> bytes:
        return self._stream.read(size)

    def finish(self) -> None:
        try:
            self._program.check(timedelta(minutes=1))
        except ProgramError as error:
            raise self._failed(error) from error

    def stop(self) -> None:
        with self._stopping:
            self._program.kill()

    def close(self) -> None:
        self.stop()
        self._stream.close()
