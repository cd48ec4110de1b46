"""PostgreSQL in a scratch place: started with a configuration of ours, watched until it rests at its target."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from actions.adapters.index_check import check_indexes
from actions.adapters.postgres_installation import installation, postgres_account, usable_programs
from actions.adapters.postmaster import READY, Postmaster, socket_directory
from actions.adapters.programs import Account, Program, ProgramError, run_in_thread
from actions.adapters.recovery_log import damaged, stopped_at_target, too_low, why_it_ended
from actions.adapters.scratch_config import write_configuration
from actions.adapters.serving_config import ASIDE, FILES
from actions.backup.physical import Lsn, RecoveryTarget
from actions.backup.physical_tools import DamagedError, Reached, Replay, ScratchServers
from actions.backup.scratch_place import ScratchPlace
from actions.errors import TemporaryError, UserError, VerificationError
from actions.local_ports import free_port, port_is_free
from actions.ports import Progress, ProgressReport
from actions.site import Site

LOOK = 0.05  # seconds between two looks at a replay
REFUSES = timedelta(seconds=30)  # so long may a server that runs let nobody in: one that goes down does for a moment
QUICK = timedelta(seconds=30)
RAISES = 5  # a primary has five such settings
WAITS_FOR_WAL = "RecoveryRetrieveRetryInterval"

_STATE = """
SELECT CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END,
       pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp(),
       (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup')
"""


class RecoveringServer:
    """One server in one place. Blocking."""

    def __init__(self, place: ScratchPlace, programs: Path, account: Account | None) -> None:
        self.place, self.programs, self.account = place, programs, account
        self._program: Program | None = None
        self._offset = 0  # of the log, where this start begins
        self._waited = 0
        self._lsn: str | None = None
        self._refuses: float | None = None  # since when

    # ------------------------------------------------------------ life

    def launch(self, *, detached: bool) -> None:
        """Start it, and return at once. One that outlives this process is found again by its folder."""
        place = self.place
        socket = socket_directory(place.folder.absolute())
        socket.mkdir(mode=0o700, exist_ok=True)
        place.log.touch(mode=0o640)
        self.own(place.folder, socket)
        self._offset = place.log.stat().st_size
        now = datetime.now(UTC)
        place.check_here(now)
        place.write_holder(now)
        if Postmaster(place.data).process() is None:
            (place.data / "postmaster.pid").unlink(missing_ok=True)
        self.ended()  # one that was killed is waited for before it is forgotten
        self._refuses = None
        self._program = Program.start(
            [self.programs / "postgres", "-D", place.data.absolute(), "-p", str(self._port())],
            account=self.account,
            cwd=place.folder,
            log=place.log,
            outlive_owner=detached,
        )

    def _port(self) -> int:
        opened, claim = self.place.opened(), self.place.claim()
        if opened is not None:
            return opened.port
        if claim is None or not claim.port:
            return free_port()
        if not port_is_free(claim.port) and not self.runs():
            raise UserError(
                f"Port {claim.port} is reserved for scratch instance `{claim.id}`, and another program listens on it. "
                "Stop that one, or discard the instance and restore again."
            )
        return claim.port

    def runs(self) -> bool:
        """Whether a server runs there, whoever started it."""
        return Postmaster(self.place.data).process() is not None

    def ended(self) -> bool:
        """Whether the one that was launched here has ended."""
        return self._program is not None and self._program.code() is not None

    def stop(self) -> None:
        Postmaster(self.place.data).stop()
        if self._program is not None:
            self._program.kill()
            self._program = None
        self.place.drop_holder()
        socket = socket_directory(self.place.folder.absolute())
        if socket.parent != self.place.folder.absolute():
            shutil.rmtree(socket, ignore_errors=True)

    def own_wal(self) -> None:
        """Give what was brought to it to the account that runs PostgreSQL."""
        self.own(self.place.wal, *self.place.wal.iterdir())

    def own_everything(self) -> None:
        """Give the restored files to the account that runs PostgreSQL."""
        if self.account is not None:
            for folder, _, files in os.walk(self.place.data):
                self.own(Path(folder), *(Path(folder, name) for name in files))
            self.own_wal()

    def control(self) -> dict[str, str]:
        """What `pg_controldata` says."""
        out = run_in_thread(
            [self.programs / "pg_controldata", self.place.data], env={"LC_ALL": "C"}, timeout=QUICK
        ).text
        pairs = (line.partition(":") for line in out.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}

    def own(self, *paths: Path) -> None:
        """Give files to the account that runs PostgreSQL."""
        if self.account is not None:
            for path in paths:
                with suppress(FileNotFoundError):  # WAL may arrive meanwhile, and takes its last name then
                    os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)

    # ------------------------------------------------------------ watching

    def said(self) -> str:
        """Its log since the start."""
        with self.place.log.open("rb") as stream:
            stream.seek(self._offset)
            return stream.read().decode("utf-8", errors="replace")

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        claim = self.place.claim()
        return psycopg.connect(
            host=str(socket_directory(self.place.folder.absolute())),
            port=Postmaster(self.place.data).port(),
            user=claim.superuser if claim else "postgres",
            dbname=database,
            autocommit=True,
            connect_timeout=5,
            application_name="drbot-scratch",
        )

    def look(self, target: RecoveryTarget, shown: Lsn | None) -> Reached | None:
        """Where it rests, once it does. `shown`: for a recovery to the end of the WAL, where that was reached before.

        Raises the error of a server that ended, TooLowError, and VerificationError for one that runs and is damaged.
        """
        if self.ended():
            raise why_it_ended(self.said(), target)
        if raised := too_low(self.said()):
            raise TooLowError(raised)
        if Postmaster(self.place.data).status() != READY:
            return None
        try:
            with self.connect() as connection:
                self._refuses = None
                return self._rests(connection, target, shown)
        except psycopg.OperationalError as error:
            self._refused(error)
            return None  # it is going down; the next look tells why

    def _refused(self, error: psycopg.OperationalError) -> None:
        """Its catalogs are read for every connection, so one whose pages are damaged lets nobody in, for ever."""
        now = time.monotonic()
        self._refuses = now if self._refuses is None else self._refuses
        if "FATAL:" in str(error) and now - self._refuses > REFUSES.total_seconds():
            raise damaged(str(error)) from error

    def _rests(
        self, connection: psycopg.Connection[tuple[object, ...]], target: RecoveryTarget, shown: Lsn | None
    ) -> Reached | None:
        row = connection.execute(_STATE).fetchone()
        if row is None or row[0] is None:
            raise VerificationError(f"The scratch server left recovery by itself before it reached {target}.")
        paused, lsn, at, waits = row[0] == "paused", str(row[1]), row[2], row[3]
        if target.latest:
            self._waited = self._waited + 1 if waits == WAITS_FOR_WAL and lsn == self._lsn else 0
            if not paused and (self._waited > 1 or (shown is not None and Lsn.parse(lsn) >= shown)):
                connection.execute("SELECT pg_wal_replay_pause()")
            arrived = paused
        else:
            arrived = paused and stopped_at_target(self.said())
        self._lsn = lsn
        return Reached(lsn=lsn, at=at.astimezone(UTC) if isinstance(at, datetime) else None) if arrived else None

    def rests(self, reached: Lsn) -> bool:
        """Whether a recovery has come (back) to where it came to rest before; so also of one that somebody else has
        started."""
        if Postmaster(self.place.data).status() != READY:
            return False
        try:
            with self.connect() as connection:
                row = connection.execute(_STATE).fetchone()
        except psycopg.OperationalError:
            return False
        if row is None or row[0] is None or Lsn.parse(str(row[1])) < reached:
            return False
        return row[0] == "paused" or self.follows

    def replay_state(self) -> tuple[Lsn, datetime | None, str] | None:
        """How far it has replayed, the last commit in it, and what its replay waits for; None unless it answers and is
        in recovery."""
        if Postmaster(self.place.data).status() != READY:
            return None
        try:
            with self.connect() as connection:
                row = connection.execute(_STATE).fetchone()
        except psycopg.OperationalError:
            return None
        if row is None or row[0] is None:
            return None
        at = row[2].astimezone(UTC) if isinstance(row[2], datetime) else None
        return Lsn.parse(str(row[1])), at, str(row[3] or "")

    @property
    def follows(self) -> bool:
        """Whether it recovers to the end of the WAL, where it waits, rather than to a target."""
        return (self.place.data / "standby.signal").exists()

    @property
    def recovers(self) -> bool:
        """Whether its next start, or this one, is a recovery to its target; a promotion ends that."""
        return self.follows or (self.place.data / "recovery.signal").exists()

    def speaks_tls(self) -> bool:
        """Whether its programs can."""
        try:
            run_in_thread(
                [self.programs / "postgres", "-D", self.place.data.absolute(), "-c", "ssl=on", "-C", "ssl"],
                account=self.account,
                cwd=self.place.folder,
                timeout=QUICK,
            )
        except ProgramError:
            return False
        return True

    def in_recovery(self) -> bool | None:
        """None while it takes no connections."""
        if Postmaster(self.place.data).status() != READY:
            return None
        try:
            with self.connect() as connection:
                row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
                return bool(row[0]) if row else None
        except psycopg.OperationalError:
            return None

    @property
    def replayed(self) -> Lsn | None:
        """As far as the last look saw."""
        return Lsn.parse(self._lsn) if self._lsn else None


class TooLowError(VerificationError):
    """The primary has raised settings after the base backup."""

    def __init__(self, settings: dict[str, str]) -> None:
        super().__init__(f"Replay needs {', '.join(f'{name} = {value}' for name, value in settings.items())}.")
        self.settings = settings


class ScratchPrograms(ScratchServers):
    """Servers with the programs of the server whose data it is; as root, under the account that runs PostgreSQL."""

    def __init__(self, site: Site, *, start_timeout: timedelta = timedelta(minutes=5)) -> None:
        self._site = site
        self._start_timeout = start_timeout
        self._launched: dict[Path, RecoveringServer] = {}  # by us: somebody must wait for their end

    async def server(self, place: ScratchPlace) -> RecoveringServer:
        """Raises UserError when the place has no claim, or no account may run PostgreSQL there."""
        return await asyncio.to_thread(self._server, place)

    def _server(self, place: ScratchPlace) -> RecoveringServer:
        if place.folder not in self._launched:
            self._launched[place.folder] = self._made(place)
        return self._launched[place.folder]

    def _made(self, place: ScratchPlace) -> RecoveringServer:
        claim = place.claim()
        if claim is None:
            raise UserError(f"There is no scratch instance `{place.folder.name}` on this machine. Restore it again.")
        account = postgres_account(None, must_enter=place.folder.parent)
        source = self._site.servers.get(claim.server)
        if source is not None and source.tools:
            return RecoveringServer(place, Path(source.tools), account)
        programs = usable_programs(installation(), account=account, cache=place.folder.parent.parent)
        return RecoveringServer(place, programs, account)

    def compares_indexes(self, place: ScratchPlace) -> bool:
        """Whether the plan file wants indexes compared with their tables. Blocking."""
        claim = place.claim()
        policy = None if claim is None else self._site.physical.get(claim.server)
        return policy is not None and policy.amcheck

    async def replay(self, place: ScratchPlace, order: Replay, progress: Progress) -> Reached:
        server = await self.server(place)
        raised: dict[str, str] = {}
        for _ in range(RAISES):
            try:
                return await self._replay(server, order, raised, progress)
            except TooLowError as error:
                raised |= error.settings
        raise TooLowError(raised)

    async def _replay(
        self, server: RecoveringServer, order: Replay, raised: dict[str, str], progress: Progress
    ) -> Reached:
        await asyncio.to_thread(self.configure, server, order, raised)
        begin, end = Lsn.parse(order.start_lsn), Lsn.parse(order.end_lsn)
        if order.target.lsn is not None:
            end = min(end, Lsn.parse(order.target.lsn))
        try:
            await asyncio.to_thread(server.launch, detached=False)
            while (reached := await asyncio.to_thread(server.look, order.target, None)) is None:
                done = max(0, (server.replayed or begin) - begin)
                progress(ProgressReport(done=done, total=max(done, end - begin), phase="replay"))
                await asyncio.sleep(LOOK)
            if order.amcheck:
                progress(ProgressReport(phase="check", unit="steps"))
                try:
                    checked = await check_indexes(server)
                except VerificationError as error:
                    raise DamagedError(str(error), reached) from error
                reached = reached.model_copy(update={"checked_indexes": checked})
            return reached
        finally:
            await asyncio.shield(asyncio.to_thread(server.stop))

    @staticmethod
    def configure(server: RecoveringServer, order: Replay, raised: Mapping[str, str]) -> None:
        """Our configuration in the place of production's. Blocking."""
        claim = server.place.claim()
        for name in FILES:  # they would be put back over what is written now
            (server.place.data / (name + ASIDE)).unlink(missing_ok=True)
        write_configuration(
            server.place.data,
            control=server.control(),
            socket=socket_directory(server.place.folder.absolute()),
            superuser=claim.superuser if claim else "postgres",
            account=server.account,
            order=order,
            raised=raised,
        )
        server.own_everything()

    async def start(self, place: ScratchPlace, target: RecoveryTarget, reached: Lsn) -> None:
        """Start one that a restore has left, so that it outlives this process; return once it rests where it did."""
        server = await self.server(place)
        await asyncio.to_thread(server.launch, detached=True)
        limit = time.monotonic() + self._start_timeout.total_seconds()
        try:
            while await asyncio.to_thread(server.look, target, reached) is None:
                if time.monotonic() > limit:
                    raise TemporaryError(f"Scratch instance `{place.folder.name}` was not ready in time; try again.")
                await asyncio.sleep(LOOK)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(server.stop))
            raise
