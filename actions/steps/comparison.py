"""A database as a scratch instance has it: what must hold of it, and how it differs from production. Pure.

A restore to an earlier moment has other rows than production, and often that is why it was made. So a difference is
told and never judged; what the plan file says must hold is judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from actions.backup.manifest import Fingerprint
from actions.site import Invariant
from actions.steps.phrases import counted, names

SHOWN = 5

NO_ANSWER = (None, "", "null")
"""Not measured, an empty text, SQL's NULL: the sum or the maximum of no row at all."""


def unmet(invariants: Sequence[Invariant], found: Fingerprint) -> list[str]:
    """Invariants that do not hold: they give something else than is expected, or no answer at all."""
    problems = []
    for invariant in invariants:
        answer = found.invariants.get(invariant.name)
        if invariant.expect and answer != invariant.expect:
            problems.append(f"invariant `{invariant.name}` is {answer}, the plan file expects {invariant.expect}")
        elif not invariant.expect and answer in NO_ANSWER:
            problems.append(f"invariant `{invariant.name}` has no answer")
    return problems


def differences(there: Fingerprint, here: Fingerprint, *, about: str = "") -> list[str]:
    """Where the instance (`there`) is not as production (`here`) is: the table that it is `about`, invariants, other
    rows, tables, schema."""
    rows = _of_rows(there, here)
    first = [rows.pop(about)] if about and about in rows else []
    return [*first, *_of_invariants(there, here), *rows.values(), *_of_schema(there, here)]


def shown(found: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def compared(there: Fingerprint, here: Fingerprint, *, about: str = "") -> str:
    """Both sides in one sentence, first of it the table that it is about."""
    found = differences(there, here, about=about)
    return f"Different: {shown(found)}." if found else "Every table has as many rows as in production."


def measured(there: Fingerprint) -> str:
    """What the instance holds."""
    rows = f"{counted(len(there.rows), 'table')}, {counted(sum(there.rows.values()), 'row')} here."
    invariants = ", ".join(f"{name} {value}" for name, value in sorted(there.invariants.items()))
    return rows + (f" Invariants: {invariants}." if invariants else "")


def _of_invariants(there: Fingerprint, here: Fingerprint) -> Iterator[str]:
    for name, value in sorted(there.invariants.items()):
        other = here.invariants.get(name, "cannot be measured")
        if other != value:
            yield f"invariant `{name}` is {value} here and {other} in production"


def _of_rows(there: Fingerprint, here: Fingerprint) -> dict[str, str]:
    """By table, those first that production lacks most rows of; last what is in production alone."""
    differing = [name for name, count in there.rows.items() if here.rows.get(name) != count]
    differing.sort(key=lambda name: (here.rows.get(name, -1) - there.rows[name], name))
    found = {
        name: f"`{name}` has {there.rows[name]} rows here and {here.rows.get(name, 'is gone')} in production"
        for name in differing
    }
    fresh = sorted(here.rows.keys() - there.rows.keys())
    if fresh:
        found[""] = f"{names(fresh[:SHOWN])} in production alone"
    return found


def _of_schema(there: Fingerprint, here: Fingerprint) -> Iterator[str]:
    if there.schema_hash != here.schema_hash and there.rows.keys() == here.rows.keys():
        yield "the schema, with the same tables in both"
