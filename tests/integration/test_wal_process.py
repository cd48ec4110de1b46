"""`drbot wal` as people run it: killed at any moment, it never leaves a hole."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.errors import VerificationError
from tests.fixtures.shared_s3 import S3
from tests.wal_process import WalProcess
from tests.wal_world import SETTINGS

pytestmark = [pytest.mark.integration, pytest.mark.kill]


async def test_kill_9_at_any_moment_leaves_no_hole(s3: S3, bucket: str, server_directory: Path) -> None:
    rng = random.Random(7)
    async with EmbeddedPostgres(server_directory / "pg", durable=False, settings=SETTINGS) as server:
        archiver = WalProcess(server_directory, server, s3, bucket)
        await archiver.prepare()
        world = archiver.world
        await archiver.start()
        try:
            await world.following()
            base, start = await world.base()
            last = world.switch()
            for number in range(2):
                for _ in range(3):
                    world.fill(f"round {number}", rows=50)
                    last = world.switch()
                    await asyncio.sleep(rng.random() * 0.3)
                await archiver.kill()
                await archiver.start()
            await world.archived(last, within=60)
            lsn = world.fill("the end", rows=50)
            await world.open_until(lsn)
            memory = archiver.process().memory_info().rss
            assert await archiver.stop(), archiver.said()
        finally:
            await archiver.kill()
        assert list(await world.archive.gaps(start, await world.archive.listing(bucket))) == []
        assert "Traceback" not in archiver.said()
        assert server.password() not in archiver.said()
        assert memory < 200 << 20
        recovered = await world.recovered(base, start)
        try:
            world.point_to(recovered)
            assert world.execute("SELECT count(*) FROM ledger") == [(2 * 3 * 50 + 50,)]
        finally:
            await recovered.stop()
        await _flipped(archiver, bucket, s3, last)
        with pytest.raises(VerificationError, match=last):
            await world.fetch(start, into="again")


async def _flipped(archiver: WalProcess, bucket: str, s3: S3, name: str) -> None:
    key = archiver.world.archive.key(name)
    body = bytearray(await archiver.world.objects.get(bucket, key))
    body[-1] ^= 1
    await asyncio.to_thread(s3.client().put_object, Bucket=bucket, Key=key, Body=bytes(body))
