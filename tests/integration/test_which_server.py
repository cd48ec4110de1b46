"""Which server a plan acts on: the old primary of a failover has the name, the system id and the data of the new."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.postgres import PostgresServers
from actions.adapters.secrets import SecretReferences
from actions.ports import Ports
from actions.site import Server, Site
from actions.steps.facts import ServerIs
from tests.fakes.world import a_world
from tests.wal_world import standby_of

pytestmark = pytest.mark.integration

SETTINGS = {"wal_level": "replica", "max_wal_senders": "4", "shared_buffers": "16MB"}


@dataclass
class Failed:
    """After a failover; the old primary runs on. `values` is what the reference of the plan file leads to."""

    old: EmbeddedPostgres
    new: EmbeddedPostgres
    values: dict[str, str]
    ports: Ports

    def leads_to(self, server: EmbeddedPostgres) -> None:
        self.values["DSN"] = server.dsn()

    async def seen(self) -> ServerIs:
        return ServerIs.of(await self.ports.postgres.server("main"))


@pytest.fixture
async def failed(server_directory: Path) -> AsyncIterator[Failed]:
    async with EmbeddedPostgres(server_directory / "old", durable=False, settings=SETTINGS) as old:
        new = await standby_of(old, server_directory / "new", settings=SETTINGS)
        try:
            with psycopg.connect(new.dsn(), autocommit=True) as connection:
                await asyncio.to_thread(connection.execute, "SELECT pg_promote()")
            values = {"DSN": new.dsn()}
            site = Site(servers={"main": Server(name="main", admin_dsn="env:DSN")})
            ports = replace(a_world(), site=site, postgres=PostgresServers(site, SecretReferences(values)))  # type: ignore[arg-type]
            yield Failed(old, new, values, ports)
        finally:
            await new.stop()


async def test_signers_see_where_it_is_what_it_is_and_on_which_timeline(failed: Failed) -> None:
    new = await failed.seen()
    assert new.acts_on.startswith("`main`, primary at ")
    assert f":{failed.new.port} on timeline id 2, system id {new.system_id}, PostgreSQL 18." in new.acts_on
    failed.leads_to(failed.old)
    old = await failed.seen()
    assert f":{failed.old.port} on timeline id 1, system id {new.system_id}, PostgreSQL 18." in old.acts_on


async def test_the_old_primary_is_not_the_server_that_was_signed_for(failed: Failed) -> None:
    signed = await failed.seen()
    assert await signed.violation(failed.ports) is None

    failed.leads_to(failed.old)

    elsewhere = await signed.violation(failed.ports)
    assert elsewhere is not None
    assert f":{failed.old.port} now, signed was" in elsewhere
    # Where one address leads to whoever holds it, nothing else tells them apart.
    moved = signed.model_copy(update={"address": (await failed.seen()).address})
    assert await moved.violation(failed.ports) == (
        "Server `main` is on timeline id 1 now, signed was 2: another one was promoted."
    )
