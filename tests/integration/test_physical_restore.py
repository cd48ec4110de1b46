"""A server restored beside production, exactly to its target, out of full backups, incrementals and archived WAL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from actions.backup.native_catalogue import BaseFolder
from actions.backup.physical import SEGMENT, Phase, RecoveryTarget, ScratchFacts, ScratchState
from actions.errors import UserError
from actions.local_ports import free_port
from actions.site import DatabaseRef, ScratchBudget
from tests.fakes.s3 import MemoryObjects
from tests.fixtures.physical import Past
from tests.physical_world import BUCKET, MARK, SERVER, PhysicalWorld

pytestmark = pytest.mark.integration

SCRATCH = DatabaseRef("scratch-s1", "postgres")


@pytest.fixture
async def world(past: Past, server_directory: Path) -> AsyncIterator[PhysicalWorld]:
    made = past.anew(server_directory)
    yield made
    for facts in await made.scratch.instances():
        await made.scratch.stop(facts.id)


async def rows(world: PhysicalWorld) -> list[int]:
    found = await world.postgres.query(SCRATCH, "SELECT row FROM ledger ORDER BY row")
    return [int(each["row"]) for each in found]


async def test_a_moment_is_reached_to_the_transaction_and_the_instance_is_a_server(
    past: Past, world: PhysicalWorld
) -> None:
    target = RecoveryTarget(time=past.commits[4].after)
    restored = await world.restore(target, amcheck=True)
    assert restored.backup == "quarter"
    assert restored.reached_at is not None
    assert past.commits[4].before <= restored.reached_at <= past.commits[4].after
    assert (restored.checked_pages, restored.timeline_id) == (True, 1)
    assert restored.checked_indexes == ("postgres",)
    assert set(restored.seconds) == set(Phase)
    entries = await world.engine.catalogue(SERVER)
    members = sum(entry.manifest.plain_bytes for entry in entries)
    stopped = await world.scratch.find("s1")
    assert stopped is not None
    assert (stopped.state, stopped.address, stopped.restored) == (ScratchState.STOPPED, "", restored)
    assert stopped.bytes > members + SEGMENT  # its WAL counts as well
    assert await world.restore(target, amcheck=True) == restored  # a rerun finds it

    paused = await world.scratch.start("s1")
    assert paused.state is ScratchState.PAUSED
    assert await rows(world) == [1, 2, 3, 4]
    server = await world.postgres.server("scratch-s1")
    assert (server.in_recovery, server.system_id) == (True, paused.system_id)
    assert [facts.name for facts in await world.postgres.databases("scratch-s1")] == ["postgres"]
    assert await world.scratch.start("s1") == paused

    await world.scratch.stop("s1")
    assert (await only(world)).state is ScratchState.STOPPED
    await world.scratch.start("s1")
    assert await rows(world) == [1, 2, 3, 4]

    promoted = await world.scratch.promote("s1")
    assert promoted.state is ScratchState.PROMOTED
    assert (await world.postgres.server("scratch-s1")).in_recovery is False
    assert await rows(world) == [1, 2, 3, 4]
    settings = await world.postgres.query(SCRATCH, "SELECT current_setting('archive_mode') AS archive_mode")
    assert settings[0]["archive_mode"] == "off"
    with pytest.raises(UserError, match="never removed"):
        await world.scratch.discard("s1", mark=MARK)
    await world.scratch.stop("s1")
    again = await world.scratch.start("s1")
    assert (again.state, again.address != "") == (ScratchState.PROMOTED, True)
    assert await world.scratch.promote("s1") == again


async def test_it_has_a_port_of_the_plans_range_for_as_long_as_it_is_there(past: Past, server_directory: Path) -> None:
    port = free_port()
    world = replace(past.anew(server_directory), budget=ScratchBudget(disk=20 << 30, ports=(port, port)))
    await world.restore(RecoveryTarget(latest=True))
    try:
        for _ in range(2):
            assert (await world.scratch.start("s1")).address == f"127.0.0.1:{port}"
            with pytest.raises(UserError, match=f"Every port from {port} to {port}"):
                await world.restore(RecoveryTarget(latest=True), scratch="s2")
            await world.scratch.stop("s1")
    finally:
        await world.scratch.discard("s1", mark=MARK)
    assert world.clean() == []


async def test_a_base_backup_aborts_what_others_have_left_half_uploaded(world: PhysicalWorld) -> None:
    assert isinstance(world.objects, MemoryObjects)
    lost, late = BaseFolder(world.policy, "lost").base, BaseFolder(world.policy, "late").base
    now = world.clock.now()
    world.objects.uploads[BUCKET] = [(lost, now - timedelta(hours=25)), (late, now - timedelta(hours=23))]
    await world.take("another")
    assert [key for key, _ in world.objects.uploads[BUCKET]] == [late]


async def only(world: PhysicalWorld) -> ScratchFacts:
    (facts,) = await world.scratch.instances()
    return facts


@pytest.mark.parametrize(
    ("kind", "row", "inclusive", "base", "expected"),
    [
        ("time", 2, True, "full", [1, 2]),
        ("xid", 3, False, "hour", [1, 2]),
        ("xid", 4, True, "quarter", [1, 2, 3, 4]),
        ("lsn", 4, True, "quarter", [1, 2, 3, 4]),
        ("name", 5, True, "quarter", [1, 2, 3, 4]),
        ("latest", 5, True, "quarter", [1, 2, 3, 4, 5]),
    ],
)
async def test_every_kind_of_target(
    past: Past, world: PhysicalWorld, kind: str, row: int, inclusive: bool, base: str, expected: list[int]
) -> None:
    commit = past.commits[row]
    target = {
        "time": RecoveryTarget(time=commit.after),
        "xid": RecoveryTarget(xid=commit.xid, inclusive=inclusive),
        "lsn": RecoveryTarget(lsn=commit.lsn),
        "name": RecoveryTarget(name="before_five"),
        "latest": RecoveryTarget(latest=True),
    }[kind]
    restored = await world.restore(target)
    assert restored.backup == base
    await world.scratch.start("s1")
    assert await rows(world) == expected


@pytest.mark.parametrize(
    "target",
    [RecoveryTarget(xid=99_999, inclusive=False), RecoveryTarget(name="never_made"), RecoveryTarget(lsn="0/99")],
)
async def test_a_server_that_starts_and_never_reaches_its_target_is_no_success(
    world: PhysicalWorld, target: RecoveryTarget
) -> None:
    """It is ready, answers, and ends when the WAL does, or began beyond the target."""
    with pytest.raises(UserError, match=r"ends before|before the end of the base backup"):
        await world.restore(target, backup="quarter")
    assert await world.scratch.find("s1") is None
    assert world.clean() == []
