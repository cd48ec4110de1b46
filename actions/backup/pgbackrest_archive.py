"""The WAL archive of a pgBackRest repository, from one listing of it. Pure."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

from actions.backup.pgbackrest_info import Archive, Stanza, segment_bytes
from actions.backup.pgbackrest_tools import ArchivePlace
from actions.backup.segments import history_of
from actions.backup.wal import WalListing
from actions.errors import PermanentError
from actions.ports import ObjectFacts

_SEGMENT = re.compile(r"(?:.*/)?([0-9A-F]{24})-[0-9a-f]{40}(?:\.[a-z0-9]+)?")
_HISTORY = re.compile(r"(?:.*/)?([0-9A-F]{8}\.history)")


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
