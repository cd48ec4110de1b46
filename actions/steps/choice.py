"""Which backup to restore, and what is lost by it. Pure: entries and a moment in, a choice and sentences out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from actions.backup.manifest import Provenance
from actions.errors import UserError
from actions.ports import CatalogueEntry, MeasuredLoad
from actions.site import Database
from actions.steps.phrases import moment, size, span

RESTORE_RATE = 100_000_000
"""Bytes of database per second that a load is estimated by: 3.1 GB took 28 s, ANALYZE included, on a machine of two
cores (measured with PostgreSQL 18; see the benchmarks)."""

READ_RATE = 200_000_000
"""Bytes of stored dump per second that a check is estimated by."""

SWITCH = timedelta(seconds=30)
"""Stopping, swapping and starting: pods take most of it."""


def usable_entries(entries: Sequence[CatalogueEntry], *, before: datetime | None) -> tuple[CatalogueEntry, ...]:
    """Newest first: no problem known, and from before the damage where that moment is known."""
    fit = [
        entry for entry in entries if entry.problem is None and (before is None or entry.manifest.snapshot_at < before)
    ]
    return tuple(sorted(fit, key=lambda entry: (entry.manifest.snapshot_at, entry.manifest.id), reverse=True))


def recommended(database: str, entries: Sequence[CatalogueEntry], *, before: datetime | None) -> CatalogueEntry:
    """The newest usable backup. Raises UserError with the next thing to do when there is none."""
    fit = usable_entries(entries, before=before)
    if fit:
        return fit[0]
    until = "" if before is None else f" from before {moment(before)}"
    unusable = sum(entry.problem is not None for entry in entries)
    raise UserError(
        f"Database `{database}` has no usable backup{until}: {len(entries)} catalogued, {unusable} with a problem. "
        "Look at the catalogue, or adopt a dump made by other means with `backup.adopt`."
    )


def chosen(
    database: str, entries: Sequence[CatalogueEntry], *, backup: str | None, before: datetime | None
) -> CatalogueEntry:
    """The backup that was asked for, or the recommended one. Raises UserError when there is none."""
    if backup is None:
        return recommended(database, entries, before=before)
    for entry in entries:
        if entry.manifest.id == backup:
            return entry
    newest = ", ".join(f"`{entry.manifest.id}`" for entry in usable_entries(entries, before=None)[:3]) or "none"
    raise UserError(f"Database `{database}` has no backup `{backup}`. The newest usable ones: {newest}.")


def loss(entry: CatalogueEntry, now: datetime) -> timedelta:
    """How much time of changes is missing from the backup."""
    return max(timedelta(0), now - entry.manifest.snapshot_at)


def rpo_words(lost: timedelta, rpo: timedelta) -> str:
    """`RPO 15 min: beyond`."""
    return f"RPO {span(rpo)}: {'beyond' if lost > rpo else 'within'}"


def loss_sentence(database: Database, entry: CatalogueEntry, now: datetime) -> str:
    """`Restores the state of 2026-11-23 02:00 UTC, loses 8 h 12 min (RPO 15 min: beyond).`"""
    lost = loss(entry, now)
    state = moment(entry.manifest.snapshot_at)
    return f"Restores the state of {state}, loses {span(lost)} ({rpo_words(lost, database.rpo)})."


def alternative(database: Database, entry: CatalogueEntry, now: datetime) -> str:
    """One sentence for another backup, with the id to ask for."""
    checked = f"verified {moment(entry.verified_at)}" if entry.verified_at is not None else "not yet verified"
    text = loss_sentence(database, entry, now)
    return f"`{entry.manifest.id}`: {text[0].lower()}{text[1:-1]}, {size(entry.manifest.database_bytes)}, {checked}."


def checked_words(entry: CatalogueEntry) -> str:
    """What is known of a backup's health, in a few words."""
    if entry.problem is not None:
        return f"unusable: {entry.problem}"
    verified = "not yet verified" if entry.verified_at is None else f"verified {moment(entry.verified_at)}"
    adopted = ", adopted" if entry.manifest.provenance is Provenance.ADOPTED else ""
    return f"{verified}{adopted}{', pinned' if entry.pinned else ''}"


def restore_estimate(entry: CatalogueEntry, last: MeasuredLoad | None) -> timedelta:
    """How long loading, comparing and switching will take, at the rate of the last load where there is one."""
    return timedelta(seconds=entry.manifest.database_bytes // load_rate(last)) + SWITCH


def estimate_words(last: MeasuredLoad | None) -> str:
    """What the estimate goes by: `at the 34 MB/s of the restore of 2026-11-02`. MB are 10^6 bytes here."""
    rate = load_rate(last)
    shown = f"{rate / 1e6:.0f} MB/s" if rate >= 10_000_000 else f"{rate / 1e6:.1f} MB/s"
    if last is None:
        return f"at {shown}, a figure of another machine: no restore of this database was measured yet"
    return f"at the {shown} of the restore of {last.at.astimezone(UTC):%Y-%m-%d}"


def load_rate(last: MeasuredLoad | None) -> int:
    """Bytes of database per second, at least one."""
    if last is None:
        return RESTORE_RATE
    return max(1, round(last.database_bytes / max(last.took.total_seconds(), 0.001)))


def dump_estimate(entries: Sequence[CatalogueEntry], database_bytes: int) -> timedelta | None:
    """From the newest dump's own duration, by size; None while nothing was measured."""
    for entry in usable_entries(entries, before=None):
        manifest = entry.manifest
        if manifest.provenance is Provenance.ATTESTED and manifest.duration_ms > 0 and manifest.database_bytes > 0:
            return timedelta(milliseconds=manifest.duration_ms * database_bytes // manifest.database_bytes)
    return None
