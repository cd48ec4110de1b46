"""An archive whose hashes are right, into a new database that no superuser owns anything in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from actions.backup.archive import Contents, Entry
from actions.backup.manifest import Globals
from actions.backup.progress import Shown
from actions.backup.tools import Archive, PostgresTools, RestoreOrder
from actions.errors import DrError, UserError
from actions.ports import PostgresAdmin
from actions.site import DatabaseRef

log = logging.getLogger(__name__)

SCRATCH = "drbot:scratch:"
DISK_RESERVE = 512 * 1024 * 1024  # under the margin that a restore plan asks for beside the copy
LOOK = timedelta(milliseconds=200)  # a fast load writes some 100 MB between two looks
DATABASE_OWNER = "pg_database_owner"  # a predefined role that stands for whoever owns the database


class Owners:
    """Who owns what after the restore: what superusers and unknown roles owned becomes the database owner's."""

    def __init__(self, superusers: Mapping[str, bool], wanted: Globals, planned: str) -> None:
        self._known = superusers
        self._named = {role.name: role.superuser for role in wanted.roles}
        # The database keeps its owner, unless that is a superuser: then the one of the plan file.
        self.database = wanted.database_owner if self._plain(wanted.database_owner) else planned

    def _plain(self, role: str) -> bool:
        if role.startswith("pg_"):
            return False
        return not self._known.get(role, False) and not self._named.get(role, role not in self._known)

    def _after(self, entry: Entry) -> str:
        keeps = not entry.owner or entry.owner == DATABASE_OWNER or self._plain(entry.owner)
        return entry.owner if keeps else self.database

    def changes(self, contents: Contents) -> dict[str, str]:
        """Owner in the dump -> owner after the restore."""
        return {entry.owner: self._after(entry) for entry in contents.entries if entry.owner}


class Loading:
    """Makes the database and restores into it. `disk_reserve`: bytes of the server's disk that a load leaves free."""

    def __init__(self, postgres: PostgresAdmin, tools: PostgresTools, *, disk_reserve: int = DISK_RESERVE) -> None:
        self._postgres, self._tools, self._reserve = postgres, tools, disk_reserve

    async def owners(self, server: str, wanted: Globals, planned: str) -> Owners:
        return Owners(await self._tools.superusers(server), wanted, planned)

    async def load(
        self,
        into: DatabaseRef,
        *,
        mark: str,
        jobs: int,
        archive: Archive,
        owners: Owners,
        cluster_globals: Globals,
        extensions: Mapping[str, str],
        shown: Shown,
    ) -> None:
        """Restore the archive into a new database. On failure no usable database is left.

        A database of that name which carries the same scratch mark is what an earlier try left; it is removed first.
        """
        found = await self._postgres.database(into)
        if found is not None and found.mark == mark and mark.startswith(SCRATCH):
            await self._postgres.discard(into, mark=mark)
        await self._postgres.create(into, owner=owners.database, cluster_globals=cluster_globals, mark=mark)
        order = RestoreOrder(
            into=into,
            mark=mark,
            owner=owners.database,
            extensions=extensions,
            owners=owners.changes(archive.contents),
            jobs=jobs,
        )
        try:
            restoring = asyncio.ensure_future(self._tools.restore(order, archive, shown.bytes))
            for note in await self._while_there_is_room(into.server, restoring):
                log.warning("left_out: %s", note)
            await archive.check()
        except BaseException:
            await asyncio.shield(self.abandon(into, mark))
            raise

    async def _while_there_is_room(self, server: str, work: asyncio.Future[Sequence[str]]) -> Sequence[str]:
        """The work's result. It is ended when the server's disk is nearly full: PostgreSQL that cannot write its log
        stops, and with it every database of the server, production first of all."""
        watch = asyncio.ensure_future(self._nearly_full(server))
        both: tuple[asyncio.Future[Any], ...] = (work, watch)
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            free = watch.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        raise UserError(
            f"The disk of server `{server}` has {free >> 20} MB left. The load was ended before it filled the disk, "
            "which would have stopped every database there; the half copy is removed. "
            "Free space there or choose another server."
        )

    async def _nearly_full(self, server: str) -> int:
        """Return the free bytes as soon as they are under the reserve; never where the server's disk is not to be seen
        from here."""
        while True:
            try:
                free = (await self._postgres.server(server)).free_bytes
            except DrError:
                free = self._reserve  # the load finds out by itself what is wrong
            if free is None:
                await asyncio.Event().wait()
            elif free < self._reserve:
                return free
            await asyncio.sleep(LOOK.total_seconds())

    async def abandon(self, database: DatabaseRef, mark: str) -> None:
        """Remove what a failed try made, as far as the server lets us."""
        try:
            if mark.startswith(SCRATCH):
                await self._postgres.discard(database, mark=mark)
            else:
                await self._postgres.close(database)
        except DrError as error:
            # The server may be gone; the mark tells a later run that it may remove this.
            log.warning("half_restored_database_left: %s: %s", database, error)
