"""Which base backup a new one rests on, and which server is meant. Pure: entries and a moment in, a choice out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from actions.backup.physical import BackupKind, PhysicalEntry
from actions.errors import UserError
from actions.site import Site


def server_named(site: Site, name: str | None) -> str:
    """The server of a name that people gave: a server, a database that lives on one, or nothing where there is only one
    with base backups. Raises UserError with those there are."""
    if name is None:
        if len(site.physical) == 1:
            return next(iter(site.physical))
        known = ", ".join(f"`{key}`" for key in sorted(site.physical)) or "none"
        raise UserError(f"Name the server; those with base backups in the plan file: {known}.")
    database = site.databases.get(name)
    server = name if name in site.physical or database is None else database.server
    site.physical_of(server)
    return server


def usable_bases(
    entries: Sequence[PhysicalEntry], *, system_id: str = "", kind: BackupKind | None = None
) -> tuple[PhysicalEntry, ...]:
    """Newest first: no problem known, of this very cluster where it is given, of this kind where one is wanted."""
    fit = [
        entry
        for entry in entries
        if entry.problem is None and system_id in ("", entry.manifest.system_id) and kind in (None, entry.manifest.kind)
    ]
    return tuple(sorted(fit, key=lambda entry: (entry.manifest.finished_at, entry.manifest.id), reverse=True))


def parent_for(entries: Sequence[PhysicalEntry], *, system_id: str, now: datetime) -> PhysicalEntry | None:
    """What an incremental rests on: the first of an hour on the newest full backup, the others on that first one. So no
    chain is longer than three, and a bad one of an hour costs that hour alone. None where there is no full backup."""
    fulls = usable_bases(entries, system_id=system_id, kind=BackupKind.FULL)
    if not fulls:
        return None
    full = fulls[0]
    hour = now.replace(minute=0, second=0, microsecond=0)
    hourly = [
        entry
        for entry in usable_bases(entries, system_id=system_id, kind=BackupKind.INCREMENTAL)
        if entry.manifest.parent == full.manifest.id and hour <= entry.manifest.started_at <= now
    ]
    return hourly[-1] if hourly else full


def base_estimate(entries: Sequence[PhysicalEntry], kind: BackupKind) -> timedelta | None:
    """As long as the newest of its kind took; None while there was none."""
    fit = usable_bases(entries, kind=kind)
    return fit[0].manifest.finished_at - fit[0].manifest.started_at if fit else None
