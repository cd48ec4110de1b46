"""An engine that is one file outside of the product: its copies on real servers, and what plans say of it."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest

from actions.backup.physical import (
    BackupKind,
    BaseRequest,
    Change,
    FindRequest,
    PhysicalEntry,
    PointRequest,
    RecoveryTarget,
    ScratchRequest,
)
from actions.catalog.base import Base, BaseParams, Check, CheckBaseParams
from actions.errors import VerificationError
from actions.ports import Ports, no_progress
from actions.site import DatabaseRef
from tests.contract.kit import read_back
from tests.fakes.world import a_world
from tests.fixtures.folder import SERVER, FolderWorld, Shared, added
from tests.fixtures.waiting import eventually
from tests.integration.test_restore_by_hand import ByHand
from tests.physical_world import PhysicalWorld

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("folder")]
MARK = "drbot:scratch:plan1"
NONE = timedelta(0)


async def rows(world: FolderWorld, scratch: str) -> list[int]:
    await world.scratch.start(scratch)
    found = await world.postgres.query(DatabaseRef(f"scratch-{scratch}", "postgres"), "SELECT row FROM ledger")
    return sorted(int(str(each["row"])) for each in found)


async def test_it_restores_to_the_transaction(shared: Shared, server_directory: Path) -> None:
    world = await shared.borrowed(server_directory)
    for scratch, inclusive, wanted in (("before", False, [1, 2, 3]), ("after", True, [1, 2, 3, 4])):
        target = RecoveryTarget(xid=shared.xid, inclusive=inclusive)
        request = ScratchRequest(id=scratch, server=SERVER, target=target, mark=MARK)
        restored = await world.engine.restore(request, no_progress)
        assert restored.backup == "next"
        assert await rows(world, scratch) == wanted
        await world.scratch.discard(scratch, mark=MARK)


async def test_it_finds_who_dropped_a_table_and_a_restore_point(shared: Shared, server_directory: Path) -> None:
    world = await shared.borrowed(server_directory)
    await asyncio.to_thread(shared.sql, "SELECT pg_create_restore_point('here')")
    await asyncio.to_thread(shared.sql, "DELETE FROM ledger WHERE row = 4")
    await asyncio.to_thread(shared.archived)
    try:
        request = FindRequest(server=SERVER, database="postgres", table="ledger")
        (moment,) = await world.engine.find(request, no_progress)
        assert (moment.change, moment.rows) == (Change.DELETE, 1)
        (point,) = await world.engine.find_points(PointRequest(server=SERVER, point="here"), no_progress)
        assert point.name == "here"
    finally:
        await asyncio.to_thread(shared.sql, "INSERT INTO ledger VALUES (4) ON CONFLICT DO NOTHING")


async def test_its_commands_restore_by_hand(shared: Shared, server_directory: Path) -> None:
    world = await shared.borrowed(server_directory / "world")
    hand = ByHand(cast("PhysicalWorld", world), server_directory)  # its server and keys are what is needed
    hand.hand_over(server_directory)
    entries = await world.engine.catalogue(SERVER)
    base = next(entry for entry in entries if entry.manifest.id == "next")
    stored = world.declared.stored(world.site, SERVER, entries, base)
    # `chain` must be there for the shell of the first lines.
    lines = ("chain=", *world.declared.restore_by_hand(stored, RecoveryTarget(xid=shared.xid, inclusive=False)))
    start = next(number for number, line in enumerate(lines) if line.startswith("pg_ctl start"))
    await hand.type(*lines[: start + 1])
    try:

        async def paused() -> bool:
            return (await hand.type(lines[start + 1])).split("|")[0] == "paused"

        await eventually(paused)
        await hand.type(*lines[start + 2 :])
        count = f"psql -XAt -h {hand.data} -U postgres -d postgres -c 'SELECT row FROM ledger ORDER BY row'"
        assert (await hand.type(count)).split() == ["1", "2", "3"]
    finally:
        await hand.type('pg_ctl stop -w -m immediate -D "$PGDATA"')


async def test_a_standby_out_of_its_archive_follows(shared: Shared, server_directory: Path) -> None:
    world = await shared.borrowed(server_directory)
    request = ScratchRequest(id="s1", server=SERVER, target=RecoveryTarget(latest=True), mark=MARK)
    await world.engine.restore(request, no_progress)
    await world.scratch.start("s1")
    await world.scratch.follow("s1", delay=timedelta(0))
    await asyncio.to_thread(shared.sql, "CREATE TABLE later AS SELECT 7 AS row")
    await asyncio.to_thread(shared.archived)

    async def there() -> bool:
        await world.engine.feed(SERVER, "s1")
        following = (await world.scratch.tend("s1")).following
        assert following is not None
        assert following.problem == ""
        query = "SELECT to_regclass('later') IS NOT NULL AS there"
        (row,) = await world.postgres.query(DatabaseRef("scratch-s1", "postgres"), query)
        return bool(row["there"])

    try:
        await eventually(there)
    finally:
        await asyncio.to_thread(shared.sql, "DROP TABLE later")
        await world.scratch.stop("s1")
        await world.scratch.discard("s1", mark=MARK)


async def test_expiry_goes_by_what_is_needed(shared: Shared, server_directory: Path) -> None:
    world = await shared.borrowed(server_directory, {"full_retention": NONE, "incremental_retention": NONE})
    assert (await world.engine.expiry(SERVER)).backups == ("next",)  # the window's oldest moment rests on `full`
    await world.engine.take(BaseRequest(id="later", server=SERVER, kind=BackupKind.FULL), no_progress)
    await world.engine.pin(SERVER, "next", reason="case 4711")
    assert (await world.engine.expiry(SERVER)).backups == ()
    await world.engine.pin(SERVER, "next", reason="")

    world = world.with_policy(wal_retention=NONE)
    expiry = await world.engine.expiry(SERVER)
    assert expiry.backups == ("next", "full")
    assert expiry.segments > 0
    await world.engine.expire(SERVER, expiry)
    assert [entry.manifest.id for entry in await world.engine.catalogue(SERVER)] == ["later"]
    left = await world.engine.expiry(SERVER)
    assert (left.backups, left.segments) == ((), 0)
    request = ScratchRequest(id="s1", server=SERVER, target=RecoveryTarget(latest=True), mark=MARK)
    assert (await world.engine.restore(request, no_progress)).backup == "later"


async def test_a_changed_copy_is_found_before_anything_starts(shared: Shared, server_directory: Path) -> None:
    world = await shared.borrowed(server_directory)
    with (world.folder / "base" / "full" / "base.tar").open("r+b") as stream:
        stream.seek(3_000_000)
        byte = stream.read(1)
        stream.seek(3_000_000)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(VerificationError, match="`full`"):
        await world.engine.verify(SERVER, "full", no_progress)
    request = ScratchRequest(id="s1", server=SERVER, target=RecoveryTarget(latest=True), mark=MARK)
    with pytest.raises(VerificationError, match="`full`"):
        await world.engine.restore(request, no_progress)
    assert list(await world.scratch.instances()) == []


async def test_plans_show_its_own_commands(shared: Shared, server_directory: Path) -> None:
    world = await shared.borrowed(server_directory)
    with added():
        ports = {each.name: getattr(a_world(), each.name) for each in fields(Ports)}
        ports |= {"site": world.site, "physical": world.engine, "postgres": world.postgres}
        plan = await Base().plan(BaseParams(), Ports(**ports), "plan-1")
        assert plan.steps[0].by_hand()[0].startswith("pg_basebackup -d ")
        assert f"-D {world.folder}/manual/" in plan.steps[0].by_hand()[0]
        assert read_back(plan).steps[0].by_hand() == plan.steps[0].by_hand()

        plan = await Check().plan(CheckBaseParams(backup="full"), Ports(**ports), "plan-2")
        entry = await known(world, "full")
        (command,) = plan.steps[0].by_hand()
        assert command == f'echo "{entry.manifest.stored.sha256}  "{entry.manifest.stored.key} | sha256sum -c'


async def known(world: FolderWorld, backup: str) -> PhysicalEntry:
    return next(entry for entry in await world.engine.catalogue(SERVER) if entry.manifest.id == backup)
