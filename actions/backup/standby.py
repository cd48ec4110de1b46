"""What a scratch instance that follows is given: the WAL that the archive has gained since the last time.

Its server has no credentials and knows no archive: it copies checked segments out of its own folder. So what was
brought stays replayable when the archive is lost.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from datetime import datetime, timedelta

from actions.backup.physical import Lsn
from actions.backup.scratch_place import Claim, Fed, Follow, ScratchPlace
from actions.backup.segments import Segment
from actions.backup.wal import WalStart
from actions.errors import DrError, TemporaryError, UserError
from actions.site import Frozen

log = logging.getLogger(__name__)


class Brought(Frozen):
    """What one reading of the archive has put into the folder."""

    way: int  # the timeline id that is followed
    newest_way: int  # the newest timeline id of the archive; another one when what is here is no part of it
    closed: str = ""  # the last segment that will not change any more; "" when there was none
    end_lsn: str = ""  # "" when nothing was there
    newest_at: datetime | None = None


PATIENCE = timedelta(minutes=10)  # a first feeding may bring gigabytes
LOOK = 0.1  # seconds

Fetch = Callable[[WalStart], Awaitable[Brought]]


async def feed(place: ScratchPlace, fetch: Fetch, now: datetime, *, reserve: int) -> None:
    """Bring what is new, `reserve` bytes of the disk staying free. Why it could not be brought is kept beside it, and
    the next call tries again. Raises UserError unless it follows, or when somebody else is at work in it for long."""
    _known(place, await asyncio.to_thread(place.follow))
    async with alone(place):
        follow, claim = _known(place, await asyncio.to_thread(place.follow)), await asyncio.to_thread(place.claim)
        if follow.halting is not None or claim is None:
            return
        last = await asyncio.to_thread(place.fed) or _begin(follow)
        try:
            await asyncio.to_thread(_check_room, place, reserve)
            fed = _after(last, await fetch(_start(last, follow, claim)), follow.segment_bytes, now)
        except DrError as error:
            log.warning("standby_not_fed: %s: %s", place.folder.name, error)
            fed = last.model_copy(update={"problem": str(error)})
        await asyncio.to_thread(place.write_fed, fed)


@asynccontextmanager
async def alone(place: ScratchPlace) -> AsyncIterator[None]:
    """Hold the place, after waiting for whoever does. Raises UserError when that takes too long."""
    limit = time.monotonic() + PATIENCE.total_seconds()
    with ExitStack() as stack:
        while True:
            try:
                await asyncio.to_thread(stack.enter_context, place.held())
                break
            except UserError:
                if time.monotonic() > limit:
                    raise
            await asyncio.sleep(LOOK)
        yield


def _known(place: ScratchPlace, follow: Follow | None) -> Follow:
    if follow is None:
        raise UserError(f"Scratch instance `{place.folder.name}` does not follow. See `/dr-restore scratch`.")
    return follow


def _begin(follow: Follow) -> Fed:
    return Fed(
        at=follow.since, timeline_id=follow.timeline_id, lsn=follow.lsn, way=follow.timeline_id, end_lsn=follow.lsn
    )


def _start(last: Fed, follow: Follow, claim: Claim) -> WalStart:
    return WalStart(claim.system_id, last.timeline_id, Lsn.parse(last.lsn), follow.segment_bytes)


def _after(last: Fed, brought: Brought, segment_bytes: int, now: datetime) -> Fed:
    beside = _beside(brought)
    changes: dict[str, object] = {"at": now, "way": brought.way, "problem": beside, "stranded": bool(beside)}
    if brought.end_lsn:
        changes |= {"end_lsn": brought.end_lsn, "newest_at": brought.newest_at}
    if brought.closed:
        segment = Segment.parse(brought.closed, segment_bytes)
        changes |= {"timeline_id": segment.timeline_id, "lsn": str(segment.end)}
    return last.model_copy(update=changes)


def _beside(brought: Brought) -> str:
    if brought.newest_way <= brought.way:
        return ""
    return (
        f"The archive has gone on with timeline id {brought.newest_way}, which branched off before the end of what was "
        f"brought of timeline id {brought.way}. This one shows nothing after that."
    )


def _check_room(place: ScratchPlace, reserve: int) -> None:
    free = shutil.disk_usage(place.folder).free
    if free < reserve:
        raise TemporaryError(
            f"The disk of `{place.folder}` has {free >> 20} MiB free, {reserve >> 20} MiB stay free. Free space there."
        )
