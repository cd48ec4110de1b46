"""Where a replay to a target stops, and what was committed around it: read from the records of the WAL."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from actions.backup.finder import HEAD, PREPARED, WalRecords, committed_at, in_order
from actions.backup.physical import Lsn, Place, PlaceRequest, RecoveryTarget

PAGE, PAGE_HEAD = 8192, 40  # bytes


def find_places(records: WalRecords, directory: Path, request: PlaceRequest) -> list[Place]:
    """Where a replay to the target stops, newest first, on the same terms as `find`; only of a name there may be
    several. A time or an LSN that is later than all there is lies at its end. Blocking."""
    target, found = request.target, list[tuple[Place, int]]()
    commits, timeline_id, reached = 0, 0, ""
    last: tuple[int | None, datetime | None] = (None, None)

    def here() -> tuple[Place, int]:
        return Place(lsn=reached, timeline_id=timeline_id, before_xid=last[0], before_at=last[1]), commits

    resources = ("Transaction",) if target.name is None else ("Transaction", "XLOG")
    for timeline_id, line in in_order(records, directory, request.server, resources):  # noqa: B007 - `here` reads it
        head = HEAD.match(line)
        if head is None:
            continue
        reached, word, text = head[3], head[4], line[head.end() :]
        if (head[1], word, text) == ("XLOG", "RESTORE_POINT", target.name):
            found.append(here())
        if head[1] != "Transaction" or not word.startswith(("COMMIT", "ABORT")):
            continue
        prepared, at = PREPARED.match(text), committed_at(text, reached)
        xid = int(head[2]) if prepared is None else int(prepared[1])
        if not found and _stops_before(target, Lsn.parse(reached), xid, at):
            found.append(here())
        if word.startswith("COMMIT"):
            after = {"after_xid": xid, "after_at": at}
            found = [(place if place.after_at else place.model_copy(update=after), number) for place, number in found]
            commits, last = commits + 1, (xid, at)
        if not found and target.inclusive and target.xid == xid:
            found.append(here())
    if not found and reached and (target.time is not None or target.lsn is not None):
        found.append(here())
    return [place.model_copy(update={"lost": commits - number}) for place, number in reversed(found)]


def _stops_before(target: RecoveryTarget, lsn: Lsn, xid: int, at: datetime) -> bool:
    """Whether a replay stops before this end of a transaction."""
    if target.time is not None:
        return at > target.time if target.inclusive else at >= target.time
    if target.lsn is not None:
        stop = Lsn.parse(target.lsn)
        # No record begins in the head of a page: one that is asked for there is the first one behind it.
        stop = Lsn(stop + PAGE_HEAD) if stop % PAGE == 0 else stop
        return lsn > stop if target.inclusive else lsn >= stop
    return not target.inclusive and target.xid == xid
