"""Catalogue entries for tests that only choose among backups."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from actions.backup.manifest import Fingerprint, Globals, Manifest, Provenance, Role, StoredObject
from actions.ports import CatalogueEntry

TAKEN = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)


def a_manifest(**changes: Any) -> Manifest:
    """A dump of `shop` of 02:00 UTC: 3 GB of database, 690 MB stored."""
    manifest = Manifest(
        id="shop-a",
        database="shop",
        server="primary",
        provenance=Provenance.ATTESTED,
        system_id="7000000000000000001",
        server_version=180006,
        lsn="0/3000000",
        snapshot_at=TAKEN,
        finished_at=TAKEN + timedelta(seconds=8),
        duration_ms=8000,
        stored=StoredObject(bucket="backups", key="dumps/shop/shop-a/dump.age", bytes=690_000_000, sha256="ab" * 32),
        plain_bytes=700_000_000,
        plain_sha256="cd" * 32,
        compression="zstd",
        recipients=("age1example",),
        database_bytes=3_000_000_000,
        fingerprint=Fingerprint(rows={"public.users": 3}, sequences={}, schema_hash="ef" * 32, invariants={}),
    )
    return manifest.model_copy(update=changes)


def an_entry(
    *, problem: str | None = None, verified_at: datetime | None = None, sha256: str = "12" * 32, **changes: Any
) -> CatalogueEntry:
    """That dump as the catalogue lists it."""
    return CatalogueEntry(
        manifest=a_manifest(**changes), manifest_sha256=sha256, problem=problem, verified_at=verified_at
    )


def a_role(name: str, *, superuser: bool = False) -> Globals:
    """Globals that hold one role."""
    role = Role(
        name=name,
        superuser=superuser,
        create_role=False,
        create_database=False,
        login=True,
        replication=False,
        bypass_rls=False,
        connection_limit=-1,
    )
    return Globals(roles=(role,))
