"""PostgreSQL servers in memory: databases with owners, marks and sessions, and the same refusals as the adapter."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from actions.backup.manifest import Fingerprint, Globals
from actions.errors import PermanentError, PreconditionError, TemporaryError, UserError
from actions.ports import (
    COMES_BACK,
    DatabaseFacts,
    FenceFacts,
    Named,
    PostgresAdmin,
    Pulse,
    RoleFacts,
    ServerFacts,
    StopFacts,
)
from actions.site import DatabaseRef, Invariant

SCRATCH = "drbot:scratch:"
BEGUN = datetime(2026, 11, 1, tzinfo=UTC)
starts = itertools.count(1)
EMPTY = Fingerprint(rows={}, sequences={}, schema_hash="empty", invariants={})


@dataclass
class MemoryDatabase:
    """One database. `sessions` have the numbers that `connect` gave out."""

    oid: int
    owner: str
    bytes: int = 8_000_000
    mark: str = ""
    allows_connections: bool = True
    sessions: dict[int, str] = field(default_factory=dict)  # number -> role
    stubborn: bool = False  # sessions that do not end
    prepared: list[str] = field(default_factory=list)
    fingerprint: Fingerprint = EMPTY
    settings: tuple[str, ...] = ()


@dataclass
class MemoryServer:
    """One server."""

    version: int = 180006
    system_id: str = "7000000000000000001"
    in_recovery: bool = False
    free_bytes: int | None = 100_000_000_000
    down: bool = False
    read_only: bool = False  # by its configuration
    workers: tuple[str, ...] = ()  # background workers that come back each time they are ended
    timeline_id: int = 1
    databases: dict[str, MemoryDatabase] = field(default_factory=dict)
    roles: dict[str, bool] = field(default_factory=lambda: {"postgres": True})  # name -> superuser
    loading: dict[str, RoleFacts] = field(default_factory=dict)  # short-lived roles of loads
    started_at: datetime = field(default_factory=lambda: BEGUN + timedelta(microseconds=next(starts)))
    supervised: bool = False  # somebody starts it again at once
    heard: Pulse | None = None  # instead of what `down` says, once it is down or was asked to stop
    checksums: bool = True
    stop_facts: StopFacts = field(default_factory=lambda: StopFacts(directory="/var/lib/postgresql/18/main"))
    asked: int = 0  # to stop


class MemoryPostgres(PostgresAdmin):
    """`answers` gives `query` its rows: the first whose key is part of the statement."""

    def __init__(self, *servers: str) -> None:
        self.servers = {
            name: MemoryServer(system_id=str(7000000000000000001 + number)) for number, name in enumerate(servers)
        }
        self.answers: dict[str, Sequence[Mapping[str, Any]]] = {}
        self._numbers = itertools.count(16384)

    # ------------------------------------------------------------ for tests

    def add(
        self, ref: DatabaseRef, *, owner: str = "app", fingerprint: Fingerprint = EMPTY, **more: Any
    ) -> MemoryDatabase:
        """A database as if it had always been there."""
        server = self._server(ref.server)
        server.roles.setdefault(owner, False)
        made = MemoryDatabase(oid=next(self._numbers), owner=owner, fingerprint=fingerprint, **more)
        server.databases[ref.name] = made
        return made

    def connect(self, ref: DatabaseRef, role: str = "app") -> int:
        """A session of an application; refused as PostgreSQL refuses it."""
        database = self._database(ref)
        if not database.allows_connections:
            raise ConnectionRefusedError(f'database "{ref.name}" is not currently accepting connections')
        number = next(self._numbers)
        database.sessions[number] = role
        return number

    def leave(self, role: str) -> None:
        """Every session of this role ends, on all servers, as its pods do."""
        for server in self.servers.values():
            for database in server.databases.values():
                if not database.stubborn:
                    database.sessions = {number: who for number, who in database.sessions.items() if who != role}

    def database_behind(self, ref: DatabaseRef) -> MemoryDatabase:
        """What other fakes look into. Raises as the port does."""
        return self._database(ref)

    # ------------------------------------------------------------ the port

    async def server(self, server: str) -> ServerFacts:
        found = self._server(server)
        return ServerFacts(
            name=server,
            version=found.version,
            system_id=found.system_id,
            in_recovery=found.in_recovery,
            free_bytes=found.free_bytes,
            address=f"{server}:5432",
            timeline_id=0 if found.in_recovery else found.timeline_id,
            started_at=found.started_at,
            checksums=found.checksums,
        )

    async def database(self, database: DatabaseRef) -> DatabaseFacts | None:
        found = self._server(database.server).databases.get(database.name)
        return _facts(database.name, found) if found is not None else None

    async def databases(self, server: str) -> Sequence[DatabaseFacts]:
        return [_facts(name, found) for name, found in sorted(self._server(server).databases.items())]

    async def fingerprint(
        self, database: DatabaseRef, invariants: Sequence[Invariant], *, counted: Callable[[int], None] | None = None
    ) -> Fingerprint:
        found = self._database(database)
        if not found.allows_connections:
            raise UserError(f"Database `{database.name}` on server `{database.server}` is closed.")
        if counted is not None:
            for rows in found.fingerprint.rows.values():
                counted(rows)
        known = found.fingerprint.invariants
        return found.fingerprint.model_copy(
            update={"invariants": {entry.name: known.get(entry.name, "null") for entry in invariants}}
        )

    async def create(self, database: DatabaseRef, *, owner: str, cluster_globals: Globals, mark: str) -> None:
        _check_name(database.name)
        server = self._server(database.server)
        for role in cluster_globals.roles:
            server.roles.setdefault(role.name, False)
        if server.roles.setdefault(owner, False):
            raise UserError(f"Role `{owner}` is a superuser and must not own a restored database.")
        found = server.databases.get(database.name)
        if found is not None:
            if found.mark == mark:
                return
            raise UserError(
                f"Server `{database.server}` already has a database `{database.name}` that was not made by this plan."
            )
        made = self.add(database, owner=owner, mark=mark)
        made.settings = cluster_globals.database_settings

    async def close(self, database: DatabaseRef) -> int:
        found = self._database(database)
        if found.prepared:
            raise UserError(f"`{database}` has prepared transactions: {', '.join(found.prepared)}.")
        found.allows_connections = False
        if found.stubborn and found.sessions:
            raise TemporaryError(f"`{database}` is closed, but {len(found.sessions)} sessions did not end.")
        ended = len(found.sessions)
        found.sessions.clear()
        return ended

    async def open(self, database: DatabaseRef) -> None:
        self._database(database).allows_connections = True

    async def fencing(self, server: str) -> FenceFacts:
        found = self._server(server)
        return FenceFacts(
            read_only=found.read_only,
            open=tuple(name for name, item in sorted(found.databases.items()) if item.allows_connections),
            sessions=sum(len(item.sessions) for item in found.databases.values()) + len(found.workers),
            workers=found.workers,
        )

    async def fence(self, server: str) -> int:
        found = self._server(server)
        if found.in_recovery:
            raise UserError(f"`{server}` is a standby: it cannot be closed there.")
        found.read_only = True
        ended = 0
        for item in found.databases.values():
            item.allows_connections = False
            if item.stubborn and item.sessions:
                raise TemporaryError(f"`{server}` is closed, but {len(item.sessions)} sessions did not end.")
            ended += len(item.sessions)
            item.sessions.clear()
        if found.workers:
            raise PermanentError(f"`{server}` is closed to people, and not fenced. {COMES_BACK}")
        return ended

    async def unfence(self, server: str, *, closed: Sequence[str], limit: int) -> None:
        found = self._server(server)
        found.read_only = False
        for name, item in found.databases.items():
            item.allows_connections = item.allows_connections or name not in closed

    async def pulse(self, server: str) -> Pulse:
        if server not in self.servers:
            raise UserError(f"The plan file knows no server `{server}`.")
        found = self.servers[server]
        if (found.asked or found.down) and found.heard is not None:
            return found.heard
        return Pulse.SILENT if found.down else Pulse.ANSWERS

    async def clients(self, database: DatabaseRef, role: str, *, within: timedelta = timedelta(0)) -> int:
        server = self._server(database.server)
        found = server.databases.get(database.name)
        everybody = [] if found is None else list(found.sessions.values())
        return sum(who == role if role else not server.roles.get(who, False) for who in everybody)

    async def stopping(self, server: str) -> StopFacts:
        return self._server(server).stop_facts

    async def stop(self, server: str, *, started_at: datetime) -> None:
        found = self._server(server)
        wrong = [f"`{server}` was started at another moment"] if found.started_at != started_at else []
        wrong += [f"`{server}` is a standby"] if found.in_recovery else []
        closed = found.read_only and not any(item.allows_connections for item in found.databases.values())
        wrong += [] if closed else [f"`{server}` is not closed"]
        if wrong:
            raise PreconditionError(wrong)
        if found.stop_facts.hindrance:
            raise UserError(f"The administrator of server `{server}` lacks a right: {found.stop_facts.hindrance}.")
        found.asked += 1
        found.down = not found.supervised
        found.started_at = BEGUN + timedelta(microseconds=next(starts))

    async def swap(
        self, server: str, *, current: Named, replacement: Named, aside: str, mark: str, live_mark: str
    ) -> None:
        _check_name(aside)
        databases, both = self._server(server).databases, (current, replacement)
        wrong = [f"there is no database `{name}`" for name, _ in both if name not in databases]
        wrong += [
            f"`{name}` is another database now"
            for name, oid in both
            if name in databases and databases[name].oid != oid
        ]
        wrong += [f"there is already a database `{aside}`"] if aside in databases else []
        wrong += [
            f"`{name}` has {len(databases[name].sessions)} sessions"
            for name, _ in both
            if name in databases and databases[name].sessions
        ]
        if wrong:
            raise PreconditionError(wrong)
        old = databases.pop(current.name)
        old.allows_connections, old.mark = False, mark
        databases[aside] = old
        databases[current.name] = databases.pop(replacement.name)
        databases[current.name].allows_connections, databases[current.name].mark = True, live_mark

    async def relabel(self, database: DatabaseRef, *, before: str, after: str) -> None:
        found = self._database(database)
        if found.mark not in (before, after):
            raise PreconditionError([f"`{database}` carries the mark `{found.mark or 'none'}`, not `{before}`"])
        found.mark = after

    async def discard(self, database: DatabaseRef, *, mark: str, idle: bool = False) -> None:
        if not mark.startswith(SCRATCH):
            raise UserError(f"`{database}` is not discarded: the mark `{mark}` is not one of a scratch database.")
        databases = self._server(database.server).databases
        found = databases.get(database.name)
        if found is None:
            return
        if found.mark != mark:
            raise UserError(f"`{database}` is not discarded: its mark is `{found.mark or 'none'}`, not `{mark}`.")
        if idle and found.sessions:
            raise TemporaryError(f"`{database}` is not discarded: {len(found.sessions)} sessions are in it.")
        del databases[database.name]

    async def loading_roles(self, server: str) -> Sequence[RoleFacts]:
        return [facts for _, facts in sorted(self._server(server).loading.items())]

    async def discard_role(self, server: str, name: str, *, mark: str) -> None:
        loading = self._server(server).loading
        found = loading.get(name)
        if found is None:
            return
        if not mark or found.mark != mark:
            raise UserError(f"Role `{name}` on `{server}` is not dropped: its mark is `{found.mark or 'none'}`.")
        if found.sessions:
            raise TemporaryError(f"Role `{name}` on `{server}` is logged in; it is not dropped while it works.")
        del loading[name]

    async def query(self, database: DatabaseRef, sql: str) -> Sequence[Mapping[str, Any]]:
        self._database(database)
        return next((rows for part, rows in self.answers.items() if part in sql), [])

    # ------------------------------------------------------------ parts

    def _server(self, name: str) -> MemoryServer:
        if name not in self.servers:
            raise UserError(f"The plan file knows no server `{name}`.")
        if self.servers[name].down:
            raise TemporaryError(f"Server `{name}` does not answer.")
        return self.servers[name]

    def _database(self, ref: DatabaseRef) -> MemoryDatabase:
        found = self._server(ref.server).databases.get(ref.name)
        if found is None:
            raise UserError(f"Server `{ref.server}` has no database `{ref.name}`.")
        return found


def _facts(name: str, found: MemoryDatabase) -> DatabaseFacts:
    return DatabaseFacts(
        name=name,
        oid=found.oid,
        owner=found.owner,
        bytes=found.bytes,
        allows_connections=found.allows_connections,
        sessions=len(found.sessions),
        mark=found.mark,
    )


def _check_name(name: str) -> None:
    if not name or len(name.encode()) > 63:
        raise UserError(f"`{name}` cannot name a database: PostgreSQL takes 1 to 63 bytes.")
