"""`drbot wal` as people run it: killed at any moment, and over a failover, it never leaves a hole."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path

import psycopg
import pytest

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.backup.physical import Lsn
from actions.errors import VerificationError
from tests.fixtures.shared_s3 import S3
from tests.wal_process import WalProcess
from tests.wal_world import SETTINGS, eventually, standby_of

pytestmark = [pytest.mark.integration, pytest.mark.kill]


async def test_kill_9_at_any_moment_and_a_failover_leave_no_hole(s3: S3, bucket: str, server_directory: Path) -> None:
    rng = random.Random(7)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            EmbeddedPostgres(server_directory / "pg", durable=False, settings=SETTINGS)
        )
        standby = await standby_of(server, server_directory / "standby")
        stack.push_async_callback(standby.stop)
        archiver = WalProcess(server_directory, server, s3, bucket, standby=standby)
        await archiver.prepare()
        world = archiver.world
        await archiver.start()
        stack.push_async_callback(archiver.kill)
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
        await eventually(lambda: _asked(standby, SLOT))

        # Archiver and primary are lost together, and the new primary removes what it may.
        await archiver.kill()
        end = Lsn.parse(world.fill("nobody has archived this", rows=50))
        world.switch()
        await eventually(lambda: Lsn.parse(_asked(standby, "SELECT pg_last_wal_replay_lsn()::text")) >= end)
        await server.kill()
        archiver.failed_over()
        world.execute("SELECT pg_promote()")
        for _ in range(8):
            world.fill("the new primary goes on", rows=50)
            world.switch()
            world.execute("CHECKPOINT")
        await archiver.start()
        await world.archived(world.switch(), within=60)
        await world.open_until(world.fill("the end", rows=50))
        memory = archiver.process().memory_info().rss
        assert await archiver.stop(), archiver.said()

        way = await world.archive.timelines(start, None, await world.archive.listings())
        assert way.ids == (1, 2)
        assert list(await world.archive.gaps(start, await world.archive.listing(bucket))) == []
        assert "Traceback" not in archiver.said()
        assert server.password() not in archiver.said()
        assert memory < 200 << 20
        recovered = await world.recovered(base, start)
        try:
            world.point_to(recovered)
            assert world.execute("SELECT count(*) FROM ledger") == [(2 * 3 * 50 + 50 + 8 * 50 + 50,)]
        finally:
            await recovered.stop()
        await _flipped(archiver, bucket, s3, last)
        with pytest.raises(VerificationError, match=last):
            await world.fetch(start, into="again")


SLOT = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'drbot_wal' AND restart_lsn IS NOT NULL"


def _asked(server: EmbeddedPostgres, query: str) -> str:
    """The one value, empty where there is none."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    return "" if row is None else str(row[0])


async def _flipped(archiver: WalProcess, bucket: str, s3: S3, name: str) -> None:
    key = archiver.world.archive.key(name)
    body = bytearray(await archiver.world.objects.get(bucket, key))
    body[-1] ^= 1
    await asyncio.to_thread(s3.client().put_object, Bucket=bucket, Key=key, Body=bytes(body))
