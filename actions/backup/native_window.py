"""What can be reached from one bucket alone, out of the base backups and a listing of the WAL there. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from actions.backup.chain import usable
from actions.backup.physical import BackupKind, Gap, Lsn, PhysicalEntry, RecoveryWindow
from actions.backup.segments import Segment, Timelines, history_of
from actions.backup.wal import WalListing, WalStart, find_gaps
from actions.site import PhysicalPolicy


def start_of(entry: PhysicalEntry) -> WalStart:
    """Where a replay from this backup begins."""
    found = entry.manifest
    return WalStart(found.system_id, found.timeline_id, Lsn.parse(found.start_lsn), found.segment_bytes)


def window(
    policy: PhysicalPolicy,
    entries: Sequence[PhysicalEntry],
    listing: WalListing,
    way: Timelines,
    *,
    newest: datetime | None,
    newest_lsn: Lsn | None,
    now: datetime,
) -> RecoveryWindow:
    """`newest` is when the archiver had the last of the WAL, which ends at `newest_lsn`.

    WAL that retention took away is no gap: before it, a full backup is a single moment that can be reached, its own.
    """
    living = _living(entries, listing, way)
    first = begin(entries, listing, way)
    found = find_gaps(first, way, listing) if first is not None else ()
    holes = [gap for gap in found if gap.before is not None and gap.before <= now - policy.wal_retention]
    behind = max((Segment.parse(gap.last, living[0].manifest.segment_bytes).end for gap in holes), default=Lsn(0))
    oldest = min(
        (entry.manifest.finished_at for entry in living if Lsn.parse(entry.manifest.start_lsn) >= behind),
        default=None,
    )
    return RecoveryWindow(
        server=policy.server,
        bucket=listing.bucket,
        oldest=oldest,
        newest=newest if oldest else None,
        newest_lsn=str(newest_lsn) if newest_lsn is not None and oldest else "",
        timeline_id=way.timeline_id,
        gaps=tuple(gap for gap in found if gap not in holes),
        fulls=sum(entry.manifest.kind is BackupKind.FULL for entry in living),
        incrementals=sum(entry.manifest.kind is BackupKind.INCREMENTAL for entry in living),
        wal_bytes=listing.bytes,
    )


def begin(entries: Sequence[PhysicalEntry], listing: WalListing, way: Timelines) -> WalStart | None:
    """Where the WAL of this bucket is needed from; None where it leads no base backup to anything."""
    return min(map(start_of, _living(entries, listing, way)), key=lambda start: start.lsn, default=None)


def _living(entries: Sequence[PhysicalEntry], listing: WalListing, way: Timelines) -> Sequence[PhysicalEntry]:
    """Those that can be restored and come to be consistent on this way, newest first. One that ended beyond a fork
    does not, wherever it began."""
    good = [entry for entry in usable(entries) if has_own_span(entry, listing)]
    return [entry for entry in good if way.reaches(entry.manifest.timeline_id, Lsn.parse(entry.manifest.stop_lsn))]


def passed(gap: Gap, entry: PhysicalEntry) -> bool:
    """Whether this base backup lies behind the gap: from it on nothing of it is missed."""
    found = entry.manifest
    try:
        behind = Segment.parse(gap.last, found.segment_bytes).end <= Lsn.parse(found.start_lsn)
    except ValueError:  # of a server with segments of another size
        return False
    later = found.timeline_id >= gap.timeline_id
    # Without its history a timeline is missed by backups from before it alone: of it, or of a later one, nothing is.
    return (behind or later) if history_of(gap.first) is not None else (behind and later)


def has_own_span(entry: PhysicalEntry, listing: WalListing) -> bool:
    """Whether the bucket has the WAL that makes the backup consistent."""
    found = entry.manifest
    start, stop = Lsn.parse(found.start_lsn), Lsn.parse(found.stop_lsn)
    first = Segment.holding(start, found.timeline_id, found.segment_bytes)
    last = Segment.holding(Lsn(max(start, stop - 1)), found.timeline_id, found.segment_bytes)
    numbers = range(first.number, last.number + 1)
    return all(Segment(found.timeline_id, number, found.segment_bytes) in listing for number in numbers)
