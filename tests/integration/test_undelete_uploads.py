"""Uploads of a real bucket that is copied nowhere, brought back as of a moment out of their own versions: planned with
counts, carried out, broken off and carried out again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from itertools import count
from typing import Any

import pytest

from actions import registry
from actions.adapters.clock import SystemClock
from actions.adapters.s3_buckets import S3Buckets
from actions.adapters.secrets import SecretReferences
from actions.backup.files import FileCopies
from actions.buckets import BringBack, ObjectAttributes, ObjectVersion
from actions.catalog.files import UndeleteParams
from actions.contract import Plan, Risk
from actions.errors import PermanentError
from actions.ports import Ports, no_progress
from actions.runner import Outcome
from actions.site import Bucket, FilesPolicy, Site
from actions.steps.files import BringBackFiles
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.executor import MemoryExecutor
from tests.fakes.files import KEY_SIGNER
from tests.fakes.world import a_world
from tests.fixtures.shared_s3 import S3

pytestmark = pytest.mark.integration


@dataclass
class Uploads:
    """The bucket holds `uploads/...`, and things of others beside it."""

    ports: Ports
    store: S3Buckets
    bucket: str

    async def put(self, key: str, body: bytes) -> None:
        async def once() -> AsyncIterator[bytes]:
            yield body

        await self.store.store(self.bucket, key, once(), ObjectAttributes(metadata={"owner": "ona"}))

    async def content(self) -> dict[str, bytes]:
        return {
            facts.key: await self.store.get(self.bucket, facts.key) for facts in await self.store.list(self.bucket, "")
        }

    async def versions(self) -> set[tuple[str, str]]:
        return {(item.key, item.version) for item in await self.store.versions(self.bucket, "")}

    async def now(self) -> datetime:
        """A moment after all that was stored; the store tells whole seconds."""
        newest = max(item.modified_at for item in await self.store.versions(self.bucket, ""))
        await asyncio.sleep(1.1)
        return newest

    async def plan(self, at: datetime, prefix: str = "", *, replace: bool = False) -> Plan:
        asked = UndeleteParams(name="uploads", at=at.isoformat(), prefix=prefix, replace=replace)
        return await registry.action("files.undelete").plan(asked, self.ports, PLAN_ID)


@pytest.fixture
def uploads(s3: S3, bucket: str) -> Iterator[Uploads]:
    s3.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    entry = Bucket(name=bucket, endpoint=s3.endpoint, access_key="env:A", secret_key="env:S")
    policy = FilesPolicy(
        name="uploads",
        component="Uploads",
        bucket=bucket,
        prefix="uploads/",
        signing_key="env:FILES_KEY",
        trusted_signers=(KEY_SIGNER,),
    )
    site = Site(buckets={bucket: entry}, files={"uploads": policy})
    secrets = SecretReferences({"A": s3.access_key, "S": s3.secret_key})
    store = S3Buckets(site, secrets)
    memory = a_world()
    files = FileCopies(site, objects=store, buckets=store, secrets=secrets, clock=SystemClock())
    parts: dict[str, Any] = {part.name: getattr(memory, part.name) for part in fields(Ports)}
    parts |= {"site": site, "objects": store, "buckets": store, "files": files, "clock": SystemClock()}
    parts["executor"] = MemoryExecutor(replace(memory.executor._engines, files=files))
    yield Uploads(Ports(**parts), store, bucket)
    store.close()


async def damaged(uploads: Uploads) -> datetime:
    """Stored, and after the moment that is returned deleted, encrypted by somebody, and added to."""
    for key in ("uploads/a/cat", "uploads/a/dog", "uploads/b/tax", "others/x"):
        await uploads.put(key, key.encode())
    await uploads.put("uploads/a/old", b"was deleted before")
    await uploads.store.delete(uploads.bucket, "uploads/a/old")
    at = await uploads.now()
    for key in ("uploads/a/cat", "uploads/b/tax", "others/x"):
        await uploads.store.delete(uploads.bucket, key)
    await uploads.put("uploads/a/dog", b"encrypted")
    await uploads.put("uploads/a/ransom", b"pay")
    return at


async def test_a_prefix_comes_back_as_of_a_moment_and_nothing_is_deleted(uploads: Uploads) -> None:
    at = await damaged(uploads)
    before = await uploads.versions()

    plan = await uploads.plan(at, "a/")
    shown = {each.name: each.value for each in plan.observations}
    assert plan.risk is Risk.DISRUPTIVE
    assert (shown["files then"], shown["as they were"]) == ("2", "0")
    assert shown["missing"] == "1, such as `uploads/a/cat`"
    assert shown["changed since"] == "1, such as `uploads/a/dog`"
    assert shown["only there now, left alone"] == "1, such as `uploads/a/ransom`"
    assert "bring back 1 missing file" in plan.summary.lower()
    for _ in range(2):
        result = await run(plan, uploads.ports, MemoryJournal())
        assert result.outcome is Outcome.SUCCEEDED, result.message
    after = await uploads.versions()
    assert before < after
    assert [key for key, _ in after - before] == ["uploads/a/cat"]  # once, whatever the number of runs
    assert await uploads.content() == {
        "uploads/a/cat": b"uploads/a/cat",
        "uploads/a/dog": b"encrypted",
        "uploads/a/ransom": b"pay",
    }
    [cat] = [item for item in await uploads.store.versions(uploads.bucket, "uploads/a/cat") if item.latest]
    opened = await uploads.store.open(uploads.bucket, "uploads/a/cat", cat.version)
    assert opened.attributes.metadata["owner"] == "ona"
    opened.close()

    replacing = await uploads.plan(at, replace=True)
    assert replacing.risk is Risk.DESTRUCTIVE
    result = await run(replacing, uploads.ports, MemoryJournal())
    assert result.outcome is Outcome.SUCCEEDED, result.message
    content = await uploads.content()
    assert (content["uploads/a/dog"], content["uploads/b/tax"]) == (b"uploads/a/dog", b"uploads/b/tax")
    assert (content["uploads/a/ransom"], "others/x" in content) == (b"pay", False)
    assert after < await uploads.versions()
    kept = {item.bytes for item in await uploads.store.versions(uploads.bucket, "uploads/a/dog")}
    assert len(b"encrypted") in kept


async def test_what_broke_off_is_brought_to_its_end(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    at = await damaged(uploads)
    plan, put, seen = await uploads.plan(at), uploads.store.put_on_top, list[str]()

    async def breaking(bucket: str, key: str, version: str, *, note: str) -> None:
        seen.append(key)
        if len(seen) == 2:
            raise PermanentError("the line is down")
        await put(bucket, key, version, note=note)

    monkeypatch.setattr(uploads.store, "put_on_top", breaking)
    result = await run(plan, uploads.ports, MemoryJournal())
    assert (result.outcome, "the line is down" in result.message) == (Outcome.FAILED, True)
    monkeypatch.undo()
    left = await uploads.ports.files.difference(plan.steps[0].source)  # type: ignore[attr-defined]
    assert left.missing in (1, 2)  # they go side by side

    again = await uploads.plan(at)
    assert (await run(again, uploads.ports, MemoryJournal())).outcome is Outcome.SUCCEEDED
    content = await uploads.content()
    assert {"uploads/a/cat", "uploads/b/tax"} <= content.keys()
    written: list[ObjectVersion] = [
        item for item in await uploads.store.versions(uploads.bucket, "uploads/") if not item.marker
    ]
    assert sum(item.key == "uploads/b/tax" for item in written) == 2


async def test_what_somebody_stores_anew_while_files_come_back_is_left_alone(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = await damaged(uploads)
    plan, listed, times = await uploads.plan(at), uploads.store.versions, count()

    async def meanwhile(bucket: str, prefix: str) -> Sequence[ObjectVersion]:
        found = await listed(bucket, prefix)
        if next(times) == 0:
            await uploads.put("uploads/a/cat", b"stored anew")
        return found

    step = plan.steps[0]
    assert isinstance(step, BringBackFiles)
    monkeypatch.setattr(uploads.store, "versions", meanwhile)
    await uploads.ports.files.bring_back(BringBack(source=step.source, replace=False, job=step.job), no_progress)

    content = await uploads.content()
    assert content["uploads/a/cat"] == b"stored anew"
    assert content["uploads/b/tax"] == b"uploads/b/tax"
