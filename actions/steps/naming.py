"""Names of new things, all derived from the plan id, so that a rerun finds them and two plans never meet.

PostgreSQL cuts identifiers at 63 bytes without a word; two long names could then become one. Names that would be too
long are cut here and told apart by a hash of the whole.
"""

from __future__ import annotations

import hashlib
import re

from actions.errors import UserError
from actions.ports import BESIDE_JOBS

IDENTIFIER_BYTES = 63
"""NAMEDATALEN - 1 of a stock PostgreSQL; also the length of an RFC 1123 label."""

_HASH = 8


def beside(database: str, purpose: str, plan_id: str) -> str:
    """`<database>_<purpose>_<plan id>` in at most 63 bytes."""
    tail = f"_{purpose}_{plan_id}"
    if len((database + tail).encode()) <= IDENTIFIER_BYTES:
        return database + tail
    room = IDENTIFIER_BYTES - len(tail.encode()) - _HASH - 1
    if room < 1:
        raise UserError(f"The plan id `{plan_id}` is too long to name a database by. Use at most 30 characters.")
    head = database.encode()[:room].decode(errors="ignore")
    return f"{head}_{_hash(database)}{tail}"


def restore_name(database: str, plan_id: str) -> str:
    """Where a dump is loaded, beside production."""
    return beside(database, "restore", plan_id)


def quarantine_name(database: str, plan_id: str) -> str:
    """What the replaced database is called; it is kept, never dropped."""
    return beside(database, "quarantine", plan_id)


def adopt_name(database: str, plan_id: str) -> str:
    """Where a found dump is tried out."""
    return beside(database, "adopt", plan_id)


def scratch_mark(plan_id: str) -> str:
    """Mark of a database that this plan made and may remove again."""
    return f"drbot:scratch:{plan_id}"


def quarantine_mark(plan_id: str) -> str:
    """Mark of the database that this plan set aside."""
    return f"drbot:quarantine:{plan_id}"


def is_quarantined(mark: str) -> bool:
    """Whether it is the mark of a database that some plan has set aside."""
    return mark.startswith(quarantine_mark(""))


def live_mark(plan_id: str) -> str:
    """Mark of the restored database from the moment that it has production's name."""
    return f"drbot:live:{plan_id}"


def placeholder_mark(plan_id: str) -> str:
    """Mark of the empty database that stands in for one that is missing, while names are given."""
    return f"drbot:scratch:placeholder:{plan_id}"


def label(*parts: str) -> str:
    """An RFC 1123 label out of the parts: lower case, digits and dashes, at most 63 bytes, no two alike by accident."""
    whole = "-".join(parts)
    plain = re.sub(r"[^a-z0-9]+", "-", whole.lower()).strip("-")
    if plain == whole and len(plain) <= IDENTIFIER_BYTES:
        return plain
    return f"{plain[: IDENTIFIER_BYTES - _HASH - 1].strip('-') or 'x'}-{_hash(whole)}"


def job_name(plan_id: str, step: int) -> str:
    """The heavy job of a step, by number from 1."""
    return label("drbot", plan_id, str(step))


def beside_job_name(plan_id: str, step: int) -> str:
    """The same of a step that reads a scratch instance."""
    return label(BESIDE_JOBS.rstrip("-"), plan_id, str(step))


def backup_id(database: str, plan_id: str) -> str:
    """The backup a plan makes; also a folder in the bucket."""
    return label(database, plan_id)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH]
