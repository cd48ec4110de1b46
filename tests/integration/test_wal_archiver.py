"""`drbot wal` on a real server: what it brings into the buckets, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.backup.physical import Lsn
from actions.backup.segments import Segment
from actions.backup.wal_source import AlarmKind
from actions.errors import UserError
from tests.wal_world import HERE, OPEN, SETTINGS, THERE, WalWorld, eventually

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("wal"), pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture
def world(wal_world: WalWorld) -> WalWorld:
    return wal_world


async def test_closed_and_open_segments_arrive_and_a_server_comes_back_from_them(world: WalWorld) -> None:
    async with world.archiving():
        await world.following()
        base, start = await world.base()
        world.fill("closed")
        closed = world.switch()
        await world.archived(closed)
        await world.open_until(world.fill("open"))

        async def done() -> bool:  # what is stored leaves the disk a moment later
            status = await world.status()
            return status is not None and (status.backlog_bytes, status.base_wanted, status.alarms) == (0, None, ())

        await eventually(done)
    status = await world.status()
    assert status is not None
    assert status.slot is not None
    assert status.newest is not None
    assert (datetime.now(UTC) - status.newest).total_seconds() < 20
    recovered = await world.recovered(base, start)
    try:
        world.point_to(recovered)
        rows = world.execute("SELECT note, count(*) FROM ledger GROUP BY note ORDER BY note")
        assert rows == [("closed", 200), ("open", 200)]
    finally:
        await recovered.stop()


async def test_ranges_go_once_their_segment_is_closed_everywhere(world: WalWorld) -> None:
    async with world.archiving():
        await world.following()
        await world.open_until(world.fill("x"))
        assert await world.archive.open_ranges()
        world.memory.away.add(THERE)
        first = world.switch()
        await eventually(lambda: world.archive.key(first) in world.memory.buckets[HERE])
        await asyncio.sleep(0.7)
        assert first in await world.archive.open_ranges()
        world.memory.away.clear()
        await world.archived(first)

        async def gone() -> bool:
            return first not in await world.archive.open_ranges()

        await eventually(gone)


async def test_a_new_archiver_goes_on_where_the_last_one_ended(world: WalWorld) -> None:
    names: list[str] = []
    async with world.archiving():
        await world.following()
        _, start = await world.base()
    for note in ("first", "second", "third"):
        async with world.archiving():
            await world.following()
            world.fill(note)
            names.append(world.switch())
            await world.archived(names[-1])
        world.fill("while nobody looked")
        names.append(world.switch())
    async with world.archiving():
        await world.archived(*names)
        await eventually(lambda: not list((world.spool / "closed").iterdir()))
    assert list(await world.archive.gaps(start, await world.archive.listing(HERE))) == []


async def test_two_archivers_on_one_disk_are_refused(world: WalWorld) -> None:
    async with world.archiving():
        await world.following()
        with pytest.raises(UserError, match="Another `drbot wal`"):
            await world.archiver().run()


async def test_it_survives_a_restart_of_the_server(world: WalWorld) -> None:
    async with world.archiving():
        await world.following()
        _, start = await world.base()
        world.fill("before")
        await world.server.stop()
        await eventually(lambda: world.warns(AlarmKind.SERVER_AWAY))
        await world.server.start()
        world.point_to(world.server)
        world.fill("after")
        await world.archived(world.switch())
        await eventually(world.silent)
    assert list(await world.archive.gaps(start, await world.archive.listing(HERE))) == []


@pytest.mark.corruption
async def test_a_bucket_that_is_away_for_a_while_holds_nothing_up(
    world: WalWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actions.backup.wal_alarms.BUCKET_PATIENCE", timedelta(0))
    async with world.archiving():
        await world.following()
        await world.archived(world.switch())
        await eventually(lambda: not list((world.spool / "closed").iterdir()))
        world.memory.away |= {THERE}
        names = []
        for note in ("one", "two", "three"):
            world.fill(note)
            names.append(world.switch())

        async def here() -> bool:
            return set(names) <= set(await world.stored(HERE))

        await eventually(here)
        await eventually(lambda: world.warns(AlarmKind.BUCKET_AWAY))
        assert sorted(path.name for path in (world.spool / "closed").iterdir()) == names

        async def told() -> bool:
            status = await world.status()
            return status is not None and status.buckets[THERE].waiting == 3

        await eventually(told)
        status = await world.status()
        assert status is not None
        assert status.backlog_bytes == 3 * Segment(1, 1).size
        world.memory.away.clear()
        await world.archived(*names)
        await eventually(lambda: not list((world.spool / "closed").iterdir()))
        await eventually(world.silent)


async def test_a_second_bucket_that_is_named_later_gets_what_the_first_one_has(world: WalWorld) -> None:
    both = world.policy
    world.policy = both.model_copy(update={"wal_buckets": (HERE,)})
    async with world.archiving():
        await world.following()
        base, start = await world.base()
        world.fill("of one bucket")
        await world.archived(world.switch())
        await eventually(lambda: not list((world.spool / "closed").iterdir()))
    assert await world.stored(THERE) == []
    world.policy = both
    async with world.archiving():
        await world.following()
        world.fill("of both")
        await world.archived(world.switch())

        async def even() -> bool:
            return await world.stored(THERE) == await world.stored(HERE)

        await eventually(even)
    world.memory.buckets[HERE].clear()
    recovered = await world.recovered(base, start)
    try:
        world.point_to(recovered)
        rows = world.execute("SELECT note, count(*) FROM ledger WHERE note LIKE 'of %' GROUP BY note ORDER BY note")
        assert rows == [("of both", 200), ("of one bucket", 200)]
    finally:
        await recovered.stop()


@pytest.mark.corruption
async def test_buckets_that_are_full_keep_the_segments_on_the_disk(
    world: WalWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actions.backup.wal_alarms.BUCKET_PATIENCE", timedelta(0))
    async with world.archiving():
        await world.following()
        world.memory.full |= {HERE, THERE}
        world.fill("kept")
        name = world.switch()
        await eventually((world.spool / "closed" / name).exists)
        await eventually(lambda: world.warns(AlarmKind.BUCKET_AWAY))
        status = await world.status()
        [told] = [alarm.text for alarm in status.alarms if alarm.kind is AlarmKind.BUCKET_AWAY] if status else [""]
        assert f"`{HERE}` lacks 1 segment(s), `{THERE}` lacks 1 segment(s)" in told
        assert "Its disk may be full" in told
        assert name not in await world.stored(HERE)
    assert (world.spool / "closed" / name).exists()
    world.memory.full.clear()
    async with world.archiving():
        await world.archived(name)


@pytest.mark.corruption
async def test_a_lost_disk_is_made_good_from_the_primary(world: WalWorld) -> None:
    async with world.archiving():
        await world.following()
        _, start = await world.base()
        world.fill("archived")
        await world.archived(world.switch())
        world.memory.away |= {HERE, THERE, OPEN}
        world.fill("on one disk alone")
        name = world.switch()
        await eventually((world.spool / "closed" / name).exists)
        await eventually(lambda: _kept_from(world) > name)  # by its slot alone it would go on behind it
    shutil.rmtree(world.spool)
    world.memory.away.clear()
    async with world.archiving() as archiver:
        await world.archived(name)
        status = archiver.status()
    assert status.base_wanted is None
    [told] = [alarm.text for alarm in status.alarms if alarm.kind is AlarmKind.DISK_LOST]
    assert "was made good from the primary; no base is needed" in told
    assert list(await world.archive.gaps(start, await world.archive.listing(THERE))) == []


GERMAN = """#!/bin/sh
{{ {tool} "$@" 2>&1 >&3 | sed 's/requested WAL segment \\(.*\\) has already been removed/\
das angeforderte WAL-Segment \\1 wurde schon entfernt/' >&2; }} 3>&1
exit 1
"""
"""A `pg_receivewal` of a server whose `lc_messages` is German."""


@pytest.mark.corruption
@pytest.mark.parametrize("language", ["English", "German"])
async def test_a_gap_is_told_and_answered_with_the_wish_for_a_base(world: WalWorld, language: str) -> None:
    if language == "German":
        tool = world.directory / "german" / "pg_receivewal"
        tool.parent.mkdir()
        tool.write_text(GERMAN.format(tool=world.server.tool(tool.name)))
        tool.chmod(0o755)
        world.tools = str(tool.parent)
    async with world.archiving():
        await world.following()
        world.fill("archived")
        await world.archived(world.switch())
        world.memory.away |= {HERE, THERE, OPEN}
        world.fill("lost with the disk")
        name = world.switch()
        await eventually((world.spool / "closed" / name).exists)
        await eventually(lambda: _kept_from(world) > name)
    shutil.rmtree(world.spool)
    world.memory.away.clear()
    # The slot has moved on, so the primary may forget the segment.
    for _ in range(3):
        world.fill("more", rows=10)
        world.switch()
    world.execute("CHECKPOINT")
    await eventually(lambda: not (world.server.data / "pg_wal" / name).exists())
    async with world.archiving():
        await eventually(lambda: world.warns(AlarmKind.GAP))
        status = await world.status()
        assert status is not None
        assert status.base_wanted is not None
        assert name in status.base_wanted.reason
        assert ("das angeforderte" in status.base_wanted.reason) is (language == "German")
        _, start = await world.base()
        assert start.lsn >= Lsn.parse(status.base_wanted.after_lsn)
        world.fill("a new beginning")
        await world.archived(world.switch())

        async def whole() -> bool:  # a later segment may be there first
            return not await world.archive.gaps(start, await world.archive.listing(HERE))

        await eventually(whole)
    async with world.archiving():
        await asyncio.sleep(0.5)
        await world.archived(world.switch())


@pytest.mark.corruption
async def test_a_slot_that_was_lost_is_made_anew(world: WalWorld) -> None:
    async with world.archiving():
        await world.following()
        world.fill("archived")
        await world.archived(world.switch())
    world.execute(f"SELECT pg_drop_replication_slot('{world.slot}')")
    world.fill("without a slot")
    name = world.switch()
    async with world.archiving():
        await world.archived(name)
        status = await world.status()
    assert status is not None
    assert status.base_wanted is None


@pytest.mark.corruption
async def test_another_server_is_refused(world: WalWorld, server_directory: Path) -> None:
    async with world.archiving():
        await world.following()
        await world.archived(world.switch())
    other = EmbeddedPostgres(server_directory / "other", durable=False, settings=SETTINGS)
    async with other:
        before = world.server
        world.point_to(other)
        async with world.archiving():
            await eventually(lambda: world.warns(AlarmKind.OTHER_SERVER))
        world.point_to(before)


async def test_a_synchronous_archiver_is_named_and_missed(world: WalWorld) -> None:
    world.policy = world.policy.model_copy(update={"synchronous": True})
    async with world.archiving():
        await eventually(lambda: world.warns(AlarmKind.NOT_SYNCHRONOUS))
        world.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{world.slot}'", "SELECT pg_reload_conf()")
        await eventually(world.silent)
        world.fill("confirmed")
        state = world.execute(f"SELECT sync_state FROM pg_stat_replication WHERE application_name = '{world.slot}'")
        assert state == [("sync",)]
        world.execute(
            "CREATE ROLE batch",
            "ALTER ROLE batch SET synchronous_commit = 'off'",
            "ALTER ROLE batch IN DATABASE postgres SET synchronous_commit = 'local'",
            "ALTER ROLE ALL SET synchronous_commit = 'on'",  # as it should be
        )
        await eventually(lambda: world.warns(AlarmKind.NOT_SYNCHRONOUS))
        facts = await world.source.facts()
        assert facts.not_waiting == ("role `batch` (`off`)", "role `batch` in database `postgres` (`local`)")
        world.execute("DROP ROLE batch", "ALTER ROLE ALL SET synchronous_commit = 'remote_write'")
        assert (await world.source.facts()).not_waiting == ("every role (`remote_write`)",)
        world.execute("ALTER ROLE ALL RESET synchronous_commit")
        await eventually(world.silent)
    world.execute("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")


def _kept_from(world: WalWorld) -> str:
    [(name,)] = world.execute(
        f"SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots WHERE slot_name = '{world.slot}'"
    )
    return str(name)
