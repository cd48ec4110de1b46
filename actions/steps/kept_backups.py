"""One backup by its id, whether it is a dump of a database or a base backup of a server."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Literal

from actions.backup.manifest import StoredObject
from actions.backup.retention import why_it_stays
from actions.backup.windows import dead_ends
from actions.contract import Precondition
from actions.errors import UserError
from actions.ports import Ports
from actions.site import Frozen
from actions.steps.base_choice import server_named
from actions.steps.bases import base
from actions.steps.dump_expiry import why_dump_stays
from actions.steps.point_holds import dumps_held


class Sort(StrEnum):
    """DUMP: of a database. BASE: of a server."""

    DUMP = "dump"
    BASE = "base"


class Kept(Frozen):
    """A backup as the catalogue shows it. `owner` is the database of a dump, the server of a base backup."""

    sort: Sort
    owner: str
    backup: str
    manifest_sha256: str
    finished_at: datetime
    stored: StoredObject
    pinned: str
    problem: str | None

    @property
    def words(self) -> str:
        return what(self.sort, self.owner, self.backup)

    @property
    def unchanged(self) -> KeptIs:
        """The precondition that it still is what it was."""
        return KeptIs(sort=self.sort, owner=self.owner, backup=self.backup, manifest_sha256=self.manifest_sha256)


def what(sort: Sort, owner: str, backup: str) -> str:
    """`dump `shop-1` of `shop``."""
    return f"{'dump' if sort is Sort.DUMP else 'base backup'} `{backup}` of `{owner}`"


async def kept(ports: Ports, named: str, backup: str) -> Kept:
    """Looked for among the dumps of the database and the base backups of its server, or of the server that is named.
    Raises UserError where there is none."""
    site = ports.site
    if named in site.backups and (found := await find(ports, Sort.DUMP, named, backup)) is not None:
        return found
    dumps_alone = named in site.databases and site.databases[named].server not in site.physical
    if not dumps_alone:
        server = server_named(site, named)
        if (found := await find(ports, Sort.BASE, server, backup)) is not None:
            return found
    raise UserError(f"There is no backup `{backup}` of `{named}`. Look with `/dr-backup list` or `/dr-backup status`.")


async def find(ports: Ports, sort: Sort, owner: str, backup: str) -> Kept | None:
    """None when it is not in the catalogue."""
    if sort is Sort.DUMP:
        dump = await ports.backups.find(owner, backup)
        if dump is None:
            return None
        return Kept(
            sort=sort,
            owner=owner,
            backup=backup,
            manifest_sha256=dump.manifest_sha256,
            finished_at=dump.manifest.finished_at,
            stored=dump.manifest.stored,
            pinned=dump.pinned,
            problem=dump.problem,
        )
    entry = await base(ports, owner, backup)
    if entry is None:
        return None
    return Kept(
        sort=sort,
        owner=owner,
        backup=backup,
        manifest_sha256=entry.manifest_sha256,
        finished_at=entry.manifest.finished_at,
        stored=entry.manifest.stored,
        pinned=entry.pinned,
        problem=entry.problem,
    )


async def stays(ports: Ports, sort: Sort, owner: str, backup: str) -> str:
    """Why not even people may delete it by name, as a sentence with the next thing to do; empty when they may."""
    if sort is Sort.BASE:
        dead = dead_ends(await ports.physical.windows(owner))
        return why_it_stays(await ports.physical.catalogue(owner), backup, ports.site.physical_of(owner), dead)
    return why_dump_stays(await ports.backups.catalogue(owner), backup, await dumps_held(ports, owner))


class KeptIs(Precondition):
    """The backup has, byte for byte, the manifest it had; whether it can be used does not matter."""

    spent: ClassVar[bool] = True
    kind: Literal["kept_is"] = "kept_is"
    sort: Sort
    owner: str
    backup: str
    manifest_sha256: str

    @property
    def summary(self) -> str:
        name = what(self.sort, self.owner, self.backup)
        return f"{name[0].upper()}{name[1:]} has manifest SHA-256 {self.manifest_sha256[:12]}"

    async def violation(self, ports: Ports) -> str | None:
        found = await find(ports, self.sort, self.owner, self.backup)
        if found is None:
            return f"{what(self.sort, self.owner, self.backup)} is no longer in the catalogue."
        if found.manifest_sha256 != self.manifest_sha256:
            return f"The manifest of `{self.backup}` was changed since it was signed for."
        return None
