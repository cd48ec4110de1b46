"""What retention may delete in the buckets of the native engine: backups by what rests on them, WAL by who needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from actions.backup.physical import Expiry, Lsn, PhysicalEntry
from actions.backup.retention import retained
from actions.backup.segments import Segment
from actions.site import PhysicalPolicy

NOT_OURS = "its manifest is not signed by us, so nobody knows how old it is: people decide"


@dataclass(frozen=True)
class Deletable:
    """What may go, exactly. Backups are in the order in which they go: what rests on another goes before it."""

    expiry: Expiry
    segments: tuple[Segment, ...] = ()


def deletable(
    entries: Sequence[PhysicalEntry], archived: Mapping[Segment, int], policy: PhysicalPolicy, now: datetime
) -> Deletable:
    """`archived`: stored bytes of every closed segment that the archive holds."""
    ours = [entry for entry in entries if entry.trusted]
    found = retained(ours, policy, now)
    gone = {entry.manifest.id for entry in found.gone}
    left = [entry for entry in ours if entry.manifest.id not in gone]
    segments = _unneeded(left, archived, found.replay_from)
    return Deletable(
        Expiry(
            server=policy.server,
            backups=tuple(entry.manifest.id for entry in found.gone),
            segments=len(segments),
            wal=tuple((str(first), str(last)) for first, last in stretches(segments)),
            bytes=sum(entry.manifest.stored.bytes for entry in found.gone) + sum(archived[each] for each in segments),
            kept={**found.kept, **{entry.manifest.id: NOT_OURS for entry in entries if not entry.trusted}},
        ),
        tuple(segments),
    )


def _unneeded(
    left: Sequence[PhysicalEntry], archived: Mapping[Segment, int], base: PhysicalEntry | None
) -> list[Segment]:
    """Segments that no backup needs: neither for its own span, nor to be replayed from the beginning of the window."""
    if base is None:
        return []  # nothing is proven to replace them
    begin = Lsn.parse(base.manifest.start_lsn)
    spans = [(Lsn.parse(entry.manifest.start_lsn), Lsn.parse(entry.manifest.stop_lsn)) for entry in left]

    def needed(segment: Segment) -> bool:
        return segment.end > begin or any(segment.start <= stop and segment.end > start for start, stop in spans)

    return sorted((each for each in archived if not needed(each)), key=lambda each: (each.timeline_id, each.number))


def stretches(segments: Sequence[Segment]) -> list[tuple[Segment, Segment]]:
    """First and last of every run of segments that follow each other. The segments are in order."""
    found: list[tuple[Segment, Segment]] = []
    for segment in segments:
        if found and found[-1][1].next() == segment:
            found[-1] = (found[-1][0], segment)
        else:
            found.append((segment, segment))
    return found
