"""A bucket held against the plan: what is not as planned is found, what cannot be seen is never fine."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from actions import registry
from actions.buckets import BucketFacts, LifecycleRule, Trial
from actions.catalog.backup_status import BackupsParams
from actions.catalog.buckets import BucketsParams
from actions.contract import Finding, Verdict
from actions.errors import UserError
from actions.site import Bucket, BucketPosture, LockMode, Site
from actions.steps.postures import apart, apart_findings, posture_findings, trial_findings
from tests.fakes.history import with_history
from tests.fakes.physical_world import a_policy
from tests.fakes.world import a_world

FULL = BucketFacts(
    versioning=True,
    lockable=True,
    object_lock=LockMode.GOVERNANCE,
    locked_for=timedelta(days=30),
    encryption="AES256",
    lifecycle=(),
    replicates_to=("there",),
    replicates_deletes=True,
)
PLANNED = BucketPosture(
    versioning=True,
    object_lock=LockMode.GOVERNANCE,
    encryption="AES256",
    replicates_to="there",
    used=("backups/",),
)
SETTINGS = ("versioning", "object_lock", "lockable", "encryption", "lifecycle", "replicates_to")


def found(facts: BucketFacts, posture: BucketPosture = PLANNED) -> list[Finding]:
    bucket = Bucket(name="here", access_key="env:A", secret_key="env:S", posture=posture)
    return posture_findings(Site(buckets={"here": bucket}), bucket, facts)


def odd(facts: BucketFacts, posture: BucketPosture = PLANNED) -> list[Finding]:
    return [finding for finding in found(facts, posture) if finding.verdict is not Verdict.OK]


def test_a_bucket_as_planned_has_no_findings_but_good_ones() -> None:
    assert len(found(FULL)) == 5
    assert odd(FULL) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"versioning": False}, "keeps no versions"),
        ({"object_lock": LockMode.OFF}, "the plan says `governance`"),
        ({"encryption": ""}, "encrypts nothing by default"),
        ({"replicates_to": ()}, "nowhere"),
        ({"replicates_to": ("elsewhere",)}, "`elsewhere`"),
    ],
)
def test_what_is_not_as_planned_is_found(changes: dict[str, object], said: str) -> None:
    [finding] = odd(FULL.model_copy(update=changes))

    assert said in finding.detail
    assert finding.hint


def test_a_stricter_lock_than_planned_is_fine() -> None:
    assert odd(FULL.model_copy(update={"object_lock": LockMode.COMPLIANCE})) == []


def test_what_cannot_be_seen_is_said_and_why() -> None:
    reasons = dict.fromkeys(("versioning", "object lock", "encryption", "lifecycle", "replication"), "AccessDenied")
    blind = FULL.model_copy(update={**dict.fromkeys(SETTINGS), "unseen": reasons})

    findings = odd(blind)

    assert len(findings) == 5
    assert all("cannot be seen: AccessDenied" in finding.detail for finding in findings)
    assert all(finding.verdict is Verdict.WARN for finding in findings)


@pytest.mark.parametrize("prefix", ["", "back", "backups/", "backups/dumps/"])
def test_a_rule_that_deletes_what_a_backup_needs_is_found(prefix: str) -> None:
    rule = LifecycleRule(name="tidy", prefix=prefix, deletes_after=timedelta(days=7))

    [finding] = odd(FULL.model_copy(update={"lifecycle": (rule,)}))

    assert finding.verdict is Verdict.STOP
    assert "after 7 d" in finding.detail


def test_a_rule_beside_the_backups_is_none_of_ours() -> None:
    rule = LifecycleRule(name="tidy", prefix="other/", deletes_after=timedelta(days=1))
    archive = LifecycleRule(name="cold", prefix="backups/", archives_after=timedelta(days=1))

    assert odd(FULL.model_copy(update={"lifecycle": (rule,)})) == []
    assert "takes hours" in odd(FULL.model_copy(update={"lifecycle": (archive,)}))[0].detail


@pytest.mark.parametrize(("days", "fine"), [(30, False), (89, False), (90, True)])
def test_old_versions_must_stay_as_long_as_planned(days: int, fine: bool) -> None:
    kept = BucketPosture(versioning=True, keep_versions=timedelta(days=90))
    rules = (LifecycleRule(name="old", deletes_versions_after=timedelta(days=days)),)

    findings = odd(FULL.model_copy(update={"lifecycle": rules}), kept)

    assert (findings == []) is fine


@pytest.mark.parametrize(
    ("days", "says", "told"),
    [
        (7, None, "after 7 d whoever has its keys can delete dumps (30 d)."),
        (29, None, "can delete dumps (30 d)."),
        (30, None, ""),
        (31, None, "takes its room for 1 d more"),
        (7, 7, ""),
        (6, 7, "the plan wants 7 d: after 6 d whoever has its keys can delete WAL (7 d), dumps (30 d)."),
        (30, 7, "the plan wants 7 d: what expiry deletes is hidden and takes its room for 23 d more"),
    ],
)
def test_how_long_a_bucket_locks_is_held_against_the_plan(days: int, says: int | None, told: str) -> None:
    says_so = None if says is None else timedelta(days=says)
    kept = {"WAL": timedelta(days=7), "dumps": timedelta(days=30)}
    rules = (LifecycleRule(name="old", deletes_versions_after=timedelta(days=30)),)
    posture = PLANNED.model_copy(update={"kept": kept, "locks_for": says_so})

    findings = odd(FULL.model_copy(update={"locked_for": timedelta(days=days), "lifecycle": rules}), posture)

    assert [finding.verdict for finding in findings] == ([Verdict.WARN] if told else [])
    if told:
        assert told in findings[0].detail
        assert f"default retention to {says or 30} days" in findings[0].hint
        assert ("object_lock_for" in findings[0].hint) is (says is None)


def test_a_lock_that_nobody_planned_is_told_where_it_outlives_what_is_kept() -> None:
    posture = BucketPosture(used=("backups/",), kept={"dumps": timedelta(days=30)})
    rules = (LifecycleRule(name="old", deletes_versions_after=timedelta(days=30)),)
    facts = FULL.model_copy(update={"lifecycle": rules})

    assert odd(facts, posture) == []
    [finding] = odd(facts.model_copy(update={"locked_for": timedelta(days=365)}), posture)
    assert "keeps nothing there for longer than 30 d" in finding.detail
    assert "`object_lock` and `object_lock_for: 365d`" in finding.hint


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        (None, True),
        (LifecycleRule(name="old", deletes_versions_after=timedelta(days=30)), False),
        (LifecycleRule(name="old", prefix="backups/", deletes_versions_after=timedelta(days=30)), False),
        (LifecycleRule(name="old", prefix="backups/dumps/", deletes_versions_after=timedelta(days=30)), True),
        (LifecycleRule(name="old", narrowed=True, deletes_versions_after=timedelta(days=30)), True),
        (LifecycleRule(name="tmp", prefix="tmp/", deletes_after=timedelta(days=1)), True),
    ],
)
def test_old_versions_that_nothing_removes_are_found_with_the_rule_that_would(
    rule: LifecycleRule | None, left: bool
) -> None:
    posture = PLANNED.model_copy(update={"kept": {"dumps": timedelta(days=30)}})
    rules = () if rule is None else (rule,)

    findings = odd(FULL.model_copy(update={"lifecycle": rules}), posture)

    assert [finding.check for finding in findings] == (["old versions of here"] if left else [])
    if left:
        assert '"Filter": {"Prefix": "backups/"}' in findings[0].hint
        assert ("put-bucket-lifecycle-configuration --bucket here" in findings[0].hint) is (rule is None)
        assert ("Keep the others" in findings[0].hint) is (rule is not None)
    assert odd(FULL.model_copy(update={"lifecycle": rules, "versioning": False}), PLANNED) != []


@pytest.mark.parametrize(
    "posture",
    [
        BucketPosture(versioning=True, used=("evidence/",)),  # the bot deletes none of it
        BucketPosture(versioning=True, keep_versions=timedelta.max, kept={"dumps": timedelta(days=30)}),
    ],
)
def test_where_nothing_is_to_go_no_rule_is_asked_for(posture: BucketPosture) -> None:
    assert odd(FULL, posture) == []


def test_the_bucket_of_the_open_segment_is_looked_at() -> None:
    """What comes every few seconds and goes again must be free to go."""
    policy = a_policy().model_copy(update={"open_bucket": "here"})
    bucket = Bucket(
        name="here",
        access_key="env:A",
        secret_key="env:S",
        posture=BucketPosture(used=("backups/",), purpose="backups"),
    )
    site = Site(buckets={"here": bucket}, physical={"primary": policy})
    bare = BucketFacts(versioning=False, lockable=False, object_lock=LockMode.OFF, lifecycle=())

    def told(**changes: object) -> list[Finding]:
        findings = posture_findings(site, bucket, bare.model_copy(update=changes))
        return [finding for finding in findings if finding.verdict is not Verdict.OK]

    assert told() == []
    [versions] = told(versioning=True)
    assert "all WAL once more" in versions.detail
    assert '"NoncurrentDays": 1' in versions.hint
    rule = LifecycleRule(name="tidy", deletes_after=timedelta(days=1))
    [swept] = told(lifecycle=(rule,))
    assert swept.verdict is Verdict.STOP
    locks = told(lockable=True, object_lock=LockMode.GOVERNANCE, locked_for=timedelta(days=30))
    assert [finding.verdict for finding in locks] == [Verdict.STOP]
    assert "gets a piece of WAL every few seconds" in locks[0].detail


def test_a_witness_needs_a_bucket_that_can_lock_and_no_default() -> None:
    witness = BucketPosture(purpose="witness", object_lock=LockMode.COMPLIANCE)
    able = FULL.model_copy(update={"object_lock": LockMode.OFF})

    assert odd(able, witness) == []
    assert odd(able.model_copy(update={"lockable": False}), witness)[0].verdict is Verdict.STOP


def test_copies_in_the_region_they_are_for_are_found() -> None:
    site = a_world().site
    near = site.model_copy(
        update={"buckets": {**site.buckets, "uploads-copy": site.buckets["uploads"].model_copy()}},
    )

    assert apart_findings(site) == []
    assert "lost together" in apart_findings(near)[0].detail


@pytest.mark.parametrize(
    ("base", "far", "engine", "lost"),
    [
        ("near", "us-west-2", "native", True),
        ("beside", "us-west-2", "native", True),
        ("far", "us-west-2", "native", False),
        ("near", "us-east-1", "native", False),  # both copies of the WAL are lost, which is told for itself
        ("near", "us-west-2", "pgbackrest", False),
    ],
)
def test_base_backups_that_are_lost_with_the_region_that_the_wal_outlives(
    base: str, far: str, engine: str, lost: bool
) -> None:
    regions = {"near": "us-east-1", "beside": "us-east-1", "far": far}
    buckets = {
        name: Bucket(name=name, region=region, access_key="env:A", secret_key="env:S")
        for name, region in regions.items()
    }
    changes = {"bucket": base, "wal_buckets": ("near", "far"), "engine": engine}
    policy = a_policy().model_copy(update=changes)
    findings = apart_findings(Site(buckets=buckets, physical={"primary": policy}))

    told = [finding for finding in findings if finding.verdict is Verdict.STOP]
    assert bool(told) is lost
    if lost:
        assert f"are in `{base}` alone, in the region of `near`" in told[0].detail
        assert "Name `far` as the second store of `base`" in told[0].hint
        assert "take a base backup at once" in told[0].hint


@pytest.mark.parametrize(("copy", "lost", "together"), [("far", False, False), ("beside", True, True)])
def test_a_copy_of_the_base_backups_counts_where_it_outlives_the_region(
    copy: str, *, lost: bool, together: bool
) -> None:
    regions = {"near": "us-east-1", "beside": "us-east-1", "far": "us-west-2"}
    buckets = {
        name: Bucket(name=name, region=region, access_key="env:A", secret_key="env:S")
        for name, region in regions.items()
    }
    changes = {"bucket": "near", "copy_bucket": copy, "wal_buckets": ("near", "far")}
    policy = a_policy().model_copy(update=changes)
    findings = apart_findings(Site(buckets=buckets, physical={"primary": policy}))
    assert any("leave WAL in `far`" in finding.detail for finding in findings) is lost
    assert any("base backups of server `primary` is in" in finding.detail for finding in findings) is together


@pytest.mark.parametrize(
    ("near", "far", "lives", "told"),
    [
        (("us-east-1", None), ("us-west-2", None), True, ""),
        (("us-east-1", None), ("us-east-1", None), False, "which are in one region (`us-east-1`) of one store"),
        (("dc", "https://a.example"), ("dc", "https://b.example"), True, ""),
        (("us-east-1", None), ("us-east-1", "https://b.example"), True, ""),
        (("one", "https://a.example"), ("two", "https://a.example"), False, "at one address (`https://a.example`)"),
    ],
)
def test_region_and_address_together_say_what_outlives_what(
    near: tuple[str, str | None], far: tuple[str, str | None], told: str, *, lives: bool
) -> None:
    buckets = {
        name: Bucket(name=name, region=region, endpoint=endpoint, access_key="env:A", secret_key="env:S")
        for name, (region, endpoint) in {"near": near, "far": far}.items()
    }
    changes = {"bucket": "near", "copy_bucket": "far", "wal_buckets": ("near", "far")}
    policy = a_policy().model_copy(update=changes)
    site = Site(buckets=buckets, physical={"primary": policy})
    assert apart(site, policy) is lives
    findings = [finding.detail for finding in apart_findings(site)]
    assert len(findings) == (2 if told else 0)
    assert all(told in each for each in findings)


async def test_the_status_says_so_instead_of_seconds() -> None:
    world = with_history()
    policy = world.site.physical["primary"].model_copy(update={"bucket": "backups", "wal_buckets": ("backups", "far")})
    far = world.site.buckets["backups"].model_copy(update={"name": "far", "region": "elsewhere"})
    world.objects.buckets["far"] = {}
    changes = {"physical": {"primary": policy}, "buckets": {**world.site.buckets, "far": far}}
    world = replace(world, site=world.site.model_copy(update=changes))

    report = await registry.query("status.backups").read(BackupsParams(), world)

    assert "everything since the newest dump would be lost. The base backups of `primary` are in" in report.lines[0]
    assert "left-behind" in {finding.check for finding in report.findings}


def test_a_store_that_garbles_or_overwrites_is_found() -> None:
    trials = [Trial(what="store and read"), Trial(what="refuse to overwrite", problem="it was overwritten")]

    assert [finding.verdict for finding in trial_findings("here", trials)] == [Verdict.STOP]
    assert [finding.verdict for finding in trial_findings("here", trials[:1])] == [Verdict.OK]


async def test_the_query_shows_every_bucket_and_what_is_odd() -> None:
    world = a_world()
    world.buckets.settings["backups"] = BucketFacts(unseen={"lifecycle": "AccessDenied"})

    report = await registry.query("status.buckets").read(BucketsParams(), world)

    assert [row[0] for row in report.rows] == ["backups", "uploads", "uploads-copy"]
    assert report.rows[0][1:] == ("cannot be seen",) * 5
    with pytest.raises(UserError, match="Known: `backups`"):
        await registry.query("status.buckets").read(BucketsParams(bucket="nothing"), world)


async def test_a_silent_store_does_not_hide_the_others() -> None:
    world = a_world()
    world.objects.down = True

    report = await registry.query("status.buckets").read(BucketsParams(), world)

    assert len(report.rows) == 3
    assert all(finding.verdict is Verdict.STOP for finding in report.findings)
