"""The archiver's slot on the standbys of its server.

Physical slots do not stream: without one of its own a standby removes WAL as it likes, and when it becomes the primary
the archiver may find a hole. So each standby holds what the primary's slot holds and what some bucket still lacks; the
second for the day on which primary and archiver are lost together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta

import structlog

from actions.backup.physical import Lsn
from actions.backup.wal_source import SourceFacts, WalSource
from actions.errors import DrError
from actions.ports import Clock

log = structlog.get_logger(__name__)

EVERY = timedelta(seconds=10)
"""So long a standby holds WAL that nobody needs any more."""

AGAIN = timedelta(seconds=1)
"""Until it is looked again whether the primary's slot is there: before that a standby may hold nothing."""


class StandbySlots:
    """`primary` is what the primary answered last; `stored` the place before which no bucket lacks anything, 0 while
    nothing was closed (blocking)."""

    def __init__(
        self,
        standbys: Mapping[str, WalSource],
        clock: Clock,
        *,
        primary: Callable[[], SourceFacts | None],
        stored: Callable[[], Lsn],
        every: timedelta = EVERY,
    ) -> None:
        self._standbys, self._clock, self._every = standbys, clock, every
        self._primary, self._stored = primary, stored
        self.problems: dict[str, str] = {}  # by standby, a sentence and what to do

    async def run(self) -> None:
        """Until it is cancelled."""
        while self._standbys:
            primary = self._primary()
            needed = await asyncio.to_thread(self._needed, primary)
            if primary is not None and needed is not None:
                for name, standby in self._standbys.items():
                    self._note(name, await self._hold(name, standby, primary.system_id, needed))
            await self._clock.sleep(self._every if needed is not None else min(AGAIN, self._every))

    def _needed(self, primary: SourceFacts | None) -> Lsn | None:
        """Where WAL must be held from; None while nobody can tell, and every slot stays where it is."""
        slot = None if primary is None or primary.in_recovery else primary.slot
        if slot is None or slot.restart_lsn is None:
            return None
        place, stored = Lsn.parse(slot.restart_lsn), self._stored()
        return min(place, stored) if stored else place

    async def _hold(self, name: str, standby: WalSource, system_id: str, needed: Lsn) -> str:
        """What is wrong, empty when nothing is."""
        try:
            facts = await standby.facts()
            if facts.system_id != system_id:
                return (
                    f"`{name}` has system id {facts.system_id} and its primary {system_id}: it is no standby of it. "
                    "Correct `standby_of` or the connection string."
                )
            if not facts.in_recovery:
                return ""  # the primary by now, where the archiver's own slot is in use
            held = Lsn.parse(await standby.keep_from(str(needed)))
        except DrError as error:
            return f"Whether standby `{name}` holds the WAL that is not archived is unknown. {error}"
        if held // facts.segment_bytes > needed // facts.segment_bytes:  # WAL goes by whole segments
            return (
                f"Standby `{name}` has WAL from {held} on, and what comes after {needed} is not archived yet: a "
                "failover to it would leave a gap. It ends when the archive is that far; look what the archiver waits "
                "for."
            )
        if facts.keep_bytes is None:
            return (
                f"`max_slot_wal_keep_size` is not set on standby `{name}`: an archiver that is away for long fills "
                "its disk and stops it. Set it to what that disk can spare."
            )
        return ""

    def _note(self, name: str, problem: str) -> None:
        if problem and name not in self.problems:
            log.warning("wal_standby_slot", standby=name, problem=problem)
        if problem:
            self.problems[name] = problem
        else:
            self.problems.pop(name, None)
