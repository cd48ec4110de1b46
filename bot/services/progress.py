"""Progress for people: "412 MB of 690 MB, 96 MB/s, about 3 s left"."""

from __future__ import annotations

from datetime import datetime, timedelta

import humanize

from actions.ports import ProgressReport


class Meter:
    """Measures the rate of one step, phase by phase."""

    def __init__(self) -> None:
        self._phase: str | None = None
        self._since: datetime | None = None
        self._from = 0

    def text(self, report: ProgressReport, now: datetime) -> str:
        """The line for this report."""
        if report.phase != self._phase or self._since is None or report.done < self._from:
            self._phase, self._since, self._from = report.phase, now, report.done
        parts = [_amount(report)]
        elapsed = (now - self._since).total_seconds()
        moved = report.done - self._from
        if elapsed >= 1 and moved > 0:
            rate = moved / elapsed
            parts.append(f"{_figure(int(rate), report.unit)}/s")
            if report.total is not None and report.total > report.done:
                left = timedelta(seconds=round((report.total - report.done) / rate))
                parts.append(f"about {humanize.precisedelta(left, minimum_unit='seconds', format='%d')} left")
        prefix = f"{report.phase}: " if report.phase else ""
        return prefix + ", ".join(parts)


def _amount(report: ProgressReport) -> str:
    if report.total is None:
        return _figure(report.done, report.unit)
    return f"{_figure(report.done, report.unit)} of {_figure(report.total, report.unit)}"


def _figure(number: int, unit: str) -> str:
    return humanize.naturalsize(number) if unit == "bytes" else f"{humanize.intcomma(number)} {unit}"
