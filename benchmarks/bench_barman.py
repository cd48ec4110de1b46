"""A server restored from S3 to a verified, started instance, against `barman-cloud-restore`, in pairs.

Both sides fetch a base backup and the WAL after it, replay to the end of the archive, check every page, start, and
count a table. Barman keeps its backup as it comes, neither compressed nor encrypted, which is the fastest it has; its
pages are checked by `pg_checksums`, which needs a server that has been stopped. SIZE=tiny|small|large|huge and PAIRS=n
in the environment.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from actions.adapters.embedded_postgres import free_port
from actions.adapters.programs import Account, Program, run
from benchmarks.bench_physical import PAIRS, restored, world_over
from benchmarks.by_hand import settle
from benchmarks.table import pairs
from bot.demo.dataset import DATABASE
from bot.demo.plan import BUCKET
from bot.demo.servers import Servers
from bot.demo.world import World

pytestmark = [pytest.mark.bench, pytest.mark.asyncio(loop_scope="session")]

LIMIT = 0.8
HOUR = timedelta(hours=1)
ROOT = Path(__file__).parents[1]
PLACE, NAME = f"s3://{BUCKET}/bench-barman", "main"


class Barman:
    """`barman-cloud-*` in an environment of its own, as the account that PostgreSQL runs as."""

    def __init__(self, servers: Servers, directory: Path) -> None:
        self._server = servers.production
        self._directory = directory
        self._s3 = ("--cloud-provider", "aws-s3", "--endpoint-url", servers.objects.endpoint)
        self._environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": servers.objects.access_key,
            "AWS_SECRET_ACCESS_KEY": servers.objects.secret_key,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # SeaweedFS keeps the marks of streamed ones
            "PGPASSWORD": self._server.password(),
            "HOME": str(directory),
        }

    async def install(self) -> None:
        """The locked wheels."""
        uv = ROOT / ".venv" / "bin" / "uv"
        self._directory.mkdir(mode=0o755)
        self._own(self._directory)
        # The interpreter of .venv may lie where the account of PostgreSQL must not look.
        await run([uv, "venv", "--quiet", "--python", "/usr/bin/python3", self._directory / "venv"], timeout=HOUR)
        python = str(self._directory / "venv" / "bin" / "python")
        options = ["--quiet", "--no-deps", "--require-hashes", "--python", python]
        await run([uv, "pip", "install", *options, "-r", ROOT / "locks" / "barman.txt"], timeout=HOUR)

    def _own(self, path: Path) -> None:
        account = self._server.account
        if account is not None:
            os.chown(path, account.uid, account.gid)

    async def backup(self) -> None:
        """A base backup, and every segment up to its end."""
        connection = ("-h", "127.0.0.1", "-p", str(self._server.port), "-U", "postgres", "-d", "postgres")
        options = ("--immediate-checkpoint", "--jobs", "2", "--name", "bench")
        await self._barman("backup", *self._s3, *connection, *options, PLACE, NAME)
        with psycopg.connect(self._server.dsn(), autocommit=True) as session:
            [last] = session.execute("SELECT pg_walfile_name(pg_current_wal_lsn())").fetchone() or ("",)
            session.execute("SELECT pg_create_restore_point('archived')")
            session.execute("SELECT pg_switch_wal()")
        for path in sorted((self._server.data / "pg_wal").glob("0" * 7 + "[1-9]" + "?" * 16)):
            if path.name <= last:
                await self._barman("wal-archive", *self._s3, PLACE, NAME, str(path))

    async def restore(self, number: int) -> float:
        """Seconds until the instance is whole, checked and answers."""
        folder = self._directory / f"restored-{number}"
        await asyncio.to_thread(os.sync)
        begun = time.monotonic()
        await self._barman("restore", *self._s3, PLACE, NAME, "bench", str(folder))
        fetched = time.monotonic()
        (folder / "recovery.signal").touch()
        (folder / "pg_hba.conf").write_text("local all all trust\n")
        fetch = [str(self._program("wal-restore")), *self._s3, PLACE, NAME, "%f", "%p"]
        async with self._running(folder, f"restore_command={' '.join(fetch)}") as port:
            await self._until(folder, port, "SELECT NOT pg_is_in_recovery()")
        replayed = time.monotonic()
        check = [str(self._server.tool("pg_checksums")), "--check", "-D", str(folder)]
        await run(check, account=self._server.account, cwd=Path("/"), timeout=HOUR)
        checked = time.monotonic()
        async with self._running(folder) as port:
            await self._until(folder, port, "SELECT count(*) > 0 FROM users", DATABASE)
            took = time.monotonic() - begun
        phases = f"fetch {fetched - begun:.1f}, replay {replayed - fetched:.1f}, pages {checked - replayed:.1f}"
        print(f"  barman: {took:.2f} s ({phases}), load {os.getloadavg()[0]:.1f}", flush=True)
        await asyncio.to_thread(shutil.rmtree, folder)
        await asyncio.to_thread(os.sync)
        return took

    def _program(self, name: str) -> Path:
        return self._directory / "venv" / "bin" / f"barman-cloud-{name}"

    async def _barman(self, name: str, *words: str) -> None:
        argv = [str(self._program(name)), *words]
        await run(argv, env=self._environment, account=self._server.account, cwd=self._directory, timeout=HOUR)

    def _running(self, folder: Path, *settings: str) -> _Running:
        own = ("listen_addresses=", f"unix_socket_directories={folder}", "archive_mode=off", *settings)
        return _Running(
            [self._server.tool("postgres"), "-D", folder, *(word for item in own for word in ("-c", item))],
            [self._server.tool("pg_ctl"), "-D", folder, "-m", "fast", "--wait", "stop"],
            env=self._environment,
            account=self._server.account,
            log=self._directory / "postgres.log",
        )

    async def _until(self, folder: Path, port: int, query: str, database: str = "postgres") -> None:
        while True:
            try:
                with psycopg.connect(host=str(folder), port=port, user="postgres", dbname=database) as session:
                    if (session.execute(query.encode()).fetchone() or (False,))[0]:
                        return
            except psycopg.OperationalError:
                pass
            await asyncio.sleep(0.05)


class _Running:
    """A server on a socket of its own while the block lasts, stopped cleanly after it."""

    def __init__(
        self,
        start: list[str | Path],
        stop: list[str | Path],
        *,
        env: dict[str, str],
        account: Account | None,
        log: Path,
    ) -> None:
        self._start, self._stop, self._env, self._account, self._log = start, stop, env, account, log

    async def __aenter__(self) -> int:
        port = free_port()
        words = [*self._start, "-p", str(port)]
        self._program = Program.start(words, env=self._env, account=self._account, cwd=Path("/"), log=self._log)
        self._program.__enter__()
        return port

    async def __aexit__(self, *error: object) -> None:
        await run(self._stop, account=self._account, cwd=Path("/"), timeout=HOUR)
        self._program.__exit__(None, None, None)


async def test_against_barman(demo: World) -> None:
    barman = Barman(demo.servers, demo.running.directory / "barman")
    await barman.install()
    world = world_over(demo)
    begun = time.monotonic()
    await world.take("bench")
    await world.archive()
    print(f"  our base backup {time.monotonic() - begun:.2f} s", flush=True)
    begun = time.monotonic()
    await barman.backup()
    print(f"  barman's base backup {time.monotonic() - begun:.2f} s", flush=True)
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(PAIRS):
        for side in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
            await settle(demo.servers)
            if side == "ours":
                ours.append(await restored(world))
            else:
                theirs.append(await barman.restore(number))
    ratio = pairs("physical restore against barman-cloud-restore 3.19.1", ours, theirs, LIMIT)
    if os.environ.get("SIZE", "large") in ("large", "huge"):
        assert ratio <= LIMIT
