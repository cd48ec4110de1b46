"""How a server is asked to shut down: the adapter on a real server of its own, and the fake."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.postgres import PostgresServers
from actions.adapters.postgres_stop import stop
from actions.adapters.programs import run_in_thread
from actions.adapters.secrets import SecretReferences
from actions.errors import PermanentError, PreconditionError, UserError
from actions.ports import PostgresAdmin, Pulse, StopFacts
from actions.site import Server, Site
from tests.fakes.postgres import MemoryPostgres
from tests.fixtures.waiting import eventually

SERVER = "main"
SETTINGS = {"shared_buffers": "16MB"}


@dataclass
class World:
    port: PostgresAdmin
    start: Callable[[], Awaitable[object]]
    directory: str

    async def started_at(self) -> datetime:
        found = (await self.port.server(SERVER)).started_at
        assert found is not None
        return found

    async def hears(self, pulse: Pulse) -> None:
        async def heard() -> bool:
            return await self.port.pulse(SERVER) is pulse

        await eventually(heard)


@pytest.fixture
async def server(server_directory: Path) -> AsyncIterator[EmbeddedPostgres]:
    async with EmbeddedPostgres(server_directory / "pg", durable=False, settings=SETTINGS) as found:
        yield found


def admin(dsn: str) -> PostgresServers:
    site = Site(servers={SERVER: Server(name=SERVER, admin_dsn="env:DSN")})
    return PostgresServers(site, SecretReferences({"DSN": dsn}))


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
async def world(request: pytest.FixtureRequest, server_directory: Path) -> AsyncIterator[World]:
    if request.param == "fake":
        memory = MemoryPostgres(SERVER)

        async def start() -> None:
            memory.servers[SERVER].down = False

        yield World(memory, start, memory.servers[SERVER].stop_facts.directory)
        return
    async with EmbeddedPostgres(server_directory / "pg", durable=False, settings=SETTINGS) as found:

        async def again() -> None:
            await found.stop()
            await found.start()

        yield World(admin(found.dsn()), again, str(found.data))


async def test_a_fenced_server_goes_down_and_comes_up_closed(world: World) -> None:
    await world.hears(Pulse.ANSWERS)
    facts = await world.port.stopping(SERVER)
    assert facts == StopFacts(directory=world.directory)
    await world.port.fence(SERVER)
    begun = await world.started_at()

    await world.port.stop(SERVER, started_at=begun)

    await world.hears(Pulse.SILENT)
    await world.start()
    assert await world.started_at() > begun
    fence = await world.port.fencing(SERVER)
    assert (fence.read_only, fence.open) == (True, ())


async def test_a_server_that_is_not_closed_or_not_the_one_looked_at_is_not_asked(world: World) -> None:
    begun = await world.started_at()
    with pytest.raises(PreconditionError, match="is not closed"):
        await world.port.stop(SERVER, started_at=begun)
    await world.port.fence(SERVER)
    with pytest.raises(PreconditionError, match="was started at"):
        await world.port.stop(SERVER, started_at=begun - timedelta(microseconds=1))
    await asyncio.sleep(0.3)
    assert await world.started_at() == begun


async def test_names_that_nobody_knows_are_told(world: World) -> None:
    with pytest.raises(UserError, match="knows no server `nowhere`"):
        await world.port.pulse("nowhere")


# ---------------------------------------------------------------- what only a real server shows


@pytest.mark.integration
async def test_a_postmaster_file_of_another_process_ends_nothing(server: EmbeddedPostgres) -> None:
    port = admin(server.dsn())
    await port.fence(SERVER)
    begun = (await port.server(SERVER)).started_at
    assert begun is not None
    file = server.data / "postmaster.pid"
    lines = file.read_text()
    with subprocess.Popen(["sleep", "60"]) as other:  # noqa: ASYNC220
        try:
            file.write_text("\n".join([str(other.pid), *lines.splitlines()[1:]]) + "\n")
            with pytest.raises(PermanentError, match="names another process than the one that answers here"):
                await port.stop(SERVER, started_at=begun)
            file.write_text("$(touch /tmp/drbot-injected)\n")
            with pytest.raises(PermanentError, match="cannot be read"):
                await port.stop(SERVER, started_at=begun)
        finally:
            file.write_text(lines)
            survived = other.poll() is None
            other.kill()
    assert survived
    assert (await port.server(SERVER)).started_at == begun


@pytest.mark.integration
async def test_a_role_without_the_right_is_told_and_refused(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE ROLE plain LOGIN PASSWORD 'plain'")
    facts = await admin(server.dsn(role="plain", password="plain")).stopping(SERVER)
    assert "no superuser and has not `pg_execute_server_program`" in facts.hindrance
    port = admin(server.dsn())
    await port.fence(SERVER)
    begun = (await port.server(SERVER)).started_at
    assert begun is not None
    async with await psycopg.AsyncConnection.connect(server.dsn(), autocommit=True) as session:
        await session.execute("SET ROLE plain")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await stop(session, SERVER, begun)
    assert (await port.server(SERVER)).started_at == begun


@pytest.mark.integration
async def test_the_shutdown_is_clean_and_its_last_wal_is_archived(server_directory: Path) -> None:
    archive = server_directory / "archive"
    archive.mkdir(mode=0o777)
    archive.chmod(0o777)
    settings = {"archive_mode": "on", "archive_command": f'cp "%p" "{archive}/%f"', **SETTINGS}
    async with EmbeddedPostgres(server_directory / "pg", settings=settings, durable=False) as server:
        port = admin(server.dsn())
        await port.fence(SERVER)
        assert (await port.stopping(SERVER)).unarchived == 0
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute("CREATE TABLE last (i int)")
            [segment] = connection.execute("SELECT pg_walfile_name(pg_current_wal_lsn())").fetchone() or [""]
        begun = (await port.server(SERVER)).started_at
        assert begun is not None
        await port.stop(SERVER, started_at=begun)

        async def ended() -> bool:
            return not server.running()

        await eventually(ended)
        said = await asyncio.to_thread(
            run_in_thread, [server.tool("pg_controldata"), server.data], timeout=timedelta(seconds=30)
        )
        assert "shut down\n" in said.text.replace("Database cluster state:", "")
        assert (archive / segment).exists()
        assert await port.pulse(SERVER) is Pulse.SILENT


@pytest.mark.integration
async def test_an_archiver_that_hangs_keeps_a_server_from_ending_and_lets_nobody_in(server_directory: Path) -> None:
    settings = {"archive_mode": "on", "archive_command": "sleep 300", **SETTINGS}
    server = EmbeddedPostgres(server_directory / "pg", settings=settings, durable=False)
    await server.start()
    try:
        port = admin(server.dsn())
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_switch_wal() FROM (SELECT txid_current()) AS written")
        await port.fence(SERVER)
        facts = await port.stopping(SERVER)
        assert (facts.unarchived, facts.archiving_fails) == (1, False)
        begun = (await port.server(SERVER)).started_at
        assert begun is not None
        await port.stop(SERVER, started_at=begun)

        async def refuses() -> bool:
            return await port.pulse(SERVER) is Pulse.REFUSES

        await eventually(refuses)
        await asyncio.sleep(1)
        assert await port.pulse(SERVER) is Pulse.REFUSES
    finally:
        await server.kill()


@pytest.mark.integration
async def test_what_cannot_be_reached_is_not_taken_for_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and says nothing
        port = mute.getsockname()[1]
        assert await admin(f"host=127.0.0.1 port={port} user=x connect_timeout=2").pulse(SERVER) is Pulse.UNREACHABLE
    assert await admin(f"host=127.0.0.1 port={port} user=x").pulse(SERVER) is Pulse.SILENT
    assert await admin("host=/tmp/no-such-directory user=x").pulse(SERVER) is Pulse.SILENT
    assert await admin("host=no-such-host.invalid user=x").pulse(SERVER) is Pulse.UNREACHABLE


@pytest.mark.integration
async def test_a_server_whose_tls_does_not_fit_is_not_taken_for_gone(pg_server: EmbeddedPostgres) -> None:
    """It runs and takes writes, whatever keeps us from trusting it: this one has no TLS, and we insist."""
    assert (
        await admin(f"{pg_server.dsn()}{'&' if '?' in pg_server.dsn() else '?'}sslmode=require").pulse(SERVER)
        is Pulse.REFUSES
    )
