"""How everything stands, and help."""

from __future__ import annotations

from bot.router import params
from bot.router.entry import CommandKind, Entry

ROWS: tuple[Entry, ...] = (
    Entry(
        ("help",),
        "help",
        CommandKind.LOCAL,
        "Show what the bot can do",
        "dr help backup",
        params.Help,
        ("topic",),
        usage="[NOUN]",
    ),
    Entry(
        ("status",),
        "status",
        CommandKind.QUERY,
        "Show open incidents, what runs and how old the backups are",
        "dr status",
    ),
    Entry(("doctor",), "doctor", CommandKind.QUERY, "Check the bot itself: access, backups, Slack", "dr doctor"),
    Entry(
        ("size",),
        "status.databases",
        CommandKind.QUERY,
        "Show the size of every database, or of one",
        "dr size superprismora",
        params.OptionalDatabase,
        ("database",),
        usage="[DATABASE]",
    ),
    Entry(
        ("pods",),
        "status.cluster",
        CommandKind.QUERY,
        "Show the workloads and pods of every service, or of one",
        "dr pods superprismora",
        params.OptionalService,
        ("service",),
        usage="[SERVICE]",
    ),
    Entry(
        ("buckets",),
        "status.buckets",
        CommandKind.QUERY,
        "Hold the settings of every bucket against the plan, or of one",
        "dr buckets superprismora-backups",
        params.OptionalBucket,
        ("bucket",),
        usage="[BUCKET]",
    ),
)
