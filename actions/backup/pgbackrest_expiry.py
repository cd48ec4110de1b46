"""What of a pgBackRest repository may go: decided by what rests on what, carried out by `pgbackrest expire`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from actions.backup.pgbackrest_info import Backup, Repository, Stanza
from actions.backup.pgbackrest_tools import ExpireOrder
from actions.backup.physical import PhysicalEntry
from actions.backup.retention import retained
from actions.backup.segments import Segment
from actions.site import PhysicalPolicy


@dataclass(frozen=True)
class Going:
    """Of one cluster in one repository. `backups` in the order in which they go: what rests on another before it."""

    repository: Repository
    backups: tuple[Backup, ...]
    kept: Mapping[str, str]
    keep_wal_of: int  # full backups, from the newest back, whose WAL is kept without a hole; 0: all

    def orders(self) -> Sequence[ExpireOrder]:
        """One for each backup with its WAL, then one for the WAL that no backup needs."""
        return [
            ExpireOrder(repository=self.repository.key, label=label, keep_wal_of=self.keep_wal_of)
            for label in (*(backup.label for backup in self.backups), None)
        ]


def going(
    stanza: Stanza,
    entries: Sequence[PhysicalEntry],
    policy: PhysicalPolicy,
    now: datetime,
    dead: Collection[str] = (),
) -> Sequence[Going]:
    """By repository. Of clusters that are no more, nothing goes by itself."""
    by_id = {entry.manifest.id: entry for entry in entries}
    found = []
    for key in sorted({facts.key for facts in stanza.repo}):
        archive = stanza.present(key)
        if archive is None:
            continue
        mine = stanza.of(archive.database)
        keep = retained([by_id[backup.id] for backup in mine], policy, now, dead)
        gone = {entry.manifest.id for entry in keep.gone}
        known = {backup.id: backup for backup in mine}
        left = [backup for backup in mine if backup.id not in gone]
        base = known[keep.replay_from.manifest.id] if keep.replay_from else None
        found.append(
            Going(
                repository=archive.database,
                backups=tuple(known[entry.manifest.id] for entry in keep.gone),
                kept=keep.kept,
                keep_wal_of=_fulls_from(left, base),
            )
        )
    return found


def _fulls_from(left: Sequence[Backup], base: Backup | None) -> int:
    """How many of the full backups are not older than the one that `base` rests on."""
    if base is None:
        return 0
    full = base.label[: len("20261127-080000F")]
    return sum(backup.type == "full" and backup.label >= full for backup in left)


def segments_of(stretches: Sequence[tuple[str, str]], size: int) -> set[Segment]:
    """Every segment from the first to the last of every stretch."""
    pairs = [(Segment.parse(first, size), Segment.parse(last, size)) for first, last in stretches]
    return {
        Segment(first.timeline_id, number, size)
        for first, last in pairs
        for number in range(first.number, last.number + 1)
    }
