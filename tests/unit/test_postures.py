"""A bucket held against the plan: what is not as planned is found, what cannot be seen is never fine."""

from __future__ import annotations

from datetime import timedelta

import pytest

from actions import registry
from actions.buckets import BucketFacts, LifecycleRule, Trial
from actions.catalog.buckets import BucketsParams
from actions.contract import Finding, Verdict
from actions.errors import UserError
from actions.site import Bucket, BucketPosture, LockMode, Site
from actions.steps.postures import apart_findings, posture_findings, trial_findings
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


@pytest.mark.parametrize(("days", "fine"), [(30, False), (89, False), (90, True), (None, True)])
def test_old_versions_must_stay_as_long_as_planned(days: int | None, fine: bool) -> None:
    kept = BucketPosture(versioning=True, keep_versions=timedelta(days=90))
    rules = () if days is None else (LifecycleRule(name="old", deletes_versions_after=timedelta(days=days)),)

    findings = odd(FULL.model_copy(update={"lifecycle": rules}), kept)

    assert (findings == []) is fine


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
