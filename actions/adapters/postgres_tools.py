"""`pg_dump` and `pg_restore`, and the unprivileged role that a restore runs as."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_urlsafe

from psycopg import errors, sql

from actions.adapters.postgres_access import access
from actions.adapters.postgres_connections import AsyncConnection, ServerConnections
from actions.adapters.postgres_fingerprint import OURS, at_snapshot, exported, measure, relfilenodes
from actions.adapters.postgres_globals import read_globals
from actions.adapters.postgres_installation import installation
from actions.adapters.postgres_roles import drop_role, end_role_sessions, mark_role, role_names
from actions.adapters.program_input import ProgramInput
from actions.adapters.program_output import PIPE_BYTES, ProgramOutput
from actions.adapters.programs import Program, ProgramError, run
from actions.adapters.restore_parts import Lane, frozen_copy, parted
from actions.backup.archive import Contents
from actions.backup.manifest import Fingerprint, Globals
from actions.backup.together import together
from actions.backup.tools import (
    Archive,
    ArchiveSource,
    PostgresTools,
    RestoreOrder,
    Snapshot,
    SnapshotFacts,
)
from actions.errors import DrError, PermanentError, TemporaryError, UserError, VerificationError
from actions.ports import Secrets
from actions.site import DatabaseRef, Invariant, Site

log = logging.getLogger(__name__)

LOCK_LIMIT = "60s"  # how long pg_dump waits for a table that somebody alters
RESTORE_LIMIT = timedelta(hours=24)
# A partitioned table with its partitions: its own statistics are what autovacuum never makes.
ANALYZED = """
    SELECT n.nspname, c.relname
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind = ANY(%s::"char"[]) AND NOT c.relispartition AND c.relpersistence <> 't' AND {OURS}
     ORDER BY c.relkind = 'p' DESC, c.relpages DESC, 1, 2
