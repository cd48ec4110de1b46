"""The shop with base backups and WAL of its server: a full backup of 02:30 UTC, commits until 10:11:58."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from actions.backup.manifest import StoredObject
from actions.backup.physical import BackupKind, Expiry, PhysicalEntry, PhysicalManifest
from actions.site import PhysicalPolicy
from tests.fakes.backups import SIGNER
from tests.fakes.manifests import an_entry
from tests.fakes.physical import Commit, MemoryHistory
from tests.fakes.world import DAMAGED, GOOD, START, World, a_world

SERVER = "primary"
FAR = "backups-far"


def a_policy(server: str = SERVER) -> PhysicalPolicy:
    """What the plan file would say of this server."""
    return PhysicalPolicy(
        server=server,
        bucket="backups",
        wal_buckets=("backups",),
        recipients=("age1example",),
        identity="env:IDENTITY",
        signing_key="env:SIGNING_KEY",
        trusted_signers=(SIGNER,),
    )


def a_base(name: str, at: datetime, *, parent: str | None = None, problem: str | None = None) -> PhysicalEntry:
    """A backup that ended at this moment, of the first server of the shop."""
    manifest = PhysicalManifest(
        id=name,
        server=SERVER,
        kind=BackupKind.FULL if parent is None else BackupKind.INCREMENTAL,
        parent=parent,
        system_id="7000000000000000001",
        server_version=180006,
        timeline_id=1,
        start_lsn="0/3000028",
        stop_lsn="0/3000120",
        started_at=at - timedelta(seconds=10),
        finished_at=at,
        stored=StoredObject(bucket="backups", key=f"physical/{name}/base.age", bytes=1000, sha256="0" * 64),
        plain_bytes=2000,
        plain_sha256="1" * 64,
        recipients=("age1example",),
    )
    return PhysicalEntry(manifest=manifest, manifest_sha256="2" * 64, problem=problem)


def with_bases(*, bases: bool = True) -> World:
    """A shop with base backups; a plan that makes one finds none with `bases=False`."""
    world = a_world(physical=True)
    physical = world.physical
    if bases:
        full = a_base("base-full", START.replace(hour=2, minute=30))
        hourly = a_base("base-hour", START.replace(minute=0, second=12), parent="base-full")
        physical.entries = {(SERVER, entry.manifest.id): entry for entry in (full, hourly)}
    physical.history[SERVER] = MemoryHistory(
        commits=[
            Commit(at=START.replace(hour=2, minute=30), lsn="0/3000120", xid=800, databases={"shop": GOOD}),
            Commit(at=START.replace(hour=9), lsn="0/4000000", xid=900, databases={"shop": GOOD}),
            Commit(at=START - timedelta(seconds=2), lsn="0/5000000", xid=1000, databases={"shop": DAMAGED}),
        ]
    )
    return world


def with_two_buckets() -> World:
    """The same; each base backup is to be in a bucket of another region as well, and none of them is yet."""
    world = with_bases()
    policy = world.site.physical[SERVER].model_copy(update={"copy_bucket": FAR})
    far = world.site.buckets["backups"].model_copy(update={"name": FAR, "region": "us-west-2"})
    site = world.site.model_copy(
        update={"physical": {SERVER: policy}, "buckets": {**world.site.buckets, FAR: far}},
    )
    world.objects.buckets[FAR] = {}
    for key, entry in world.physical.entries.items():
        world.physical.entries[key] = entry.model_copy(update={"whole_in": ("backups",), "behind": (FAR,)})
    world.physical.move_to(site)
    return replace(world, site=site)


def with_old_backups() -> World:
    """A shop with a dump, a base backup and WAL that are older than the policy says; one backup is pinned."""
    world = with_bases()
    old = START - timedelta(days=40)
    world.backups.entries["shop", "b-ancient"] = an_entry(
        id="b-ancient", database="shop", snapshot_at=old, finished_at=old, fingerprint=GOOD
    )
    world.physical.entries[SERVER, "base-ancient"] = a_base("base-ancient", old)
    pinned = a_base("base-pinned", old - timedelta(days=1)).model_copy(update={"pinned": "case 4711"})
    world.physical.entries[SERVER, "base-pinned"] = pinned
    world.physical.old[SERVER] = Expiry(
        server=SERVER,
        backups=("base-ancient",),
        segments=120,
        bytes=3_000_000_000,
        kept={"base-pinned": "pinned: case 4711"},
    )
    return world
