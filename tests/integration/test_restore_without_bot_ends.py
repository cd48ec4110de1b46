"""Where a server comes to rest that is brought back without the bot, out of folders with a copy of what is stored."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from actions.byhand import restore
from tests.bare_machine import NEEDED, PYTHON, Bare
from tests.fakes.s3 import MemoryObjects
from tests.fixtures.physical import standing, turn_checksums
from tests.physical_world import BUCKET, SERVER, PhysicalWorld

pytestmark = [pytest.mark.integration, *NEEDED]


class Copy:
    """A machine that has nothing of ours, and a folder with what is stored."""

    def __init__(self, world: PhysicalWorld, folder: Path) -> None:
        assert isinstance(world.objects, MemoryObjects)
        folder.mkdir()
        self.world, self.folder, self.data = world, folder / "copy", folder / "restored"
        for key, found in world.objects.buckets[BUCKET].items():
            path = self.folder / key.removeprefix(world.policy.prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(found.body)
        (folder / "restore.py").write_bytes(Path(restore.__file__).read_bytes())
        self.bare = Bare(folder, world.server, world.keys.identity)

    def command(self, *options: str) -> str:
        begin = [PYTHON, "restore.py", "server", "--server", SERVER, "--trust", self.world.keys.signer]
        return shlex.join([*begin, "--from", str(self.folder), "--data", str(self.data), *options])

    async def rows(self) -> list[int]:
        """Of the server that it has left running, which is ended."""
        count = f"psql -XAt -h {self.data} -U postgres -d postgres -c 'SELECT row FROM ledger ORDER BY row'"
        try:
            return [int(row) for row in (await self.bare.type(count)).split()]
        finally:
            await self.bare.type(f"pg_ctl stop -w -m immediate -D {self.data}")


async def test_a_server_without_page_checksums_comes_back_and_nobody_says_that_its_pages_were_checked(
    run_directory: Path, server_directory: Path
) -> None:
    with standing(run_directory) as world:
        await turn_checksums(world, "disable")
        world.sql("CREATE TABLE ledger (row int PRIMARY KEY)", "INSERT INTO ledger VALUES (1)")
        await world.take("bare")
        await world.archive()

        copy = Copy(world, server_directory / "bare")
        said = await copy.bare.type(copy.command("--settle", "6"))
        assert "rests at" in said
        assert "read only, pages not checked: the server has no page checksums." in said
        assert "every page checked" not in said
        assert await copy.rows() == [1]
