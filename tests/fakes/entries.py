"""Entries of a catalogue of base backups, by their few interesting figures."""

from __future__ import annotations

from datetime import datetime, timedelta

from actions.backup.manifest import StoredObject
from actions.backup.physical import SEGMENT, BackupKind, Lsn, PhysicalEntry, PhysicalManifest


def an_entry(
    name: str,
    at: datetime,
    *,
    parent: str | None = None,
    segment: int = 3,
    segments: int = 1,
    problem: str | None = None,
    pinned: str = "",
    trusted: bool = True,
    snapshot: str = "",
    system_id: str = "7",
) -> PhysicalEntry:
    """A backup that ended at `at` and whose own span begins in the `segment`-th one and takes so many."""
    start = segment * SEGMENT + 0x28
    manifest = PhysicalManifest(
        id=name,
        server="main",
        kind=BackupKind.FULL if parent is None else BackupKind.INCREMENTAL,
        parent=parent,
        system_id=system_id,
        server_version=180006,
        timeline_id=1,
        start_lsn=str(Lsn(start)),
        stop_lsn=str(Lsn(start + (segments - 1) * SEGMENT + 0x100)),
        started_at=at - timedelta(seconds=10),
        finished_at=at,
        stored=StoredObject(bucket="b", key=f"{name}/base.age", bytes=1000, sha256="0"),
        plain_bytes=2000,
        plain_sha256="1",
        snapshot=snapshot,
    )
    return PhysicalEntry(manifest=manifest, manifest_sha256="2", problem=problem, pinned=pinned, trusted=trusted)
