"""A scratch instance that follows the archive as a standby, dies and goes on, and becomes the restore: real servers."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from actions.adapters import scratch_standby
from actions.adapters.clock import SystemClock
from actions.adapters.postmaster import Postmaster
from actions.adapters.scratch_server import RecoveringServer
from actions.backup.physical import (
    Change,
    FindRequest,
    Following,
    PointRequest,
    RecoveryTarget,
    ScratchState,
    Waiting,
)
from actions.backup.scratch_place import ScratchPlace
from actions.backup.sealed import SealedKind, Sealer, What
from actions.backup.segments import history_name
from actions.backup.wal import WalArchive
from actions.errors import TemporaryError, UserError, VerificationError
from actions.ports import Ports, no_progress
from actions.site import Database, DatabaseRef
from actions.steps.restore_scene import check_step
from actions.steps.standby import ReplaceStandby
from tests.fakes.world import a_world
from tests.fixtures.apart import run_apart
from tests.fixtures.physical import standing
from tests.fixtures.waiting import eventually
from tests.physical_world import BUCKET, MARK, SERVER, PhysicalWorld

pytestmark = pytest.mark.integration

THERE = DatabaseRef("scratch-s1", "postgres")
NONE = timedelta(0)
OTHERS: list[PhysicalWorld] = []


@pytest.fixture(scope="module")
def live(run_directory: Path) -> Iterator[PhysicalWorld]:
    """A server with one base backup, which goes on being written to."""
    with standing(run_directory) as world:
        world.sql("CREATE TABLE doc (id int PRIMARY KEY)", "CHECKPOINT")
        run_apart(world.take("base"))
        yield world


@pytest.fixture
async def world(live: PhysicalWorld) -> AsyncIterator[PhysicalWorld]:
    """It follows nothing yet; `doc` is empty."""
    live.sql("CREATE TABLE IF NOT EXISTS doc (id int PRIMARY KEY)", "TRUNCATE doc")
    await live.archive()
    yield live
    for worker in (*OTHERS, live):  # whoever started a server waits for its end
        for facts in await worker.scratch.instances():
            await worker.scratch.stop(facts.id)
    OTHERS.clear()
    for facts in await live.scratch.instances():
        if facts.state is ScratchState.PROMOTED:
            ScratchPlace(live.scratch_directory, facts.id).remove()
        else:
            await live.scratch.discard(facts.id, mark=facts.mark)


def anew(world: PhysicalWorld) -> PhysicalWorld:
    """As another worker sees it."""
    other = replace(world)
    other.archived = world.archived
    OTHERS.append(other)
    return other


async def restored(world: PhysicalWorld) -> None:
    await world.restore(RecoveryTarget(latest=True))
    await world.scratch.start("s1")


async def brought(world: PhysicalWorld) -> None:
    """What the worker does every few seconds."""
    await world.archive()
    await world.engine.feed(SERVER, "s1")
    await world.scratch.tend("s1")


async def following(world: PhysicalWorld) -> Following:
    facts = await world.scratch.find("s1")
    assert facts is not None
    assert facts.following is not None
    return facts.following


async def rows(world: PhysicalWorld) -> list[int]:
    return [int(each["id"]) for each in await world.postgres.query(THERE, "SELECT id FROM doc ORDER BY id")]


async def until(world: PhysicalWorld, waits: Waiting) -> None:
    async def so() -> bool:
        return (await following(world)).waits is waits

    await eventually(so)


async def shows(world: PhysicalWorld, *wanted: int) -> None:
    async def so() -> bool:
        return await rows(world) == list(wanted)

    await eventually(so)


async def test_it_follows_the_archive_through_the_death_of_worker_and_server(world: PhysicalWorld) -> None:
    await restored(world)
    facts = await world.scratch.follow("s1", delay=NONE)
    assert (facts.state, bool(facts.address)) == (ScratchState.FOLLOWING, True)
    assert await world.scratch.follow("s1", delay=NONE) is not None  # a rerun finds it
    world.sql("INSERT INTO doc VALUES (1)")
    await brought(world)
    await shows(world, 1)
    await until(world, Waiting.WAL)
    seen = await following(world)
    assert (seen.problem, seen.replayed_lsn) == ("", seen.fed_lsn)
    settings = await world.postgres.query(
        THERE, "SELECT current_setting('archive_mode') AS a, current_setting('primary_conninfo') AS c"
    )
    assert dict(settings[0]) == {"a": "off", "c": ""}
    with pytest.raises(UserError, match=r"follows\. Stop it at a moment first"):
        await world.scratch.promote("s1")

    process = Postmaster(world.scratch_directory / "s1" / "data").process()
    assert process is not None
    for member in (process, *process.children(recursive=True)):
        os.kill(member.pid, signal.SIGKILL)
    world.sql("INSERT INTO doc VALUES (2)")
    other = anew(world)  # the worker that knew it is gone as well
    assert (await other.scratch.instances())[0].state is ScratchState.FOLLOWING
    await brought(other)
    await shows(other, 1, 2)

    later = replace(other, clock=_Later())

    async def wanted(_: str) -> bool:
        return False

    assert await later.scratch.sweep(wanted) == []  # its time is over, and it follows


async def test_with_a_delay_a_dropped_table_is_got_back_from_before_the_drop(world: PhysicalWorld) -> None:
    world.sql("INSERT INTO doc VALUES (1)")
    await world.archive()
    await restored(world)
    await world.scratch.follow("s1", delay=timedelta(hours=4))
    world.sql("INSERT INTO doc VALUES (2)")
    world.sql("SELECT pg_create_restore_point('before the rest')", "INSERT INTO doc VALUES (3)")
    world.sql("DROP TABLE doc")
    await brought(world)
    await until(world, Waiting.DELAY)
    assert await rows(world) == [1]  # neither the rows nor the DROP
    facts, place = await world.scratch.find("s1"), ScratchPlace(world.scratch_directory, "s1")
    assert facts is not None
    claim = place.claim()
    assert claim is not None
    assert facts.bytes - claim.wanted_bytes >= 16 << 20  # what it has and does not replay counts
    assert facts.bytes - claim.wanted_bytes == sum(path.stat().st_size for path in place.wal.iterdir())

    request = PointRequest(server=SERVER, point="before the rest", since=(await following(world)).replayed_at)
    (point,) = await world.engine.find_points(request, no_progress)
    assert point.before_at is not None
    assert point.after_at is not None
    assert point.before_at < point.after_at
    await world.scratch.halt("s1", point.target)
    await world.scratch.start("s1")
    assert await rows(world) == [1, 2]
    await world.scratch.follow("s1", delay=timedelta(hours=4))

    wanted = FindRequest(server=SERVER, database="postgres", table="public.doc", changes=(Change.DROP,))
    target = (await world.engine.find(wanted, no_progress))[0].target
    halted = await world.scratch.halt("s1", target)
    assert (halted.state, halted.following) == (ScratchState.STOPPED, None)
    assert halted.restored is not None
    assert halted.restored.target == target
    assert await world.scratch.halt("s1", target) == halted  # a rerun finds it

    paused = await anew(world).scratch.start("s1")
    assert paused.state is ScratchState.PAUSED
    assert await rows(world) == [1, 2, 3]
    await world.scratch.promote("s1")
    assert await rows(world) == [1, 2, 3]


async def test_it_never_goes_back_and_follows_on_when_that_is_asked(world: PhysicalWorld) -> None:
    before = datetime.now(UTC)
    await restored(world)
    await world.scratch.follow("s1", delay=NONE)
    world.sql("INSERT INTO doc VALUES (1)")
    lsn = str(world.sql("SELECT pg_current_wal_lsn()::text")[0][0])
    world.sql("INSERT INTO doc VALUES (2)")
    await brought(world)
    await shows(world, 1, 2)
    for target in (RecoveryTarget(time=before), RecoveryTarget(lsn=lsn, inclusive=False)):
        with pytest.raises(UserError, match=r"has replayed beyond .* never goes back"):
            await world.scratch.halt("s1", target)
    with pytest.raises(UserError, match=r"cannot be stopped there, it follows on\. The archived WAL ends before"):
        await world.scratch.halt("s1", RecoveryTarget(time=datetime.now(UTC) + timedelta(days=1)))
    world.sql("INSERT INTO doc VALUES (3)")
    await brought(world)
    await shows(world, 1, 2, 3)

    await world.scratch.halt("s1", RecoveryTarget(latest=True))
    await world.scratch.start("s1")
    assert await rows(world) == [1, 2, 3]
    await world.scratch.follow("s1", delay=NONE)  # what puts a halt back
    world.sql("INSERT INTO doc VALUES (4)")
    await brought(world)
    await shows(world, 1, 2, 3, 4)


@pytest.mark.corruption
async def test_a_page_that_went_bad_while_it_followed_is_found_when_it_is_stopped(world: PhysicalWorld) -> None:
    await restored(world)
    await world.scratch.follow("s1", delay=NONE)
    world.sql("INSERT INTO doc VALUES (1)")
    await brought(world)
    await shows(world, 1)
    path = str(world.sql("SELECT pg_relation_filepath('pg_description')")[0][0])
    file = ScratchPlace(world.scratch_directory, "s1").data / path

    def flip() -> None:
        with file.open("r+b") as stream:
            stream.seek(3 * 8192 + 4000)
            byte = stream.read(1)[0]
            stream.seek(-1, os.SEEK_CUR)
            stream.write(bytes([byte ^ 1]))

    flip()
    halted = await world.scratch.halt("s1", RecoveryTarget(latest=True))
    # It stays at its moment, where single tables can be had, and is judged by what was found.
    assert (halted.state, halted.restored is not None) == (ScratchState.STOPPED, True)
    assert halted.restored is not None
    assert "Pages of the restored server are damaged" in halted.restored.damage
    assert (halted.restored.checked_pages, halted.restored.without_checksums) == (False, False)
    await world.scratch.start("s1")
    assert await rows(world) == [1]
    check = check_step(Database(name="postgres", server=SERVER, owner="o"), "shop", scratch="s1", table="")
    with pytest.raises(VerificationError, match="are damaged"):
        await check.apply(ports_of(world), no_progress)
    assert "are damaged" in (await world.scratch.instances())[0].problem

    await world.scratch.follow("s1", delay=NONE)
    flip()
    halted = await world.scratch.halt("s1", RecoveryTarget(latest=True))
    assert halted.restored is not None
    assert (halted.restored.checked_pages, halted.restored.damage, halted.problem) == (True, "", "")


async def test_a_moment_is_not_replayed_beyond_while_a_halt_that_failed_is_tried_again(
    world: PhysicalWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await restored(world)
    await world.scratch.follow("s1", delay=NONE)

    async def interrupted(*_: object) -> bool:
        raise TemporaryError("The disk is full.")

    monkeypatch.setattr(scratch_standby, "pages_checked", interrupted)
    target = RecoveryTarget(lsn=str(world.sql("SELECT pg_current_wal_insert_lsn()::text")[0][0]))
    world.sql("INSERT INTO doc VALUES (1)")
    await world.archive()
    await world.engine.feed(SERVER, "s1")
    with pytest.raises(TemporaryError):
        await world.scratch.halt("s1", target)
    assert (await following(world)).halting == target
    await brought(world)
    assert (await world.scratch.instances())[0].address == ""
    monkeypatch.undo()
    await world.scratch.halt("s1", target)
    await world.scratch.start("s1")
    assert await rows(world) == []


async def test_one_whose_last_commit_nobody_has_seen_is_not_stopped_at_a_time_before_it(world: PhysicalWorld) -> None:
    """No commit comes after those that it has replayed, and it was started again: PostgreSQL would stop at the next
    one, and call that the moment."""
    await restored(world)
    await world.scratch.follow("s1", delay=NONE)
    place = ScratchPlace(world.scratch_directory, "s1")
    seen = await asyncio.to_thread(place.follow)
    assert seen is not None
    wanted = datetime.now(UTC)
    before = str(world.sql("SELECT pg_current_wal_insert_lsn()::text")[0][0])
    world.sql("INSERT INTO doc VALUES (1)", "CHECKPOINT")
    await brought(world)
    await shows(world, 1)
    await until(world, Waiting.WAL)
    with connected(world, "s1") as connection:
        connection.execute("CHECKPOINT")
    await world.scratch.stop("s1")
    await asyncio.to_thread(place.write_follow, seen)  # whoever tends it was not there meanwhile
    for running in (False, True):
        if running:
            await world.scratch.tend("s1")
        with pytest.raises(UserError, match="Nobody can tell which commit"):
            await world.scratch.halt("s1", RecoveryTarget(time=wanted))
        with pytest.raises(UserError, match="has replayed beyond"):
            await world.scratch.halt("s1", RecoveryTarget(lsn=before))
    assert (await following(world)).halting is None
    world.sql("INSERT INTO doc VALUES (2)")
    await brought(world)
    await shows(world, 1, 2)
    with pytest.raises(UserError, match="has replayed beyond"):
        await world.scratch.halt("s1", RecoveryTarget(time=wanted))


async def test_a_hole_in_the_archive_is_told_and_what_it_needs_no_more_is_removed(world: PhysicalWorld) -> None:
    await restored(world)
    await world.scratch.follow("s1", delay=NONE)
    wal = world.scratch_directory / "s1" / "wal"
    first = min(path.name for path in wal.iterdir())
    world.sql("INSERT INTO doc VALUES (1)", "CHECKPOINT")
    await brought(world)
    await shows(world, 1)
    with connected(world, "s1") as connection:
        connection.execute("CHECKPOINT")  # of a standby: a restartpoint
    await world.scratch.tend("s1")
    assert first not in {path.name for path in wal.iterdir()}

    name = str(world.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")[0][0])
    world.sql("INSERT INTO doc VALUES (2)")
    await world.archive()
    (key,) = [facts.key for facts in await world.objects.list(BUCKET, "") if name in facts.key]
    body = await world.objects.get(BUCKET, key)
    await world.objects.delete(BUCKET, key)
    world.sql("INSERT INTO doc VALUES (3)")
    await brought(world)
    assert f"WAL segment `{name}` of `{SERVER}` is missing in every bucket" in (await following(world)).problem
    assert await rows(world) == [1]
    await world.objects.put(BUCKET, key, body)
    await brought(world)
    await shows(world, 1, 2, 3)
    assert (await following(world)).problem == ""


async def test_a_server_that_answers_or_is_paused_is_not_at_a_target_for_that(world: PhysicalWorld) -> None:
    await restored(world)
    await world.scratch.follow("s1", delay=NONE)
    world.sql("INSERT INTO doc VALUES (1)")
    await brought(world)
    await shows(world, 1)
    place = ScratchPlace(world.scratch_directory, "s1")
    server = RecoveringServer(place, world.server.tool("postgres").parent, world.server.account)
    later = RecoveryTarget(time=datetime.now(UTC) + timedelta(hours=1))

    def paused() -> bool:
        with server.connect() as connection:
            row = connection.execute("SELECT pg_wal_replay_pause(), pg_get_wal_replay_pause_state()").fetchone()
        return row is not None and row[1] == "paused"

    assert await asyncio.to_thread(server.look, later, None) is None

    async def rests() -> bool:
        return await asyncio.to_thread(paused)

    await eventually(rests)
    assert await asyncio.to_thread(server.look, later, None) is None


async def test_one_that_is_past_the_fork_of_a_failover_says_so_and_is_made_anew(world: PhysicalWorld) -> None:
    """The last one here: its fork stays in the archive, and whatever follows that would go along it."""
    await restored(world)
    await world.scratch.follow("s1", delay=NONE)
    fork = str(world.sql("SELECT pg_current_wal_insert_lsn()::text")[0][0])
    world.sql("INSERT INTO doc VALUES (1)")
    await brought(world)
    await shows(world, 1)
    assert (await following(world)).problem == ""
    # The new primary branched off before what the old one had archived.
    await world.restore(RecoveryTarget(lsn=fork), scratch="s2")
    await world.scratch.start("s2")
    await world.scratch.promote("s2")
    with connected(world, "s2") as connection:
        connection.execute("INSERT INTO doc VALUES (2)")
        [last] = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchall()[0]
    await archived_from(world, "s2", last)
    await world.engine.feed(SERVER, "s1")
    await world.scratch.tend("s1")
    told = await following(world)
    assert told.stranded
    assert "gone on with timeline id 2" in told.problem
    assert await rows(world) == [1]
    # It knows nothing of timeline id 2, and must not write WAL under the names of that.
    await world.restore(RecoveryTarget(lsn=fork, timeline_id=1), scratch="s4")
    await world.scratch.start("s4")
    (window,) = await world.engine.windows(SERVER)
    assert window.timeline_id == 2
    await world.scratch.promote("s4", above=window.timeline_id)
    assert (await world.postgres.server("scratch-s4")).timeline_id == 3
    await world.scratch.stop("s4")
    ScratchPlace(world.scratch_directory, "s4").remove()

    await world.restore(RecoveryTarget(latest=True), scratch="s3")
    await world.scratch.start("s3")
    await world.scratch.follow("s3", delay=NONE)
    step = ReplaceStandby(scratch="s1", mark=MARK, server=SERVER, new="s3")
    await step.apply(ports_of(world), no_progress)
    assert await world.scratch.find("s1") is None
    found = await world.postgres.query(DatabaseRef("scratch-s3", "postgres"), "SELECT id FROM doc")
    assert [row["id"] for row in found] == [2]


def ports_of(world: PhysicalWorld) -> Ports:
    fakes = a_world()
    parts = {part.name: getattr(fakes, part.name) for part in fields(Ports)}
    real = {"site": world.site, "physical": world.engine, "scratch": world.scratch, "postgres": world.postgres}
    return Ports(**{**parts, **real})


async def archived_from(world: PhysicalWorld, scratch: str, last: str) -> None:
    """What a promoted instance has written, up to this segment, with its history."""
    [[system_id]] = world.sql("SELECT system_identifier::text FROM pg_control_system()")
    archive, sealer = WalArchive(world.objects, world.policy), Sealer(world.policy.recipients, world.keys.signing)
    for path in sorted((world.scratch_directory / scratch / "data" / "pg_wal").glob("00000002*")):
        history = path.name == history_name(2)
        if not history and path.name > last:
            continue
        what = What(
            kind=SealedKind.HISTORY if history else SealedKind.SEGMENT,
            name=path.name,
            system_id=str(system_id),
            timeline_id=2,
            segment_bytes=0 if history else 16 << 20,
            history=path.read_text() if history else "",
        )
        body = b"" if history else path.read_bytes()
        await archive.put(BUCKET, *sealer.seal(what, io.BytesIO(body), datetime.now(UTC)))


def connected(world: PhysicalWorld, scratch: str) -> psycopg.Connection[tuple[Any, ...]]:
    """To an instance on its own socket."""
    folder = world.scratch_directory / scratch
    port = Postmaster(folder / "data").port()
    return psycopg.connect(host=str(folder / "socket"), port=port, dbname="postgres", user="postgres", autocommit=True)


class _Later(SystemClock):
    def now(self) -> datetime:
        return super().now() + timedelta(days=30)
