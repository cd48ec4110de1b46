"""A shop whose server is backed up physically: a past of commits, and a scratch instance that shows a moment of it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

from actions.backup.manifest import StoredObject
from actions.backup.physical import (
    BackupKind,
    Change,
    Check,
    Following,
    Moment,
    PhysicalEntry,
    PhysicalManifest,
    RecoveryTarget,
    ScratchFacts,
    ScratchRestored,
    ScratchState,
    Waiting,
)
from actions.ports import GitOps
from actions.site import DatabaseRef, WorkloadKind, WorkloadRef
from tests.fakes.cluster import MemoryWorkload
from tests.fakes.physical import Commit, MemoryHistory
from tests.fakes.world import ADVERTISED, API, APP_DIGEST, DAMAGED, GOOD, HEALTH, MANIFEST, START, World, a_world

SCRATCH_ID = "s3s4s5s6s7"
MARK = f"drbot:scratch:{SCRATCH_ID}"
HARMED_AT = START - timedelta(seconds=41)
SEALING = WorkloadRef("main", "kube-system", WorkloadKind.DEPLOYMENT, "sealed-secrets")
POSTGRES = WorkloadRef("main", "data", WorkloadKind.STATEFUL_SET, "postgres")
POINT = "point-p3p4p5p6p7"
NEWER = "Y2FuYXJ5LXZhbHVlLW5ld2Vy"  # another value of a Secret, as it is stored
POINT_AT = HARMED_AT - timedelta(seconds=2)


def a_base(name: str, *, age: timedelta, system_id: str) -> PhysicalEntry:
    """A full base backup of the primary that ended so long ago."""
    at = START - age
    manifest = PhysicalManifest(
        id=name,
        server="primary",
        kind=BackupKind.FULL,
        system_id=system_id,
        server_version=180006,
        timeline_id=1,
        start_lsn="0/3000028",
        stop_lsn="0/3000100",
        started_at=at - timedelta(minutes=1),
        finished_at=at,
        stored=StoredObject(bucket="backups", key=f"physical/{name}/base.age", bytes=1_000_000, sha256="0" * 64),
        plain_bytes=3_000_000_000,
        plain_sha256="1" * 64,
        recipients=("age1example",),
    )
    return PhysicalEntry(manifest=manifest, manifest_sha256="2" * 64)


def with_history(*, gitops: bool = False, mirrored: bool = False, writable: bool = False) -> World:
    """A base backup two hours ago, good commits since, and 41 s ago a DELETE that took all users."""
    world = a_world(physical=True, gitops=gitops, mirrored=mirrored, writable=writable)
    system_id = world.postgres.servers["primary"].system_id
    for name, hours in (("base-old", 26), ("base-new", 2)):
        world.physical.entries["primary", name] = a_base(name, age=timedelta(hours=hours), system_id=system_id)
    good = {"shop": GOOD}
    world.physical.history["primary"] = MemoryHistory(
        commits=[
            Commit(at=START - timedelta(hours=1), lsn="0/4000000", xid=800, databases=good),
            Commit(at=HARMED_AT - timedelta(seconds=2), lsn="0/4000100", xid=811, databases=good),
            Commit(at=HARMED_AT, lsn="0/4000200", xid=812, databases={"shop": DAMAGED}),
            Commit(at=HARMED_AT + timedelta(seconds=1), lsn="0/4000300", xid=813, databases={"shop": DAMAGED}),
        ],
        moments=[
            Moment(
                change=Change.DELETE,
                xid=812,
                commit_lsn="0/4000200",
                committed_at=HARMED_AT,
                timeline_id=1,
                rows=3,
                before_xid=811,
                before_at=HARMED_AT - timedelta(seconds=2),
                after_at=HARMED_AT + timedelta(seconds=1),
                lost=1,
            )
        ],
    )
    return world


def with_a_scratch(*, running: bool = True, dropped: str = "") -> World:
    """An instance just before the DELETE. `dropped` is a table that production has lost as well."""
    world = with_history()
    add_a_scratch(world, RecoveryTarget(xid=812, inclusive=False, timeline_id=1), running=running)
    if dropped:
        production = world.postgres.database_behind(DatabaseRef("primary", "shop"))
        rows = {name: count for name, count in production.fingerprint.rows.items() if name != dropped}
        production.fingerprint = production.fingerprint.model_copy(update={"rows": rows})
    return world


def with_an_unseen_scratch() -> World:
    """An instance whose restore ended before its check; it does not run."""
    world = with_a_scratch(running=False)
    world.scratch.made[SCRATCH_ID] = world.scratch.made[SCRATCH_ID].model_copy(update={"checks": {}})
    return world


def with_a_scratch_and_a_primary_in_the_cluster() -> World:
    """An instance whose primary is a StatefulSet that GitOps reconciles."""
    world = with_a_scratch()
    primary = world.postgres.servers["primary"]
    controller = GitOps(tool="flux", kind="Kustomization", namespace="flux", name="platform", suspended=False)
    placed = world.cluster.add(POSTGRES, replicas=1, gitops=controller)
    placed.lasting = ("/var/lib/postgresql",)
    placed.stopped = lambda: setattr(primary, "down", True)
    server = world.site.servers["primary"].model_copy(update={"workload": POSTGRES})
    return replace(world, site=world.site.model_copy(update={"servers": {**world.site.servers, "primary": server}}))


def with_a_point(*, scratch: bool = True) -> World:
    """A recovery point of just before the DELETE; since then a new image was rolled out, and files were harmed."""
    world = with_history(gitops=True, mirrored=True)
    world.live.held += [a_secret("database", version=41), a_secret("mail", version=42)]
    history, api = world.physical.history["primary"], world.cluster.workloads[API]
    since, history.commits = history.commits, history.commits[:2]
    api.images = (f"app@{APP_DIGEST}", "sidecar:1")
    record_a_point(world)
    history.commits = since
    api.images = ("app:2", "sidecar:1")
    world.buckets.arrange("uploads", "b/tax.pdf", None, at=START - timedelta(seconds=20))
    world.buckets.arrange("uploads", "a/dog.jpg", b"cow", at=START - timedelta(seconds=10))
    if scratch:
        add_a_scratch(world, RecoveryTarget(time=POINT_AT))
    return world


def with_a_point_in_git(*, health: str = "", broken: bool = False) -> World:
    """A recovery point of a shop that a controller takes out of Git. Since then the repository has another image and
    another sealed password, both applied, and the oldest sealing key was deleted. `health` is what the application
    answers."""
    world = with_history(gitops=True, mirrored=True, writable=True)
    _follow(world)
    _push(world, image=f"app@{APP_DIGEST}", sealed="AgB-then")
    world.live.held += [a_secret("database", version=41), a_secret("mail", version=42)]
    controller = world.cluster.add(SEALING, replicas=1)
    controller.images = ("registry.example/sealed-secrets-controller:0.27",)
    with ThreadPoolExecutor(max_workers=1) as pool:  # worlds are made within a running loop
        pool.submit(asyncio.run, world.escrow.make("main-1", "main")).result()
    history = world.physical.history["primary"]
    since, history.commits = history.commits, history.commits[:2]
    world.cluster.workloads[API].settle()
    record_a_point(world)
    history.commits = since
    _push(world, image="app:2", sealed="AgB-now")
    world.cluster.workloads[API].settle()
    world.sealing.forget("main", "key-old")
    world.live.held[1] = a_secret("mail", version=60)
    world.buckets.arrange("uploads", "b/tax.pdf", None, at=START - timedelta(seconds=20))
    world.buckets.arrange("uploads", "a/dog.jpg", b"cow", at=START - timedelta(seconds=10))
    add_a_scratch(world, RecoveryTarget(time=POINT_AT))
    if health:
        world.service.answers[HEALTH] = health
    world.cluster.workloads[API].broken = broken
    return world


def _push(world: World, *, image: str, sealed: str) -> None:
    secret = {"apiVersion": "bitnami.com/v1alpha1", "kind": "SealedSecret", "metadata": {"name": "database"}}
    secret["spec"] = {"encryptedData": {"key": sealed}}
    app = MANIFEST.replace('"app:1"', f'"{image}"')
    world.git.push({"production/app.yaml": app, "production/secret.json": json.dumps(secret), "README.md": sealed})


def _follow(world: World) -> None:
    """What a controller does: it takes the newest commit, sets its image, and writes the Secret that it sealed."""

    def follows(found: MemoryWorkload) -> None:
        head = world.git.branches["main"]
        assert found.gitops is not None
        if found.gitops.revision == head:
            return
        found.gitops = found.gitops.model_copy(update={"revision": head})
        tree = world.git.trees[head]
        named = re.search(r'image: "([^"]+)"', tree["production/app.yaml"].decode())
        found.images = (named[1] if named else found.images[0], *found.images[1:])
        for secret in world.live.held[:1]:
            metadata = secret["metadata"]
            metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 16)

    world.cluster.workloads[API].follows = follows


def a_secret(name: str, *, version: int, uid: str = "uid-1", value: str = "Y2FuYXJ5LXZhbHVl") -> dict[str, Any]:
    """As the API server shows it."""
    metadata = {"name": name, "namespace": "shop", "uid": uid, "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": {"key": value}}


def with_a_point_of_dumps() -> World:
    """A recovery point of a database that has dumps alone; nothing of the cluster has changed since."""
    world = a_world()
    record_a_point(world)
    return world


def with_secrets(*, sealed: bool = True, writable: bool = True) -> World:
    """A shop with a Secret that people made (`database`), two that are the same all the time (`mail`, `licence`), and
    one that a SealedSecret brings."""
    world = a_world(sealed=sealed, writable=writable)
    token = a_secret("token", version=44)
    token["metadata"]["ownerReferences"] = [{"kind": "SealedSecret", "name": "token"}]
    world.live.held += [a_secret("database", version=41), a_secret("mail", version=42), a_secret("licence", version=43)]
    world.live.held.append(token)
    return world


def with_sealed_secrets(*, health: str = "", lost: Collection[str] = ("mail",)) -> World:
    """A recovery point that has sealed those. Since then `mail` was deleted, and somebody wrote another `database`.
    `health` is what the application answers."""
    world = with_secrets()
    record_a_point(world)
    world.live.held = [each for each in world.live.held if each["metadata"]["name"] not in lost]
    world.live.held[0] = a_secret("database", version=61, value=NEWER)
    if health:
        world.service.answers[HEALTH] = health
    return world


def with_old_sealed_copies() -> World:
    """What a plan kept of Secrets 100 days ago and 10 days ago, beside the copy of a point that is 100 days old."""
    world = with_secrets()
    world.clock.advance(timedelta(days=-100))

    async def make() -> None:
        await world.points.record(POINT)
        await world.secret_copies.seal("before-a", "main", ["Secret main/shop/mail"])
        world.clock.advance(timedelta(days=90))
        await world.secret_copies.seal("before-b", "main", ["Secret main/shop/mail"])
        world.clock.advance(timedelta(days=10))

    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(asyncio.run, make()).result()
    return world


def with_old_records(*, recorded: Collection[int] = range(6), pinned: bool = False) -> World:
    """Eight escrows of 120 to 85 days ago, and recovery points beside some of the first six. The oldest escrow alone
    holds a key."""
    world = a_world()
    world.clock.advance(timedelta(days=-120))

    async def make() -> None:
        for number in range(8):
            await world.escrow.make(f"escrow-{number}", "main")
            if number in recorded:
                await world.points.record(f"point-{number}")
            if number == 0:
                world.sealing.forget("main", "key-old")
            world.clock.advance(timedelta(days=5))
        world.clock.advance(timedelta(days=80))
        if pinned:
            await world.points.pin("point-0", reason="case 4711")

    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(asyncio.run, make()).result()
    return world


def record_a_point(world: World) -> None:
    """Record what belongs together now."""
    with ThreadPoolExecutor(max_workers=1) as pool:  # worlds are made within a running loop
        for name in world.site.manifests:
            pool.submit(asyncio.run, world.manifests.mirror(f"{name}-1", name)).result()
        pool.submit(asyncio.run, world.points.record(POINT)).result()


def add_a_scratch(world: World, target: RecoveryTarget, *, running: bool = True) -> None:
    """An instance that was stopped at this target, just before the DELETE."""
    system_id = world.postgres.servers["primary"].system_id
    world.scratch.contents[SCRATCH_ID] = {"shop": GOOD}
    world.scratch.made[SCRATCH_ID] = ScratchFacts(
        id=SCRATCH_ID,
        server="primary",
        mark=MARK,
        state=ScratchState.STOPPED,
        restored=ScratchRestored(
            id=SCRATCH_ID,
            backup="base-new",
            target=target,
            reached_lsn="0/4000100",
            reached_at=HARMED_AT - timedelta(seconds=2),
            timeline_id=1,
            checked_pages=True,
            seconds={"fetch": 10.0, "replay": 2.0, "check": 3.0},
            bytes=1_000_000_000,
            plain_bytes=3_000_000_000,
        ),
        system_id=system_id,
        checks={"shop": Check(at=START, compared="Every table has as many rows as in production.")},
        bytes=3_000_000_000,
        made_at=START,
        expires_at=START + timedelta(hours=12),
    )
    world.service.addresses[f"{ADVERTISED}:5432"] = world.scratch.made[SCRATCH_ID].name
    if running:
        world.scratch.run(SCRATCH_ID)


def with_a_standby(*, delay: timedelta = timedelta(minutes=30)) -> World:
    """An instance that follows, and has not replayed the DELETE yet."""
    world = with_a_scratch()
    facts = world.scratch.made[SCRATCH_ID]
    assert facts.restored is not None
    begun = START - timedelta(hours=1)
    world.scratch.made[SCRATCH_ID] = facts.model_copy(
        update={
            "state": ScratchState.FOLLOWING,
            "restored": facts.restored.model_copy(
                update={"target": RecoveryTarget(latest=True), "reached_lsn": "0/4000000", "reached_at": begun}
            ),
            "following": Following(
                delay=delay,
                since=begun,
                fed_at=START,
                fed_lsn="0/4000300",
                replayed_lsn="0/4000000",
                replayed_at=begun,
                waits=Waiting.DELAY,
            ),
        }
    )
    return world
