"""The archiver's own disk takes nothing: what people are told. Pure.

The primary goes on meanwhile: its slot keeps what was not received, up to `max_slot_wal_keep_size`.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from actions.backup.wal_source import AlarmKind, DiskFullError
from actions.site import PhysicalPolicy

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def disk_problem(error: OSError | DiskFullError, policy: PhysicalPolicy, directory: Path) -> tuple[AlarmKind, str]:
    """The alarm and its sentence. `directory` is the archiver's; an error that names a file of its own is told of
    that."""
    place = error.filename if isinstance(error, OSError) and error.filename else directory
    waits = (
        "Commits wait for it"
        if policy.synchronous
        else f"Slot `{policy.slot}` keeps WAL on the primary, up to `max_slot_wal_keep_size`"
    )
    if isinstance(error, OSError) and error.errno not in FULL:
        said = os.strerror(error.errno) if error.errno else str(error)
        return AlarmKind.DISK_UNUSABLE, (
            f"The archiver's disk cannot be used: `{place}`: {said}. {waits}. Look at the volume, its mount and its "
            "rights; the archiver goes on by itself."
        )
    said = f" {error}" if isinstance(error, DiskFullError) else ""
    return AlarmKind.DISK_FULL, (
        f"The archiver's disk is full: `{place}`. No WAL of `{policy.server}` is received until there is room. "
        f"{waits}. Make the volume larger, free space on it, or bring back the bucket that it waits for; the archiver "
        f"goes on by itself.{said}"
    )
