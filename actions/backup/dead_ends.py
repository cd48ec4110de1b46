"""Base backups beyond a fork: a failover went on from before their end, so they lead to the end of a dead branch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from actions.backup.chain import usable
from actions.backup.native_window import start_of
from actions.backup.physical import DeadEnd, Lsn, PhysicalEntry
from actions.backup.segments import Segment, Timelines
from actions.backup.wal import WalArchive, WalListing


async def living_way(
    history: Callable[[int], Awaitable[Timelines]], entries: Sequence[PhysicalEntry], listings: Sequence[WalListing]
) -> Timelines | None:
    """The way to the newest timeline of the archive, which `history` reads. None when a backup is of a newer one than
    any history is known of: then nobody can tell what it comes from.

    Raises what `history` raises: VerificationError when that history is damaged.
    """
    newest = max((timeline_id for listing in listings for timeline_id in listing.histories), default=0)
    if not entries or newest < max(entry.manifest.timeline_id for entry in entries):
        return None
    return await history(newest)


def dead_ends(
    entries: Sequence[PhysicalEntry], way: Timelines | None, listings: Sequence[WalListing]
) -> Mapping[str, DeadEnd]:
    """Those of the backups, all of one cluster, whose end is no part of the way, by their ids."""
    if way is None:
        return {}
    return {
        entry.manifest.id: _dead_end(entry, way, listings)
        for entry in entries
        if not way.reaches(entry.manifest.timeline_id, Lsn.parse(entry.manifest.stop_lsn))
    }


async def dead_in(archive: WalArchive, entries: Sequence[PhysicalEntry]) -> Mapping[str, DeadEnd]:
    """Those of the cluster whose the newest backup is, by every bucket of the native engine's archive."""
    good = usable(entries)
    if not good:
        return {}
    ours = [entry for entry in good if entry.manifest.system_id == good[0].manifest.system_id]
    listings = await archive.listings()
    way = await living_way(lambda newest: archive.history(newest, start_of(ours[0]), listings), ours, listings)
    return dead_ends(ours, way, listings)


def leading(entries: Sequence[PhysicalEntry], dead: Collection[str]) -> Sequence[PhysicalEntry]:
    """Those that lead to what the server went on with; all of them where none of those can be used."""
    living = [entry for entry in entries if entry.manifest.id not in dead]
    return living if any(entry.problem is None for entry in living) else entries


def _dead_end(entry: PhysicalEntry, way: Timelines, listings: Sequence[WalListing]) -> DeadEnd:
    found = entry.manifest
    branch = Timelines.alone(found.timeline_id)
    names = [name for listing in listings for name in listing.segments]
    ends = [
        Segment(found.timeline_id, number, found.segment_bytes).end
        for number in branch.numbers(names, found.segment_bytes)
    ]
    # Where the branch itself is no part of the way, it came from one that is, with a smaller id.
    forks = [each.end for each in way.stretches if each.end is not None and each.timeline_id <= found.timeline_id]
    return DeadEnd(
        timeline_id=found.timeline_id,
        lsn=str(max([*ends, Lsn.parse(found.stop_lsn)])),
        forked_at=str(forks[-1]) if forks else "0/0",
        living=way.timeline_id,
    )
