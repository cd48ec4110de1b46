"""Sealing keys in escrow."""

from __future__ import annotations

from bot.router import params
from bot.router.entry import CommandKind, Entry

ROWS: tuple[Entry, ...] = (
    Entry(
        ("secrets", "status"),
        "status.escrow",
        CommandKind.QUERY,
        "Show which sealing keys are in escrow, and how a new cluster gets them",
        "dr secrets status",
    ),
    Entry(
        ("secrets", "escrow"),
        "secrets.escrow",
        CommandKind.PLAN,
        "Put the sealing keys of a cluster into escrow, encrypted to the recipients",
        "dr secrets escrow production",
        params.OptionalCluster,
        ("cluster",),
        usage="[CLUSTER] [--reason TEXT]",
    ),
    Entry(
        ("secrets", "expire"),
        "secrets.expire",
        CommandKind.PLAN,
        "Delete the escrows that the policy lets go and that nothing needs",
        "dr secrets expire production",
        params.OptionalCluster,
        ("cluster",),
        usage="[CLUSTER] [--reason TEXT]",
    ),
)
