"""What retention may delete in the buckets of the native engine: backups by what rests on them, WAL by who needs it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from actions.backup.chain import as_in
from actions.backup.physical import SEGMENT, Expiry, Lsn, PhysicalEntry
from actions.backup.retention import Retained, retained
from actions.backup.segments import Segment
from actions.backup.wal import WalListing
from actions.errors import PermanentError
from actions.site import PhysicalPolicy

SMALLEST, LARGEST = 1 << 20, 1 << 30
"""Bytes of a segment, by `initdb --wal-segsize`; a power of two."""

NOT_OURS = "its manifest is not signed by us, so nobody knows how old it is: people decide"


@dataclass(frozen=True)
class Deletable:
    """What may go, exactly. Backups are in the order in which they go: what rests on another goes before it."""

    expiry: Expiry
    segments: tuple[Segment, ...] = ()


def deletable(
    entries: Sequence[PhysicalEntry],
    archived: Mapping[Segment, int],
    policy: PhysicalPolicy,
    now: datetime,
    dead: Collection[str] = (),
) -> Deletable:
    """`archived`: stored bytes of every closed segment that the archive holds. `dead`: backups of a branch that the
    server has left."""
    ours = [entry for entry in entries if entry.trusted]
    found = _everywhere(ours, policy, now, dead)
    gone = {entry.manifest.id for entry in found.gone}
    left = [entry for entry in ours if entry.manifest.id not in gone]
    segments = _unneeded(left, archived, _replayed_from(ours, policy, now, dead))
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


def _replayed_from(
    ours: Sequence[PhysicalEntry], policy: PhysicalPolicy, now: datetime, dead: Collection[str]
) -> list[PhysicalEntry]:
    """Where the WAL that is wanted begins, for each cluster that the backups are of: one that was made anew under the
    same name counts its WAL from the beginning again, so the place of another's says nothing of it."""
    clusters: dict[str, list[PhysicalEntry]] = defaultdict(list)
    for entry in ours:
        clusters[entry.manifest.system_id].append(entry)
    found = [_everywhere(entries, policy, now, dead).replay_from for entries in clusters.values()]
    return [base for base in found if base is not None]


def _everywhere(
    ours: Sequence[PhysicalEntry], policy: PhysicalPolicy, now: datetime, dead: Collection[str]
) -> Retained:
    """What may go by every bucket alone as well: each keeps what it would need, were it the only one that is left."""
    found = retained(ours, policy, now, dead)
    if not policy.copy_bucket:
        return found
    gone, kept, base = list(found.gone), dict(found.kept), found.replay_from
    for bucket in policy.base_buckets:
        here = retained(as_in(ours, bucket), policy, now, dead)
        if here.replay_from is None:
            continue  # nothing there could be restored, so it stands in for nothing
        stay = {entry.manifest.id for entry in ours} - {entry.manifest.id for entry in here.gone}
        gone = [entry for entry in gone if entry.manifest.id not in stay]
        for name, why in here.kept.items():
            kept.setdefault(name, f"in `{bucket}`: {why}")
        if base is not None and Lsn.parse(here.replay_from.manifest.start_lsn) < Lsn.parse(base.manifest.start_lsn):
            base = here.replay_from
    return Retained(tuple(gone), kept, base)


def _unneeded(
    left: Sequence[PhysicalEntry], archived: Mapping[Segment, int], bases: Sequence[PhysicalEntry]
) -> list[Segment]:
    """Segments that no backup needs: neither for its own span, nor to be replayed from the beginning of a window."""
    if not bases:
        return []  # nothing is proven to replace them
    begin = min(Lsn.parse(base.manifest.start_lsn) for base in bases)
    spans = [(Lsn.parse(entry.manifest.start_lsn), Lsn.parse(entry.manifest.stop_lsn)) for entry in left]

    def needed(segment: Segment) -> bool:
        return segment.end > begin or any(segment.start <= stop and segment.end > start for start, stop in spans)

    return sorted((each for each in archived if not needed(each)), key=lambda each: (each.timeline_id, each.number))


def segment_size(entries: Sequence[PhysicalEntry]) -> int:
    """Bytes of a segment, by the newest backup whose manifest we have signed: what others write into the bucket must
    not steer what is deleted. Raises PermanentError for a size that no server has."""
    ours = [entry.manifest for entry in entries if entry.trusted]
    if not ours:
        return SEGMENT
    newest = max(ours, key=lambda manifest: manifest.finished_at)
    size = newest.segment_bytes
    if not (SMALLEST <= size <= LARGEST) or size & (size - 1):
        raise PermanentError(
            f"Base backup `{newest.id}` of `{newest.server}` speaks of WAL segments of {size} bytes, which no server "
            "has. Nothing is deleted. Look who signed it."
        )
    return size


def stored_segments(listings: Sequence[WalListing], size: int) -> Mapping[Segment, int]:
    """Stored bytes of every closed segment, over all buckets. A name that no segment of this size has is left alone."""
    found: dict[Segment, int] = {}
    for listing in listings:
        for segment, facts in listing.closed(size).items():
            found[segment] = found.get(segment, 0) + facts.bytes
    return found


def within(segments: Sequence[Segment], shown: Sequence[tuple[str, str]]) -> list[Segment]:
    """Those that lie in one of the stretches that were shown, of which the first and the last are named."""
    if not segments:
        return []
    size = segments[0].size
    edges = [(Segment.parse(first, size), Segment.parse(last, size)) for first, last in shown]
    return [each for each in segments if any(_between(each, first, last) for first, last in edges)]


def _between(segment: Segment, first: Segment, last: Segment) -> bool:
    return segment.timeline_id == first.timeline_id and first.number <= segment.number <= last.number


def stretches(segments: Sequence[Segment]) -> list[tuple[Segment, Segment]]:
    """First and last of every run of segments that follow each other. The segments are in order."""
    found: list[tuple[Segment, Segment]] = []
    for segment in segments:
        if found and found[-1][1].next() == segment:
            found[-1] = (found[-1][0], segment)
        else:
            found.append((segment, segment))
    return found
