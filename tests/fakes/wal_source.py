"""A server whose WAL is asked for, that does as it is told and notes what was asked."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from actions.backup.physical import Lsn
from actions.backup.wal_source import SlotFacts, SourceFacts, WalGoneError, WalSource
from actions.errors import DrError, UserError
from tests.fakes.clock import START
from tests.fakes.wal import SIZE, SYSTEM

SLOT = SlotFacts(active=True, restart_lsn="0/50000", written_lsn="0/50000", wal_status="reserved", safe_bytes=1 << 30)
FACTS = SourceFacts(
    at=START,
    system_id=SYSTEM,
    in_recovery=False,
    timeline_id=1,
    flush_lsn="0/50000",
    segment_bytes=SIZE,
    keep_bytes=2 << 30,
    synchronous_names="",
    slot=SLOT,
)


class MemoryWalSource(WalSource):
    """Streams nothing. On a standby WAL is there from `oldest` on, and replayed up to `replayed`."""

    def __init__(self, facts: SourceFacts = FACTS, *, oldest: str = "0/0", replayed: str = "F/0") -> None:
        self.answer = facts
        self.error: DrError | None = None  # instead of the answer
        self.gone = 0  # so often the stream is asked for in vain
        self.oldest, self.replayed = Lsn.parse(oldest), Lsn.parse(replayed)
        self.histories: dict[int, str] = {}
        self.held: Lsn | None = None  # by the slot
        self.asked: list[list[str]] = []  # what lay in the directory when the stream was asked for

    async def facts(self) -> SourceFacts:
        if self.error is not None:
            raise self.error
        return self.answer

    async def make_slot(self, *, anew: bool = False) -> None:
        if self.held is None or anew:
            self.held = self.oldest

    async def keep_from(self, lsn: str) -> str:
        await self.make_slot()
        assert self.held is not None
        self.held = max(self.held, min(Lsn.parse(lsn), self.replayed))
        return str(self.held)

    async def history(self, timeline_id: int) -> str:
        if timeline_id not in self.histories:
            raise UserError(f"There is no history of timeline id {timeline_id}.")
        return self.histories[timeline_id]

    async def receive(self, directory: Path, *, synchronous: bool) -> None:
        self.asked.append(sorted(await asyncio.to_thread(os.listdir, directory)))
        if self.gone:
            self.gone -= 1
            raise WalGoneError("It was removed.")
        await asyncio.Event().wait()
