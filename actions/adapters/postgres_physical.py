"""`pg_basebackup` and what checks and combines its backups."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from actions.adapters.postgres_access import access
from actions.adapters.postgres_connections import AsyncConnection, ServerConnections
from actions.adapters.postgres_fingerprint import relfilenodes
from actions.adapters.postgres_installation import installation
from actions.adapters.program_output import ProgramOutput
from actions.adapters.programs import Program, ProgramError, run
from actions.backup.native_lacks import SUMMARIES_SINCE
from actions.backup.physical import Lack
from actions.backup.physical_tools import PhysicalTools, SourceServer, SourceState, UnknownChangesError
from actions.backup.tools import ArchiveSource
from actions.errors import DrError, PermanentError, TemporaryError, UserError, VerificationError
from actions.ports import Secrets
from actions.site import Site

LIMIT = timedelta(hours=24)
QUICK = timedelta(seconds=10)

_FACTS = """
SELECT clock_timestamp(), current_setting('server_version_num')::int,
       (SELECT system_identifier::text FROM pg_control_system()),
       (SELECT timeline_id FROM pg_control_checkpoint()),
       (SELECT bytes_per_wal_segment FROM pg_control_init()),
       current_setting('data_checksums')::bool,
       (SELECT rolname FROM pg_roles WHERE oid = 10),
       (SELECT coalesce(array_agg(spcname::text ORDER BY spcname), '{}') FROM pg_tablespace
         WHERE spcname NOT IN ('pg_default', 'pg_global')),
       (SELECT sum(pg_database_size(oid))::int8 FROM pg_database),
       (SELECT json_object_agg(datname, oid::int8) FROM pg_database WHERE datallowconn AND NOT datistemplate),
       current_setting('wal_summary_keep_time', true)::interval,
       current_setting('wal_level'), current_setting('max_wal_senders')::int,
       current_setting('max_replication_slots')::int, session_user::text,
       (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = session_user)
