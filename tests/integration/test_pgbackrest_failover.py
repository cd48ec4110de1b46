"""A failover under pgBackRest, on real servers: the old primary goes on archiving and backing up, beyond the fork."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.backup.physical import BackupKind, BaseRequest, Change, FindRequest, Lsn, RecoveryTarget, ScratchRequest
from actions.errors import UserError
from actions.ports import no_progress
from tests.fixtures.needed import POSTGRES_15
from tests.fixtures.pgbackrest import STANZA, archiving, configure, settings
from tests.fixtures.shared_s3 import S3
from tests.pgbackrest_world import MARK, SERVER, PgBackRestWorld
from tests.wal_world import eventually, standby_of

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("pgbackrest")]

LATEST = RecoveryTarget(latest=True)


@dataclass(frozen=True)
class Failed:
    """Base `before` with row `a`; then the standby became the primary and has row `b`. Rows `lost` and `lost too` are
    of the old primary alone: base `beyond` holds the first, and the other is archived after it."""

    old: PgBackRestWorld
    new: PgBackRestWorld

    async def restored(self, scratch: str, backup: str | None = None) -> tuple[str, list[str]]:
        """The base that was chosen, and the rows."""
        request = ScratchRequest(id=scratch, server=SERVER, target=LATEST, backup=backup, mark=MARK)
        found = await self.new.engine.restore(request, no_progress)
        try:
            await self.new.scratch.start(scratch)
            return found.backup, await self.new.rows(scratch)
        finally:
            await self.new.scratch.discard(scratch, mark=MARK)


@pytest.fixture
async def failed(run_directory: Path, server_directory: Path, s3: S3) -> AsyncIterator[Failed]:
    with archiving(run_directory, s3, f"fork-{uuid.uuid4().hex[:8]}") as primary:
        (directory := primary.config.parent / "world").mkdir(mode=0o755)
        old = PgBackRestWorld(primary, s3, directory)
        primary.sql("CREATE TABLE ledger (row text PRIMARY KEY)", "CREATE TABLE doc AS SELECT 1 AS id")
        old.commit("a")
        await _take(old, "before")
        config = primary.config.with_name("new.conf")
        standby = await standby_of(
            primary.server, server_directory / "standby", settings=settings(config), programs=POSTGRES_15
        )
        promoted = replace(primary, server=standby, config=config)
        configure(promoted, s3)
        try:
            await eventually(
                lambda: _replayed(standby) >= Lsn.parse(str(primary.sql("SELECT pg_current_wal_lsn()")[0][0]))
            )
            promoted.sql("SELECT pg_promote()")
            # Nothing has fenced the old primary, and its copy of the plan knows nothing of the new one.
            old.commit("lost")
            primary.sql("DROP TABLE doc")
            await _take(old, "beyond")
            old.commit("lost too")
            old.archive()
            (elsewhere := server_directory / "world").mkdir(mode=0o755)
            new = PgBackRestWorld(promoted, s3, elsewhere, keys=old.keys)
            new.commit("b")
            promoted.sql("DROP TABLE doc")
            new.commit("c")
            new.archive()
            yield Failed(old, new)
        finally:
            await standby.stop()


async def _take(world: PgBackRestWorld, backup: str) -> None:
    await world.engine.take(BaseRequest(id=backup, server=SERVER, kind=BackupKind.FULL), no_progress)


def _replayed(standby: EmbeddedPostgres) -> Lsn:
    with psycopg.connect(standby.dsn(), autocommit=True) as connection:
        row = connection.execute("SELECT pg_last_wal_replay_lsn()::text").fetchone()
    return Lsn.parse(str(row[0])) if row is not None and row[0] else Lsn(0)


async def test_a_base_beyond_the_fork_is_passed_over_and_only_its_name_brings_it_back(failed: Failed) -> None:
    (window,) = await failed.new.engine.windows(SERVER)
    assert (window.timeline_id, window.fulls) == (2, 1)
    known = {entry.manifest.id: entry.manifest for entry in await failed.new.engine.catalogue(SERVER)}
    beyond = known["beyond"]
    assert window.oldest == known["before"].finished_at
    assert window.newest is not None
    assert window.newest > failed.new.moments["b"]
    (name, end), *more = window.dead_ends.items()
    assert (name, end.timeline_id, end.living, more) == ("beyond", 1, 2, [])
    assert Lsn.parse(end.forked_at) < Lsn.parse(beyond.stop_lsn) < Lsn.parse(end.lsn)

    assert await failed.restored("s1") == ("before", ["a", "b", "c"])
    assert await failed.restored("s2", "beyond") == ("beyond", ["a", "lost", "lost too"])

    # The table was dropped on both branches; the one that counts is the server's own.
    request = FindRequest(server=SERVER, database="postgres", table="public.doc", changes=(Change.DROP,))
    (moment,) = await failed.new.engine.find(request.model_copy(update={"since": beyond.finished_at}), no_progress)
    assert (moment.timeline_id, moment.before_xid) == (2, failed.new.commits["b"])

    with pytest.raises(UserError, match="wants 1 of them"):  # the other one does not count
        await failed.new.engine.remove(SERVER, "before")

    # With a base of its own the new timeline is where everything starts from.
    await _take(failed.new, "after")
    failed.new.commit("d")
    failed.new.archive()
    assert await failed.restored("s3") == ("after", ["a", "b", "c", "d"])
    (window,) = await failed.new.engine.windows(SERVER)
    assert (window.fulls, list(window.dead_ends)) == (2, ["beyond"])

    client, bucket = failed.new.s3.client(), failed.new.archived.bucket
    key = f"repository/archive/{STANZA}/15-1/00000002.history"
    whole = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    client.put_object(Bucket=bucket, Key=key, Body=whole[: len(whole) // 2])
    (dark,) = await failed.new.engine.windows(SERVER)
    assert (dark.oldest, dark.newest) == (None, None)
    assert dark.problem.startswith(f"`00000002.history` of the archive of `{SERVER}` is damaged: ")
    assert dark.problem.endswith("for `pgbackrest archive-push`.")
    failed.new.archived.bare("archive-push", str(failed.new.archived.server.data / "pg_wal" / "00000002.history"))
    assert await failed.new.engine.windows(SERVER) == [window]


async def test_a_base_beyond_the_fork_is_taken_where_no_other_is_left(failed: Failed) -> None:
    failed.new.denounce("before")
    (window,) = await failed.new.engine.windows(SERVER)
    assert (window.fulls, window.oldest, list(window.dead_ends)) == (0, None, ["beyond"])
    assert await failed.restored("s1") == ("beyond", ["a", "lost", "lost too"])
