"""`drbot wal` as a process of its own, on a plan file, with a real S3 server."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from datetime import timedelta
from pathlib import Path

import psutil

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.programs import Program
from actions.adapters.s3 import S3Store
from actions.adapters.secrets import SecretReferences
from bot.demo.keys import make_keys, private_file
from bot.demo.plan import BUCKET, Addresses, demo_plan
from bot.plan_file import DrPlan, dump
from bot.site import site_of
from tests.fakes.slack import TEAM
from tests.fixtures.shared_s3 import S3
from tests.wal_world import WalWorld

NAME = "primary"
DATABASE = "superprismora"


class WalProcess:
    """The archiver of one server, and of its `standby` where the plan file names one. WAL goes into the bucket `second`
    as well where one is named. `world` reads the same buckets under the same plan."""

    def __init__(
        self,
        directory: Path,
        server: EmbeddedPostgres,
        s3: S3,
        bucket: str,
        *,
        synchronous: bool = False,
        standby: EmbeddedPostgres | None = None,
        second: str = "",
    ) -> None:
        self.directory, self.log = directory, directory / "wal.log"
        self._server, self._s3, self._bucket, self._synchronous = server, s3, bucket, synchronous
        self._standby, self._second = standby, second
        self._program: Program | None = None
        self.world = WalWorld(directory, server)

    async def prepare(self) -> None:
        """Write keys and plan file."""
        await asyncio.to_thread(self._write)
        site = await site_of(self.plan, SecretReferences())
        self.world.secrets = SecretReferences()
        self.world.objects = S3Store(site, self.world.secrets)
        self.world.policy = site.physical[NAME]

    def _write(self) -> None:
        secrets = self.directory / "secrets"
        secrets.mkdir(mode=0o700)
        self.dsn = private_file(secrets / "dsn", self._server.dsn())
        document = demo_plan(
            Addresses(
                workspace=TEAM,
                channel="C0INCIDENTS",
                production_dsn=self.dsn,
                production_host=f"127.0.0.1:{self._server.port}",
                spare_dsn=self.dsn,
                spare_host="127.0.0.1:1",
                application_dsn=self.dsn,
                health_url="http://127.0.0.1:1/healthz",
                kubeconfig=self.dsn,
                s3_endpoint=self._s3.endpoint,
                s3_access_key=private_file(secrets / "access", self._s3.access_key),
                s3_secret_key=private_file(secrets / "secret", self._s3.secret_key),
                copies=self.directory / "copies",
                keys=make_keys(secrets),
            )
        ).model_dump(mode="json")
        document["backups"]["databases"][0]["wal"]["synchronous"] = self._synchronous
        if self._second:
            [first] = [each for each in document["buckets"] if each["name"] == BUCKET]
            document["buckets"].append({**first, "name": self._second})
            document["backups"]["databases"][0]["wal"]["stores"].append(self._second)
        if self._standby is not None:
            dsn = private_file(secrets / "standby-dsn", self._standby.dsn())
            more = {"name": "standby", "role": "standby", "standby_of": NAME, "admin_dsn": f"file:{dsn}"}
            document["servers"].append(more)
        self.plan = DrPlan.model_validate(json.loads(json.dumps(document).replace(BUCKET, self._bucket)))
        self.plan_file = private_file(self.directory / "dr-plan.yml", dump(self.plan))

    def failed_over(self) -> None:
        """The standby is the primary now: the connection string of the plan file leads there."""
        assert self._standby is not None
        self.dsn.write_text(self._standby.dsn())
        self.world.point_to(self._standby)

    async def start(self) -> None:
        command = [sys.executable, "-m", "bot.cli", "wal", DATABASE]
        env = {"DRBOT_PLAN_FILE": str(self.plan_file), "DRBOT_DATA_DIRECTORY": str(self.directory / "var")}
        self._program = await asyncio.to_thread(lambda: Program.start(command, env=env, log=self.log))

    def process(self) -> psutil.Process:
        assert self._program is not None
        return psutil.Process(self._program.pid)

    async def kill(self) -> None:
        """As `kill -9` does; `pg_receivewal` goes with it."""
        if self._program is not None:
            self._program.send(signal.SIGKILL)
            await asyncio.to_thread(self._program.wait, timedelta(seconds=10))

    async def stop(self) -> bool:
        """As a supervisor does; True when it went by itself."""
        assert self._program is not None
        return await asyncio.to_thread(self._program.stop, grace=timedelta(seconds=10))

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""