""".replace("{OURS}", OURS)
RESTORE_SETTINGS = (
    # fsync stays as the server has it: what is restored must survive a power cut.
    "-c maintenance_work_mem=256MB -c synchronous_commit=off"
    " -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0"
    " -c default_transaction_read_only=off -c application_name=drbot-restore"
)


class PostgresPrograms(PostgresTools):
    """The tools of `Server.tools`, or those of the bundled PostgreSQL."""

    def __init__(
        self, site: Site, secrets: Secrets, *, private_directory: Path, counters: int = 2, scratch: Path | None = None
    ) -> None:
        self._connections = ServerConnections(site, secrets, scratch)
        self._private = private_directory
        self._counters = counters

    def tool(self, server: str, name: str) -> str:
        directory = self._connections.server(server).tools
        return str((Path(directory) if directory else installation() / "bin") / name)

    async def versions(self, server: str) -> Mapping[str, str]:
        found = {}
        for name in ("pg_dump", "pg_restore"):
            output = await run([self.tool(server, name), "--version"], timeout=timedelta(seconds=10))
            match = re.search(r"(\d+(?:\.\d+)*)", output.text)
            found[name] = match[1] if match else output.text.strip()
        return found

    # ------------------------------------------------------------ dump

    def snapshot(self, database: DatabaseRef) -> AbstractAsyncContextManager[Snapshot]:
        return self._snapshot(database)

    @asynccontextmanager
    async def _snapshot(self, database: DatabaseRef) -> AsyncIterator[Snapshot]:
        version = (await self.versions(database.server))["pg_dump"]
        async with at_snapshot(self._connections, database) as connection:
            snapshot = await exported(connection)
            facts = await _facts(connection)
            if int(version.split(".")[0]) < facts.server_version // 10000:
                raise UserError(
                    f"`pg_dump` {version} is older than server `{database.server}` "
                    f"({facts.server_version // 10000}). Set `tools` of that server to a directory with newer programs."
                )
            with self.access(await self._connections.parameters(*database)) as (dsn, env):
                yield _ExportedSnapshot(self, database, snapshot, facts, dsn, env)

    def dump_program(self, database: DatabaseRef, snapshot: str, dsn: str, env: Mapping[str, str]) -> Program:
        return Program.start(
            [
                self.tool(database.server, "pg_dump"),
                *("--format=custom", "--compress=none", f"--snapshot={snapshot}", f"--lock-wait-timeout={LOCK_LIMIT}"),
                *("--no-password", f"--dbname={dsn}"),
            ],
            env={**env, "PGAPPNAME": "drbot-dump"},
            stdout=True,
            stdout_block=PIPE_BYTES,
        )

    async def measured(
        self, database: DatabaseRef, snapshot: str, invariants: Sequence[Invariant], counted: Callable[[int], None]
    ) -> Fingerprint:
        return await measure(
            self._connections, database, invariants, workers=self._counters, snapshot=snapshot, counted=counted
        )

    async def globals_of(self, database: DatabaseRef) -> Globals:
        async with self._connections.session(database.server, database.name) as connection:
            return await read_globals(connection)

    async def superusers(self, server: str) -> Mapping[str, bool]:
        async with self._connections.session(server) as connection:
            rows = await (await connection.execute("SELECT rolname, rolsuper FROM pg_roles")).fetchall()
            return dict(rows)

    # ------------------------------------------------------------ restore

    async def check_archive(self, server: str, archive: Path) -> None:
        try:
            await run([self.tool(server, "pg_restore"), "--list", archive], timeout=timedelta(minutes=5))
        except ProgramError as error:
            raise VerificationError(f"`pg_restore --list` cannot read the dump: {error}") from error

    async def restore(self, order: RestoreOrder, archive: Archive, restored: Callable[[int], None]) -> Sequence[str]:
        parts, notes = parted(archive.contents, archive.places, order.owners)
        header = archive.contents.with_changes(
            owner=lambda entry: order.owners.get(entry.owner, entry.owner),
            # A table that an extension has made is not in the archive, and may hold rows of its own.
            copy=lambda entry: frozen_copy(entry) if entry.id in parts.tables else entry.copy,
        )
        async with self.restoring_role(order) as (role, dsn, env):
            watch = asyncio.create_task(self._watch(order.into, restored))
            try:
                with self._private_file("contents-", header) as contents:
                    program = self.tool(order.into.server, "pg_restore")
                    restore = _Restore(program, dsn, env, contents, helpers=2 if order.jobs == 1 else 1)
                    await self._statements(order, restore, parts.schemas, jobs=1)
                    await self._prepare_schemas(order, archive.contents, role)
                    await self._statements(order, restore, parts.before, jobs=1)
                    lanes = parts.lanes(archive.places, order.jobs)
                    made = await self._rows(order, restore, archive, lanes, header)
                    left = [number for number in parts.indexes if number not in made]
                    # Apart: a foreign key of a partitioned table would hold up the indexes of its partitions.
                    await self._statements(order, restore, left, jobs=order.jobs)
                    await self._statements(order, restore, parts.after, jobs=order.jobs)
                    async with together() as group:  # the views only read the tables
                        group.create_task(self._statements(order, restore, parts.views, jobs=1))
                        group.create_task(self._analyze(order.into, "rp", order.jobs))
            finally:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
        await self._analyze(order.into, "m", order.jobs)
        return notes

    async def _statements(self, order: RestoreOrder, restore: _Restore, entries: Sequence[int], *, jobs: int) -> None:
        """Entries without data: the table of contents says all of them."""
        if not entries:
            return
        with self._private_file("entries-", _listed(entries)) as wanted:
            argv = [*restore.argv(wanted), f"--jobs={jobs}", restore.contents]
            try:
                await run(argv, env=restore.env, timeout=RESTORE_LIMIT)
            except ProgramError as error:
                await self._raise_restore_error(order, error)

    async def _rows(
        self, order: RestoreOrder, restore: _Restore, archive: Archive, lanes: Sequence[Lane], header: bytes
    ) -> frozenset[int]:
        """The rows, by as many programs at once as there are lanes. Whichever is done before the others goes on with
        the indexes of its tables, which are returned."""
        busy, made = len(lanes), set[int]()

        async def lane(share: Lane) -> None:
            nonlocal busy
            await self._share(order, restore, archive, share.rows, header)
            if busy > 1:  # the last one's indexes are left to all jobs together
                await self._statements(order, restore, share.indexes, jobs=1)
                made.update(share.indexes)
            busy -= 1

        async with together() as group:
            for share in lanes:
                group.create_task(lane(share))
        return frozenset(made)

    async def _share(
        self, order: RestoreOrder, restore: _Restore, archive: Archive, share: Sequence[int], header: bytes
    ) -> None:
        with self._private_file("entries-", _listed(share)) as wanted:
            try:
                start = functools.partial(Program.start, restore.argv(wanted), env=restore.env, stdin=True)
                with await asyncio.to_thread(start) as program:
                    data = ProgramInput(program, header, [archive.places[number] for number in share])
                    await archive.replay(data, data.stop)
                    await asyncio.to_thread(program.check, RESTORE_LIMIT)
            except ProgramError as error:
                await self._raise_restore_error(order, error)

    @contextlib.contextmanager
    def _private_file(self, prefix: str, content: bytes) -> Iterator[str]:
        with tempfile.NamedTemporaryFile(dir=self._private, prefix=prefix) as file:  # made by mkstemp: 0600 at once
            file.write(content)
            file.flush()
            yield file.name

    async def _raise_restore_error(self, order: RestoreOrder, error: ProgramError) -> None:
        text = " ".join(error.stderr.split())[-1500:]
        lost = ("server closed the connection", "connection to server", "terminating connection", "the database system")
        if error.code is not None and error.code < 0:
            raise TemporaryError(f"`pg_restore` into `{order.into}` was ended ({error}). Run it again.") from error
        if any(sign in text for sign in lost):
            raise TemporaryError(
                f"Server `{order.into.server}` broke off the restore into `{order.into.name}`: {text}. Run it again."
            ) from error
        if "No space left" in text or "could not extend file" in text:
            raise UserError(
                f"The disk of server `{order.into.server}` is full: {text}. Free space there or choose another server."
            ) from error
        raise VerificationError(f"`pg_restore` into `{order.into}` failed: {text}") from error

    async def _watch(self, database: DatabaseRef, restored: Callable[[int], None]) -> None:
        while True:
            with contextlib.suppress(TemporaryError, PermanentError):
                async with self._connections.session(database.server) as connection:
                    while True:
                        rows = await connection.execute("SELECT pg_database_size(%s)", [database.name])
                        row = await rows.fetchone()
                        restored(row[0] if row else 0)
                        await asyncio.sleep(1)
            await asyncio.sleep(1)

    @asynccontextmanager
    async def restoring_role(self, order: RestoreOrder) -> AsyncIterator[tuple[str, str, Mapping[str, str]]]:
        """A login role for this restore alone: no rights but those of the archive's owners, gone afterwards."""
        role, giver = role_names(order.into)
        password = token_urlsafe(32)
        owners = sorted({order.owner, *order.owners.values()})
        await self._drop_roles(order, role, giver)
        try:
            # In one transaction: a role that is there also carries the mark, by which it is found and removed.
            async with (
                self._connections.session(order.into.server) as connection,
                connection.transaction(),
            ):
                known = {row[0] for row in await (await connection.execute("SELECT rolname FROM pg_roles")).fetchall()}
                # The verifier, not the password: a statement may end in the server's log.
                verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
                until = (datetime.now(UTC) + RESTORE_LIMIT).isoformat()
                await connection.execute(
                    sql.SQL(
                        "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
                        " PASSWORD {} VALID UNTIL {} CONNECTION LIMIT {}"
                    ).format(
                        *(sql.Identifier(role), sql.Literal(verifier.decode()), sql.Literal(until)),
                        sql.Literal(order.jobs + 4),
                    )
                )
                await connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(giver)))
                await _leave_to_us(connection, role)
                for name in (role, giver):
                    await mark_role(connection, name, order.mark)
                for owner in owners:
                    if owner in known and not owner.startswith("pg_"):
                        await _grant(connection, owner, role)
                        await _grant(connection, giver, owner)
                await connection.execute(
                    sql.SQL("GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {} TO {}").format(
                        sql.Identifier(order.into.name), sql.Identifier(role)
                    )
                )
            parameters = await self._connections.parameters(*order.into)
            parameters |= {"user": role, "password": password}
            with self.access(parameters) as (dsn, env):
                yield role, dsn, env
        finally:
            await asyncio.shield(self._drop_roles(order, role, giver))

    async def _drop_roles(self, order: RestoreOrder, role: str, giver: str) -> None:
        """Remove both roles, as far as they are there; what the restoring role still owns becomes the owner's."""
        try:
            await end_role_sessions(self._connections, order.into.server, role)
            for name in (role, giver):
                await drop_role(self._connections, order.into.server, name)
        except (TemporaryError, UserError, PermanentError) as error:
            # It may not log in any more, or is valid for a day at most; its mark tells what may remove it.
            log.warning("restoring_role_left: %s: %s", role, error)

    async def _prepare_schemas(self, order: RestoreOrder, contents: Contents, role: str) -> None:
        """Make the extensions, and let every owner create in every schema until the restore is over.

        The archive sets a schema's own rights at its very end, but a table can be given only to a role that may create
        in the schema. The rights hang on a role that is dropped afterwards.
        """
        giver = role_names(order.into)[1]
        wanted = contents.extensions()
        async with self._connections.session(*order.into) as connection:
            await self._create_extensions(connection, order, wanted)
            rows = await connection.execute(
                "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
            )
            for (schema,) in await rows.fetchall():
                for name in (role, giver):
                    await connection.execute(
                        sql.SQL("GRANT USAGE, CREATE ON SCHEMA {} TO {}").format(
                            sql.Identifier(schema), sql.Identifier(name)
                        )
                    )
            # Tables of extensions that hold rows of the user's own (pg_extension_config_dump).
            rows = await connection.execute(
                "SELECT DISTINCT n.nspname, c.relname FROM pg_extension e, unnest(e.extconfig) t"
                " JOIN pg_class c ON c.oid = t JOIN pg_namespace n ON n.oid = c.relnamespace"
            )
            for schema, table in await rows.fetchall():
                await connection.execute(
                    sql.SQL("GRANT ALL ON {} TO {}").format(sql.Identifier(schema, table), sql.Identifier(role))
                )

    async def _create_extensions(
        self, connection: AsyncConnection, order: RestoreOrder, wanted: Mapping[str, str]
    ) -> None:
        rows = await connection.execute("SELECT name FROM pg_available_extensions")
        available = {row[0] for row in await rows.fetchall()}
        schemas = {row[0] for row in await (await connection.execute("SELECT nspname FROM pg_namespace")).fetchall()}
        for name in wanted:
            if name not in order.extensions:
                raise VerificationError(f"The dump wants the extension `{name}`, which its manifest does not name.")
            if name not in available:
                raise UserError(
                    f"Server `{order.into.server}` has no extension `{name}`, which the dump needs. "
                    "Install its package there or choose another server."
                )
            schema = wanted[name]
            where = sql.SQL(" SCHEMA {}").format(sql.Identifier(schema)) if schema in schemas else sql.SQL("")
            await connection.execute(
                sql.SQL("CREATE EXTENSION IF NOT EXISTS {}{} CASCADE").format(sql.Identifier(name), where)
            )

    async def _analyze(self, database: DatabaseRef, kinds: str, jobs: int) -> None:
        """New statistics for relations of these kinds, as in `pg_class.relkind`."""
        async with self._connections.session(*database) as connection:
            tables = await (await connection.execute(ANALYZED.encode(), [list(kinds)])).fetchall()
        work = iter(tables)

        async def worker() -> None:
            async with self._connections.session(*database) as connection:
                for schema, name in work:
                    await connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(schema, name)))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(jobs, len(tables))):
                group.create_task(worker())

    @contextlib.contextmanager
    def private_folder(self, prefix: str) -> Iterator[Path]:
        """A folder for files with data in plain, for our account alone, gone afterwards."""
        self._private.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._private, prefix=prefix) as folder:
            yield Path(folder)

    def access(self, parameters: Mapping[str, str]) -> AbstractContextManager[tuple[str, Mapping[str, str]]]:
        """A connection string without the password, and the environment that points to it in a 0600 file."""
        return access(parameters, self._private)


