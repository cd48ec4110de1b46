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


def pairs(name: str, ours: Sequence[float], theirs: Sequence[float], limit: float | None) -> float:
    """Print both sides and the ratio of every pair; the median of the ratios."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    median = statistics.median(ratios)
    wanted = "" if limit is None else f", limit {limit:g}"
    print(
        f"{name}: median {statistics.median(ours):.1f} s against {statistics.median(theirs):.1f} s; "
        f"ratio median {median:.3f}, {min(ratios):.3f} to {max(ratios):.3f}, n={len(ratios)}{wanted}"
    )
    return median
