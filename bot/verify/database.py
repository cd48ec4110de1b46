"""The record as it stands in a database, read as plain rows and hashed anew here.

Whoever rules the database rules its functions as well: it is asked for values, never for hashes of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from bot.verify.checkpoints import Witnessed
from bot.verify.comparison import compare
from bot.verify.findings import Tampering, Verdict
from bot.verify.tree import WIDTH, leaf

KINDS = {
    "timeline_entry": "seq",
    "custody_event": "id",
    "signature": "id",
    "refusal": "id",
    "journal": "seq",
    "plan_version": "seq",
    "log_epoch": "epoch",
}
"""The tables of the record and the number of their rows."""

LATER_COLUMNS: dict[int, dict[str, tuple[str, ...]]] = {1: {}}
"""By the form of a leaf: columns that its table got later, which the leaf does not have."""

# What must be on the timeline or in the log because of what other tables say: kind, number of the first, sentence.
_UNTOLD = {
    "a run has started and the timeline does not say so": """
        SELECT run.id FROM run WHERE run.started_at IS NOT NULL AND NOT EXISTS (
            SELECT FROM timeline_entry t WHERE t.kind = 'run' AND t.data ->> 'plan' = run.id)
    """,
    "a run has started without any signature": """
        SELECT run.id FROM run WHERE run.started_at IS NOT NULL AND NOT EXISTS (
            SELECT FROM signature s WHERE s.plan_id = run.id)
    """,
    "a signature is stored and the timeline does not say so": """
        SELECT s.plan_id || ' by ' || s.person FROM signature s WHERE NOT EXISTS (
            SELECT FROM timeline_entry t
            WHERE t.kind = 'signature' AND t.data ->> 'plan' = s.plan_id AND t.data ->> 'act' = s.act)
    """,
    "a step was journalled and the timeline does not say so": """
        SELECT j.run_id || ' step ' || (j.step + 1) || ' ' || j.state FROM journal j WHERE NOT EXISTS (
            SELECT FROM timeline_entry t
            WHERE t.data ->> 'plan' = j.run_id AND (t.kind = 'answer' AND t.data ->> 'answer' = j.state
                OR t.kind = 'step' AND t.data ->> 'state' = j.state AND (t.data ->> 'step')::int = j.step + 1))
    """,
    "something happened to evidence and the timeline does not say so": """
        SELECT 'E-' || c.item || ' ' || c.action FROM custody_event c WHERE NOT EXISTS (
            SELECT FROM timeline_entry t WHERE t.kind = 'evidence'
                AND t.data ->> 'item' = c.item::text AND t.data ->> 'seq' = c.seq::text)
    """,
    "an event of evidence is missing in its chain": """
        SELECT 'E-' || item || ' no. ' || seq FROM (
            SELECT item, seq, lag(seq, 1, 0) OVER (PARTITION BY item ORDER BY seq) AS before FROM custody_event) chain
        WHERE seq <> before + 1
    """,
    "an item of evidence is missing": """
        SELECT 'E-' || (before + 1) FROM (
            SELECT item, lag(item, 1, 0::bigint) OVER (ORDER BY item) AS before
            FROM (SELECT DISTINCT item FROM custody_event) known) items
        WHERE item <> before + 1
    """,
}


@dataclass
class _Leaves:
    """The leaves in the order of the log."""

    hashes: bytearray = field(default_factory=bytearray)  # as stored
    names: list[tuple[str, int]] = field(default_factory=list)
    forms: dict[int, int] = field(default_factory=dict)  # position -> form, where it is not 1
    places: dict[str, dict[int, int]] = field(default_factory=lambda: {kind: {} for kind in KINDS})


def verify(url: str, witnessed: Witnessed, verdict: Verdict) -> None:
    """Check the database. Raises psycopg.Error when it cannot be read."""
    with psycopg.connect(url) as connection:
        # One picture of everything, though the bot may be writing.
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        connection.execute("SET TimeZone = 'UTC'")
        # Everything is read, so plans that are quick for the first rows are slow; and sorting belongs into memory.
        connection.execute("SET cursor_tuple_fraction = 1")
        connection.execute("SET work_mem = '256MB'")
        connection.execute("SET jit = off")
        leaves = _leaves(connection, verdict)
        shown = bytearray(leaves.hashes)
        for kind, key in KINDS.items():
            _values(connection, kind, key, leaves, shown, verdict)
        own = {int(row[0]): str(row[1]) for row in _rows(connection, "SELECT number, body FROM checkpoint")}
        compare(shown, witnessed, verdict, lambda position: _name(leaves.names[position]), own=own)
        _untold(connection, verdict)


def _leaves(connection: psycopg.Connection, verdict: Verdict) -> _Leaves:
    found = _Leaves()
    query = """
        SELECT s.position, l.kind, l.ref, l.form, l.hash FROM sealed_leaf s
        LEFT JOIN leaf l ON l.id = s.leaf_id ORDER BY s.position
    """
    for position, kind, ref, form, stored in _rows(connection, query):
        at = len(found.names)
        if kind is None or len(stored) != WIDTH or kind not in found.places:
            verdict.found(Tampering.DELETED, f"position {position}: the leaf of this entry is gone", position=at)
            continue
        if position != at and not any(item.position == at for item in verdict.bad):
            text = f"position {at}: the place is empty; {_name((kind, ref))} follows at {position}"
            verdict.found(Tampering.DELETED, text, position=at)
        found.places[kind][ref] = at
        found.names.append((kind, ref))
        found.hashes += stored
        if form != 1:
            found.forms[at] = form
    return found


def _values(
    connection: psycopg.Connection, kind: str, key: str, leaves: _Leaves, shown: bytearray, verdict: Verdict
) -> None:
    """Hash every row of one table; tell rows that differ from their leaf, that are gone, or that have no leaf."""
    places = leaves.places[kind]
    waiting = _waiting(connection, kind)
    query = sql.SQL(
        "SELECT {key}, jsonb_build_object('kind', {kind}::text, 'row', to_jsonb(t))::text FROM {table} t"
    ).format(key=sql.Identifier(key), kind=sql.Literal(kind), table=sql.Identifier(kind))
    for ref, content in _rows(connection, query):
        position = places.pop(ref, None)
        if position is None:
            hashed = waiting.pop(ref, None)
            if hashed is None:
                verdict.found(Tampering.MISSING, f"{_name((kind, ref))} is stored, and the log does not have it")
            elif hashed != leaf(content.encode()):
                verdict.found(Tampering.EDITED, f"{_name((kind, ref))}, before it was sealed")
            continue
        form = leaves.forms.get(position, 1)
        made = leaf((content if form == 1 else _older(connection, kind, key, ref, form)).encode())
        at = position * WIDTH
        if shown[at : at + WIDTH] != made:
            text = f"position {position} ({_name((kind, ref))}) has another content than its leaf"
            verdict.found(Tampering.EDITED, text, position=position)
        shown[at : at + WIDTH] = made
    for ref, position in places.items():
        text = f"position {position}: {_name((kind, ref))} is gone; its leaf is still there"
        verdict.found(Tampering.DELETED, text, position=position)
    for ref in waiting:
        verdict.found(Tampering.DELETED, f"{_name((kind, ref))} is gone, before it was sealed")


def _waiting(connection: psycopg.Connection, kind: str) -> dict[int, bytes]:
    """Leaves of one kind that wait for their place. One that neither has a place nor waits will never be sealed, and
    counts as no leaf."""
    query = "SELECT l.ref, l.hash FROM unsealed_leaf u JOIN leaf l ON l.id = u.leaf_id WHERE l.kind = %s"
    return {ref: bytes(stored) for ref, stored in connection.execute(query, [kind])}


def _older(connection: psycopg.Connection, kind: str, key: str, ref: int, form: int) -> str:
    """The text of a row as a leaf of an older form has it."""
    without = list(LATER_COLUMNS.get(form, {}).get(kind, ()))
    query = sql.SQL(
        "SELECT jsonb_build_object('kind', {kind}::text, 'row', to_jsonb(t) - %s::text[])::text FROM {table} t "
        "WHERE {key} = %s"
    ).format(key=sql.Identifier(key), kind=sql.Literal(kind), table=sql.Identifier(kind))
    row = connection.execute(query, [without, ref]).fetchone()
    return "" if row is None else str(row[0])


def _untold(connection: psycopg.Connection, verdict: Verdict) -> None:
    """State without its event."""
    for sentence, query in _UNTOLD.items():
        found = [str(row[0]) for row in connection.execute(query.encode() + b" LIMIT 5")]
        if found:
            verdict.found(Tampering.MISSING, f"{sentence}: {', '.join(found)}")
    row = connection.execute("SELECT count(*), min(at) FROM unsealed_leaf JOIN leaf ON id = leaf_id").fetchone()
    if row is not None and row[0]:
        oldest: datetime = row[1]
        verdict.notes.append(f"{row[0]} entries are not sealed yet, the oldest of {oldest:%Y-%m-%d %H:%M:%S} UTC.")


def _rows(connection: psycopg.Connection, query: str | sql.Composed) -> Iterator[tuple[Any, ...]]:
    with connection.cursor(name="verify", binary=True) as cursor:
        cursor.itersize = 20_000
        cursor.execute(query.encode() if isinstance(query, str) else query)
        yield from cursor


def _name(leaf_name: tuple[str, int]) -> str:
    kind, ref = leaf_name
    return f"{kind} {ref}"
