"""The servers of the demo: who is started, in which order, and how long each took."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from actions.adapters.embedded_postgres import EmbeddedPostgres
from bot.demo import dataset, proof
from bot.demo.choices import Size
from bot.demo.cluster import ClusterStandIn
from bot.demo.dataset import DATABASE
from bot.demo.local_slack import LocalSlack
from bot.demo.plan import BUCKET
from bot.demo.seaweedfs import WITNESS_BUCKET, SeaweedFs

Say = Callable[[str], None]

_PRODUCTION = {
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "max_connections": "100",
    # What base backups, incrementals and the archiver of WAL need.
    "wal_level": "replica",
    "summarize_wal": "on",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "max_slot_wal_keep_size": "4GB",
}
_SPARE = {"shared_buffers": "64MB", "max_connections": "60"}
_MEMORY = {"shared_buffers": "64MB", "max_connections": "60"}


@dataclass(kw_only=True)
class Phases:
    """Seconds of each phase, for the person who waits and for the report."""

    say: Say
    seconds: dict[str, float] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        begun = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begun, 1)
        self.say(f"  {name:<44} {self.seconds[name]:5.1f} s")

    @property
    def total(self) -> float:
        return time.monotonic() - self.begun


@dataclass(frozen=True, kw_only=True)
class Servers:
    """All of them, running. `marks` are the highest keys of production before anybody wrote to it."""

    production: EmbeddedPostgres
    spare: EmbeddedPostgres
    memory: EmbeddedPostgres
    objects: SeaweedFs
    slack: LocalSlack
    cluster: ClusterStandIn
    password: str  # of the application's role
    filled: asyncio.Task[proof.Marks]


async def start_servers(stack: AsyncExitStack, directory: Path, *, size: Size, phases: Phases) -> Servers:
    """Start everything but the bot. Production goes on being filled in `filled`; the rest is ready."""
    # Loading needs settings that nobody would run with, so production is started twice.
    loading = EmbeddedPostgres(directory / "production", settings={**_PRODUCTION, **dataset.LOADING})
    await stack.enter_async_context(loading)
    production = EmbeddedPostgres(loading.directory, port=loading.port, settings=_PRODUCTION)
    stack.push_async_callback(production.stop)
    password = secrets.token_urlsafe(18)
    servers = Servers(
        production=production,
        spare=EmbeddedPostgres(directory / "spare", settings=_SPARE),
        memory=EmbeddedPostgres(directory / "memory", settings=_MEMORY),
        objects=SeaweedFs(directory / "s3"),
        slack=LocalSlack(directory / "slack"),
        cluster=ClusterStandIn(directory / "cluster"),
        password=password,
        filled=asyncio.create_task(_fill(loading, production, password, size, phases)),
    )
    stack.push_async_callback(_dropped, servers.filled)

    async def enter(name: str, server: EmbeddedPostgres | SeaweedFs | LocalSlack | ClusterStandIn) -> None:
        async with phases.of(name):
            await stack.enter_async_context(server)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(enter("Slack on this machine", servers.slack))
        tasks.create_task(enter("PostgreSQL, the bot's memory", servers.memory))
        tasks.create_task(enter("PostgreSQL, the spare", servers.spare))
        tasks.create_task(enter("Kubernetes API (a stand-in)", servers.cluster))
        tasks.create_task(enter("S3 (SeaweedFS)", servers.objects))
    await dataset.make_roles(servers.spare.dsn(), password=password)
    await asyncio.to_thread(_make_buckets, servers.objects)
    return servers


def _make_buckets(objects: SeaweedFs) -> None:
    client = objects.client()
    client.create_bucket(Bucket=BUCKET)
    client.create_bucket(Bucket=WITNESS_BUCKET, ObjectLockEnabledForBucket=True)


async def _fill(
    loading: EmbeddedPostgres, production: EmbeddedPostgres, password: str, size: Size, phases: Phases
) -> proof.Marks:
    async with phases.of(f"Data set `{DATABASE}`, size {size}"):
        await dataset.make_roles(loading.dsn(), password=password)
        await dataset.fill(loading.dsn(), loading.dsn(DATABASE), size=size)
        marks = await proof.marks(loading.dsn(DATABASE))
        await loading.stop()
        await production.start()
    return marks


async def _dropped(task: asyncio.Task[proof.Marks]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
