"""Recovery points."""

from __future__ import annotations

from bot.router import params
from bot.router.entry import CommandKind, Entry

ROWS: tuple[Entry, ...] = (
    Entry(
        ("point", "list"),
        "status.points",
        CommandKind.QUERY,
        "List the recovery points, or show the commands that bring one back",
        "dr point list point-k7m2n3p4q5",
        params.OptionalPoint,
        ("point",),
        usage="[POINT]",
    ),
    Entry(
        ("point", "record"),
        "point.record",
        CommandKind.PLAN,
        "Record what belongs together now: databases, files, images, commit, escrow",
        'dr point record --reason "before the migration"',
        usage="[--reason TEXT]",
    ),
    Entry(
        ("point", "expire"),
        "point.expire",
        CommandKind.PLAN,
        "Delete the recovery points that the policy lets go; the plan names them first",
        "dr point expire",
        usage="[--reason TEXT]",
    ),
    Entry(
        ("point", "pin"),
        "point.pin",
        CommandKind.PLAN,
        "Keep a recovery point, its dumps, escrow and images whatever the policy says (a legal hold)",
        'dr point pin point-k7m2n3p4q5 "evidence of case 4711"',
        params.PinPoint,
        ("point",),
        rest="why",
        usage="POINT WHY",
    ),
    Entry(
        ("point", "unpin"),
        "point.unpin",
        CommandKind.PLAN,
        "Let a pinned recovery point, and the dumps pinned with it, go when the policy does",
        "dr point unpin point-k7m2n3p4q5",
        params.UnpinPoint,
        ("point",),
        usage="POINT",
    ),
)
