"""An archive's data on its way into the standard input of `pg_restore`."""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections import deque
from collections.abc import Sequence

from actions.adapters.program_output import PIPE_BYTES
from actions.adapters.programs import Program
from actions.backup.unpacking import EnoughError, GoneError, Plain, Sink
from actions.errors import PermanentError


class ProgramInput(Sink):
    """Writes `header` in place of the archive's own, and then only the bytes of `places`, which are in their order."""

    def __init__(self, program: Program, header: bytes, places: Sequence[range]) -> None:
        self._program, self._header, self._places = program, header, deque(places)
        self._changing, self._over = threading.Lock(), False
        if program.stdin is None:
            raise PermanentError(f"`{program.name}` was started without a pipe")
        self._stream = program.stdin
        with contextlib.suppress(OSError, AttributeError):  # not allowed, or no Linux: a small pipe works too
            fcntl.fcntl(self._stream.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def run(self, source: Plain, /) -> None:
        gone = False
        try:
            self._stream.write(self._header)
            self._write(source)
            self._stream.close()
        except BrokenPipeError:
            gone = True
        with self._changing:
            self._over = True
        raise GoneError if gone else EnoughError

    def _write(self, source: Plain) -> None:
        at = 0
        while self._places and (block := source.get()):
            view, end = memoryview(block), at + len(block)
            while self._places and self._places[0].start < end:
                place = self._places[0]
                self._stream.write(view[max(0, place.start - at) : place.stop - at])
                if place.stop > end:
                    break
                self._places.popleft()
            at = end

    def stop(self) -> None:
        """End the program, unless it has all that is meant for it."""
        with self._changing:
            if not self._over:
                self._program.kill()
