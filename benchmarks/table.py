"""Figures of one measurement, as a line for the table and for the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def milliseconds(name: str, seconds: Sequence[float], limit_ms: float) -> str:
    """Print and return "name: median, p95, max of n, limit"."""
    ordered = sorted(value * 1000 for value in seconds)
    p95 = ordered[min(len(ordered) - 1, round(len(ordered) * 0.95))]
    line = (
        f"{name}: median {statistics.median(ordered):.1f} ms, p95 {p95:.1f} ms, max {ordered[-1]:.1f} ms, "
        f"n={len(ordered)}, limit {limit_ms:.0f} ms"
    )
    print(line)
    return line


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
