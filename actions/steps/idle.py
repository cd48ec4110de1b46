"""Whether a server has committed anything since the newest commit of its archive, by its own word.

Where the server archives its WAL itself, nobody says how far the archive covers it: the newest commit that is archived
may be old because nothing was archived, or because nobody writes. The last checkpoint tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actions.backup.physical import Lsn, PhysicalEntry, RecoveryWindow
from actions.errors import DrError
from actions.ports import Ports
from actions.site import DatabaseRef

# `next_xid` is written `epoch:xid`; 0 as `oldest_active_xid` is of the checkpoint of a shutdown.
LAST_CHECKPOINT = """
SELECT pg_is_in_recovery() AS standby, (SELECT system_identifier::text FROM pg_control_system()) AS system_id,
       redo_lsn::text AS redo, timeline_id, next_xid, oldest_active_xid::text AS oldest,
       pg_snapshot_xmax(pg_current_snapshot())::text AS following,
       current_setting('max_prepared_transactions')::int AS prepared
  FROM pg_control_checkpoint()
"""


async def idle(ports: Ports, server: str, window: RecoveryWindow, entries: Sequence[PhysicalEntry]) -> bool:
    """False as well where the server does not answer: then the worst is told."""
    if window.newest is None or not window.newest_lsn or not entries:
        return False
    try:
        (row,) = await ports.postgres.query(DatabaseRef(server, "postgres"), LAST_CHECKPOINT)
    except DrError:
        return False
    return row["system_id"] == entries[0].manifest.system_id and covered(row, window)


def covered(row: Mapping[str, Any], window: RecoveryWindow) -> bool:
    """Whether the archive holds every commit: those from before the last checkpoint began are in WAL that it has, and
    no transaction has ended since."""
    epoch, _, following = row["next_xid"].partition(":")
    # PostgreSQL notes the oldest one before it fixes where the checkpoint begins, and the next one after it. Where they
    # are the same, none was under way there. At a shutdown only a prepared transaction can be.
    alone = row["oldest"] == following or (row["oldest"] == "0" and row["prepared"] == 0)
    ended_none = int(row["following"]) == (int(epoch) << 32) + int(following)
    archived = row["timeline_id"] == window.timeline_id and Lsn.parse(row["redo"]) <= Lsn.parse(window.newest_lsn)
    return not row["standby"] and alone and ended_none and archived
