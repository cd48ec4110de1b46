"""Section 4.1 of the plan as a person types it, and the dump it needs: what the bot is measured against."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta
from pathlib import Path

import aiohttp
import psycopg
from psycopg import sql

from actions.adapters.programs import run
from bot.demo.dataset import DATABASE, OWNER
from bot.demo.plan import API, BUCKET, NAMESPACE, WORKER
from bot.demo.servers import Servers
from bot.demo.watch import Answer, HealthWatch

KEY = "by-hand/superprismora.dump"
REPLICAS = {API: 2, WORKER: 1}
LIMIT = timedelta(minutes=10)


class ByHand:
    """One person with `pg_dump`, `pg_restore`, an S3 client and a cluster. Times are seconds on the wall."""

    def __init__(self, servers: Servers, directory: Path) -> None:
        self._servers = servers
        self._made = directory / "by-hand.dump"
        self._fetched = directory / "fetched.dump"
        self._environment = {**os.environ, "PGPASSFILE": str(servers.production.passfile)}

    async def dump(self) -> float:
        """`pg_dump -Fc` with its own compression, then an upload in parts."""
        begun = time.monotonic()
        await self._program("pg_dump", "-Fc", "-f", str(self._made), "-d", self._address(DATABASE))
        client = self._servers.objects.client()
        await asyncio.to_thread(client.upload_file, str(self._made), BUCKET, KEY)
        took = time.monotonic() - begun
        self._made.unlink()
        return took

    async def restore(self, watch: HealthWatch, *, tuned: bool = False) -> float:
        """Download, stop the application, DROP, CREATE, `pg_restore`, ANALYZE, count, start, until it answers.

        The download comes first, which the plan leaves open: a careful person does not wait for it with the
        application down. `tuned` is `pg_restore -j 4` with more memory for the indexes.
        """
        begun = time.monotonic()
        client = self._servers.objects.client()
        await asyncio.to_thread(client.download_file, BUCKET, KEY, str(self._fetched))
        for name in REPLICAS:
            await self._scale(name, 0)
        await self._recreate()
        jobs, settings = (("-j", "4"), {"PGOPTIONS": "-c maintenance_work_mem=256MB"}) if tuned else ((), {})
        await self._program("pg_restore", *jobs, "-d", self._address(DATABASE), str(self._fetched), **settings)
        await self._analyze_and_count()
        for name, replicas in REPLICAS.items():
            await self._scale(name, replicas)
        await watch.until(Answer.GOOD, within=60)
        took = time.monotonic() - begun
        self._fetched.unlink()
        return took

    async def _recreate(self) -> None:
        name, owner = sql.Identifier(DATABASE), sql.Identifier(OWNER)
        async with await psycopg.AsyncConnection.connect(self._servers.production.dsn(), autocommit=True) as connection:
            # FORCE: a pod may have its last question open; a person would try again.
            await connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
            await connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, owner))

    async def _analyze_and_count(self) -> None:
        tables = "SELECT schemaname, relname FROM pg_stat_user_tables ORDER BY 1, 2"
        async with await psycopg.AsyncConnection.connect(
            self._servers.production.dsn(DATABASE), autocommit=True
        ) as connection:
            await connection.execute("ANALYZE")
            for name in await (await connection.execute(tables)).fetchall():
                await connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(*name)))

    async def _scale(self, deployment: str, replicas: int) -> None:
        """What `kubectl scale` sends; like it, does not wait for the pods."""
        cluster = self._servers.cluster
        address = f"{cluster.url}/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{deployment}/scale"
        headers = {"Authorization": f"Bearer {cluster.token}", "Content-Type": "application/merge-patch+json"}
        body = f'{{"spec": {{"replicas": {replicas}}}}}'
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.patch(address, data=body, ssl=False) as answer,
        ):
            answer.raise_for_status()

    async def _program(self, name: str, *arguments: str, **settings: str) -> None:
        await run(
            [self._servers.production.tool(name), *arguments],
            env={**self._environment, **settings},
            timeout=LIMIT,
        )

    def _address(self, database: str) -> str:
        return f"host=127.0.0.1 port={self._servers.production.port} user=postgres dbname={database}"


async def settle(servers: Servers) -> None:
    """Both sides begin with nothing left to vacuum or write: a database that has just been loaded would otherwise be
    vacuumed under the side that does not drop it first."""
    async with await psycopg.AsyncConnection.connect(servers.production.dsn(DATABASE), autocommit=True) as connection:
        await connection.execute("VACUUM")
        await connection.execute("CHECKPOINT")
    await asyncio.to_thread(os.sync)


async def drop_quarantine(servers: Servers) -> None:
    """What the bot has set aside, removed at once: the disk is shared."""
    query = "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
    async with await psycopg.AsyncConnection.connect(servers.production.dsn(), autocommit=True) as connection:
        for (name,) in await (await connection.execute(query, [f"{DATABASE}_quarantine_"])).fetchall():
            await connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
