"""What the actions get of the plan file."""

from datetime import timedelta
from pathlib import Path

import pytest

from actions.adapters.secrets import SecretReferences
from actions.errors import UserError
from actions.site import WorkloadKind, WorkloadRef
from bot.plan_file import DrPlan, load
from bot.plan_file.doubts import doubts
from bot.plan_file.world import ServerRole, ServerWorkload
from bot.site import site_of
from bot.wal import archive

SHIPPED = Path(__file__).parents[2] / "dr-plan.yml"
ADDRESSES = (
    "PRIMARY_HOST",
    "SECONDARY_HOST",
    "HEALTH_URL",
    "BACKUP_REGION",
    "FILES_REGION",
    "FILES_ENDPOINT",
    "FILES_COPY_REGION",
)
KEYS = (
    "FILES_COPY_REGION",
    "RECIPIENT_RESTORE",
    "RECIPIENT_PROVER",
    "RECIPIENT_CUSTODIAN",
    "MANIFEST_SIGNER",
    "WITNESS_REGION",
    "RECORD_KEY",
)


async def test_the_physical_backups_of_the_shipped_plan() -> None:
    values = {f"DR_{name}": name.lower() for name in ADDRESSES + KEYS}
    site = await site_of(load(SHIPPED), SecretReferences(values))
    policy = site.physical_of("primary")
    assert (policy.engine, policy.bucket, policy.prefix) == (
        "native",
        "superprismora-backups",
        "backups/physical/",
    )
    assert (policy.wal_buckets, policy.open_bucket) == (("superprismora-backups",), "superprismora-wal-open")
    assert policy.recipients == ("recipient_restore", "recipient_prover", "recipient_custodian")
    assert (policy.full_schedule, policy.incremental_every) == ("02:30 UTC", timedelta(minutes=15))
    assert (policy.full_retention, policy.wal_retention) == (timedelta(days=30), timedelta(days=7))
    assert (policy.minimum_fulls, policy.slot, policy.synchronous) == (2, "drbot_wal", False)
    assert policy.amcheck is False
    assert (site.scratch.disk, site.scratch.instances, site.scratch.lifetime) == (200 << 30, 3, timedelta(hours=12))
    assert site.scratch.ports is None


async def test_recovery_points_and_escrows_are_kept_as_long_as_anything_that_can_be_brought_back() -> None:
    values = {f"DR_{name}": name.lower() for name in ADDRESSES + KEYS}
    plan = load(SHIPPED)
    assert plan.backups.recovery_points is not None
    assert plan.backups.escrow is not None

    async def kept(**backups: object) -> tuple[timedelta, timedelta]:
        document = plan.model_dump(mode="json")
        document["backups"] |= backups
        for part in ("recovery_points", "escrow"):
            document["backups"][part] |= {"retention": None}
        site = await site_of(DrPlan.model_validate(document), SecretReferences(values))
        assert site.points is not None
        assert site.escrow is not None
        assert (site.points.minimum, site.escrow.minimum) == (24, 3)
        return site.points.retention, site.escrow.retention

    assert await kept() == (timedelta(days=90), timedelta(days=90))  # the versions of uploads
    assert await kept(files=[]) == (timedelta(days=30), timedelta(days=30))  # dumps and base backups
    own = await site_of(plan, SecretReferences(values))
    assert own.points is not None
    assert own.points.retention == plan.backups.recovery_points.retention


def test_points_that_outlive_their_images_are_doubted() -> None:
    plan = load(SHIPPED)
    document = plan.model_dump(mode="json")
    document["backups"]["images"]["retention"] = "30d"
    told = [doubt.wrong for doubt in doubts(DrPlan.model_validate(document), today=None) if "images" in doubt.wrong]
    assert told == ["recovery points are kept 90 d, the images that they name 30 d"]
    assert not [doubt for doubt in doubts(plan, today=None) if "images" in doubt.wrong]


def test_sealed_secrets_that_nobody_can_open_or_that_belong_to_nothing_are_doubted() -> None:
    def told(*, identity: str | None, points: bool = True) -> list[str]:
        document = load(SHIPPED).model_dump(mode="json")
        document["backups"]["escrow"] |= {"secrets": True, "identity": identity}
        if not points:
            document["backups"]["recovery_points"] = None
        plan = DrPlan.model_validate(document)
        return [doubt.wrong for doubt in doubts(plan, today=None) if "Secrets" in doubt.wrong]

    assert told(identity="env:ID") == []
    assert told(identity=None) == ["sealed Secrets are given back by custodians alone, since the bot cannot open them"]
    assert told(identity="env:ID", points=False) == ["Secrets are sealed with recovery points, and there are none"]


async def test_base_backups_are_copied_where_the_plan_names_a_second_bucket() -> None:
    values = {f"DR_{name}": name.lower() for name in ADDRESSES + KEYS}
    plan = load(SHIPPED)
    [item] = plan.backups.databases
    assert item.base is not None
    assert (await site_of(plan, SecretReferences(values))).physical_of("primary").base_buckets == (
        "superprismora-backups",
    )
    both = ("superprismora-backups", "superprismora-files-copy")
    copied = item.model_copy(update={"base": item.base.model_copy(update={"stores": both})})
    wanted = plan.model_copy(update={"backups": plan.backups.model_copy(update={"databases": (copied,)})})
    assert (await site_of(wanted, SecretReferences(values))).physical_of("primary").base_buckets == both


