"""An archive whose hashes are right, into a new database that no superuser owns anything in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

from actions.backup.archive import Contents, Entry
from actions.backup.manifest import Globals
from actions.backup.progress import Shown
from actions.backup.tools import PostgresTools, RestoreOrder
from actions.errors import DrError
from actions.ports import PostgresAdmin
from actions.site import DatabaseRef

log = logging.getLogger(__name__)

SCRATCH = "drbot:scratch:"
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

    def after(self, entry: Entry) -> str:
        """The owner of an entry after the restore."""
        keeps = not entry.owner or entry.owner == DATABASE_OWNER or self._plain(entry.owner)
        return entry.owner if keeps else self.database

    def header(self, contents: Contents) -> bytes:
        """The archive's header with these owners."""
        return contents.with_owners(self.after)

    def changes(self, contents: Contents) -> dict[str, str]:
        """Owner in the dump -> owner after the restore."""
        return {entry.owner: self.after(entry) for entry in contents.entries if entry.owner}


class Loading:
    """Makes the database and restores into it."""

    def __init__(self, postgres: PostgresAdmin, tools: PostgresTools) -> None:
        self._postgres, self._tools = postgres, tools

    async def owners(self, server: str, wanted: Globals, planned: str) -> Owners:
        return Owners(await self._tools.superusers(server), wanted, planned)

    async def load(
        self,
        into: DatabaseRef,
        *,
        mark: str,
        jobs: int,
        spool: Path,
        contents: Contents,
        owners: Owners,
        cluster_globals: Globals,
        extensions: Mapping[str, str],
        shown: Shown,
    ) -> None:
        """Restore `spool` into a new database. On failure no usable database is left.

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
            owners=owners.changes(contents),
            jobs=jobs,
        )
        try:
            for note in await self._tools.restore(order, spool, contents, shown.bytes):
                log.warning("left_out: %s", note)
        except BaseException:
            await asyncio.shield(self.abandon(into, mark))
            raise

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
