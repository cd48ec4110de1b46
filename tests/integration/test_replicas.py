"""Two buckets of a real store, one copied into the other by hand as replication would: one object is left out, one is
another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import cast

import pytest

from actions.adapters.s3 import PART
from actions.adapters.s3_buckets import S3Buckets
from actions.adapters.secrets import SecretReferences
from actions.contract import Verdict
from actions.ports import Ports
from actions.site import Bucket, BucketPosture, Site
from actions.steps.replicas import replica, replica_findings
from tests.fakes.clock import MemoryClock
from tests.fixtures.shared_s3 import S3

pytestmark = pytest.mark.integration

WAL, BASE, DUMP = "backups/wal/main/0000000100000000000000AA.sealed", "backups/base/main/b1/base.age", "backups/d"


@pytest.fixture
def both(s3: S3, bucket: str) -> Iterator[Ports]:
    far = f"{bucket}-far"
    client = s3.client()
    client.create_bucket(Bucket=far)
    for name in (bucket, far):
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    keys = {"endpoint": s3.endpoint, "access_key": "env:A", "secret_key": "env:S"}
    here = Bucket(name=bucket, posture=BucketPosture(replicates_to=far, used=("backups/",)), **keys)
    site = Site(buckets={bucket: here, far: Bucket(name=far, **keys)})  # type: ignore[arg-type]
    store = S3Buckets(site, SecretReferences({"A": s3.access_key, "S": s3.secret_key}))
    yield cast(Ports, SimpleNamespace(site=site, objects=store, buckets=store, clock=MemoryClock()))
    store.close()
    for page in client.get_paginator("list_object_versions").paginate(Bucket=far):
        for kept in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
            client.delete_object(Bucket=far, Key=kept["Key"], VersionId=kept["VersionId"])
    client.delete_bucket(Bucket=far)


async def test_one_that_was_left_out_and_one_that_is_another_are_found(both: Ports, s3: S3, bucket: str) -> None:
    client, far = s3.client(), f"{bucket}-far"
    large = bytes(PART + 5)
    bodies = {WAL: b"segment", BASE: large, DUMP: b"dump"}
    for key, body in bodies.items():
        await both.objects.put(bucket, key, body)
    await both.objects.put(far, WAL, b"segment")
    await both.objects.put(far, DUMP, b"dump")
    # In parts, so that its ETag is another: its bytes tell that it is the same.
    upload = client.create_multipart_upload(Bucket=far, Key=BASE)["UploadId"]
    tag = client.upload_part(Bucket=far, Key=BASE, UploadId=upload, PartNumber=1, Body=large)["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": tag}]}
    await asyncio.to_thread(
        client.complete_multipart_upload,
        Bucket=far,
        Key=BASE,
        UploadId=upload,
        MultipartUpload=parts,  # type: ignore[arg-type]
    )
    facts = [await both.objects.head(name, BASE) for name in (bucket, far)]
    assert len({each.etag for each in facts if each is not None}) == 2

    clock = cast(MemoryClock, both.clock)
    stored = await both.objects.head(bucket, WAL)
    assert stored is not None
    clock.advance(stored.modified_at - clock.now() + timedelta(minutes=20))
    [fine] = replica_findings(both.site, await replica(both, bucket, markers=True))
    assert (fine.verdict, "nothing is missing" in fine.detail) == (Verdict.OK, True)

    await both.objects.delete(far, WAL)
    await both.objects.put(far, DUMP, b"dumb")
    await both.objects.put(bucket, "backups/gone", b"x")
    await both.objects.delete(bucket, "backups/gone")
    found = await replica(both, bucket, markers=True)
    assert ([each.key for each in found.missing], [each.key for each in found.differing]) == ([WAL], [DUMP])
    assert (found.markers_here, found.markers_there, found.problem) == (1, 0, "")
    assert found.lag >= timedelta(minutes=19)
    said = [(finding.verdict, finding.detail) for finding in replica_findings(both.site, found)]
    assert [verdict for verdict, _ in said] == [Verdict.STOP, Verdict.STOP, Verdict.WARN]
    assert f"`{WAL}`" in said[0][1]
    assert f"`{DUMP}`" in said[1][1]
