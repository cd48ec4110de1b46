"""A server's WAL through `pg_receivewal`, and its replication slot."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, timedelta
from pathlib import Path

import psycopg
from psycopg.rows import dict_row

from actions.adapters.postgres_access import access
from actions.adapters.postgres_connections import ServerConnections
from actions.adapters.postgres_installation import installation
from actions.adapters.programs import Program, ProgramError
from actions.backup.segments import history_name
from actions.backup.wal_source import DiskFullError, SlotFacts, SourceFacts, WalGoneError, WalSource
from actions.errors import DrError, TemporaryError, UserError
from actions.ports import Secrets
from actions.site import Site

FACTS = """
    SELECT clock_timestamp() AS at, s.system_identifier::text AS system_id, pg_is_in_recovery() AS in_recovery,
           CASE WHEN pg_is_in_recovery() THEN c.timeline_id
                ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int
           END AS timeline_id,
           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text
               AS flush_lsn,
           pg_size_bytes(current_setting('wal_segment_size')) AS segment_bytes,
           (SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS keep_mib,
           current_setting('synchronous_standby_names') AS names,
           current_setting('synchronous_commit') AS synchronous_commit,
           ARRAY(
               SELECT COALESCE(
                          NULLIF(concat_ws(' in ', 'role `' || o.rolname || '`', 'database `' || d.datname || '`'), ''),
                          'every role'
                      ) || ' (`' || split_part(c, '=', 2) || '`)'
                 FROM pg_db_role_setting u CROSS JOIN unnest(u.setconfig) c
                 LEFT JOIN pg_roles o ON o.oid = u.setrole LEFT JOIN pg_database d ON d.oid = u.setdatabase
                WHERE c LIKE 'synchronous_commit=%%' AND c <> 'synchronous_commit=on'
                ORDER BY 1
           ) AS not_waiting,
           CASE WHEN a.state = 'streaming' THEN a.sync_state END AS sync_state,
           r.slot_name AS slot, r.active, r.restart_lsn::text, r.wal_status, r.safe_wal_size, a.write_lsn::text
      FROM pg_control_system() s
     CROSS JOIN pg_control_checkpoint() c
      LEFT JOIN pg_replication_slots r ON r.slot_name = %s
      LEFT JOIN pg_stat_replication a ON a.pid = r.active_pid
"""
LOOK_LIMIT = timedelta(seconds=15)
GRACE = timedelta(seconds=5)
# A host that is gone without a word is noticed after some 15 s.
KEEPALIVE = {
    "keepalives_idle": "5",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}
NO_ROOM = ("No space left on device", "Disk quota exceeded")
"""How `pg_receivewal` tells that it could not write, in the language it is started with."""

REFUSED = re.compile(r'(?:replication stream|"START_REPLICATION"): .*?\b([0-9A-F]{24})\b')
"""The end of a stream for which the server names a segment; its words are in the language of its `lc_messages`."""


async def _stopped(starting: asyncio.Future[Program]) -> None:
    """Return when the program has ended, if it was started at all."""
    with suppress(ProgramError):
        program = await starting
        await asyncio.to_thread(program.stop, grace=GRACE)


class PostgresWal(WalSource):
    """The WAL of one server of the site. `tools` of the server is a directory with `pg_receivewal`."""

    def __init__(self, site: Site, secrets: Secrets, server: str, slot: str) -> None:
        self._connections, self._server, self._slot = ServerConnections(site, secrets), server, slot

    async def facts(self) -> SourceFacts:
        async with self._limited(), self._connections.session(self._server) as connection:
            async with connection.cursor(row_factory=dict_row) as cursor:
                row = await (await cursor.execute(FACTS, [self._slot])).fetchone()
                if row is None:
                    raise TemporaryError(f"Server `{self._server}` said nothing about itself. Try again.")
            slot = None
            if row["slot"] is not None:
                slot = SlotFacts(
                    active=row["active"],
                    restart_lsn=row["restart_lsn"],
                    written_lsn=row["write_lsn"],
                    wal_status=row["wal_status"],
                    safe_bytes=row["safe_wal_size"],
                    sync_state=row["sync_state"],
                )
            return SourceFacts(
                at=row["at"].astimezone(UTC),
                system_id=row["system_id"],
                in_recovery=row["in_recovery"],
                timeline_id=row["timeline_id"],
                flush_lsn=row["flush_lsn"],
                segment_bytes=row["segment_bytes"],
                keep_bytes=None if row["keep_mib"] < 0 else row["keep_mib"] << 20,
                synchronous_names=row["names"],
                synchronous_commit=row["synchronous_commit"],
                not_waiting=tuple(row["not_waiting"]),
                slot=slot,
            )

    async def make_slot(self, *, anew: bool = False) -> None:
        async with self._limited(), self._connections.session(self._server) as connection:
            await connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                " WHERE slot_name = %s AND NOT active AND (%s OR wal_status = 'lost' OR restart_lsn IS NULL)",
                [self._slot, anew],
            )
            await connection.execute(
                "SELECT pg_create_physical_replication_slot(%(slot)s, true)"
                " WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %(slot)s)",
                {"slot": self._slot},
            )

    async def keep_from(self, lsn: str) -> str:
        await self.make_slot()  # at the redo pointer of the last restartpoint: the oldest WAL that is surely there
        async with self._limited(), self._connections.session(self._server) as connection:
            # Going back is refused by the server, and going beyond what was replayed is cut to it.
            await connection.execute(
                "SELECT pg_replication_slot_advance(slot_name, %(lsn)s) FROM pg_replication_slots"
                " WHERE slot_name = %(slot)s AND NOT active AND restart_lsn < %(lsn)s",
                {"slot": self._slot, "lsn": lsn},
            )
            rows = await connection.execute(
                "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = %s AND restart_lsn IS NOT NULL",
                [self._slot],
            )
            row = await rows.fetchone()
        if row is None:
            raise TemporaryError(f"Server `{self._server}` has dropped slot `{self._slot}`. It is made anew.")
        return str(row[0])

    async def history(self, timeline_id: int) -> str:
        async with self._limited(), self._connections.session(self._server) as connection:
            try:
                rows = await connection.execute("SELECT pg_read_file(%s)", [f"pg_wal/{history_name(timeline_id)}"])
                row = await rows.fetchone()
            except psycopg.errors.UndefinedFile as error:
                raise UserError(f"Server `{self._server}` has no `{history_name(timeline_id)}`.") from error
            return str(row[0]) if row else ""

    async def receive(self, directory: Path, *, synchronous: bool) -> None:
        parameters = await self._connections.parameters(self._server)
        named = {**parameters, **KEEPALIVE, "application_name": self._slot}
        with access(named, Path(tempfile.gettempdir())) as (dsn, env):
            starting = asyncio.ensure_future(
                asyncio.to_thread(
                    Program.start,
                    [
                        self._tool(),
                        *("--directory", directory, "--slot", self._slot),
                        *("--no-loop", "--no-password", "--dbname", dsn, "--status-interval", "1"),
                        *(("--synchronous",) if synchronous else ()),
                    ],
                    env={**env, "LC_ALL": "C"},  # what it says is read below
                )
            )
            try:
                program = await asyncio.shield(starting)
                await asyncio.to_thread(program.wait)
            finally:
                # Also one that was still starting: left alone it would go on, and keep the slot from the next one.
                await asyncio.shield(_stopped(starting))
            said = " ".join(program.stderr().split())[-600:]
        if "has already been removed" in said or await self._removed(said):
            raise WalGoneError(f"The primary of `{self._server}` has no longer what comes next: {said}.")
        if any(sign in said for sign in NO_ROOM):
            raise DiskFullError(f"`pg_receivewal` has ended: {said}.")
        raise TemporaryError(f"`pg_receivewal` from server `{self._server}` has ended: {said or program.code()}.")

    async def _removed(self, said: str) -> bool:
        """Whether the server has refused a segment that it no longer has, in whatever language it says so."""
        named = REFUSED.search(said)
        if named is None:
            return False
        query = "SELECT NOT EXISTS (SELECT FROM pg_ls_waldir() WHERE name = %s)"
        try:
            async with self._limited(), self._connections.session(self._server) as connection:
                return await (await connection.execute(query, [named[1]])).fetchone() == (True,)
        except DrError:
            return False  # it is asked again with the next attempt

    def _tool(self) -> str:
        directory = self._connections.server(self._server).tools
        return str((Path(directory) if directory else installation() / "bin") / "pg_receivewal")

    @asynccontextmanager
    async def _limited(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(LOOK_LIMIT.total_seconds()):
                yield
        except TimeoutError as error:
            raise TemporaryError(f"Server `{self._server}` does not answer. Check that it runs.") from error