async def test_indexes_are_checked_where_the_plan_says_so() -> None:
    values = {f"DR_{name}": name.lower() for name in ADDRESSES + KEYS}
    plan = load(SHIPPED)
    [item] = plan.backups.databases
    assert item.base is not None
    checking = item.model_copy(update={"base": item.base.model_copy(update={"amcheck": True})})
    wanted = plan.model_copy(update={"backups": plan.backups.model_copy(update={"databases": (checking,)})})
    assert (await site_of(wanted, SecretReferences(values))).physical_of("primary").amcheck


async def test_scratch_instances_get_the_ports_of_the_plan() -> None:
    values = {f"DR_{name}": name.lower() for name in ADDRESSES + KEYS}
    plan = load(SHIPPED)
    limits = plan.backups.scratch.model_copy(update={"ports": "55400-55499"})
    wanted = plan.model_copy(update={"backups": plan.backups.model_copy(update={"scratch": limits})})
    assert (await site_of(wanted, SecretReferences(values))).scratch.ports == (55400, 55499)


async def test_the_archiver_knows_the_standbys_of_its_server() -> None:
    values = {f"DR_{name}": name.lower() for name in ADDRESSES + KEYS}
    plan = load(SHIPPED)
    replica = plan.servers[1].model_copy(
        update={"name": "replica", "role": ServerRole.STANDBY, "standby_of": "primary"}
    )
    wanted = plan.model_copy(update={"servers": (*plan.servers, replica)})
    site = await site_of(wanted, SecretReferences(values))
    assert site.physical_of("primary").standbys == ("replica",)
    assert "replica" in site.servers


async def test_a_server_names_the_workload_that_runs_it() -> None:
    values = {f"DR_{name}": name.lower() for name in ADDRESSES + KEYS}
    plan = load(SHIPPED)
    assert (await site_of(plan, SecretReferences(values))).servers["primary"].workload is None
    found = {"cluster": "production", "kind": "StatefulSet", "name": "postgres"}
    for namespace, wanted in ((None, "production"), ("data", "data")):
        workload = ServerWorkload.model_validate({**found, "namespace": namespace})
        server = plan.servers[0].model_copy(update={"workload": workload})
        site = await site_of(plan.model_copy(update={"servers": (server, *plan.servers[1:])}), SecretReferences(values))
        assert site.servers["primary"].workload == WorkloadRef(
            "production", wanted, WorkloadKind.STATEFUL_SET, "postgres"
        )


async def test_the_files_and_buckets_of_the_shipped_plan() -> None:
    values = {f"DR_{name}": name.lower() for name in ADDRESSES + KEYS}
    site = await site_of(load(SHIPPED), SecretReferences(values))

    files = site.files_of("minio-data")
    assert (files.bucket, files.copy_bucket, files.copy_prefix) == (
        "superprismora-files",
        "superprismora-files-copy",
        "copies/",
    )
    assert (files.schedule, files.retention) == ("03:00 UTC", timedelta(days=30))
    uploads, copies = site.buckets["superprismora-files"].posture, site.buckets["superprismora-files-copy"].posture
    assert (uploads.versioning, uploads.keep_versions, uploads.used) == (True, timedelta(days=90), ())
    assert (copies.encryption, copies.used) == ("AES256", ("copies/",))
    backups, pieces = (site.buckets[name].posture for name in ("superprismora-backups", "superprismora-wal-open"))
    assert (backups.used, pieces.used) == (("backups/",), ("backups/",))
    assert (backups.kept["dumps"], backups.kept["WAL"]) == (timedelta(days=30), timedelta(days=7))
    assert (backups.locks_for, pieces.kept, copies.kept) == (None, {}, {"copies of files": timedelta(days=30)})
    assert site.escrow is not None
    assert (site.escrow.bucket, site.escrow.prefix) == ("superprismora-backups", "backups/")
    assert site.clusters["production"].sealed_secrets == "sealed-secrets"


async def test_uploads_in_a_bucket_of_their_own_can_be_brought_back() -> None:
    values = {f"DR_{name}": name.lower() for name in ADDRESSES + KEYS}
    plan = load(SHIPPED)
    copied, uploads = plan.backups.files
    assert (uploads.versions, plan.backups.brought_back) == (True, (copied,))  # its bucket is copied under that name
    for name, wanted in ((None, "uploads"), ("pictures", "pictures")):
        own = uploads.model_copy(update={"bucket": "superprismora-wal-open", "prefix": "up/", "name": name})
        backups = plan.backups.model_copy(update={"files": (copied, own)})
        site = await site_of(plan.model_copy(update={"backups": backups}), SecretReferences(values))
        assert sorted(site.files) == ["minio-data", wanted]
        policy = site.files_of(wanted)
        assert (policy.bucket, policy.prefix, policy.copy_bucket) == ("superprismora-wal-open", "up/", "")
        assert policy.retention == timedelta(days=90)


async def test_an_archiver_of_ours_does_not_start_where_the_server_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ADDRESSES + KEYS:
        monkeypatch.setenv(f"DR_{name}", name.lower())
    plan = load(SHIPPED)
    [item] = plan.backups.databases
    assert item.base is not None
    archiving = item.model_copy(update={"base": item.base.model_copy(update={"engine": "pgbackrest"})})
    other = plan.model_copy(update={"backups": plan.backups.model_copy(update={"databases": (archiving,)})})
    with pytest.raises(UserError, match=r"`primary` is not archived by `drbot wal`: .* pgBackRest, and the server"):
        await archive(other, SecretReferences({}), item.database, tmp_path, open_every=timedelta(seconds=5))