class _ExportedSnapshot(Snapshot):
    def __init__(
        self,
        tools: PostgresPrograms,
        database: DatabaseRef,
        snapshot: str,
        facts: SnapshotFacts,
        dsn: str,
        env: Mapping[str, str],
    ) -> None:
        self._tools, self._database, self._snapshot = tools, database, snapshot
        self._facts, self._dsn, self._env = facts, dsn, env

    @property
    def facts(self) -> SnapshotFacts:
        return self._facts

    async def archive(self) -> ArchiveSource:
        program = await asyncio.to_thread(
            self._tools.dump_program, self._database, self._snapshot, self._dsn, self._env
        )
        return ProgramOutput(program, functools.partial(_dump_failed, self._database))

    async def fingerprint(self, invariants: Sequence[Invariant], counted: Callable[[int], None]) -> Fingerprint:
        return await self._tools.measured(self._database, self._snapshot, invariants, counted)


def _dump_failed(database: DatabaseRef, error: ProgramError) -> DrError:
    said = " ".join(error.stderr.split())
    if "connection" in said or "the database system" in said:
        return TemporaryError(f"Server `{database.server}` broke off the dump of `{database.name}`: {said}.")
    return PermanentError(f"`pg_dump` of `{database}` failed: {said or error}")


async def _facts(connection: AsyncConnection) -> SnapshotFacts:
    row = await (
        await connection.execute(
            "SELECT current_setting('server_version_num')::int,"
            " (SELECT system_identifier::text FROM pg_control_system()),"
            " CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text,"
            " now(), pg_database_size(current_database())"
        )
    ).fetchone()
    if row is None:
        raise PermanentError("PostgreSQL gave no facts of the snapshot")
    return SnapshotFacts(
        server_version=row[0],
        system_id=row[1],
        lsn=row[2],
        taken_at=row[3].astimezone(UTC),
        database_bytes=row[4],
        relfilenodes=await relfilenodes(connection),
        cluster_globals=await read_globals(connection),
    )


