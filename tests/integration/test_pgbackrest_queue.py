"""`archive-push-queue-max` on a real server: warned of before, and the WAL that was thrown away is missed after."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from actions.backup.physical import BackupKind, BaseRequest
from actions.ports import no_progress
from actions.steps.alarms import SETTLED, alarms
from actions.steps.health import Bases, Health
from tests.fixtures.pgbackrest import archiving
from tests.fixtures.shared_s3 import S3
from tests.pgbackrest_world import SERVER, PgBackRestWorld

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("pgbackrest")]


async def take(world: PgBackRestWorld, backup: str) -> None:
    await world.engine.take(BaseRequest(id=backup, server=SERVER, kind=BackupKind.FULL), no_progress)


def lost_without_a_word(world: PgBackRestWorld) -> str:
    """More WAL waits for a repository that is away than may wait. The segment that PostgreSQL then believes to be
    archived."""
    first = str(world.archived.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")[0][0])
    for number in range(4):
        world.commit(f"lost-{number}")
        world.archived.sql("SELECT pg_switch_wal()")
    limit = time.monotonic() + 60
    while str(world.archived.sql("SELECT last_archived_wal FROM pg_stat_archiver")[0][0]) < first:
        assert time.monotonic() < limit, "pgBackRest did not throw it away"
        time.sleep(0.1)
    return first


async def gap_alarms(world: PgBackRestWorld) -> list[str]:
    """What the on-call channel is told of gaps, with whether a new base backup is wanted."""
    bases = Bases(
        policy=world.site.physical[SERVER],
        databases=(),
        rpo=timedelta(minutes=15),
        entries=await world.engine.catalogue(SERVER),
        windows=await world.engine.windows(SERVER),
    )
    found = alarms(Health(datetime.now(UTC) + SETTLED, (), (bases,)))
    return [f"{alarm.text} {alarm.wants_base}" for alarm in found if alarm.key == f"wal-gap/server:{SERVER}"]


async def test_wal_that_pgbackrest_threw_away_is_warned_of_missed_and_made_good_by_a_base(
    run_directory: Path, s3: S3
) -> None:
    with archiving(run_directory, s3, f"queue-{uuid.uuid4().hex[:8]}") as server:
        (directory := server.config.parent / "world").mkdir(mode=0o755)
        world = PgBackRestWorld(server, s3, directory)
        server.sql("CREATE TABLE ledger (row text PRIMARY KEY)")
        await take(world, "before")
        assert not [lack for lack in await world.engine.lacks(SERVER) if "archive-push-queue-max" in lack.what]

        whole = f"{server.config.read_text()}archive-push-queue-max=32MB\n"
        server.config.write_text(whole)
        [lack] = [lack for lack in await world.engine.lacks(SERVER) if "archive-push-queue-max" in lack.what]
        assert (lack.stops, "once more than 32MB of WAL waits" in lack.what) == (False, True)
        assert await gap_alarms(world) == []

        server.config.write_text(whole.replace(server.bucket, "no-such-bucket"))
        first = lost_without_a_word(world)
        server.config.write_text(whole)
        world.commit("after")
        world.archive()
        fails = "SELECT last_failed_time > last_archived_time FROM pg_stat_archiver"
        assert server.sql(fails) == [(False,)]  # PostgreSQL has nothing to say of it

        [told] = await gap_alarms(world)
        assert f"`{first}`" in told
        assert told.endswith("True")
        await take(world, "anew")
        assert await gap_alarms(world) == []
