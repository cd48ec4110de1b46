"""What every DumpTests keeps: the engine on a real server, and the fake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from actions.backup.dump_test import DumpTest
from actions.backup.physical import ScratchState
from actions.errors import UserError, VerificationError
from actions.ports import Ports, no_progress
from actions.site import DatabaseRef
from tests.fakes.world import a_world
from tests.fixtures.proving_dumps import KEY, dump_proving_of
from tests.physical_world import BUCKET

MARK = "drbot:scratch:contract"


@dataclass
class World:
    """`damage` makes the dump unusable, so that the catalogue tells."""

    ports: Ports
    backup: str
    damage: Callable[[], None]

    async def load(self, **changes: object) -> object:
        name = self.ports.site.database(KEY).name
        wanted = {"id": "s1", "database": KEY, "backup": self.backup, "name": name, "mark": MARK, "jobs": 2}
        request = DumpTest.model_validate(wanted | changes)
        return await self.ports.executor._engines.dump_tests.load(request, no_progress)  # type: ignore[attr-defined]


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
async def world(request: pytest.FixtureRequest, server_directory: Path) -> AsyncIterator[World]:
    if request.param == "fake":
        memory = a_world()
        yield World(memory, "b-new", lambda: memory.backups.spoil(KEY, "b-new", "Backup `b-new` was changed."))
        return
    async with dump_proving_of(request.getfixturevalue("past"), server_directory) as real:
        backup, objects = await real.dump(), real.objects.buckets[BUCKET]

        def damage() -> None:
            [key] = [key for key in objects if key.endswith(f"{backup}/dump.age")]
            del objects[key]

        yield World(real.ports, backup, damage)


async def test_a_dump_is_loaded_whole_into_a_server_of_its_own(world: World) -> None:
    loaded = await world.load()
    facts = await world.ports.scratch.find("s1")
    assert facts is not None
    assert (facts.state, facts.mark, facts.loaded, facts.restored) == (ScratchState.LOADED, MARK, loaded, None)
    assert facts.server == world.ports.site.database(KEY).server
    assert not facts.address
    assert (await world.ports.scratch.start("s1")).address
    database = world.ports.site.database(KEY)
    found = await world.ports.postgres.fingerprint(DatabaseRef("scratch-s1", database.name), database.invariants)
    entry = await world.ports.backups.find(KEY, world.backup)
    assert entry is not None
    assert entry.manifest.fingerprint.differences(found) == ()
    assert not (await world.ports.postgres.server("scratch-s1")).in_recovery
    await world.ports.scratch.discard("s1", mark=MARK)
    assert await world.ports.scratch.removed("s1")


async def test_a_rerun_returns_what_is_there_and_another_plan_does_not_take_it(world: World) -> None:
    loaded = await world.load()
    assert await world.load() == loaded
    with pytest.raises(UserError, match="made for something else"):
        await world.load(mark="drbot:scratch:other")
    for refused in (world.ports.scratch.promote("s1"), world.ports.scratch.follow("s1", delay=timedelta(0))):
        with pytest.raises(UserError):
            await refused


async def test_what_cannot_be_used_is_named_and_leaves_nothing(world: World) -> None:
    with pytest.raises(UserError, match="There is no backup `b-none`"):
        await world.load(backup="b-none")
    world.damage()
    with pytest.raises(VerificationError, match=world.backup):
        await world.load()
    assert not await world.ports.scratch.instances()
