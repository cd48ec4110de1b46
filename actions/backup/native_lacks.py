"""What the native engine lacks on a server: version, programs, settings, the right to stream, WAL summaries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from actions.backup.physical import Lack
from actions.backup.physical_tools import PhysicalTools, SourceServer
from actions.errors import DrError
from actions.site import PhysicalPolicy

SUMMARIES_SINCE = 170000  # server_version_num
STREAMS = 2
"""WAL senders that are needed at a time: of the archiver, and of a base backup."""

SUMMARIES_KEPT = timedelta(days=1)
"""An incremental rests on the day's full backup."""

ANOTHER_ENGINE = "Set `engine: pgbackrest` for it in the plan file."


async def lacks_of(tools: PhysicalTools, policy: PhysicalPolicy) -> Sequence[Lack]:
    """Raises TemporaryError or UserError while the server gives no facts of itself."""
    facts = await tools.facts(policy.server)
    found: list[Lack] = []
    try:
        program = (await tools.versions(policy.server))["pg_basebackup"]
    except DrError as error:
        found.append(
            Lack(
                what=f"`pg_basebackup` for server `{policy.server}` does not run here: {error}",
                next="Set `tools` of that server to a directory with the programs of its version.",
            )
        )
        program = None
    found += of_backups(policy.server, facts, program)
    streaming = list(of_streaming(policy.server, facts))
    if not streaming and (refused := await tools.stream_refusal(policy.server)) is not None:
        streaming = [refused]
    found += streaming
    if policy.incremental_every is not None:
        found += of_incrementals(policy.server, facts)
    return sorted(found, key=lambda lack: not lack.stops)


def of_backups(server: str, facts: SourceServer, program: str | None) -> Iterator[Lack]:
    """Why no base backup at all can be made. `program` is the version of `pg_basebackup`; None: nobody knows."""
    major = facts.server_version // 10000
    if facts.server_version < SUMMARIES_SINCE:
        what = f"Server `{server}` is PostgreSQL {major}; the native engine needs 17 or newer."
        yield Lack(what=what, next=ANOTHER_ENGINE)
    if program is not None and int(program.split(".", maxsplit=1)[0]) != major:
        yield Lack(
            what=f"`pg_basebackup` {program} does not fit server `{server}` (PostgreSQL {major}).",
            next="Set `tools` of that server to a directory with the programs of its version.",
        )
    if facts.tablespaces:
        names = ", ".join(f"`{name}`" for name in facts.tablespaces)
        what = f"Server `{server}` has tablespaces of its own ({names}), which the native engine cannot stream."
        yield Lack(what=what, next=ANOTHER_ENGINE)


def of_streaming(server: str, facts: SourceServer) -> Iterator[Lack]:
    """Why neither WAL nor a base backup can be streamed, by the server's settings and the login's rights."""
    if facts.wal_level == "minimal":
        yield Lack(
            what=f"Server `{server}` writes too little into its WAL to be restored from it (`wal_level = minimal`).",
            # One without the other does not start.
            next="Run `ALTER SYSTEM SET wal_level = 'replica'` there and, where it is 0, `ALTER SYSTEM SET "
            "max_wal_senders = 10`, and restart it.",
        )
    elif facts.wal_senders == 0:
        yield Lack(
            what=f"Server `{server}` streams to nobody (`max_wal_senders = 0`).",
            next="Run `ALTER SYSTEM SET max_wal_senders = 10` there and restart it.",
        )
    elif facts.wal_senders < STREAMS:
        yield Lack(
            what=f"Server `{server}` streams to {facts.wal_senders} at a time (`max_wal_senders`): the archiver and a "
            "base backup need one each.",
            next="Run `ALTER SYSTEM SET max_wal_senders = 10` there and restart it.",
        )
    if facts.replication_slots == 0:
        yield Lack(
            what=f"Server `{server}` has no room for the archiver's slot (`max_replication_slots = 0`).",
            next="Run `ALTER SYSTEM SET max_replication_slots = 10` there and restart it.",
        )
    if not facts.may_stream:
        yield Lack(
            what=f"The login `{facts.login}` of server `{server}` may not stream: it lacks the right `REPLICATION`.",
            next=f"Run `ALTER ROLE {facts.login} REPLICATION` there.",
        )


def of_incrementals(server: str, facts: SourceServer) -> Iterator[Lack]:
    """What incrementals need, which the plan file wants of this server."""
    if facts.server_version < SUMMARIES_SINCE:
        return  # told already
    if not facts.summarizes:
        yield no_summaries(server)
    elif facts.summaries_kept and facts.summaries_kept < SUMMARIES_KEPT:
        yield Lack(
            what=f"Server `{server}` forgets its WAL summaries before a day is over (`wal_summary_keep_time`): "
            "incrementals that rest on the day's full backup become full ones.",
            next="Run `ALTER SYSTEM SET wal_summary_keep_time = '10d'` and `SELECT pg_reload_conf()` there.",
            stops=False,
        )


def no_summaries(server: str) -> Lack:
    """Why no incremental can be made."""
    return Lack(
        what=f"Server `{server}` does not summarise its WAL, which incrementals need (`summarize_wal = off`).",
        next="Run `ALTER SYSTEM SET summarize_wal = on` and `SELECT pg_reload_conf()` there, then take a full backup.",
    )
