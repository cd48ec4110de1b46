"""How figures are said to people: sizes, durations, moments, losses."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta


def size(count: int) -> str:
    """Bytes as PostgreSQL's `pg_size_pretty` prints them: integers, halves rounded away from zero.

    Source: PostgreSQL, "Database Object Size Functions"; a unit is left once the figure reaches 10240 of it.
    """
    units = ("bytes", "kB", "MB", "GB", "TB", "PB")
    limit = 10 * 1024
    figure = count
    if figure < limit:
        return f"{figure} bytes"
    figure >>= 9  # one bit is kept for rounding
    for unit in units[1:]:
        if figure < 2 * limit - 1 or unit == units[-1]:
            return f"{(figure + 1) // 2} {unit}"
        figure >>= 10
    raise AssertionError("the last unit always answers")


def span(duration: timedelta) -> str:
    """Two units at most: `8 h 12 min`, `45 s`, `3 d 4 h`."""
    seconds = max(0, round(duration.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if hours == 0:
        return _pair(minutes, "min", seconds % 60, "s")
    if days == 0:
        return _pair(hours, "h", minutes % 60, "min")
    return _pair(days, "d", hours % 24, "h")


def _pair(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large} {large_unit} {small} {small_unit}" if small else f"{large} {large_unit}"


def moment(at: datetime) -> str:
    """`2026-11-23 02:00 UTC`."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def names(items: Iterable[object]) -> str:
    """`a`, `b` and `c`, each in backticks."""
    quoted = [f"`{item}`" for item in items]
    if len(quoted) < 2:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def version(number: int) -> str:
    """`18.6` of PostgreSQL's `server_version_num`."""
    return f"{number // 10000}.{number % 10000}"


def counted(number: int, noun: str) -> str:
    """`1 session`, `2 sessions`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
