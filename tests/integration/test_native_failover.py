"""A failover under the native engine, on real servers: the old primary is archived, and backed up, beyond the fork."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from actions.backup.physical import Change, FindRequest, Lsn, RecoveryTarget
from actions.backup.wal import WalArchive
from actions.errors import UserError
from actions.ports import no_progress
from actions.site import DatabaseRef
from tests.fixtures.physical import SETTINGS, standing
from tests.physical_world import BUCKET, MARK, SERVER, PhysicalWorld
from tests.wal_world import eventually, standby_of

pytestmark = pytest.mark.integration

LATEST = RecoveryTarget(latest=True)


@pytest.fixture
async def failed(run_directory: Path, server_directory: Path) -> AsyncIterator[PhysicalWorld]:
    """The new primary. Base `before` has row `a`; then the standby became the primary and has rows `b` and `c`, with
    a DROP between them. Row `lost` is of the old primary alone, which has dropped the table as well before base
    `beyond`; `lost too` is archived after that."""
    with standing(run_directory) as old:
        old.sql("CREATE TABLE ledger (row text PRIMARY KEY)", "CREATE TABLE doc AS SELECT 1 AS id")
        old.sql("INSERT INTO ledger VALUES ('a')")
        await old.take("before")
        standby = await standby_of(old.server, server_directory / "standby", settings=SETTINGS)
        try:
            end = Lsn.parse(str(old.sql("SELECT pg_current_wal_lsn()")[0][0]))

            def replayed() -> bool:
                with psycopg.connect(standby.dsn(), autocommit=True) as connection:
                    row = connection.execute("SELECT pg_last_wal_replay_lsn()::text").fetchone()
                return row is not None and row[0] is not None and Lsn.parse(str(row[0])) >= end

            await eventually(replayed)
            new = replace(old, server=standby, directory=server_directory / "world", values={})
            new.sql("SELECT pg_promote()")
            # Nothing has fenced the old primary.
            old.sql("INSERT INTO ledger VALUES ('lost')", "DROP TABLE doc")
            await old.take("beyond")
            old.sql("INSERT INTO ledger VALUES ('lost too')")
            await old.archive()
            new.sql("INSERT INTO ledger VALUES ('b')", "DROP TABLE doc", "INSERT INTO ledger VALUES ('c')")
            await new.archive_history(2)
            await new.archive()
            yield new
            for facts in await new.scratch.instances():
                await new.scratch.discard(facts.id, mark=MARK)
        finally:
            await standby.stop()


async def restored(world: PhysicalWorld, scratch: str, backup: str | None = None) -> tuple[str, list[str]]:
    """The base that was chosen, and the rows."""
    found = await world.restore(LATEST, scratch=scratch, backup=backup)
    await world.scratch.start(scratch)
    rows = await world.postgres.query(DatabaseRef(f"scratch-{scratch}", "postgres"), "SELECT row FROM ledger")
    return found.backup, sorted(str(each["row"]) for each in rows)


async def test_a_base_beyond_the_fork_is_passed_over_and_only_its_name_brings_it_back(failed: PhysicalWorld) -> None:
    known = {entry.manifest.id: entry.manifest for entry in await failed.engine.catalogue(SERVER)}
    (window,) = await failed.engine.windows(SERVER)
    assert (window.timeline_id, window.fulls, window.oldest) == (2, 1, known["before"].finished_at)
    [(name, end)] = window.dead_ends.items()
    assert (name, end.timeline_id, end.living) == ("beyond", 1, 2)
    assert Lsn.parse(end.forked_at) < Lsn.parse(known["beyond"].stop_lsn) < Lsn.parse(end.lsn)

    assert await restored(failed, "s1") == ("before", ["a", "b", "c"])
    assert await restored(failed, "s2", "beyond") == ("beyond", ["a", "lost", "lost too"])

    # The table was dropped on both branches; the one that counts is the server's own.
    since = known["beyond"].finished_at
    request = FindRequest(server=SERVER, database="postgres", table="public.doc", changes=(Change.DROP,), since=since)
    (moment,) = await failed.engine.find(request, no_progress)
    assert moment.timeline_id == 2


async def test_with_a_base_of_its_own_the_new_timeline_is_where_everything_starts_from(failed: PhysicalWorld) -> None:
    await failed.take("after")
    failed.sql("INSERT INTO ledger VALUES ('d')")
    await failed.archive()
    assert await restored(failed, "s1") == ("after", ["a", "b", "c", "d"])
    (window,) = await failed.engine.windows(SERVER)
    assert (window.fulls, list(window.dead_ends)) == (2, ["beyond"])

    key = WalArchive(failed.objects, failed.policy).key("00000002.history")
    await failed.objects.put(BUCKET, key, b"damaged")
    (dark,) = await failed.engine.windows(SERVER)
    assert (dark.oldest, dark.newest, dark.bucket, dark.wal_bytes > 0) == (None, None, BUCKET, True)
    assert dark.problem.startswith(f"The history of timeline id 2 cannot be read. `{key}` does not begin with")
    assert dark.problem.endswith("which stores it again from its own disk, or copy it from another bucket.")
    await failed.archive_history(2)  # what a restart does
    assert await failed.engine.windows(SERVER) == [window]

    await failed.engine.remove(SERVER, "beyond")  # the two others are as many as the plan wants
    with pytest.raises(UserError, match="wants 2 of them"):
        await failed.engine.remove(SERVER, "before")
