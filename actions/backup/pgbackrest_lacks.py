"""What pgBackRest lacks on a server: the program, a version that knows the server, a stanza, an archive that works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from actions.backup.pgbackrest_tools import PgBackRest, Version
from actions.backup.physical import Lack
from actions.errors import DrError, UserError
from actions.ports import PostgresAdmin
from actions.site import DatabaseRef

KNOWS: Mapping[int, Version] = {
    16: Version(major=2, minor=46),
    17: Version(major=2, minor=53, patch=1),
    18: Version(major=2, minor=55),
}
"""Major version of PostgreSQL -> the first pgBackRest that knows it."""
ANNOTATES = Version(major=2, minor=41)
PAUSE_STATES = 14
"""The first PostgreSQL that says whether a replay has come to rest."""
ARCHIVES = """
SELECT current_setting('archive_mode') AS mode, current_setting('archive_timeout')::interval AS timeout,
       current_setting('archive_command') AS command, failed_count,
       last_failed_time > coalesce(last_archived_time, '-infinity') AS fails, last_failed_wal AS failed_wal
  FROM pg_stat_archiver
"""


async def lacks_of(
    program: PgBackRest, postgres: PostgresAdmin, server: str, *, stanza: str, rpo: timedelta
) -> Sequence[Lack]:
    """`rpo` is the most, in time, that may be lost."""
    try:
        version = await program.version()
    except UserError as error:
        return [Lack(what=str(error), next="Until then this server has no base backups and no restores.")]
    found = [*of_version(version, await _major(postgres, server))]
    try:
        await program.info(server)
    except DrError as error:
        found.append(Lack(what=str(error), next=f"Then try it by hand: `pgbackrest --stanza={stanza} info`."))
    try:
        (row,) = await postgres.query(DatabaseRef(server, "postgres"), ARCHIVES)
    except DrError:
        return found  # the doctor looks at the server itself
    found += of_archive(row, stanza=stanza, rpo=rpo)
    return [*found, *of_queue(program.queue_limit(server, row["command"]), server)]


async def _major(postgres: PostgresAdmin, server: str) -> int | None:
    try:
        return (await postgres.server(server)).version // 10000
    except DrError:
        return None


def of_version(version: Version, major: int | None) -> Sequence[Lack]:
    """Whether this version can do what is asked of it for a server of this major version."""
    if version.order < ANNOTATES.order:
        what = f"pgBackRest {version} cannot annotate backups, so a rerun would not find what it made"
        return [Lack(what=what, next=f"Install pgBackRest {ANNOTATES} or newer.")]
    if major is not None and major < PAUSE_STATES:
        what = f"PostgreSQL {major} does not say whether a replay rests at its target, so no restore can be proven"
        return [Lack(what=what, next=f"Use PostgreSQL {PAUSE_STATES} or newer, or dumps alone.")]
    needed = max((KNOWS[known] for known in KNOWS if major is not None and known <= major), key=_order, default=None)
    if needed is not None and version.order < needed.order:
        what = f"pgBackRest {version} does not know PostgreSQL {major}"
        return [Lack(what=what, next=f"Install pgBackRest {needed} or newer, here and on the server.")]
    return []


def _order(version: Version) -> tuple[int, int, int]:
    return version.order


def of_archive(row: Mapping[str, Any], *, stanza: str, rpo: timedelta) -> Sequence[Lack]:
    """What the server's own settings and statistics say."""
    if row["mode"] == "off":
        what = "the server archives nothing (`archive_mode = off`)"
        return [Lack(what=what, next="Set `archive_mode = on` and `archive_command`, and restart it.")]
    found = []
    if "pgbackrest" not in row["command"]:
        what = "the server's `archive_command` does not call pgBackRest"
        found.append(Lack(what=what, next=f"Set it to `pgbackrest --stanza={stanza} archive-push %p`."))
    if row["fails"]:
        what = f"the server could not archive `{row['failed_wal']}`, and nothing since"
        found.append(Lack(what=what, next="See its log: WAL gathers on its disk until this works."))
    timeout: timedelta = row["timeout"]
    if not timeout or timeout > rpo:
        told = f"only every {timeout.total_seconds():g} s" if timeout else "only when 16 MB are full"
        what = f"the server archives {told}; {rpo.total_seconds() / 60:g} min may be lost by the plan"
        found.append(Lack(what=what, next="Set `archive_timeout` on the server, such as 60s.", stops=False))
    return found


def of_queue(limit: str, server: str) -> Sequence[Lack]:
    """Whether WAL is given up to save the disk. PostgreSQL is told that it was archived, so nobody else ever says."""
    if not limit:
        return []
    what = (
        f"once more than {limit} of WAL waits (`archive-push-queue-max`), pgBackRest throws it away and tells the "
        "server that it was archived: nothing after it can be reached"
    )
    then = (
        "Take the option out and watch the disk of `pg_wal` instead. Where it has to stay, a gap is alarmed of, and "
        f"`/dr-backup base {server} full` ends it."
    )
    return [Lack(what=what, next=then, stops=False)]
