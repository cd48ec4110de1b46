"""The WAL archive of a pgBackRest repository, from one listing of it. Pure."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

from actions.backup.pgbackrest_info import Archive, Backup, Stanza
from actions.backup.pgbackrest_tools import ArchivePlace
from actions.backup.physical import SEGMENT, Lsn
from actions.backup.segments import Segment, history_of
from actions.backup.wal import WalListing, WalStart
from actions.errors import PermanentError
from actions.ports import ObjectFacts

_SEGMENT = re.compile(r"(?:.*/)?([0-9A-F]{24})-[0-9a-f]{40}(?:\.[a-z0-9]+)?")
_HISTORY = re.compile(r"(?:.*/)?([0-9A-F]{8}\.history)")
_SIZES = [1 << power for power in range(20, 31)]  # 1 MiB to 1 GiB, what `initdb --wal-segsize` takes


def listing_of(text: str, bucket: str) -> WalListing:
    """Read `pgbackrest repo-ls --output=json --recurse`; partial segments and label files are left out.

    A file's date is when it came into the repository, which may be long after the last commit in it, never before.
    """
    segments: dict[str, ObjectFacts] = {}
    histories: dict[int, ObjectFacts] = {}
    try:
        for path, facts in json.loads(text).items():
            match = _SEGMENT.fullmatch(path) or _HISTORY.fullmatch(path)
            if facts["type"] != "file" or match is None:
                continue
            stored = ObjectFacts(
                key=path, bytes=int(facts["size"]), modified_at=datetime.fromtimestamp(int(facts["time"]), UTC)
            )
            timeline_id = history_of(match[1])
            if timeline_id is None:
                segments[match[1]] = stored
            else:
                histories[timeline_id] = stored
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise PermanentError("`pgbackrest repo-ls --output=json` answered something that is not its JSON.") from error
    return WalListing(bucket, segments=segments, histories=histories)


def segment_bytes(stanza: Stanza) -> int:
    """The size of the server's segments, which pgBackRest does not tell: the one that puts the first LSN of every
    backup into the segment that is named beside it."""
    fitting = [SEGMENT, *(size for size in _SIZES if size != SEGMENT)]
    for backup in stanza.backup:
        name, lsn = backup.archive.start, backup.lsn.start if backup.lsn else None
        if name is not None and lsn is not None:
            timeline_id = int(name[:8], 16)
            fits = [size for size in fitting if str(Segment.holding(Lsn.parse(lsn), timeline_id, size)) == name]
            fitting = fits or fitting
    return fitting[0]


def place_of(stanza: Stanza, archive: Archive, *, server: str, bucket: str) -> ArchivePlace:
    """Where the WAL of one cluster is."""
    return ArchivePlace(
        server=server,
        repository=archive.database,
        archive=archive.id,
        bucket=bucket,
        system_id=str(stanza.cluster(archive.database).system_id),
        version=stanza.cluster(archive.database).version,
        segment_bytes=segment_bytes(stanza),
    )


def start_of(backup: Backup, place: ArchivePlace) -> WalStart | None:
    """Where a replay from this backup begins; None for one that was made while the server was down."""
    if backup.archive.start is None or backup.lsn is None or backup.lsn.start is None:
        return None
    return WalStart(
        system_id=place.system_id,
        timeline_id=int(backup.archive.start[:8], 16),
        lsn=Lsn.parse(backup.lsn.start),
        segment_bytes=place.segment_bytes,
    )