async def _leave_to_us(connection: AsyncConnection, role: str) -> None:
    """Keep autovacuum away from what the role loads: it would read every table once more and hold up its
    indexes, and the load ends with an ANALYZE of its own."""
    # Only a superuser may; elsewhere (managed servers) the load takes a little longer.
    with contextlib.suppress(errors.InsufficientPrivilege):
        async with connection.transaction():
            await connection.execute(sql.SQL("ALTER ROLE {} SET track_counts = off").format(sql.Identifier(role)))


async def _grant(connection: AsyncConnection, role: str, member: str) -> None:
    option = " WITH INHERIT TRUE" if connection.info.server_version >= 160000 else ""
    await connection.execute(
        sql.SQL("GRANT {} TO {}{}").format(sql.Identifier(role), sql.Identifier(member), sql.SQL(option))
    )


@dataclass(frozen=True)
class _Restore:
    """How `pg_restore` is called."""

    program: str
    dsn: str
    environment: Mapping[str, str]
    contents: str  # a file with the archive's table of contents alone
    helpers: int  # of each index that is made

    @property
    def env(self) -> Mapping[str, str]:
        settings = f"{RESTORE_SETTINGS} -c max_parallel_maintenance_workers={self.helpers}"
        return {**self.environment, "PGOPTIONS": settings}

    def argv(self, wanted: str) -> list[str]:
        """For the entries that the file `wanted` lists; the archive comes from standard input unless it is named."""
        return [
            self.program,
            *("--format=custom", "--exit-on-error", "--no-tablespaces", "--no-security-labels", "--no-subscriptions"),
            *(f"--use-list={wanted}", "--no-password", f"--dbname={self.dsn}"),
        ]


def _listed(entries: Sequence[int]) -> bytes:
    return "".join(f"{number};\n" for number in entries).encode()
