"""Point-in-time recovery, exact to the transaction: what was committed at T is in, what was committed after T is out.

RUNS=n in the environment (20 moments by default), COMMITS=n for the length of the past. Every second moment is exactly
that of a commit, which is in; the others lie between two. PostgreSQL itself keeps the moments of all commits
(`track_commit_timestamp`), and the ledger of what is expected is read before anything is restored.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import psycopg
import pytest

from actions.adapters.clock import SystemClock
from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.backup.physical import RecoveryTarget
from actions.site import DatabaseRef
from tests.fakes.s3 import MemoryObjects
from tests.physical_world import BUCKET, MARK, PhysicalWorld

pytestmark = [pytest.mark.bench, pytest.mark.asyncio(loop_scope="session")]

RUNS = int(os.environ.get("RUNS", "20"))
COMMITS = int(os.environ.get("COMMITS", "3000"))
WRITERS = 3
SEED = int(os.environ.get("SEED", "7"))

Ledger = dict[int, datetime]


@pytest.fixture
async def world() -> AsyncIterator[PhysicalWorld]:
    with tempfile.TemporaryDirectory(prefix="drbot-bench-point-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # noqa: ASYNC240 - before anything else runs
        settings = {
            "summarize_wal": "on",
            "wal_keep_size": "1GB",
            "track_commit_timestamp": "on",
            "autovacuum": "off",
        }
        server = EmbeddedPostgres(directory / "pg", durable=False, settings=settings)
        await server.start()
        try:
            yield PhysicalWorld(server, MemoryObjects(BUCKET, clock=SystemClock()), directory / "world")
        finally:
            await server.stop()


async def test_exact_to_the_transaction(world: PhysicalWorld) -> None:
    world.sql("CREATE TABLE ledger (row int PRIMARY KEY)", "CHECKPOINT")
    await world.take("base")
    _write(world)
    world.sql("INSERT INTO ledger VALUES (0)")  # a time is reached only by a commit after it
    await world.archive()
    ledger = _ledger(world)
    chance = random.Random(SEED)
    seconds, wrong = list[float](), 0
    for number in range(RUNS):
        at = _moment(ledger, chance, exact=number % 2 == 0)
        expected = {row for row, committed in ledger.items() if committed <= at}
        begun = time.monotonic()
        found = await _restored(world, at, f"t{number}")
        seconds.append(time.monotonic() - begun)
        missing, extra = len(expected - found), len(found - expected)
        wrong += missing + extra
        print(f"  T {at.isoformat()}: {len(found)} rows in, {missing} missing, {extra} too many", flush=True)
    print(
        f"PITR to {RUNS} moments in {COMMITS} commits of {WRITERS} writers: {wrong} transactions wrong, limit 0; "
        f"restore, start and check median {statistics.median(seconds):.1f} s, max {max(seconds):.1f} s"
    )
    assert wrong == 0


def _write(world: PhysicalWorld) -> None:
    """Many short transactions from several sessions, some of which are rolled back."""

    def writer(number: int) -> None:
        with psycopg.connect(world.server.dsn(), autocommit=True) as connection:
            for row in range(1 + number, COMMITS + 1, WRITERS):
                with connection.transaction(force_rollback=row % 50 == 0):
                    connection.execute("INSERT INTO ledger VALUES (%s)", [row])

    threads = [threading.Thread(target=writer, args=[number]) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _ledger(world: PhysicalWorld) -> Ledger:
    rows = world.sql("SELECT row, pg_xact_commit_timestamp(xmin) FROM ledger WHERE row > 0")
    return {int(str(row)): at for row, at in rows if isinstance(at, datetime)}


def _moment(ledger: Ledger, chance: random.Random, *, exact: bool) -> datetime:
    moments = sorted(set(ledger.values()))
    at = chance.randrange(1, len(moments) - 1)
    return moments[at] if exact else moments[at] + (moments[at + 1] - moments[at]) * chance.random()


async def _restored(world: PhysicalWorld, at: datetime, scratch: str) -> set[int]:
    """The rows of a scratch instance at this moment."""
    await world.restore(RecoveryTarget(time=at), scratch=scratch)
    facts = await world.scratch.start(scratch)
    try:
        rows = await world.postgres.query(DatabaseRef(facts.name, "postgres"), "SELECT row FROM ledger WHERE row > 0")
        return {int(row["row"]) for row in rows}
    finally:
        await world.scratch.discard(scratch, mark=MARK)
