"""Reports of one step, thinned out: a stage that moves gigabytes calls for every block."""

from __future__ import annotations

import time

from actions.ports import Progress, ProgressReport

INTERVAL = 0.2  # seconds between two reports of a phase


class Shown:
    """One phase after the other. May be called from any thread."""

    def __init__(self, progress: Progress, phase: str, total: int | None) -> None:
        self._progress, self._phase, self._total = progress, phase, total
        self._last = 0.0
        self._rows = 0

    def phase(self, name: str, total: int | None = None) -> None:
        """Begin another phase."""
        self._phase, self._total, self._last = name, total, 0.0
        self.bytes(0)

    def bytes(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last >= INTERVAL or done == self._total:
            self._last = now
            # What is measured now and then (the size of a database) may pass what was expected.
            total = max(self._total, done) if self._total is not None else None
            self._progress(ProgressReport(done=done, total=total, phase=self._phase))

    def rows(self, counted: int) -> None:
        """Rows that were counted beside the bytes."""
        self._rows += counted
        self._progress(ProgressReport(done=self._rows, unit="rows", phase="count"))
