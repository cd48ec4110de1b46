"""The record as JSON Lines that `drbot timeline verify` checks without the bot: a head, then one entry a line.

`leaf` is the text whose hash is in the tree. An export of one incident carries a path for each entry, and the
checkpoint whose root the paths lead to; one of the whole log needs none, since a reader can build the tree.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from actions.merkle import Tree
from storage import record
from storage.record import Entry
from storage.session import Database
from storage.tables import CheckpointRow

FORM = "drbot record export 1"
PAGE = 5000

VERIFY = "drbot timeline verify EXPORT.jsonl --checkpoints WITNESS --key PUBLIC_KEY"
"""How a reader checks an export, wherever the bot is."""


@dataclass(frozen=True)
class Proven:
    """The entries of one incident, with the checkpoint that covers them and the path of each by its position."""

    entries: Sequence[Entry]
    checkpoint: CheckpointRow | None
    paths: dict[int, tuple[bytes, ...]]

    def position(self, kind: str, ref: int) -> int | None:
        """Where a row stands in the log; None when no checkpoint covers it yet."""
        return next(
            (item.position for item in self.entries if item.kind == kind and item.ref == ref and self._covers(item)),
            None,
        )

    def _covers(self, entry: Entry) -> bool:
        return entry.position is not None and entry.position in self.paths


async def prove(session: AsyncSession, incident_id: str) -> Proven:
    """Everything about an incident, proven against the newest checkpoint. The tree is built for it: some seconds for a
    million entries, in a thread."""
    entries = await record.of_incident(session, incident_id)
    checkpoint = await record.newest(session)
    if checkpoint is None:
        return Proven(entries, None, {})
    leaves = await record.hashes(session, 0, checkpoint.size)
    covered = [item.position for item in entries if item.position is not None and item.position < checkpoint.size]

    def paths() -> dict[int, tuple[bytes, ...]]:
        tree = Tree(leaves)
        return {position: tree.inclusion(position) for position in covered}

    return Proven(entries, checkpoint, await asyncio.to_thread(paths))


def json_lines(proven: Proven, *, incident: int) -> str:
    """The export of an incident."""
    head: dict[str, object] = {
        "form": FORM,
        "scope": "incident",
        "incident": incident,
        "entries": len(proven.entries),
        "verify": VERIFY,
    }
    if proven.checkpoint is not None:
        head["checkpoint"] = {"body": proven.checkpoint.body, "signature": proven.checkpoint.signature.hex()}
    lines = [head]
    for item in proven.entries:
        path = proven.paths.get(item.position) if item.position is not None else None
        proof = None if path is None else [part.hex() for part in path]
        lines.append({"position": None if path is None else item.position, "leaf": item.text, "proof": proof})
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


async def write_log(database: Database, write: Callable[[str], object]) -> int:
    """The export of the whole log, a line at a time; how many entries. Entries that are not sealed yet are left out."""
    write(json.dumps({"form": FORM, "scope": "log", "verify": VERIFY}) + "\n")
    count = 0
    while True:
        async with database.session() as session:
            entries = await record.page(session, start=count, limit=PAGE)
        for item in entries:
            write(json.dumps({"position": item.position, "leaf": item.text}, ensure_ascii=False) + "\n")
        count += len(entries)
        if len(entries) < PAGE:
            return count
