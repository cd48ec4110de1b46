"""Two real servers, and an application that was pointed from one to the other: whether its sessions went along."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from aiohttp import web
from psycopg import sql

from actions.adapters.clock import SystemClock
from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.postgres import PostgresServers
from actions.adapters.secrets import SecretReferences
from actions.adapters.service_check import ServiceProbe
from actions.errors import VerificationError
from actions.ports import Ports, no_progress
from actions.site import DatabaseRef, Server, Site
from actions.steps import connected
from actions.steps.connected import SeeConnected
from tests.fakes.world import a_world
from tests.fixtures.apart import run_apart
from tests.fixtures.waiting import eventually

pytestmark = pytest.mark.integration

OLD, NEW, NAME, ROLE = "old", "new", "moved_shop", "moved_application"
PASSWORD = "a password of the tests"


@dataclass
class Pair:
    """The servers, and the step over them."""

    servers: dict[str, EmbeddedPostgres]
    ports: Ports

    def dsn(self, server: str) -> str:
        return self.servers[server].dsn(NAME, role=ROLE, password=PASSWORD)

    def step(self, health_url: str | None = None) -> SeeConnected:
        return SeeConnected(
            service="shop",
            target=DatabaseRef(NEW, NAME),
            address="new.example:5432",
            left=DatabaseRef(OLD, NAME),
            connection="env:APPLICATION",
            health_url=health_url,
        )


@pytest.fixture
def pair(pg_server: EmbeddedPostgres, server_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(connected, "PATIENCE", timedelta(seconds=1))
    old = EmbeddedPostgres(server_directory / "old", durable=False)
    run_apart(old.start())
    servers = {OLD: old, NEW: pg_server}
    for server in servers.values():
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(ROLE), PASSWORD))
            admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(NAME), sql.Identifier(ROLE)))
    values = {"OLD": old.dsn(), "NEW": pg_server.dsn(), "APPLICATION": old.dsn(NAME, role=ROLE, password=PASSWORD)}
    site = Site(servers={name: Server(name=name, admin_dsn=f"env:{name.upper()}") for name in servers})
    secrets = SecretReferences(values)
    fakes = a_world()
    parts = {part.name: getattr(fakes, part.name) for part in fields(Ports)}
    real = {
        "site": site,
        "postgres": PostgresServers(site, secrets),
        "service": ServiceProbe(secrets),
        "secrets": secrets,
        "clock": SystemClock(),
    }
    yield Pair(servers, Ports(**{**parts, **real}))
    run_apart(old.stop())
    with psycopg.connect(pg_server.dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(NAME)))
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(ROLE)))


async def test_pods_that_went_on_with_the_old_connection_are_found_until_they_are_restarted(pair: Pair) -> None:
    step = pair.step()
    with psycopg.connect(pair.dsn(OLD)) as stale:
        stale.execute("SELECT 1")
        await step.apply(pair.ports, no_progress)
        with pytest.raises(VerificationError, match=f"1 session of `{ROLE}` is still in `old/{NAME}`"):
            await step.verify(pair.ports)

    async def gone() -> bool:
        return await pair.ports.postgres.clients(step.left, ROLE) == 0

    await eventually(gone)
    with psycopg.connect(pair.dsn(NEW)):
        await step.apply(pair.ports, no_progress)
        await step.verify(pair.ports)
        said = await step.outcome(pair.ports)
    assert said == f"`shop` has 1 session at new.example:5432. None is left in `old/{NAME}`."


async def test_our_own_check_with_its_login_is_not_taken_for_the_application(pair: Pair) -> None:
    new = f"127.0.0.1:{pair.servers[NEW].port}"
    clients = pair.ports.postgres.clients
    watch = asyncio.ensure_future(clients(DatabaseRef(NEW, NAME), ROLE, within=timedelta(seconds=1)))
    while not watch.done():
        assert not isinstance(await pair.ports.service.connection("env:APPLICATION", at=new), str)
    assert await watch == 0
    await pair.step().verify(pair.ports)
    assert "NOT SEEN" in await pair.step().outcome(pair.ports)


@asynccontextmanager
async def answering(dsn: str) -> AsyncIterator[str]:
    """An application that logs in for every question, and is gone again."""

    async def health(_: web.Request) -> web.Response:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await connection.execute("SELECT count(*) FROM pg_class")
        return web.Response(text="ok")

    application = web.Application()
    application.router.add_get("/healthz", health)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/healthz"
    finally:
        await runner.cleanup()


async def test_one_that_connects_for_each_question_is_seen_in_the_middle_of_one(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connected, "PATIENCE", timedelta(seconds=20))
    async with answering(pair.dsn(NEW)) as url:
        step = pair.step(url)
        await step.apply(pair.ports, no_progress)
        await step.verify(pair.ports)
        assert "`shop` has 1 session at" in await step.outcome(pair.ports)
