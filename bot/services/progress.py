"""Progress for people: "412 MB of 690 MB, 96 MB/s, about 3 s left"."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import humanize

from actions.ports import ProgressReport


class Meter:
    """Measures the rate of one step, phase by phase."""

    def __init__(self) -> None:
        self._phase: str | None = None
        self._since: datetime | None = None
        self._from = 0
        self.left: timedelta | None = None  # of the phase, as measured when it was last told

    @property
    def phase(self) -> str:
        return self._phase or ""

    def text(self, report: ProgressReport, now: datetime) -> str:
        """The line for this report."""
        if report.phase != self._phase or self._since is None or report.done < self._from:
            self._phase, self._since, self._from = report.phase, now, report.done
        parts = [_said(report)]
        elapsed = (now - self._since).total_seconds()
        moved = report.done - self._from
        self.left = None
        if elapsed >= 1 and moved > 0:
            rate = moved / elapsed
            parts.append(f"{_figure(int(rate), report.unit)}/s")
            if report.total is not None and report.total > report.done:
                self.left = timedelta(seconds=round((report.total - report.done) / rate))
                parts.append(f"about {humanize.precisedelta(self.left, minimum_unit='seconds', format='%d')} left")
        return ", ".join(parts)


class Meters:
    """The figures of a run, step by step. Bytes and rows move side by side, each at its own rate, and both are said."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._meters: dict[str, Meter] = {}
        self._newest: dict[str, ProgressReport] = {}
        self._fresh: set[str] = set()

    def take(self, step: int, report: ProgressReport) -> None:
        """Remember the newest report of its unit; older ones are of no interest."""
        if step != self._step:
            self._step, self._meters, self._newest, self._fresh = step, {}, {}, set()
        self._newest[report.unit] = report
        self._fresh.add(report.unit)

    def draw(self, now: datetime) -> tuple[int, str] | None:
        """The step and its line; None when nothing was reported since the last time."""
        if self._step is None or not self._fresh:
            return None
        parts = [
            # What moves no more has no rate: its amount is the last word.
            self._meters.setdefault(unit, Meter()).text(report, now) if unit in self._fresh else _said(report)
            for unit, report in sorted(self._newest.items())
        ]
        self._fresh = set()
        return self._step, "; ".join(parts)

    @property
    def rest(self) -> tuple[str, timedelta] | None:
        """The phase that runs longest from now, and how long, as measured up to the last `draw`."""
        told = [(meter.phase, meter.left) for meter in self._meters.values() if meter.left is not None]
        return max(told, key=lambda each: each[1], default=None)


def expected_end(
    phase: str, left: timedelta, at: datetime, phases: Sequence[tuple[str, timedelta]], by_estimate: datetime
) -> datetime | None:
    """When it all ends: what is left of the running phase, measured at `at`, and what was forecast for those that come
    after it. Where nobody knows what comes after, only that the estimate cannot be kept is known; else None."""
    names = [name for name, _ in phases]
    end = at + left
    if phase in names:
        return end + sum((takes for _, takes in phases[names.index(phase) + 1 :]), timedelta(0))
    return end if end > by_estimate else None


def _said(report: ProgressReport) -> str:
    return f"{report.phase}: {_amount(report)}" if report.phase else _amount(report)


def _amount(report: ProgressReport) -> str:
    if report.total is None:
        return _figure(report.done, report.unit)
    return f"{_figure(report.done, report.unit)} of {_figure(report.total, report.unit)}"


def _figure(number: int, unit: str) -> str:
    return humanize.naturalsize(number) if unit == "bytes" else f"{humanize.intcomma(number)} {unit}"
