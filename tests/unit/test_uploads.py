"""Uploads that broke off: parts are aborted, objects without a manifest are named, and what may be at work is left."""

from __future__ import annotations

from datetime import timedelta

from actions.backup.catalogue import database_prefix
from actions.backup.native_catalogue import BaseFolder
from actions.backup.uploads import sweep_uploads
from actions.contract import Verdict
from actions.steps.strays import stray_findings
from tests.fakes.clock import MemoryClock
from tests.fakes.physical_world import with_bases
from tests.fakes.s3 import MemoryObjects

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


async def test_own_half_uploads_go_at_once_and_those_of_others_after_a_day() -> None:
    clock = MemoryClock()
    objects, now = MemoryObjects("backups", clock=clock), clock.now()
    objects.uploads["backups"] = [
        ("base/main/mine/base.age", now),
        ("base/main/late/base.age", now - DAY + HOUR),
        ("base/main/lost/base.age", now - DAY - HOUR),
        ("base/other/lost/base.age", now - DAY - HOUR),
    ]

    await sweep_uploads(objects, "backups", own="base/main/mine/", everything="base/main/")
    assert [key for key, _ in objects.uploads["backups"]] == ["base/main/late/base.age", "base/other/lost/base.age"]


async def test_objects_without_a_manifest_are_named_once_nobody_can_be_at_work() -> None:
    world = with_bases()
    dumps, bases = world.site.backups["shop"], world.site.physical["primary"]
    await world.objects.put(dumps.bucket, f"{database_prefix(dumps)}b-half/dump.age", b"x" * 2_000_000)
    folder = BaseFolder(bases, "base-half")
    for key in (folder.base, folder.files):
        await world.objects.put(bases.bucket, key, b"x" * 1_000_000)
    whole = BaseFolder(bases, "base-whole")
    for key in (whole.base, whole.manifest):
        await world.objects.put(bases.bucket, key, b"x")

    world.clock.advance(DAY - HOUR)
    assert await stray_findings(world) == []
    world.clock.advance(2 * HOUR)
    dump, base = await stray_findings(world)
    assert (dump.check, base.check) == ("backups of shop", "base backups of primary")
    assert base.verdict is Verdict.WARN
    assert base.detail == (
        f"`base-half` in `{bases.bucket}` has 1953 kB and no manifest: its job ended at 2026-11-23 10:12 UTC, before "
        "it was a backup, so nothing is restored from it"
    )
    assert f"s3 rm --recursive s3://{bases.bucket}/{folder.prefix}`" in base.hint
