"""The commands that a plan prints for the day the bot is away, typed as they stand: they end where the bot's own
restore ends."""

from __future__ import annotations

import shutil
import sys
from datetime import timedelta
from pathlib import Path

import pyrage
import pytest

from actions.adapters.programs import ProgramError, run
from actions.backup.physical import RecoveryTarget
from actions.steps.stored_chain import StoredChain
from tests.fakes.s3 import MemoryObjects
from tests.fixtures.physical import Past
from tests.physical_world import BUCKET, SERVER, PhysicalWorld

pytestmark = [pytest.mark.integration, pytest.mark.needs("zstd")]

LIMIT = timedelta(minutes=2)
AWS = """#!/bin/sh
# aws s3 cp [--quiet] s3://BUCKET/KEY FILE, out of a folder
[ "$3" != --quiet ] || shift
exec cp "{buckets}/${{3#s3://}}" "$4"
"""
# The account that runs the server cannot enter the virtual environment, so WAL lies there opened already.
AGE = """#!/bin/sh
[ "$1 $2" = "-d -i" ] || exit 2
[ -n "$4" ] || exec cat
exec {python} -c 'import pyrage, sys
identity = pyrage.x25519.Identity.from_str(open(sys.argv[1]).read().strip())
sys.stdout.buffer.write(pyrage.decrypt(open(sys.argv[2], "rb").read(), [identity]))' "$3" "$4"
"""


class ByHand:
    """A folder with the bucket in it, the programs that people have, and a shell."""

    def __init__(self, world: PhysicalWorld, folder: Path) -> None:
        self.world, self.folder, self.data = world, folder, folder / "data"
        self.programs, self.buckets = folder / "programs", folder / "buckets"
        self.programs.mkdir()
        for name, text in (("aws", AWS), ("age", AGE)):
            (self.programs / name).write_text(text.format(buckets=self.buckets, python=sys.executable))
            (self.programs / name).chmod(0o755)
        (folder / "identity").write_text(world.keys.identity)
        (folder / "data.log").touch()

    def filled(self) -> None:
        objects = self.world.objects
        assert isinstance(objects, MemoryObjects)
        identity = pyrage.x25519.Identity.from_str(self.world.keys.identity)
        for key, found in objects.buckets[BUCKET].items():
            head, _, sealed = found.body.partition(b"\n")
            body = head + b"\n" + pyrage.decrypt(sealed, [identity]) if key.endswith(".sealed") else found.body
            place = self.buckets / BUCKET / key
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(body)
        self.hand_over(self.folder)

    def hand_over(self, folder: Path) -> None:
        account = self.world.server.account
        for path in (folder, *folder.rglob("*")):
            if account is not None:
                shutil.chown(path, account.uid, account.gid)

    async def type(self, *lines: str, ourselves: bool = False) -> str:
        """As the account that runs PostgreSQL, which is never root; or as whoever we are."""
        path = f"{self.programs}:{self.world.server.tool('psql').parent}:/usr/local/bin:/usr/bin:/bin"
        env = {"PATH": path, "PGDATA": str(self.data), "AGE_IDENTITY_FILE": str(self.folder / "identity")}
        account = None if ourselves else self.world.server.account
        script = "\n".join(("set -euo pipefail", *lines))
        return (await run(["bash", "-c", script], env=env, cwd=self.folder, account=account, timeout=LIMIT)).text


@pytest.mark.parametrize(
    ("base", "kind", "expected"),
    [("quarter", "time", [1, 2, 3, 4]), ("full", "time", [1, 2, 3, 4]), ("hour", "latest", [1, 2, 3, 4, 5])],
)
async def test_a_moment_is_reached_by_typing_what_the_plan_says(
    past: Past, server_directory: Path, base: str, kind: str, expected: list[int]
) -> None:
    world = past.anew(server_directory / "world")
    hand = ByHand(world, server_directory)
    hand.filled()
    target = RecoveryTarget(time=past.commits[4].after) if kind == "time" else RecoveryTarget(latest=True)
    entries = await world.engine.catalogue(SERVER)
    chosen = next(entry for entry in entries if entry.manifest.id == base)
    stored = StoredChain.of(world.site, SERVER, entries, chosen)
    assert stored is not None
    lines = stored.commands(target)
    start = next(number for number, line in enumerate(lines) if line.startswith("pg_ctl start"))

    await hand.type(*lines[:start], ourselves=True)
    hand.hand_over(hand.data)
    await hand.type(lines[start])
    try:
        while (told := await hand.type(lines[start + 1])).split("|")[0] != "paused" and kind == "time":
            continue
        await hand.type(*lines[start + 2 :])
        count = f"psql -XAt -h {hand.data} -U {stored.superuser} -d postgres -c 'SELECT row FROM ledger ORDER BY row'"
        assert [int(row) for row in (await hand.type(count)).split()] == expected
        assert told.strip()
    finally:
        await hand.type('pg_ctl stop -w -m immediate -D "$PGDATA"')


async def test_a_member_that_was_changed_ends_it_before_it_is_opened(past: Past, server_directory: Path) -> None:
    world = past.anew(server_directory / "world")
    hand = ByHand(world, server_directory)
    hand.filled()
    entries = await world.engine.catalogue(SERVER)
    quarter = next(entry for entry in entries if entry.manifest.id == "quarter")
    stored = StoredChain.of(world.site, SERVER, entries, quarter)
    assert stored is not None
    object_of_hour = hand.buckets / BUCKET / stored.members[1].key
    object_of_hour.write_bytes(object_of_hour.read_bytes()[:-1])

    with pytest.raises(ProgramError, match="did NOT match"):
        await hand.type(*stored.commands(RecoveryTarget(latest=True)), ourselves=True)
    assert not hand.data.exists()
