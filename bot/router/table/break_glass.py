"""Break-glass, and the review of it."""

from __future__ import annotations

from bot.router import params
from bot.router.entry import BREAK_GLASS, CommandKind, Entry

ROWS: tuple[Entry, ...] = (
    Entry(
        (BREAK_GLASS,),
        BREAK_GLASS,
        CommandKind.LOCAL,
        "Start a recovery alone, after a delay in which others may veto; two others review it afterwards",
        'dr break-glass restore superprismora --reason "nobody answers" --target superprismora',
        usage='RESTORE ... --reason "WHY" --target NAME',
    ),
    Entry(
        ("review",),
        "review",
        CommandKind.SIGN,
        "Record that you have looked at a run that was started under break-glass",
        'dr review k7m2n3p4q5 "right backup, right hour"',
        params.Review,
        ("plan",),
        rest="text",
        usage="PLAN WORDS",
    ),
)
