"""Which sealed copies of Secrets may go. Pure: the copies of a cluster, the points that there are and a moment in; what
goes, and what stays for which reason, out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from actions.ports import Ports
from actions.secret_copies import SecretCopyEntry
from actions.site import EscrowPolicy
from actions.steps.expiry import Old


class OldCopies(Old):
    """Of one cluster."""

    cluster: str


def old_copies(
    cluster: str, entries: Sequence[SecretCopyEntry], points: Collection[str], policy: EscrowPolicy, now: datetime
) -> OldCopies:
    """The copy of a point goes with the point. What is left here is what a plan kept before it replaced Secrets, and
    copies whose point was never recorded: they go once they are older than the policy says. One whose manifest is not
    ours stays: nobody knows what it is, so people decide."""
    kept: dict[str, str] = {}
    gone: list[str] = []
    for entry in sorted(entries, key=lambda entry: entry.manifest.made_at):
        name = entry.manifest.id
        if not entry.trusted:
            kept[name] = "its manifest is not signed by us, so nobody knows how old it is"
        elif entry.manifest.made_at >= now - policy.retention:
            continue
        elif name in points:
            kept[name] = "it goes with its recovery point"
        else:
            gone.append(name)
    return OldCopies(cluster=cluster, gone=tuple(gone), kept=kept)


async def copies_due(ports: Ports, policy: EscrowPolicy, cluster: str) -> OldCopies:
    """What would go now."""
    points = () if ports.site.points is None else await ports.points.entries()
    entries = await ports.secret_copies.entries(cluster)
    return old_copies(cluster, entries, {entry.point.id for entry in points}, policy, ports.clock.now())
