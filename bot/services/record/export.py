"""The record as JSON Lines that `drbot timeline verify` checks without the bot: a head, then one entry a line.

`leaf` is the text whose hash is in the tree. An export of one incident carries a path for each entry, and the
checkpoint whose root the paths lead to; one of the whole log needs none, since a reader can build the tree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

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
        return self._places.get((kind, ref))

    @cached_property
    def _places(self) -> dict[tuple[str, int], int]:
        return {(item.kind, item.ref): item.position for item in self.entries if item.position in self.paths}


async def prove(session: AsyncSession, incident_id: str) -> Proven:
    """Everything about an incident, proven against the newest checkpoint. Only the blocks are read in which it has
    entries; of the others their roots."""
    entries = await record.of_incident(session, incident_id)
    checkpoint = await record.newest(session)
    if checkpoint is None:
        return Proven(entries, None, {})
    covered = [item.position for item in entries if item.position is not None and item.position < checkpoint.size]
    whole, rest = divmod(checkpoint.size, record.BLOCK)
    roots = await record.subtrees(session, whole)
    if rest:
        roots.append(Tree(await record.hashes(session, whole * record.BLOCK, checkpoint.size)).root)
    above = Tree(
        roots
    )  # blocks are whole subtrees, so the tree over their roots is the top of the tree over all leaves
    blocks: dict[int, list[int]] = {}
    for position in covered:
        blocks.setdefault(position // record.BLOCK, []).append(position)
    paths: dict[int, tuple[bytes, ...]] = {}
    for number, positions in blocks.items():
        start = number * record.BLOCK
        block = Tree(await record.hashes(session, start, min(start + record.BLOCK, checkpoint.size)))
        for position in positions:
            paths[position] = (*block.inclusion(position - start), *above.inclusion(number))
    return Proven(entries, checkpoint, paths)


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
