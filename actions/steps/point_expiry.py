"""Which recovery points may go. Pure: the points, the backups that are pinned and a moment in; what goes, and what
stays for which reason, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from actions.points import PointEntry
from actions.ports import Ports
from actions.site import PointsPolicy
from actions.steps.expiry import Old

AT_ONCE = 500
"""So many go by one plan at most, the oldest first; the rest by the next one."""


class OldPoints(Old):
    """Of all that are recorded."""

    later: int = 0  # may go too, by the next plan


def old_points(
    entries: Sequence[PointEntry], pinned: Mapping[tuple[str, str], str], policy: PointsPolicy, now: datetime
) -> OldPoints:
    """A point goes once it is older than the policy says, unless it is pinned, one of the newest that can be used, or
    names a dump that is pinned: then it says what belongs to that. `pinned`: database and dump -> why. One that must
    not be believed stays: nobody knows how old it is, so people decide."""
    newest = sorted(entries, key=lambda entry: entry.point.taken_at, reverse=True)
    fit = [entry for entry in newest if entry.problem is None]
    # Of a time in which nothing could be read, one that holds no database takes the place of none that does.
    last = {entry.point.id for entry in ([each for each in fit if each.point.databases] or fit)[: policy.minimum]}
    kept: dict[str, str] = {}
    gone: list[str] = []
    for entry in reversed(newest):
        point = entry.point
        if entry.problem is None and point.taken_at >= now - policy.retention:
            continue
        held = [(part.backup, pinned.get((part.database, part.backup))) for part in point.databases]
        if entry.pinned:
            kept[point.id] = f"pinned: {entry.pinned}"
        elif entry.problem is not None:
            kept[point.id] = "it must not be used, so nobody knows how old it is"
        elif point.id in last:
            kept[point.id] = f"one of the {policy.minimum} newest that can be used"
        elif why := next((f"its dump `{backup}` is pinned: {reason}" for backup, reason in held if reason), ""):
            kept[point.id] = why
        else:
            gone.append(point.id)
    return OldPoints(gone=tuple(gone[:AT_ONCE]), kept=kept, later=max(0, len(gone) - AT_ONCE))


async def points_due(ports: Ports, policy: PointsPolicy) -> OldPoints:
    """What would go now."""
    pinned = {
        (database, entry.manifest.id): entry.pinned
        for database in sorted(ports.site.backups)
        for entry in await ports.backups.catalogue(database)
        if entry.pinned
    }
    return old_points(await ports.points.entries(), pinned, policy, ports.clock.now())
