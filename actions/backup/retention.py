"""Which base backups may go, by what rests on what: pure. Age alone never deletes anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from actions.backup.chain import as_in
from actions.backup.physical import BackupKind, PhysicalEntry
from actions.site import PhysicalPolicy


@dataclass(frozen=True)
class Retained:
    """`gone` newest first, so that what rests on another goes before it. `kept` tells why something old stays."""

    gone: tuple[PhysicalEntry, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
    replay_from: PhysicalEntry | None = None  # WAL from its start on is wanted; before it, only what each backup needs


def retained(
    entries: Sequence[PhysicalEntry], policy: PhysicalPolicy, now: datetime, dead: Collection[str] = ()
) -> Retained:
    """A backup that is older than the policy says goes, unless it is pinned, one of the newest usable full backups that
    the policy never goes under, or needed by one that stays. Those of `dead` lead to nothing that the server has done
    since it left their branch, so they stand in for no other."""
    newest = sorted(entries, key=lambda entry: (entry.manifest.finished_at, entry.manifest.id), reverse=True)
    known = {entry.manifest.id: entry for entry in newest}
    usable = [entry for entry in newest if entry.problem is None]
    living = [entry for entry in usable if entry.manifest.id not in dead] or usable
    fulls = [entry for entry in living if _usable_full(entry)]
    reasons: dict[str, str] = {}
    for entry in newest:
        if entry.pinned:
            reasons[entry.manifest.id] = f"pinned: {entry.pinned}"
    for entry in fulls[: policy.minimum_fulls]:
        reasons.setdefault(entry.manifest.id, f"one of the {policy.minimum_fulls} newest full backups")
    base = _replayed_from(living, now - policy.wal_retention)
    if base is not None:
        reasons.setdefault(base.manifest.id, "the oldest moment of the recovery window rests on it")
    stay = {entry.manifest.id for entry in newest if not old(entry, policy, now)} | reasons.keys()
    for name in sorted(stay):
        child, parent = name, known[name].manifest.parent
        while parent in known and parent not in stay:
            stay.add(parent)
            reasons[parent] = f"`{child}` rests on it"
            child, parent = parent, known[parent].manifest.parent
    return Retained(
        gone=tuple(entry for entry in newest if entry.manifest.id not in stay),
        kept={name: why for name, why in reasons.items() if old(known[name], policy, now)},
        replay_from=base,
    )


def why_it_stays(
    entries: Sequence[PhysicalEntry], backup: str, policy: PhysicalPolicy, dead: Collection[str] = ()
) -> str:
    """Why not even people may delete it by name, as a sentence with the next thing to do; empty when they may. Those of
    `dead` are no part of the minimum."""
    known = {entry.manifest.id: entry for entry in entries}
    if backup not in known:
        return ""
    if known[backup].pinned:
        return f"Base backup `{backup}` is pinned: {known[backup].pinned}. Take the pin off first, with `unpin`."
    # What others have written into the bucket holds nothing back.
    above = [entry.manifest.id for entry in entries if entry.manifest.parent == backup and entry.trusted]
    if above:
        names = ", ".join(f"`{name}`" for name in above)
        return f"{names} rests on base backup `{backup}` and would be lost with it. Delete that first."
    if (fulls := _living_fulls(entries, dead)) and backup in fulls and len(fulls) <= policy.minimum_fulls:
        return _too_few(policy, len(fulls), "")
    # Each bucket keeps as many as would be wanted, were it the only one that is left.
    for bucket in known[backup].whole_in:
        fulls = _living_fulls(as_in(entries, bucket), dead)
        if backup in fulls and len(fulls) <= policy.minimum_fulls:
            return _too_few(policy, len(fulls), f" in `{bucket}`")
    return ""


def _living_fulls(entries: Sequence[PhysicalEntry], dead: Collection[str]) -> list[str]:
    usable = [entry.manifest.id for entry in entries if _usable_full(entry)]
    return [name for name in usable if name not in dead] or usable


def _too_few(policy: PhysicalPolicy, fulls: int, where: str) -> str:
    return (
        f"`{policy.server}` has {fulls} usable full backups{where}, and the plan file wants {policy.minimum_fulls} "
        f"of them. Make another first: `/dr-backup base {policy.server} full`."
    )


def _usable_full(entry: PhysicalEntry) -> bool:
    return entry.problem is None and entry.manifest.kind is BackupKind.FULL


def old(entry: PhysicalEntry, policy: PhysicalPolicy, now: datetime) -> bool:
    """Older than the policy says."""
    full = entry.manifest.kind is BackupKind.FULL
    return entry.manifest.finished_at < now - (policy.full_retention if full else policy.incremental_retention)


def _replayed_from(usable: Sequence[PhysicalEntry], oldest: datetime) -> PhysicalEntry | None:
    """The backup from which the oldest moment of the WAL's retention is reached: the newest that ended before it, or
    the oldest there is."""
    return next((entry for entry in usable if entry.manifest.finished_at <= oldest), usable[-1] if usable else None)
