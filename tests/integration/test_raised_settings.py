"""Settings that recovery wants as high as production had them, raised after the base backup was made."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from actions.backup.physical import RecoveryTarget
from actions.site import DatabaseRef
from tests.fixtures.physical import standing

pytestmark = pytest.mark.integration

SCRATCH = DatabaseRef("scratch-s1", "postgres")


async def test_a_replay_that_waits_for_a_higher_setting_is_not_taken_for_one_at_its_target(run_directory: Path) -> None:
    with standing(run_directory) as world:
        world.sql("CREATE TABLE ledger (row int PRIMARY KEY)", "INSERT INTO ledger VALUES (1)")
        await world.take("full")
        world.sql("ALTER SYSTEM SET max_connections = 333", "ALTER SYSTEM SET max_locks_per_transaction = 111")
        await world.server.stop()
        await world.server.start()
        world.values["DSN"] = world.server.dsn()
        world.sql("INSERT INTO ledger VALUES (2)")
        moment = datetime.now(UTC)
        world.sql("INSERT INTO ledger VALUES (3)")
        await world.archive()

        restored = await world.restore(RecoveryTarget(time=moment))
        assert restored.reached_at is not None
        assert restored.reached_at <= moment
        await world.scratch.start("s1")
        rows = await world.postgres.query(SCRATCH, "SELECT row FROM ledger ORDER BY row")
        assert [row["row"] for row in rows] == [1, 2]
        [shown] = await world.postgres.query(SCRATCH, "SELECT current_setting('max_connections')::int AS c")
        assert shown["c"] >= 333
        await world.scratch.stop("s1")
