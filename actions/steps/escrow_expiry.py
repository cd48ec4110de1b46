"""Which escrows of sealing keys may go. Pure: the escrows of a cluster, who needs them and a moment in; what goes, and
what stays for which reason, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from actions.escrow import EscrowEntry
from actions.ports import Ports
from actions.site import EscrowPolicy
from actions.steps.expiry import Old
from actions.steps.phrases import names


class OldEscrows(Old):
    """Of one cluster."""

    cluster: str


def old_escrows(
    cluster: str, entries: Sequence[EscrowEntry], needed: Mapping[str, str], policy: EscrowPolicy, now: datetime
) -> OldEscrows:
    """An escrow goes once it is older than the policy says, unless it is one of the newest that can be used, a recovery
    point needs it (`needed`: escrow -> point), or it alone holds a key: what is sealed with that, in Git too, could
    never be opened again. One whose manifest is not ours stays: nobody knows what it is, so people decide."""
    newest = sorted(entries, key=lambda entry: entry.manifest.made_at, reverse=True)
    usable = [entry for entry in newest if entry.problem is None]
    last = {entry.manifest.id for entry in usable[: policy.minimum]}
    kept: dict[str, str] = {}
    old: list[EscrowEntry] = []
    for entry in newest:
        name = entry.manifest.id
        if not entry.trusted:
            kept[name] = "its manifest is not signed by us, so nobody knows how old it is"
        elif entry.manifest.made_at >= now - policy.retention:
            continue
        elif name in last:
            kept[name] = f"one of the {policy.minimum} newest that can be used"
        elif len(last) < policy.minimum:
            kept[name] = f"the bucket has not {policy.minimum} that can be used"
        elif point := needed.get(name):
            kept[name] = f"recovery point `{point}` needs it"
        else:
            old.append(entry)
    left = {entry.manifest.id for entry in old}
    held = {key.fingerprint for entry in usable if entry.manifest.id not in left for key in entry.manifest.keys}
    gone: list[str] = []
    for entry in old:  # the newest first: of several that hold a key it is the one that stays
        alone = [key for key in entry.manifest.keys if key.fingerprint not in held]
        if alone:
            kept[entry.manifest.id] = f"no newer one holds {names(key.name for key in alone)}"
            held |= {key.fingerprint for key in alone} if entry.problem is None else set()
        else:
            gone.append(entry.manifest.id)
    return OldEscrows(cluster=cluster, gone=tuple(reversed(gone)), kept=kept)


async def escrows_due(ports: Ports, policy: EscrowPolicy, cluster: str) -> OldEscrows:
    """What would go now."""
    points = () if ports.site.points is None else await ports.points.entries()
    needed = {
        part.escrow: entry.point.id for entry in points for part in entry.point.secrets if part.cluster == cluster
    }
    return old_escrows(cluster, await ports.escrow.entries(cluster), needed, policy, ports.clock.now())
