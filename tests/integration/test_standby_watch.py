"""Standbys out of the archive are tended by a worker of their machine, which tells of one that is in trouble."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlmodel import col, select

from actions.backup.physical import Following, RecoveryTarget
from actions.backup.scratch_place import ElsewhereError
from actions.errors import TemporaryError, UserError
from actions.steps.health import Health
from actions.steps.standby import standby_finding
from bot.services import standbys as standbys_service
from bot.services.backup_watch import BackupWatch
from bot.services.standbys import PATIENCE, Standbys
from storage import runs
from storage.session import Database
from storage.tables import OutboxRow
from tests.fakes.history import SCRATCH_ID, with_a_standby, with_history
from tests.fakes.world import START, World
from tests.fixtures.waiting import eventually

pytestmark = pytest.mark.integration

ON_CALL = "C0ONCALL"


def told_of(world: World, **changes: object) -> Following:
    """Put on the instance."""
    facts = world.scratch.made[SCRATCH_ID]
    assert facts.following is not None
    told = facts.following.model_copy(update=changes)
    world.scratch.made[SCRATCH_ID] = facts.model_copy(update={"following": told})
    return told


async def posted(memory: Database) -> list[str]:
    async with memory.session() as session:
        rows = (await session.execute(select(OutboxRow).order_by(col(OutboxRow.id)))).scalars().all()
    return [str(row.payload["text"]) for row in rows]


async def test_it_is_fed_and_woken_and_replays_what_is_old_enough(memory: Database) -> None:
    world = with_a_standby()
    standbys = Standbys(memory, world, on_call=ON_CALL)
    await world.scratch.stop(SCRATCH_ID)
    assert "does not run" in standby_finding(world.scratch.made[SCRATCH_ID], told_of(world), START).detail
    await standbys.tend()
    facts = world.scratch.made[SCRATCH_ID]
    assert facts.address
    assert told_of(world).replayed_lsn == "0/4000000"  # the rest is younger than its delay
    world.clock.advance(timedelta(hours=1))
    await standbys.tend()
    assert told_of(world).replayed_lsn == "0/4000300"


async def test_one_that_is_being_stopped_is_left_alone_and_trouble_is_for_the_next_time(
    memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = with_a_standby()
    standbys = Standbys(memory, world, on_call=ON_CALL)
    told_of(world, halting=RecoveryTarget(latest=True))
    await world.scratch.stop(SCRATCH_ID)
    await standbys.tend()
    assert not world.scratch.made[SCRATCH_ID].address
    told_of(world, halting=None)

    async def silent(scratch: str) -> None:
        raise TemporaryError(f"`{scratch}` does not answer.")

    monkeypatch.setattr(world.scratch, "tend", silent)
    await standbys.tend()


async def test_one_that_stays_in_trouble_is_told_once_and_again_when_it_is_over(
    memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = with_a_standby()
    standbys = Standbys(memory, world, on_call=ON_CALL)

    async def nothing(*_: object) -> None: ...

    monkeypatch.setattr(world.physical, "feed", nothing)
    monkeypatch.setattr(world.scratch, "tend", nothing)
    await world.scratch.stop(SCRATCH_ID)
    counts = []
    for _ in range(4):
        await standbys.tend()
        counts.append(len(await posted(memory)))
        world.clock.advance(PATIENCE / 2)
    assert counts == [0, 0, 1, 1]
    [alarm] = await posted(memory)
    assert alarm.startswith(f"Backup alarm: `scratch-{SCRATCH_ID}`, the standby of `primary`, does not run")

    # Another worker watches the backups, or this one: it knows nothing of standbys and ends nothing of them.
    await BackupWatch(memory, world, on_call=ON_CALL).note(Health(at=world.clock.now() + timedelta(seconds=1)))
    elsewhere = Standbys(memory, with_history(), on_call=ON_CALL)
    await elsewhere.tend()
    assert await posted(memory) == [alarm]

    await world.scratch.start(SCRATCH_ID)
    world.clock.advance(timedelta(seconds=15))
    told_of(world, fed_at=world.clock.now())
    await standbys.tend()
    [_, over] = await posted(memory)
    assert over.startswith("Backup alarm over after 2 min")


async def test_one_that_is_discarded_leaves_no_alarm(memory: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_a_standby()
    standbys = Standbys(memory, world, on_call=ON_CALL)

    async def nothing(*_: object) -> None: ...

    monkeypatch.setattr(world.physical, "feed", nothing)
    told_of(world, problem="The archive has gone on with timeline id 2.", stranded=True)
    await standbys.tend()
    world.clock.advance(PATIENCE)
    await standbys.tend()
    [alarm] = await posted(memory)
    assert "can follow no more: The archive has gone on with timeline id 2. `/dr-restore follow DATABASE" in alarm
    world.clock.advance(timedelta(seconds=15))
    await world.scratch.discard(SCRATCH_ID, mark=world.scratch.made[SCRATCH_ID].mark)
    await Standbys(memory, world, on_call=ON_CALL).tend()
    assert len(await posted(memory)) == 2


async def test_one_of_another_machine_is_left_to_its_worker(memory: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_a_standby()
    await world.scratch.stop(SCRATCH_ID)

    async def elsewhere(scratch: str) -> None:
        raise ElsewhereError(f"Scratch instance `{scratch}` runs on `worker-2`.")

    monkeypatch.setattr(world.scratch, "tend", elsewhere)
    standbys = Standbys(memory, world, on_call=ON_CALL)
    for _ in range(3):
        await standbys.tend()
        world.clock.advance(PATIENCE)
    assert await posted(memory) == []


async def test_one_that_cannot_be_started_is_told_with_the_reason(
    memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = with_a_standby()
    await world.scratch.stop(SCRATCH_ID)

    async def taken(scratch: str) -> None:
        raise UserError(f"Port 55400 is reserved for scratch instance `{scratch}`, and another program listens on it.")

    monkeypatch.setattr(world.scratch, "tend", taken)
    standbys = Standbys(memory, world, on_call=ON_CALL)
    for _ in range(3):
        await standbys.tend()
        world.clock.advance(PATIENCE)
    [alarm] = await posted(memory)
    assert "does not run, so it replays nothing: Port 55400 is reserved" in alarm


async def test_one_that_a_halt_has_left_half_way_is_told_once_its_run_is_over(
    memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = with_a_standby()
    told_of(world, halting=RecoveryTarget(latest=True))
    await world.scratch.stop(SCRATCH_ID)
    standbys = Standbys(memory, world, on_call=ON_CALL)
    needed = True

    async def wanted(*_: object) -> bool:
        return needed

    monkeypatch.setattr(runs, "wants", wanted)
    for _ in range(3):
        await standbys.tend()
        world.clock.advance(PATIENCE)
    assert await posted(memory) == []
    needed = False
    for _ in range(2):
        await standbys.tend()
        world.clock.advance(PATIENCE)
    [alarm] = await posted(memory)
    assert "is being stopped at the end of the archive, and no standby until then" in alarm
    assert f"`/dr-restore halt {SCRATCH_ID}` again" in alarm
    told_of(world, halting=None)
    await standbys.tend()
    assert len(await posted(memory)) == 2


async def test_one_that_is_brought_wal_for_long_keeps_no_other_waiting(
    memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = with_a_standby()
    first = world.scratch.made[SCRATCH_ID]
    other = "s9s9s9s9s9"
    world.scratch.made[other] = first.model_copy(update={"id": other})
    world.scratch.contents[other] = world.scratch.contents[SCRATCH_ID]
    fed: list[str] = []

    async def feed(_: str, scratch: str) -> None:
        fed.append(scratch)
        if scratch == SCRATCH_ID:
            await asyncio.Event().wait()

    monkeypatch.setattr(world.physical, "feed", feed)
    monkeypatch.setattr(standbys_service, "EVERY", timedelta(milliseconds=50))
    running = asyncio.create_task(Standbys(memory, world, on_call=ON_CALL).run())

    async def again() -> bool:
        return fed.count(other) > 1

    await eventually(again)
    assert fed.count(SCRATCH_ID) == 1
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
