"""Files of WAL as `pg_receivewal` writes them: whose they are, and how far an open one has been written.

PostgreSQL's page headers (src/include/access/xlog_internal.h): every 8 KiB page begins with its magic number and its
own place in the WAL; the first page of a file also with system id, segment size and page size.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from actions.backup.physical import Lsn
from actions.backup.segments import Segment

PAGE = 8192
STEP = 32 * PAGE  # read at a time
_SHORT = struct.Struct("<HHIQ")  # magic, info, timeline id, place
_LONG = struct.Struct("<HHIQI4xQII")  # ... remaining length, system id, segment size, page size


@dataclass(frozen=True)
class SegmentFile:
    """What the first page of a file says."""

    system_id: str
    timeline_id: int
    start: Lsn
    segment_bytes: int


def read_first_page(path: Path) -> SegmentFile | None:
    """None when the file holds no WAL (yet). Blocking."""
    with path.open("rb") as stream:
        head = stream.read(_LONG.size)
    if len(head) < _LONG.size:
        return None
    magic, _, timeline_id, place, _, system_id, segment_bytes, page = _LONG.unpack(head)
    if magic == 0 or page != PAGE:
        return None
    return SegmentFile(str(system_id), timeline_id, Lsn(place), segment_bytes)


def read_written(path: Path, segment: Segment, after: int, *, most: int = 1 << 30) -> bytes:
    """The bytes behind `after` that have been written to an open file, at most `most` of them. Blocking.

    The file is as long as a segment from the beginning and full of zeros. It is written in order, so all pages with
    a valid header are there but for the end of the last one, which is what follows its last byte that is not zero:
    zeros that are cut off here are what a reader puts there anyway.
    """
    until = after
    with path.open("rb") as stream:
        for place in range(after // PAGE * PAGE, min(segment.size, after + most), STEP):
            seen = os.pread(stream.fileno(), STEP, place)
            valid = _valid(seen, segment.start + place)
            if filled := len(seen[:valid].rstrip(b"\0")):
                until = place + filled
            if valid < len(seen):
                break
        # A second time: what was read may have been half of a write. Everything up to the last byte that was there
        # then was written before it, and so is there now.
        return os.pread(stream.fileno(), max(0, min(until, after + most) - after), after)


def _valid(pages: bytes, start: int) -> int:
    """How many bytes belong to pages that follow each other from `start` on."""
    for place in range(0, len(pages), PAGE):
        if len(pages) - place < _SHORT.size:
            return place
        magic, _, _, where = _SHORT.unpack_from(pages, place)
        if magic == 0 or where != start + place:
            return place
    return len(pages)
