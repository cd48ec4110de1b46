"""A failover under the native engine, on real servers: the old primary is archived, and backed up, beyond the fork."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from actions import registry
from actions.backup.physical import BackupKind, Change, FindRequest, Lsn, RecoveryTarget
from actions.backup.wal import WalArchive
from actions.catalog.base import BaseParams
from actions.contract import JournalState
from actions.errors import UserError
from actions.ports import Ports, no_progress
from actions.runner import Outcome
from actions.site import DatabaseRef
from actions.steps.kit_page import PROGRAM
from actions.steps.restore_kit import program
from tests.bare_machine import NEEDED, Bare, refused
from tests.contract.kit import MemoryJournal, run
from tests.fakes.executor import MemoryExecutor
from tests.fakes.world import a_world
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
            # The segment of the fork, where it had begun before, is on both of them and goes on differently on each.
            new.archive_from_now()
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


async def quarter(world: PhysicalWorld, plan: str) -> tuple[str, str]:
    """What a quarter of an hour asks for, carried out: the words of its plan, and its report."""
    memory = a_world()
    parts: dict[str, Any] = {part.name: getattr(memory, part.name) for part in fields(Ports)}
    parts |= {"site": world.site, "postgres": world.postgres, "objects": world.objects, "physical": world.engine}
    parts |= {"secrets": world.secrets, "clock": world.clock}
    parts["executor"] = MemoryExecutor(replace(memory.executor._engines, physical=world.engine))
    ports, journal = Ports(**parts), MemoryJournal()
    asked = BaseParams(server=SERVER, kind=BackupKind.INCREMENTAL)
    made = await registry.action("backup.base").plan(asked, ports, plan)
    result = await run(made, ports, journal)
    assert result.outcome is Outcome.SUCCEEDED, result.message
    [report] = [entry.detail for entry in await journal.entries() if entry.state is JournalState.VERIFIED]
    return made.steps[0].summary, report


async def test_the_first_incremental_of_a_new_primary_is_a_full_one_and_the_next_rests_on_it(
    failed: PhysicalWorld,
) -> None:
    async with failed.archiving():
        summary, report = await quarter(failed, "aaaaaaaaaa")
        following = await quarter(failed, "bbbbbbbbbb")
    assert "changed since `before`, or all pages where the server cannot tell those" in summary
    assert report.startswith(
        "A full backup was made instead of an incremental. Server `main` cannot tell what has changed since its "
        "parent: WAL summaries are required on timeline 2 from "
    )
    [second, first] = [entry.manifest for entry in await failed.engine.catalogue(SERVER)][:2]
    assert following == (summary.replace("aaaaaaaaaa", "bbbbbbbbbb").replace("`before`", f"`{first.id}`"), "")
    assert (first.kind, first.parent, first.timeline_id) == (BackupKind.FULL, None, 2)
    assert (second.kind, second.parent) == (BackupKind.INCREMENTAL, first.id)
    assert await restored(failed, "s1") == (second.id, ["a", "b", "c"])


@NEEDED
async def test_without_the_bot_the_way_leads_along_the_living_timeline_too(
    failed: PhysicalWorld, server_directory: Path
) -> None:
    folder = server_directory / "bare"
    copy = folder / "copy"
    for facts in await failed.objects.list(BUCKET, "physical/"):
        path = copy / facts.key.removeprefix("physical/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(await failed.objects.get(BUCKET, facts.key))
    (folder / PROGRAM).write_bytes(program())
    bare = Bare(folder, failed.server, failed.keys.identity)
    command = f"python3 {PROGRAM} server --from {copy} --trust {failed.keys.signer} --server {SERVER}"

    async def rows(data: str) -> list[str]:
        try:
            count = f"psql -XAt -h {folder / data} -U postgres -d postgres -c 'SELECT row FROM ledger ORDER BY row'"
            return (await bare.type(count)).splitlines()
        finally:
            await bare.type(f"pg_ctl stop -w -m immediate -D {data} >&2")

    said = await bare.type(f"{command} --data living")
    assert "full backup before" in said
    assert await rows("living") == ["a", "b", "c"]
    assert "on timeline id 2" in await refused(bare, f"{command} --data left --backup beyond")
    await bare.type(f"{command} --data left --backup beyond --timeline 1")
    assert await rows("left") == ["a", "lost", "lost too"]
