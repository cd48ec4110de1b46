"""What every Scratch keeps: instances of real servers, and the fake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from actions.backup.physical import Check, RecoveryTarget, ScratchRequest, ScratchState
from actions.errors import DrError, UserError
from actions.ports import PhysicalBackups, PostgresAdmin, Scratch, no_progress
from tests.fakes.clock import TravellingClock
from tests.fakes.history import with_history
from tests.fixtures.physical import Past
from tests.fixtures.waiting import eventually
from tests.physical_world import SERVER

MARK = "drbot:scratch:contract"
LIFETIME = timedelta(hours=12)
NOW = datetime(2026, 11, 23, 10, 12, tzinfo=UTC)


async def by_nobody(_: str) -> bool:
    return False


@dataclass
class World:
    port: Scratch
    physical: PhysicalBackups
    postgres: PostgresAdmin
    server: str
    passes: Callable[[timedelta], None]  # let time pass

    async def made(self, scratch: str = "s1") -> None:
        request = ScratchRequest(id=scratch, server=self.server, target=RecoveryTarget(latest=True), mark=MARK)
        await self.physical.restore(request, no_progress)

    async def state(self, scratch: str = "s1") -> ScratchState | None:
        facts = await self.port.find(scratch)
        return facts.state if facts is not None else None


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
async def world(request: pytest.FixtureRequest, server_directory: Path) -> AsyncIterator[World]:
    if request.param == "fake":
        memory = with_history()
        yield World(memory.scratch, memory.physical, memory.postgres, "primary", memory.clock.advance)
        return
    past: Past = request.getfixturevalue("past")
    clock = TravellingClock()
    real = replace(past.anew(server_directory), clock=clock)

    def passes(duration: timedelta) -> None:
        clock.ahead += duration

    yield World(real.scratch, real.engine, real.postgres, SERVER, passes)
    for facts in await real.scratch.instances():
        await real.scratch.stop(facts.id)


async def test_the_life_of_an_instance(world: World) -> None:
    await world.made()
    assert not await world.port.removed("s1")
    (facts,) = await world.port.instances()
    assert (facts.id, facts.name, facts.mark, facts.state) == ("s1", "scratch-s1", MARK, ScratchState.STOPPED)
    assert facts.expires_at == facts.made_at + LIFETIME

    started = await world.port.start("s1")
    assert started.state is ScratchState.PAUSED
    assert started.address
    assert await world.port.start("s1") == started  # one that runs is left alone
    assert (await world.postgres.server("scratch-s1")).in_recovery

    assert (started.checks, started.problem) == ({}, "")
    good, bad = (
        Check(at=NOW, compared="Nothing differs."),
        Check(at=NOW, table="public.a", problem="A page is\ndamaged."),
    )
    await world.port.judge("s1", "shop", bad)
    await world.port.judge("s1", "other", good)
    found = await world.port.find("s1")
    assert found is not None
    assert (found.checks, found.problem) == ({"shop": bad, "other": good}, "A page is\ndamaged.")
    await world.port.judge("s1", "shop", good)
    assert (found := await world.port.find("s1")) is not None
    assert (found.checks["shop"], found.problem) == (good, "")

    await world.port.stop("s1")
    await world.port.stop("s1")
    assert await world.state() is ScratchState.STOPPED
    with pytest.raises(DrError):
        await world.postgres.server("scratch-s1")

    with pytest.raises(UserError):
        await world.port.discard("s1", mark="drbot:scratch:other")
    await world.port.start("s1")
    await world.port.discard("s1", mark=MARK)
    assert await world.state() is None
    assert await world.port.removed("s1")
    await world.port.discard("s1", mark=MARK)


async def test_a_promoted_one_is_a_server_of_its_own_and_is_never_removed(world: World) -> None:
    await world.made()
    promoted = await world.port.promote("s1")
    assert promoted.state is ScratchState.PROMOTED
    assert not (await world.postgres.server("scratch-s1")).in_recovery
    assert await world.port.promote("s1") == promoted
    with pytest.raises(UserError):
        await world.port.discard("s1", mark=MARK)
    world.passes(2 * LIFETIME)
    assert await world.port.sweep(by_nobody) == []
    assert await world.state() is ScratchState.PROMOTED


async def test_those_whose_time_is_over_are_swept(world: World) -> None:
    await world.made("s1")
    assert await world.port.sweep(by_nobody) == []
    world.passes(LIFETIME - timedelta(minutes=1))
    assert await world.port.sweep(by_nobody) == []
    await world.port.start("s1")
    world.passes(timedelta(minutes=2))

    async def swept() -> bool:  # a session that has just ended may still be seen
        return [facts.id for facts in await world.port.sweep(by_nobody)] == ["s1"]

    await eventually(swept)
    assert list(await world.port.instances()) == []
    assert await world.port.removed("s1")
    await world.made("s1")
    assert not await world.port.removed("s1")


async def test_one_that_follows_stays_and_becomes_a_restore(world: World) -> None:
    await world.made()
    with pytest.raises(UserError):
        await world.physical.feed(world.server, "s1")
    with pytest.raises(UserError):
        await world.port.halt("s1", RecoveryTarget(lsn="0/1"))

    following = await world.port.follow("s1", delay=timedelta(0))
    assert following.state is ScratchState.FOLLOWING
    assert following.address
    assert following.following is not None
    assert following.following.delay == timedelta(0)
    assert (await world.postgres.server("scratch-s1")).in_recovery
    world.passes(2 * LIFETIME)
    assert await world.port.sweep(by_nobody) == []
    with pytest.raises(UserError):
        await world.port.promote("s1")
    with pytest.raises(UserError):
        await world.port.open("s1", host="127.0.0.1", port=5432)

    await world.port.stop("s1")
    await world.physical.feed(world.server, "s1")
    woken = await world.port.tend("s1")
    assert (woken.state, bool(woken.address)) == (ScratchState.FOLLOWING, True)
    assert woken.following is not None
    assert (woken.following.problem, woken.following.fed_at is not None) == ("", True)
    with pytest.raises(UserError, match="has replayed beyond"):
        await world.port.halt("s1", RecoveryTarget(lsn="0/1"))

    latest = RecoveryTarget(latest=True, timeline_id=woken.restored.timeline_id if woken.restored else None)
    halted = await world.port.halt("s1", latest)
    assert (halted.state, halted.following) == (ScratchState.STOPPED, None)
    assert halted.restored is not None
    assert halted.restored.target == latest
    assert await world.port.halt("s1", latest) == halted
    assert (await world.port.start("s1")).state is ScratchState.PAUSED
    assert (await world.port.tend("s1")).state is ScratchState.PAUSED  # nothing to do


async def test_one_that_a_run_or_plan_needs_is_not_swept(world: World) -> None:
    await world.made("s1")
    await world.made("s2")
    world.passes(LIFETIME + timedelta(minutes=1))

    async def wanted(scratch: str) -> bool:
        return scratch == "s1"

    assert [facts.id for facts in await world.port.sweep(wanted)] == ["s2"]
    assert [facts.id for facts in await world.port.instances()] == ["s1"]


async def test_what_the_machine_lacks_is_told_before_anything_is_claimed(world: World) -> None:
    assert await world.port.lacking(1) == ""
    assert "Free space there" in await world.port.lacking(1 << 60)
    assert not await world.port.instances()  # nothing was claimed


async def test_what_is_not_there(world: World) -> None:
    assert await world.port.find("s9") is None
    await world.port.discard("s9", mark=MARK)
    assert not await world.port.removed("s9")
    for call in (world.port.start, world.port.stop, world.port.promote, world.port.tend):
        with pytest.raises(UserError, match="no scratch instance `s9`"):
            await call("s9")
