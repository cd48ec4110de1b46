"""Buckets of a real store held against a plan file's policy: how long they lock, what frees old versions, and the one
that takes the open segment of the WAL. What a finding proposes is done to the store, and the finding is gone."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import cast

import pytest

from actions import registry
from actions.adapters.s3_buckets import S3Buckets
from actions.adapters.secrets import SecretReferences
from actions.catalog.buckets import BucketsParams
from actions.contract import Finding, Verdict
from actions.ports import Ports
from actions.site import Bucket, BucketPosture, LockMode, Site
from actions.steps.postures import trial_findings
from tests.fakes.clock import MemoryClock
from tests.fakes.physical_world import a_policy
from tests.fixtures.shared_s3 import S3

pytestmark = pytest.mark.integration

DAY = timedelta(days=1)
KEPT = {"WAL": 7 * DAY, "dumps": 30 * DAY}
LOCKED = BucketPosture(versioning=True, object_lock=LockMode.GOVERNANCE, used=("backups/",), kept=KEPT)


class Store:
    """Buckets by name, each as the plan wants it."""

    def __init__(self, s3: S3, postures: Mapping[str, BucketPosture], *, pieces: str = "") -> None:
        self.client = s3.client()
        keys = {"endpoint": s3.endpoint, "access_key": "env:A", "secret_key": "env:S"}
        policy = a_policy().model_copy(update={"open_bucket": pieces})
        self.site = Site(
            buckets={name: Bucket(name=name, posture=each, **keys) for name, each in postures.items()},
            physical={"primary": policy} if pieces else {},
        )
        self.buckets = S3Buckets(self.site, SecretReferences({"A": s3.access_key, "S": s3.secret_key}))
        world = SimpleNamespace(site=self.site, objects=self.buckets, buckets=self.buckets, clock=MemoryClock())
        self.ports = cast(Ports, world)

    def lock(self, bucket: str, **time: int) -> None:
        """By default, from now on."""
        rule = {"DefaultRetention": {"Mode": "GOVERNANCE", **time}}
        self.client.put_object_lock_configuration(
            Bucket=bucket,
            ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule},  # type: ignore[typeddict-item]
        )

    async def findings(self, bucket: str) -> dict[str, Finding]:
        """Without replication, of which this store tells nothing."""
        report = await registry.query("status.buckets").read(BucketsParams(bucket=bucket), self.ports)
        return {finding.check: finding for finding in report.findings}


@pytest.fixture
def locked(s3: S3, bucket: str) -> Iterator[Store]:
    name = f"{bucket}-locked"
    store = Store(s3, {name: LOCKED})
    store.client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    yield store
    store.buckets.close()
    store.client.delete_bucket(Bucket=name)


async def test_how_long_it_locks_is_compared_with_what_is_kept_there(locked: Store) -> None:
    [name] = locked.site.buckets
    check = f"Object Lock of {name}"
    assert "locks nothing by default" in (await locked.findings(name))[check].detail
    locked.lock(name, Days=7)
    short = (await locked.findings(name))[check]
    assert (short.verdict, "can delete dumps (30 d)" in short.detail) == (Verdict.WARN, True)
    locked.lock(name, Years=1)
    assert "takes its room for 335 d more" in (await locked.findings(name))[check].detail
    locked.lock(name, Days=30)
    assert check not in await locked.findings(name)


async def test_the_proposed_rule_lets_old_versions_go(locked: Store) -> None:
    [name] = locked.site.buckets
    locked.lock(name, Days=30)
    found = await locked.findings(name)
    assert list(found) == [f"old versions of {name}"]

    words = shlex.split(found[f"old versions of {name}"].hint.strip("`"))
    assert words[words.index("--bucket") + 1] == name
    proposed = json.loads(words[words.index("--lifecycle-configuration") + 1])
    locked.client.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration=proposed)

    assert await locked.findings(name) == {}
    [rule] = (await locked.buckets.facts(name)).lifecycle or ()
    assert (rule.prefix, rule.deletes_versions_after, rule.deletes_after) == ("backups/", 30 * DAY, None)


async def test_the_bucket_of_the_open_segment_must_let_go(s3: S3, bucket: str) -> None:
    name = f"{bucket}-open"
    store = Store(s3, {name: BucketPosture(used=("backups/",))}, pieces=name)
    assert "no bucket" in (await store.findings(name))[f"bucket {name}"].detail

    store.client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    assert list(await store.findings(name)) == [f"old versions of {name}"]  # Object Lock keeps versions
    store.lock(name, Days=1)
    stopped = (await store.findings(name))[f"Object Lock of {name}"]
    assert (stopped.verdict, "every few seconds" in stopped.detail) == (Verdict.STOP, True)
    store.client.delete_bucket(Bucket=name)

    store.client.create_bucket(Bucket=name)
    assert await store.findings(name) == {}
    trials = await store.buckets.trials(name, "backups/")
    assert [finding.verdict for finding in trial_findings(name, trials)] == [Verdict.OK]
    rules = [{"ID": "tidy", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}]
    store.client.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": rules})  # type: ignore[typeddict-item]
    assert (await store.findings(name))[f"lifecycle of {name}"].verdict is Verdict.STOP
    store.buckets.close()
    store.client.delete_bucket(Bucket=name)
