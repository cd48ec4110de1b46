"""Where a server comes to rest that is brought back without the bot, out of folders with a copy of what is stored."""

from __future__ import annotations

import asyncio
import shlex
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from actions.backup.physical import Lsn
from actions.backup.segments import Segment
from actions.byhand import restore
from tests.bare_machine import NEEDED, Bare, refused
from tests.fakes.s3 import MemoryObjects
from tests.fixtures.needed import SYSTEM_PYTHON
from tests.fixtures.physical import Past, standing, turn_checksums
from tests.physical_world import BUCKET, SERVER, PhysicalWorld

pytestmark = [pytest.mark.integration, NEEDED]


class Copy:
    """A machine that has nothing of ours, and a folder with what is stored."""

    def __init__(self, world: PhysicalWorld, folder: Path) -> None:
        folder.mkdir()
        self.world, self.folder, self.data = world, folder / "copy", folder / "restored"
        self.lay()
        (folder / "restore.py").write_bytes(Path(restore.__file__).read_bytes())
        self.bare = Bare(folder, world.server, world.keys.identity)

    def lay(self) -> None:
        assert isinstance(self.world.objects, MemoryObjects)
        for key, found in self.world.objects.buckets[BUCKET].items():
            path = self.folder / key.removeprefix(self.world.policy.prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(found.body)

    def command(self, *options: str) -> str:
        begin = [SYSTEM_PYTHON, "restore.py", "server", "--server", SERVER, "--trust", self.world.keys.signer]
        return shlex.join([*begin, "--from", str(self.folder), "--data", str(self.data), *options])

    async def asked(self, statement: str) -> list[str]:
        """Of the server that it has left running."""
        return (await self.bare.type(f"psql -XAt -h {self.data} -U postgres -d postgres -c '{statement}'")).split()

    async def stop(self) -> None:
        await self.bare.type(f"pg_ctl stop -w -m immediate -D {self.data}")
        shutil.rmtree(self.data)


ROWS = "SELECT row FROM ledger ORDER BY row"


async def test_a_server_without_page_checksums_comes_back_and_nobody_says_that_its_pages_were_checked(
    run_directory: Path, server_directory: Path
) -> None:
    with standing(run_directory) as world:
        await turn_checksums(world, "disable")
        world.sql("CREATE TABLE ledger (row int PRIMARY KEY)", "INSERT INTO ledger VALUES (1)")
        await world.take("bare")
        await world.archive()

        copy = Copy(world, server_directory / "bare")
        said = await copy.bare.type(copy.command())
        assert "rests at" in said
        assert "read only, pages not checked: the server has no page checksums." in said
        assert "every page checked" not in said
        assert await copy.asked(ROWS) == ["1"]

        # It has what it needs: the store may be gone by now.
        shutil.rmtree(copy.folder)
        await copy.bare.type(f"pg_ctl restart -w -D {copy.data} -l {copy.data}.log")
        assert await copy.asked(ROWS) == ["1"]
        await copy.stop()


async def test_a_moment_after_the_last_commit_is_the_end_of_the_archive_and_nothing_later_is_replayed(
    run_directory: Path, server_directory: Path
) -> None:
    with standing(run_directory) as world:
        world.sql("CREATE TABLE ledger (row int PRIMARY KEY)")
        await world.take("full")
        world.sql("INSERT INTO ledger VALUES (1)")
        [(moment,)] = world.sql("SELECT clock_timestamp()")
        assert isinstance(moment, datetime)
        await asyncio.sleep(0.1)
        await world.archive()

        copy = Copy(world, server_directory / "bare")
        said = await copy.bare.type(copy.command("--until", (moment + timedelta(milliseconds=50)).isoformat()))
        assert "rests at" in said
        assert await copy.asked(ROWS) == ["1"]

        # The primary lives, and goes on.
        world.sql("INSERT INTO ledger VALUES (2)")
        await world.archive()
        copy.lay()
        copy.bare.hand_over()
        await copy.bare.type(f"pg_ctl restart -w -D {copy.data} -l {copy.data}.log")
        paused = "[ $(psql -XAt -h {0} -U postgres -d postgres -c 'SELECT pg_get_wal_replay_pause_state()') = paused ]"
        await copy.bare.type(f"until {paused.format(copy.data)} ; do sleep 0.2 ; done")
        assert await copy.asked(ROWS) == ["1"]
        await copy.stop()


async def test_a_setting_that_was_raised_after_the_base_backup_is_raised_here_too(
    run_directory: Path, server_directory: Path
) -> None:
    with standing(run_directory) as world:
        world.sql("CREATE TABLE ledger (row int PRIMARY KEY)")
        await world.take("full")
        world.sql("ALTER SYSTEM SET max_connections = 217", "ALTER SYSTEM SET max_worker_processes = 23")
        await world.server.stop()
        await world.server.start()
        world.values["DSN"] = world.server.dsn()
        world.sql("INSERT INTO ledger VALUES (1)")
        [(moment,)] = world.sql("SELECT clock_timestamp()")
        world.sql("INSERT INTO ledger VALUES (2)")
        await world.archive()

        copy = Copy(world, server_directory / "bare")
        await copy.bare.type(copy.command("--until", str(moment)))
        assert await copy.asked(ROWS) == ["1"]
        assert await copy.asked("SHOW max_connections") == ["217"]
        await copy.stop()


async def test_the_pieces_of_the_open_segment_are_reached_by_place_and_by_moment(
    past: Past, server_directory: Path
) -> None:
    world = replace(past.anew(server_directory / "world"), policy_changes={"open_bucket": BUCKET})
    last = Segment.parse(await world.reopen_last())
    copy = Copy(world, server_directory / "bare")
    pieces = ("--open", str(copy.folder))

    assert "The archive ends at" in await refused(copy.bare, copy.command("--lsn", past.commits[5].lsn))
    beyond = str(Lsn(last.end + 1))
    assert f"The archive ends at {Lsn(last.end)}" in await refused(copy.bare, copy.command("--lsn", beyond, *pieces))
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert "before that moment" in await refused(copy.bare, copy.command("--until", later, *pieces))
    assert not copy.data.exists()

    await copy.bare.type(copy.command("--lsn", past.commits[5].lsn, *pieces))
    assert await copy.asked(ROWS) == ["1", "2", "3", "4", "5"]
    await copy.stop()

    # Without the pieces the archive ends before.
    said = await copy.bare.type(copy.command("--open", str(copy.folder / "nowhere")))
    assert "The last seconds may be missing" in said
    assert await copy.asked(ROWS) != ["1", "2", "3", "4", "5"]
    await copy.stop()


async def test_what_would_end_it_after_hours_is_told_at_once(past: Past, server_directory: Path) -> None:
    copy = Copy(past.anew(server_directory / "world"), server_directory / "bare")
    asked = copy.command()
    for wrong in ("a,b", "100%", "x" * 90):
        elsewhere = asked.replace(str(copy.data), shlex.quote(str(copy.data.with_name(wrong))))
        assert "Choose another data directory" in await refused(copy.bare, elsewhere)
    left = copy.data.with_name("restored.1")
    left.mkdir()
    assert f"An earlier try has left {left}" in await refused(copy.bare, asked)
    left.rmdir()
    other = copy.bare.folder / "programs" / "pg_ctl"
    other.write_text("#!/bin/sh\necho 'pg_ctl (PostgreSQL) 12.3'\n")
    other.chmod(0o755)
    assert "not those of 12" in await refused(copy.bare, asked)
    assert not copy.data.exists()
    assert "invalid lsn value" in await refused(copy.bare, copy.command("--lsn", "here"))
