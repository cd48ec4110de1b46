"""A server restored from S3 to a verified, started instance, against section 4.1 by hand, in pairs.

SIZE=tiny|small|large|huge and PAIRS=n in the environment. The physical side holds more: every database of the server,
at the newest archived commit, each file and each page checked.
"""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from actions.adapters.s3 import S3Store
from actions.adapters.secrets import SecretReferences
from actions.backup.physical import RecoveryTarget
from actions.site import Bucket, DatabaseRef, Site
from benchmarks.by_hand import ByHand, settle
from benchmarks.table import pairs
from bot.demo.dataset import DATABASE
from bot.demo.plan import BUCKET
from bot.demo.watch import Answer, HealthWatch
from bot.demo.world import World
from tests.physical_world import MARK, PhysicalWorld

pytestmark = [pytest.mark.bench, pytest.mark.asyncio(loop_scope="session")]

PAIRS = int(os.environ.get("PAIRS", "10"))
LIMIT = 0.3
PREFIX = "bench-physical/"


async def test_physical_restore(demo: World) -> None:
    hand = ByHand(demo.servers, demo.running.directory)
    print(f"  dump by hand {await hand.dump():.2f} s", flush=True)
    world = world_over(demo)
    begun = time.monotonic()
    entry = await world.take("bench")
    await world.archive()
    size = entry.manifest.stored.bytes / entry.manifest.plain_bytes
    print(f"  base backup {time.monotonic() - begun:.2f} s, {entry.manifest.plain_bytes >> 20} MB to {size:.2f}")
    physical: list[float] = []
    single: list[float] = []
    for number in range(PAIRS):
        # Each side goes first as often as the other: what the one leaves in the caches is the other's.
        for side in ("physical", "hand") if number % 2 == 0 else ("hand", "physical"):
            await settle(demo.servers)
            if side == "physical":
                physical.append(await restored(world))
            else:
                single.append(await _by_hand(demo, hand))
    ratio = pairs("physical restore, verified and started, against 4.1 by hand", physical, single, LIMIT)
    if os.environ.get("SIZE", "large") in ("large", "huge"):  # what is fixed outweighs a small server's data
        assert ratio <= LIMIT


def world_over(demo: World) -> PhysicalWorld:
    s3 = demo.servers.objects
    values = {"ACCESS": s3.access_key, "SECRET": s3.secret_key}
    bucket = Bucket(name=BUCKET, endpoint=s3.endpoint, access_key="env:ACCESS", secret_key="env:SECRET")
    directory = demo.running.directory / "bench-physical"
    directory.mkdir(mode=0o755)
    return PhysicalWorld(
        demo.servers.production,
        S3Store(Site(buckets={BUCKET: bucket}), SecretReferences(values)),
        directory,
        bucket=BUCKET,
        policy_changes={"prefix": PREFIX},
    )


async def restored(world: PhysicalWorld) -> float:
    begun = time.monotonic()
    found = await world.restore(RecoveryTarget(latest=True))
    assert found.checked_pages
    await world.scratch.start("s1")
    rows = await world.postgres.query(DatabaseRef("scratch-s1", DATABASE), "SELECT count(*) AS users FROM users")
    took = time.monotonic() - begun
    assert rows[0]["users"]
    phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in found.seconds.items())
    print(f"  physical: {took:.2f} s ({phases}), load {os.getloadavg()[0]:.1f}", flush=True)
    await world.scratch.discard("s1", mark=MARK)
    await asyncio.to_thread(os.sync)
    return took


async def _by_hand(demo: World, hand: ByHand) -> float:
    async with HealthWatch(demo.running.health_url) as watch:
        await watch.until(Answer.GOOD, within=30)
        took = await hand.restore(watch)
    print(f"  hand: {took:.2f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    return took
