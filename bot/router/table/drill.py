"""Drills."""

from __future__ import annotations

from bot.router import params
from bot.router.entry import CommandKind, Entry

ROWS: tuple[Entry, ...] = (
    Entry(
        ("drill", "list"), "drill.list", CommandKind.QUERY, "List the drills: last tested, next test", "dr-drill list"
    ),
    Entry(
        ("drill", "next"),
        "drill.next",
        CommandKind.QUERY,
        "Show the drill that is due next, and what to do",
        "dr-drill next",
    ),
    Entry(
        ("drill", "done"),
        "drill.done",
        CommandKind.INCIDENT,
        "Record that a drill was held",
        'dr-drill done failover "switched over and back in 4 min"',
        params.DrillDone,
        ("drill",),
        rest="note",
        usage="DRILL [NOTE]",
    ),
    Entry(
        ("drill", "postpone"),
        "drill.postpone",
        CommandKind.INCIDENT,
        "Put a drill off to another day, with the reason",
        'dr-drill postpone failover 2026-12-20 "release week"',
        params.DrillPostpone,
        ("drill", "date"),
        rest="why",
        usage="DRILL YYYY-MM-DD REASON",
    ),
)
