"""Evidence and its chain of custody."""

from __future__ import annotations

from bot.router import params
from bot.router.entry import CommandKind, Entry

ROWS: tuple[Entry, ...] = (
    Entry(
        ("evidence", "list"),
        "evidence.list",
        CommandKind.QUERY,
        "List the evidence of an incident: what, who holds it, where",
        "dr-evidence list",
        params.ListEvidence,
        usage="[--incident NUMBER]",
    ),
    Entry(
        ("evidence", "show"),
        "evidence.show",
        CommandKind.QUERY,
        "Show one item of evidence with its chain of custody",
        "dr-evidence show E-3",
        params.ShowEvidence,
        ("item",),
        usage="ITEM",
    ),
    Entry(
        ("evidence", "add"),
        "evidence.add",
        CommandKind.CUSTODY,
        "Take something up as evidence: what is held elsewhere, or, on the command line, a file",
        'dr-evidence add "Disk of web-1" --where "safe in room 12" --source "host web-1"',
        params.AddEvidence,
        rest="title",
        aliases={"class": "classification"},
        usage="TITLE [--where TEXT] [--source TEXT] [--class normal|restricted|secret-bearing] [--sha256 HEX] "
        "[--file FILE] [--incident NUMBER]",
    ),
    Entry(
        ("evidence", "hand"),
        "evidence.hand",
        CommandKind.CUSTODY,
        "Record that an item of evidence was handed to somebody",
        'dr-evidence hand E-3 "Notary Meier" "sealed, against receipt"',
        params.HandEvidence,
        ("item", "person"),
        rest="why",
        usage="ITEM PERSON WHY",
    ),
    Entry(
        ("evidence", "record"),
        "evidence.record",
        CommandKind.CUSTODY,
        "Record what was done with an item: viewed, copied, exported, sealed",
        'dr-evidence record E-3 sealed "bag 4711" --where "safe in room 12"',
        params.RecordEvidence,
        ("item", "action"),
        rest="why",
        usage="ITEM viewed|copied|exported|sealed [WHY] [--where TEXT] [--sha256 HEX]",
    ),
    Entry(
        ("evidence", "verify"),
        "evidence.verify",
        CommandKind.CUSTODY,
        "Read the stored evidence again, on the command line alone: ok, altered, missing or unverifiable",
        "dr-evidence verify --incident 7",
        params.VerifyEvidence,
        usage="[--incident NUMBER]",
    ),
)
