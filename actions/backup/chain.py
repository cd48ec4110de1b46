"""Which backups belong together: the chain below an incremental, the parent of the next one, the base for a target."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from actions.backup.physical import BackupKind, Lsn, PhysicalEntry, PhysicalManifest, RecoveryTarget

XIDS = 1 << 32


def chain(entries: Sequence[PhysicalEntry], entry: PhysicalEntry) -> list[PhysicalEntry] | None:
    """The full backup it rests on first, itself last; None when a member is missing or must not be used."""
    known = {each.manifest.id: each for each in entries}
    found = [entry]
    while found[0].manifest.kind is BackupKind.INCREMENTAL:
        parent = known.get(found[0].manifest.parent or "")
        if parent is None or parent in found:
            return None
        found.insert(0, parent)
    return None if any(each.problem is not None for each in found) else found


def with_chains(entries: Sequence[PhysicalEntry]) -> list[PhysicalEntry]:
    """The same, with a problem for every incremental that rests on what is missing or must not be used."""
    known = {each.manifest.id: each for each in entries}

    def problem(entry: PhysicalEntry, above: tuple[str, ...] = ()) -> str | None:
        name, parent = entry.manifest.id, entry.manifest.parent
        if entry.problem is not None or entry.manifest.kind is BackupKind.FULL:
            return entry.problem
        if parent is None or parent not in known or parent in above:
            return f"Incremental `{name}` rests on backup `{parent}`, which is missing. Use another."
        if below := problem(known[parent], (*above, name)):
            return f"Incremental `{name}` rests on backup `{parent}`, which must not be used: {below}"
        if entry.manifest.checksums and known[parent].manifest.checksums is False:
            # Combined they make a server that wants checksums of pages that have none: it dies at the first of them.
            return f"Incremental `{name}` has page checksums, backup `{parent}` that it rests on has none. Use another."
        return None

    return [each.model_copy(update={"problem": problem(each)}) for each in entries]


def as_in(entries: Sequence[PhysicalEntry], bucket: str) -> list[PhysicalEntry]:
    """The same as they are once there is nothing but this bucket: with a problem where it does not have all that a
    restore needs."""
    return with_chains(
        [
            entry
            if entry.problem is not None or bucket in entry.whole_in
            else entry.model_copy(update={"problem": f"Bucket `{bucket}` does not have it whole."})
            for entry in entries
        ]
    )


def usable(entries: Sequence[PhysicalEntry]) -> list[PhysicalEntry]:
    """Those that can be restored, newest first."""
    good = [entry for entry in entries if entry.problem is None and chain(entries, entry) is not None]
    return sorted(good, key=lambda entry: entry.manifest.finished_at, reverse=True)


def parent_of_next(entries: Sequence[PhysicalEntry], at: datetime, system_id: str) -> PhysicalEntry | None:
    """What an incremental at this moment rests on: the day's full, or the incremental that opened this hour.

    So a chain has three members at most, and a lost incremental costs its own hour.
    """
    good = [entry for entry in usable(entries) if entry.manifest.system_id == system_id]
    full = next((entry for entry in good if entry.manifest.kind is BackupKind.FULL), None)
    if full is None:
        return None
    hour = at.replace(minute=0, second=0, microsecond=0)
    opened = [
        entry
        for entry in good
        if entry.manifest.parent == full.manifest.id and hour <= entry.manifest.started_at < hour + timedelta(hours=1)
    ]
    return opened[-1] if opened else full


def base_for(
    entries: Sequence[PhysicalEntry], target: RecoveryTarget, dead: Collection[str] = ()
) -> PhysicalEntry | None:
    """The newest backup that certainly ends before the target. For a named restore point, of which nobody knows where
    it is, the newest. One of `dead`, whose timeline the server has left, only where no other fits."""
    fit = [entry for entry in usable(entries) if ends_before(entry.manifest, target)]
    return next((entry for entry in fit if entry.manifest.id not in dead), fit[0] if fit else None)


def ends_before(manifest: PhysicalManifest, target: RecoveryTarget) -> bool:
    """Whether a replay from this backup can stop at the target."""
    if target.time is not None:
        return manifest.finished_at <= target.time
    if target.lsn is not None:
        return Lsn.parse(manifest.stop_lsn) <= Lsn.parse(target.lsn)
    if target.xid is not None:
        return not _done(manifest.snapshot, target.xid)
    return True


def _done(snapshot: str, xid: int) -> bool:
    """Whether the transaction had ended when the snapshot was taken; True where nothing is known of it."""
    if not snapshot:
        return True
    _, next_xid, running = snapshot.split(":")
    if xid % XIDS in {int(each) % XIDS for each in running.split(",") if each}:
        return False
    # Numbers go round: what is less than half the circle behind came before.
    return 0 < (int(next_xid) - xid) % XIDS < XIDS // 2
