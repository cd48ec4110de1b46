"""Pins in buckets of a real store that can lock: nobody deletes a version of what is pinned, with whatever keys, and
what is pinned no more can go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from botocore.exceptions import ClientError

from actions import registry
from actions.adapters.s3 import S3Store
from actions.adapters.secrets import SecretReferences
from actions.backup.catalogue import Folder
from actions.backup.escrow import escrow_objects
from actions.backup.logical import LogicalEngine
from actions.backup.manifest import SignedManifest, StoredObject
from actions.backup.native_catalogue import BaseFolder
from actions.backup.points import RecoveryPoints
from actions.backup.wal import WalArchive
from actions.catalog.retention import PinParams, UnpinParams
from actions.contract import JournalState
from actions.ports import Ports, no_progress
from actions.runner import Outcome
from actions.site import BackupPolicy, Bucket, Database, Frozen, Site
from actions.steps.holds import hold_findings
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.backups import SIGNER, SIGNING_KEY, SIGNING_PEM
from tests.fakes.clock import START
from tests.fakes.manifests import a_manifest
from tests.fakes.secrets import MemorySecrets
from tests.fakes.two_buckets import SERVER, TwoBuckets
from tests.fakes.world import a_world
from tests.fixtures.shared_s3 import S3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.integration

HOUR = timedelta(hours=1)
CASE, DUMP = "case 4711", b"a dump"


@dataclass
class Locked:
    """A server with a full base backup and an incremental in two buckets, and a dump in the first."""

    client: S3Client
    near: str
    far: str
    store: S3Store
    ports: Ports
    bases: TwoBuckets
    dumps: BackupPolicy

    async def carried_out(self, action: str, params: Frozen) -> str:
        """What the run reports."""
        journal = MemoryJournal()
        plan = await registry.action(action).plan(params, self.ports, PLAN_ID)
        assert plan.findings == ()
        result = await run(plan, self.ports, journal)
        assert result.outcome is Outcome.SUCCEEDED, result.message
        [report] = [line.detail for line in await journal.entries() if line.state is JournalState.VERIFIED]
        return report

    def versions(self, bucket: str, prefix: str = "") -> list[tuple[str, str]]:
        found = self.client.list_object_versions(Bucket=bucket, Prefix=prefix)
        return [(each["Key"], each["VersionId"]) for each in found.get("Versions", [])]

    def undeletable(self, bucket: str, prefix: str) -> set[str]:
        """The keys below it of which no version lets itself be deleted, tried with the keys of the administrator."""
        kept = set()
        for key, version in self.versions(bucket, prefix):
            try:
                self.client.delete_object(Bucket=bucket, Key=key, VersionId=version, BypassGovernanceRetention=True)
            except ClientError as error:
                if error.response["Error"]["Code"] != "AccessDenied":
                    raise
                kept.add(key)
        return kept


@pytest.fixture
def locked(s3: S3, bucket: str, tmp_path: Path) -> Iterator[Locked]:
    near, far = f"{bucket}-near", f"{bucket}-far"
    client = s3.client()
    for name in (near, far):
        client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    bases = TwoBuckets(tmp_path)
    dumps = BackupPolicy(
        database="shop",
        bucket=near,
        recipients=("age1x",),
        identity="env:I",
        signing_key="env:DUMPS",
        trusted_signers=(SIGNER,),
    )
    keys = {"endpoint": s3.endpoint, "access_key": "env:A", "secret_key": "env:S"}
    bases.policy = bases.policy.model_copy(update={"bucket": near, "copy_bucket": far, "wal_buckets": (near, far)})
    bases.site = site = Site(
        servers=bases.site.servers,
        databases={"shop": Database(name="shop", server=SERVER, owner="app")},
        buckets={name: Bucket(name=name, region=name, **keys) for name in (near, far)},  # type: ignore[arg-type]
        backups={"shop": dumps},
        physical={SERVER: bases.policy},
    )
    store = S3Store(site, SecretReferences({"A": s3.access_key, "S": s3.secret_key}))
    bases.objects = cast(Any, store)
    memory = a_world()
    logical = LogicalEngine(
        site,
        postgres=memory.postgres,
        objects=store,
        secrets=MemorySecrets({"env:DUMPS": SIGNING_PEM}),
        clock=bases.clock,
        tools=cast(Any, None),  # nothing is dumped here
        work_directory=tmp_path,
    )
    parts: dict[str, Any] = {part.name: getattr(memory, part.name) for part in fields(Ports)}
    parts |= {"site": site, "objects": store, "physical": bases.engine(), "backups": logical, "clock": bases.clock}
    made = Locked(client, near, far, store, Ports(**parts), bases, dumps)
    yield made
    store.close()
    for name in (near, far):
        for key, version in made.versions(name):
            client.put_object_legal_hold(Bucket=name, Key=key, VersionId=version, LegalHold={"Status": "OFF"})
            client.delete_object(Bucket=name, Key=key, VersionId=version)


async def a_chain(locked: Locked) -> dict[str, set[str]]:
    """What each backup is made of, with its WAL."""
    segment = WalArchive(locked.store, locked.bases.policy).key("000000010000000000000003")
    await locked.bases.put("full", START - 2 * HOUR, bucket=locked.near)
    await locked.bases.put("hour", START - HOUR, parent="full", bucket=locked.near)
    for name in (locked.near, locked.far):
        await locked.store.put(name, segment, b"sealed")
    await locked.ports.physical.copy(SERVER, "hour", no_progress)
    folders = {name: BaseFolder(locked.bases.policy, name) for name in ("full", "hour")}
    return {name: {each.base, each.files, each.manifest, segment} for name, each in folders.items()}


async def test_nobody_deletes_a_version_of_what_a_pinned_base_backup_needs(locked: Locked) -> None:
    made = await a_chain(locked)
    report = await locked.carried_out("backup.pin", PinParams(server=SERVER, backup="hour", why=CASE))
    assert report.count("under legal hold") == 2

    locked.bases.clock.advance(HOUR)
    await locked.carried_out("backup.pin", PinParams(server=SERVER, backup="full", why="migration"))
    locked.bases.clock.advance(HOUR)
    assert await locked.carried_out("backup.unpin", UnpinParams(server=SERVER, backup="hour")) == ""
    holds = await locked.ports.physical.holds(SERVER, "hour")
    assert {(hold.bucket, hold.held) for hold in holds} == {(locked.near, 4), (locked.far, 4)}

    # With every key there is, and without asking the bot. The incremental is held no more.
    for name in (locked.near, locked.far):
        assert locked.undeletable(name, "physical/") == made["full"]
    assert {entry.manifest.id for entry in await locked.ports.physical.catalogue(SERVER)} == {"full"}


async def test_a_hold_that_somebody_took_off_is_told_and_set_again(locked: Locked) -> None:
    await a_chain(locked)
    asked = PinParams(server=SERVER, backup="full", why=CASE)
    await locked.carried_out("backup.pin", asked)
    assert [finding.check for finding in await hold_findings(locked.ports)] == ["pins"]
    base = BaseFolder(locked.bases.policy, "full").base
    await locked.store.hold(locked.far, base, on=False)

    [finding] = await hold_findings(locked.ports)
    assert f"Bucket `{locked.far}` holds 3 of 4 objects" in finding.detail
    locked.bases.clock.advance(HOUR)
    await locked.carried_out("backup.pin", asked)
    assert await locked.store.held(locked.far, base) is True


async def a_dump(locked: Locked) -> Folder:
    folder = Folder(locked.dumps, "b1")
    stored = StoredObject(bucket=locked.near, key=folder.dump, bytes=len(DUMP), sha256="ab" * 32)
    signed = SignedManifest.sign(a_manifest(id="b1", database="shop", stored=stored), SIGNING_KEY)
    await locked.store.put(locked.near, folder.dump, DUMP)
    await locked.store.put(locked.near, folder.manifest, signed.model_dump_json().encode())
    return folder


async def test_a_pinned_dump_stays_whoever_deletes_and_goes_when_it_is_unpinned(locked: Locked) -> None:
    folder = await a_dump(locked)

    report = await locked.carried_out("backup.pin", PinParams(server="shop", backup="b1", why=CASE))
    assert report == f"Bucket `{locked.near}` has 2 objects of it under legal hold."
    assert locked.undeletable(locked.near, folder.prefix) == {folder.dump, folder.manifest}

    # A delete without a version hides it alone: the version is there to be brought back.
    await locked.store.delete(locked.near, folder.dump)
    assert folder.dump in {key for key, _ in locked.versions(locked.near, folder.prefix)}
    await locked.store.put(locked.near, folder.dump, DUMP)
    assert [hold.held for hold in await locked.ports.backups.holds("shop", "b1")] == [1]


async def test_an_unpinned_dump_goes(locked: Locked) -> None:
    folder = await a_dump(locked)
    await locked.carried_out("backup.pin", PinParams(server="shop", backup="b1", why=CASE))
    locked.bases.clock.advance(HOUR)
    assert await locked.carried_out("backup.unpin", UnpinParams(server="shop", backup="b1")) == ""
    assert locked.undeletable(locked.near, folder.prefix) == set()


async def test_a_pinned_point_and_its_escrow_stay_whoever_deletes(locked: Locked) -> None:
    memory = a_world()
    await memory.escrow.make("main-1", "main")
    policy, escrow = memory.site.points, memory.site.escrow
    assert policy is not None
    assert escrow is not None
    kept = {
        "points": policy.model_copy(update={"bucket": locked.near}),
        "escrow": escrow.model_copy(update={"bucket": locked.far}),
    }
    site = locked.ports.site.model_copy(update=kept)
    points = RecoveryPoints(
        site, memory.points._parts, memory.secret_copies, locked.store, memory.point_secrets, locked.bases.clock
    )
    for name in escrow_objects(escrow, "main", "main-1"):
        await locked.store.put(locked.far, name, b"as it was made")
    await points.record("point-1")
    held = {"recovery-points/point-1.json", *escrow_objects(escrow, "main", "main-1")}

    await points.pin("point-1", reason=CASE)
    assert [hold.whole for hold in await points.holds("point-1")] == [True, True]
    kept_there = locked.undeletable(locked.near, "recovery-points/") | locked.undeletable(locked.far, "escrow/")
    assert kept_there == held
    locked.bases.clock.advance(HOUR)
    await points.pin("point-1", reason="")
    assert locked.undeletable(locked.near, "recovery-points/") == set()
    assert locked.undeletable(locked.far, "escrow/") == set()
