"""`drbot wal` over a failover, on real servers: the new timeline, and what the new primary must still have for it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import psycopg
import pytest

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.postgres import PostgresServers
from actions.adapters.programs import run
from actions.adapters.secrets import SecretReferences
from actions.backup.physical import SEGMENT, Lsn
from actions.backup.segments import Timelines
from actions.backup.wal_source import AlarmKind
from actions.site import Server, Site
from tests.wal_world import HERE, SERVER, THERE, WalWorld, eventually, standby_of

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("wal"), pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture
def world(wal_world: WalWorld) -> WalWorld:
    return wal_world


async def test_it_follows_a_promotion_with_its_slot_and_the_new_timeline(world: WalWorld) -> None:
    standby = await standby_of(world.server, world.directory / "standby")
    try:
        async with world.archiving():
            await world.following()
            _, start = await world.base()
            world.fill("before")
            await world.archived(world.switch())
            lsn = Lsn.parse(world.fill("last"))
            old = world.server
            world.point_to(standby)

            def replayed() -> bool:
                [(place,)] = world.execute("SELECT pg_last_wal_replay_lsn()::text")
                return Lsn.parse(str(place)) >= lsn

            await eventually(replayed)
            world.execute("SELECT pg_promote()")
            # The old primary is still there, and the stream hangs on it.
            assert old.running()
            world.fill("after")
            await world.archived(world.switch(), within=40)
            world.fill("and more")
            await world.archived(world.switch())
        way = await world.archive.timelines(start, None, await world.archive.listings())
        assert way.ids == (1, 2)
        assert list(await world.archive.gaps(start, await world.archive.listing(THERE))) == []
        [(slots,)] = world.execute(f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{world.slot}'")
        assert slots == 1
    finally:
        await standby.stop()


async def test_the_end_of_an_old_primary_reaches_its_standby_and_the_archive(world: WalWorld) -> None:
    """Nobody keeps it waiting: its shutdown ends when both have its last WAL."""
    old, admin = world.server, admin_of(world)
    standby = await standby_of(old, world.directory / "standby")
    try:
        async with world.archiving():
            await world.following()
            await eventually(lambda: world.execute("SELECT count(*) FROM pg_stat_replication") == [(2,)])
            await admin.fence(SERVER)
            facts = await admin.stopping(SERVER)
            assert world.slot in facts.followers
            assert len(facts.followers) == 2
            begun = (await admin.server(SERVER)).started_at
            assert begun is not None
            await admin.stop(SERVER, started_at=begun)
            await eventually(lambda: not old.running(), within=20)
            said = (await run([old.tool("pg_controldata"), old.data], timeout=timedelta(seconds=30))).text
            found = re.search(r"Latest checkpoint location: +(\S+)", said)
            assert found is not None
            assert "shut down\n" in said
            await world.open_until(found[1])
            world.point_to(standby)
            [(received,)] = world.execute("SELECT pg_last_wal_receive_lsn()::text")
            assert Lsn.parse(str(received)) > Lsn.parse(found[1])
    finally:
        await standby.stop()
        await old.stop()
        await old.start()
        await admin.unfence(SERVER, closed=(), limit=-1)


def admin_of(world: WalWorld) -> PostgresServers:
    """Of the server that is the primary now."""
    site = Site(servers={SERVER: Server(name=SERVER, admin_dsn="env:DSN")})
    return PostgresServers(site, SecretReferences({"DSN": world.server.dsn()}))


async def test_it_goes_back_to_where_a_new_primary_branched_off(world: WalWorld) -> None:
    async with world.archiving():
        await world.following()
        _, start = await world.base()
    standby = await standby_of(world.server, world.directory / "behind")
    try:
        primary = world.server
        world.point_to(standby)
        world.execute("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        world.point_to(primary)

        def alone() -> bool:
            return not primary_has_standby(world)

        await eventually(alone)
        async with world.archiving():
            await world.following()
            for note in ("lost", "lost too"):  # whole segments that the standby never sees
                world.fill(note)
                await world.archived(world.switch())
        world.point_to(standby)
        world.execute("SELECT pg_promote()")
        async with world.archiving():
            world.fill("new life")
            await world.archived(world.switch(), within=40)
        way = await world.archive.timelines(start, None, await world.archive.listings())
        assert way.ids == (1, 2)
        assert list(await world.archive.gaps(start, await world.archive.listing(HERE))) == []
        fetched = await world.fetch(start)
        assert fetched.timeline_id == 2
    finally:
        await standby.stop()


async def test_it_goes_on_where_a_new_primary_branched_off_between_two_segments(world: WalWorld) -> None:
    """The archiver has everything of the old timeline. Asked for more of it, a server answers with nothing at all."""
    standby = await standby_of(world.server, world.directory / "standby")
    primary = world.server
    try:
        async with world.archiving():
            await world.following()
            _, start = await world.base()
            world.fill("before")
            with _hushed(world):
                [(name, end)] = world.execute("SELECT pg_walfile_name(lsn), lsn::text FROM pg_switch_wal() lsn")
                await world.archived(str(name))
                await eventually(lambda: _replayed(standby) // SEGMENT > Lsn.parse(str(end)) // SEGMENT)
                await primary.kill()
            world.point_to(standby)
            world.execute("SELECT pg_promote()")
            [(history,)] = world.execute("SELECT pg_read_file('pg_wal/00000002.history')")
            fork = Timelines.parse(2, str(history)).stretches[0].end
            assert fork is not None
            assert fork % SEGMENT == 0
            world.fill("after")
            await world.archived(world.switch(), within=60)
        assert list(await world.archive.gaps(start, await world.archive.listing(HERE))) == []
        assert (await world.fetch(start)).timeline_id == 2
    finally:
        await standby.stop()
        await primary.start()


@pytest.mark.parametrize("held", [True, False])
async def test_a_new_primary_still_has_what_the_archiver_lacks_where_its_slot_was_kept(
    world: WalWorld, held: bool
) -> None:
    """The archiver is away while the primary dies, and the new primary writes on and removes what it may."""
    standby = await standby_of(world.server, world.directory / "standby")
    world.standbys, primary = ({"STANDBY": standby} if held else {}), world.server
    slot = f"SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = '{world.slot}'"
    try:
        async with world.archiving():
            await world.following()
            base, start = await world.base()
            world.fill("before")
            lsn = Lsn.parse(world.fill("archived"))
            await world.archived(world.switch())
            if held:  # and it goes on with the primary's: what was archived may go

                def goes_on() -> bool:
                    with psycopg.connect(standby.dsn(), autocommit=True) as connection:
                        row = connection.execute(slot.encode()).fetchone()
                    return row is not None and row[0] is not None and Lsn.parse(str(row[0])) > lsn

                await eventually(goes_on)
        end = Lsn.parse(world.fill("nobody has archived this"))
        world.switch()
        await eventually(lambda: _replayed(standby) >= end)
        await primary.kill()
        world.point_to(standby)
        world.execute("SELECT pg_promote()")
        for _ in range(8):
            world.fill("and the new primary goes on")
            world.switch()
            world.execute("CHECKPOINT")
        async with world.archiving():
            await world.archived(world.switch(), within=40)
            status = await world.status()
            assert status is not None
            assert (status.base_wanted is None) is held

            async def whole() -> bool:
                return list(await world.archive.gaps(start, await world.archive.listing(HERE))) == []

            if held:
                await eventually(whole)
            else:
                assert not await whole()
        if held:
            recovered = await world.recovered(base, start)
            try:
                world.point_to(recovered)
                rows = world.execute("SELECT count(*) FROM ledger WHERE note = 'nobody has archived this'")
            finally:
                await recovered.stop()
            assert rows == [(200,)]
    finally:
        await standby.stop()
        await primary.start()


async def test_a_standby_that_holds_nothing_is_told(world: WalWorld) -> None:
    standby = await standby_of(world.server, world.directory / "standby")
    world.standbys = {"STANDBY": standby}
    try:
        async with world.archiving():
            await world.following()
            await standby.stop()
            await eventually(lambda: world.warns(AlarmKind.STANDBY_SLOT))
            await standby.start()
            world.values["STANDBY"] = standby.dsn()

            async def quiet() -> bool:
                return not await world.warns(AlarmKind.STANDBY_SLOT)

            await eventually(quiet)
    finally:
        await standby.stop()


def primary_has_standby(world: WalWorld) -> bool:
    return bool(world.execute("SELECT 1 FROM pg_stat_replication WHERE application_name = 'walreceiver'"))


def _replayed(standby: EmbeddedPostgres) -> Lsn:
    with psycopg.connect(standby.dsn(), autocommit=True) as connection:
        row = connection.execute("SELECT pg_last_wal_replay_lsn()::text").fetchone()
    return Lsn.parse(str(row[0])) if row else Lsn(0)


@contextmanager
def _hushed(world: WalWorld) -> Iterator[None]:
    """Nothing is written but what the test writes: the background writer logs now and then what runs."""
    [(pid,)] = world.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'")
    os.kill(int(str(pid)), signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(str(pid)), signal.SIGCONT)
