"""What every restore into a scratch instance ends with, whichever engine brought the files."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from actions.backup.chain import usable
from actions.backup.physical import (
    Lsn,
    PhysicalEntry,
    PhysicalManifest,
    RecoveryTarget,
    ScratchRequest,
    ScratchRestored,
)
from actions.backup.physical_tools import EndsEarlyError, Reached, Replay, ScratchServers
from actions.backup.scratch_place import Claim, ScratchPlace
from actions.backup.segments import Timelines, history_name
from actions.errors import UserError, VerificationError
from actions.ports import Progress
from actions.site import ScratchBudget

SPARE = 1.05  # of the plain bytes: file systems need room for what they are not told of


@dataclass
class Seconds:
    """How long each phase took."""

    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, phase: StrEnum) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.spent[phase] = round(self.spent.get(phase, 0.0) + time.monotonic() - begun, 3)


async def replayed(
    servers: ScratchServers, place: ScratchPlace, order: Replay, progress: Progress, *, reaches: bool
) -> Reached:
    """Replay to the target. `reaches`: by the archive's own dates the WAL goes on beyond it."""
    try:
        return await servers.replay(place, order, progress)
    except EndsEarlyError as error:
        wanted = order.target.time
        if wanted is None or not reaches:
            raise UserError(str(error)) from error
        # The archive goes on beyond that moment, and nobody committed anything between: PostgreSQL, which stops at a
        # commit, finds none to stop at. What is there is exactly what was wanted.
        whole = order.model_copy(update={"target": RecoveryTarget(latest=True)})
        reached = await servers.replay(place, whole, progress)
        if reached.at is not None and reached.at > wanted:
            raise UserError(str(error)) from error
        return reached


def made_before(place: ScratchPlace, request: ScratchRequest) -> ScratchRestored | None:
    """What an earlier try of this very restore has made."""
    restored, found = place.restored(), place.claim()
    if restored is None or found is None:
        return None
    if found.mark != request.mark or restored.target != request.target:
        raise UserError(f"Scratch instance `{request.id}` is there, made for something else. Choose another id.")
    return restored


async def in_place(
    place: ScratchPlace, request: ScratchRequest, restore: Callable[[], Awaitable[ScratchRestored]]
) -> ScratchRestored:
    """Restore into an empty place that nobody else works in; what an earlier try has made is taken as it is, and
    nothing is left of one that fails."""
    with place.held():
        there = await asyncio.to_thread(made_before, place, request)
        if there is not None:
            return there
        await asyncio.to_thread(place.clear)
        try:
            return await restore()
        except BaseException:
            await asyncio.shield(asyncio.to_thread(place.remove))
            raise


def claim_of(
    request: ScratchRequest, base: PhysicalManifest, now: datetime, budget: ScratchBudget, *, plain: int, wal: int
) -> Claim:
    """What the restore of this base will take: plain bytes of its files and of the WAL."""
    return Claim(
        id=request.id,
        server=request.server,
        mark=request.mark,
        made_at=now,
        expires_at=now + (request.keep or budget.lifetime),
        wanted_bytes=int(plain * SPARE) + wal,
        superuser=base.superuser,
        system_id=base.system_id,
    )


def check_span(stop_lsn: str, backup: str, end_lsn: str, last: str) -> None:
    """Raise VerificationError when the archived WAL, which ends with the segment `last`, does not make it whole."""
    if Lsn.parse(end_lsn) < Lsn.parse(stop_lsn):
        raise VerificationError(
            f"Base backup `{backup}` is consistent from {stop_lsn} on, and the archived WAL ends at {end_lsn} "
            f"(after `{last or 'nothing'}`): nothing can be restored from it. Use an earlier backup."
        )


def nothing_before(server: str, entries: Sequence[PhysicalEntry], target: RecoveryTarget) -> UserError:
    good = usable(entries)
    if not good:
        return UserError(f"`{server}` has no base backup that can be used. Restore a dump instead.")
    oldest = min(entry.manifest.finished_at for entry in good)
    return UserError(
        f"No base backup of `{server}` ends before {target}; the oldest that can be used ends at "
        f"{oldest:%Y-%m-%d %H:%M:%S} UTC. Choose a later moment, or restore a dump."
    )


def timeline_at(place: Lsn, timeline_id: int, wal: Path) -> int:
    """The timeline that this place of the WAL was written on, by the history beside the segments. Blocking."""
    history = wal / history_name(timeline_id)
    way = Timelines.parse(timeline_id, history.read_text()) if history.exists() else Timelines.alone(timeline_id)
    return next(each.timeline_id for each in way.stretches if each.end is None or place <= each.end)