"""
_SUMMARIES = """
SELECT current_setting('summarize_wal')::bool, (SELECT summarized_lsn::text FROM pg_get_wal_summarizer_state())
"""


class PhysicalPrograms(PhysicalTools):
    """The programs of `Server.tools`, or those of the bundled PostgreSQL."""

    def __init__(self, site: Site, secrets: Secrets, *, private_directory: Path) -> None:
        self._connections = ServerConnections(site, secrets)
        self._private = private_directory

    def _tool(self, server: str, name: str) -> str:
        directory = self._connections.server(server).tools
        return str((Path(directory) if directory else installation() / "bin") / name)

    async def versions(self, server: str) -> Mapping[str, str]:
        found = {}
        for name in ("pg_basebackup", "pg_combinebackup"):
            program = self._tool(server, name)
            if name != "pg_basebackup" and not await asyncio.to_thread(Path(program).exists):
                continue  # before PostgreSQL 17
            output = await run([program, "--version"], timeout=QUICK)
            match = re.search(r"(\d+(?:\.\d+)*)", output.text)
            found[name] = match[1] if match else output.text.strip()
        return found

    async def facts(self, server: str) -> SourceServer:
        async with self._connections.session(server) as connection:
            row = await (await connection.execute(_FACTS)).fetchone()
            if row is None:
                raise PermanentError(f"Server `{server}` gave no facts of itself.")
            summaries = await _summaries(connection, row[1])
        databases = {str(name): int(oid) for name, oid in (row[9] or {}).items()}
        return SourceServer(
            now=row[0],
            server_version=row[1],
            system_id=row[2],
            timeline_id=row[3],
            segment_bytes=row[4],
            checksums=row[5],
            superuser=row[6],
            tablespaces=tuple(row[7]),
            bytes=row[8] or 0,
            databases=databases,
            summarizes=summaries[0],
            summarized_lsn=summaries[1] or "",
            summaries_kept=row[10],
            wal_level=row[11],
            wal_senders=row[12],
            replication_slots=row[13],
            login=row[14],
            may_stream=bool(row[15]),
        )

    async def state(self, server: str, databases: Sequence[str]) -> SourceState:
        files = {name: await self._files(server, name) for name in databases}
        async with self._connections.session(server) as connection:
            rows = await connection.execute("SELECT clock_timestamp(), pg_current_snapshot()::text")
            row = await rows.fetchone()
        if row is None:
            raise PermanentError(f"Server `{server}` gave no moment.")
        return SourceState(now=row[0], snapshot=row[1], relfilenodes=files)

    async def stream_refusal(self, server: str) -> Lack | None:
        parameters = await self._connections.parameters(server)
        try:
            connection = await psycopg.AsyncConnection.connect(
                make_conninfo(**{**parameters, "replication": "true"}), autocommit=True
            )
        except psycopg.OperationalError as error:
            said = " ".join(str(error).split())
            for sign, advice in _REFUSED:
                if sign in said:
                    what = f"Server `{server}` refuses to stream: {said.rpartition('FATAL:')[2].strip()}."
                    return Lack(what=what, next=advice.format(user=parameters.get("user", "")))
            raise TemporaryError(f"Server `{server}` does not answer. Check that it runs.") from error
        await connection.close()
        return None

    async def _files(self, server: str, database: str) -> Mapping[str, int]:
        try:
            async with self._connections.session(server, database) as connection:
                return await relfilenodes(connection)
        except UserError:
            return {}  # dropped meanwhile, or closed to us: the backup holds it all the same

    # ------------------------------------------------------------ take

    async def base(self, server: str, label: str, parent_list: Path | None) -> ArchiveSource:
        parameters = await self._connections.parameters(server)
        stack = ExitStack()
        dsn, env = stack.enter_context(access(parameters, self._private))
        try:
            program = await asyncio.to_thread(
                Program.start,
                [
                    *(self._tool(server, "pg_basebackup"), f"--dbname={dsn}", "--no-password"),
                    *("--pgdata=-", "--format=tar", "--wal-method=none", "--checkpoint=fast", f"--label={label}"),
                    *((f"--incremental={parent_list}",) if parent_list is not None else ()),
                ],
                env={**env, "PGAPPNAME": "drbot-base"},
                stdout=True,
            )
            return _Base(program, server, parameters.get("user", ""), stack)
        except BaseException:
            stack.close()
            raise

    # ------------------------------------------------------------ check and combine

    async def check_files(self, server: str, backup: str, folder: Path) -> None:
        try:
            await run([self._tool(server, "pg_verifybackup"), "--no-parse-wal", folder], timeout=LIMIT)
        except ProgramError as error:
            said = _words(error)
            raise VerificationError(
                f"The files of base backup `{backup}` are not those that the server listed: {said} Use another backup."
            ) from error

    async def combine(self, server: str, members: Sequence[Path], into: Path) -> None:
        program = self._tool(server, "pg_combinebackup")
        known = (await run([program, "--help"], timeout=QUICK)).text
        # Links since PostgreSQL 18; the members are consumed, and are removed afterwards.
        how = next((f"--{word}" for word in ("link", "copy-file-range") if f"--{word}" in known), "--copy")
        try:
            # PostgreSQL syncs the whole directory itself when it starts recovery in it.
            await run([program, "--no-sync", "--no-manifest", how, "--output", into, *members], timeout=LIMIT)
        except ProgramError as error:
            raise _full(error, into) or VerificationError(f"The backups cannot be combined: {_words(error)}") from error

    async def check_pages(self, server: str, data: Path) -> bool:
        return await pages_checked(self._tool(server, "pg_checksums"), data)


async def pages_checked(program: str | Path, data: Path) -> bool:
    """Read every page of a server that is stopped; False where they bear no checksums. Raises VerificationError."""
    try:
        await run([program, "--check", "--pgdata", data], timeout=LIMIT)
    except ProgramError as error:
        if "not enabled" in error.stderr:
            return False
        if "must be shut down" in error.stderr:
            raise TemporaryError("The pages could not be read: the server was not shut down cleanly.") from error
        raise VerificationError(f"Pages of the restored server are damaged: {_words(error)}") from error
    return True


class _Base(ProgramOutput):
    """Gives the file with the password back when it is closed."""

    def __init__(self, program: Program, server: str, user: str, stack: ExitStack) -> None:
        super().__init__(program, functools.partial(_base_failed, server, user))
        self._stack = stack

    def close(self) -> None:
        super().close()
        self._stack.close()


async def _summaries(connection: AsyncConnection, version: int) -> tuple[bool, str | None]:
    if version < SUMMARIES_SINCE:
        return False, None
    row = await (await connection.execute(_SUMMARIES)).fetchone()
    return (row[0], row[1]) if row else (False, None)


_ALLOW = "Allow it in its `pg_hba.conf`: `host replication {user} <address> scram-sha-256`, then reload."
_GRANT = "Give the role the right: `ALTER ROLE {user} REPLICATION`."
_REFUSED = (
    ("no pg_hba.conf entry for replication", _ALLOW),
    ("pg_hba.conf rejects replication connection", _ALLOW),
    ("permission denied to start WAL sender", _GRANT),
    ("must be superuser or replication role", _GRANT),
    ("max_wal_senders", "Raise `max_wal_senders` there, or end a sender that nobody needs."),
    ("incremental", "Take a full backup."),
    ("manifest", "Take a full backup."),
)
_UNKNOWN_CHANGES = ("WAL summaries are required", "manifest requires WAL", "found in manifest, but not in this server")
"""What PostgreSQL says of a parent from before its own summaries, or on a branch that it never was on."""


def _base_failed(server: str, user: str, error: ProgramError) -> DrError:
    said = _words(error)
    if ("checksum" in said and "verif" in said) or "checksum error" in said:
        return VerificationError(
            f"Server `{server}` has damaged pages: {said} The backup was not kept. Look at its disk now, and restore "
            "from the newest backup before the damage."
        )
    if any(sign in said for sign in _UNKNOWN_CHANGES):
        why = said.rpartition("ERROR:")[2].strip()
        return UnknownChangesError(f"Server `{server}` cannot tell what has changed since its parent: {why}")
    for sign, advice in _REFUSED:
        if sign in said:
            return UserError(f"Server `{server}` refused the base backup: {said} {advice.format(user=user)}")
    if "connection" in said or "the database system" in said or "terminat" in said:
        return TemporaryError(f"Server `{server}` broke off the base backup: {said} Take it again.")
    return PermanentError(f"`pg_basebackup` of `{server}` failed: {said}")


def _full(error: ProgramError, folder: Path) -> DrError | None:
    if "No space left" not in error.stderr:
        return None
    return UserError(f"The disk that holds `{folder.parent}` is full. Free space there, then try again.")


def _words(error: ProgramError) -> str:
    """What the program said, without the names of the programs in front of its lines; ends with a full stop."""
    lines = [re.sub(r"^\w+: (?:error: |warning: |detail: |hint: )?", "", line) for line in error.stderr.splitlines()]
    kept = [line.strip().rstrip(".") for line in lines if line.strip() and "NOTICE" not in line]
    return f"{'; '.join(kept[:5]) or error}."
