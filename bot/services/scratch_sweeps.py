"""Removes scratch instances whose time is over, and what restores left that did not end; tells of it on the record."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from actions.backup.physical import ScratchFacts, ScratchState
from actions.errors import DrError
from actions.ports import Ports
from storage import runs
from storage.leftovers import tell_removed, traces
from storage.session import Database

log = structlog.get_logger()

EVERY = timedelta(minutes=5)


class ScratchSweeps:
    """One in each worker, for the instances of its machine."""

    def __init__(self, database: Database, ports: Ports) -> None:
        self._database, self._ports = database, ports

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                await self.sweep()
            except DrError as error:
                log.warning("scratch_not_swept", error=str(error))
            except Exception:
                # A full disk, a folder that is removed meanwhile: neither may end the worker and its runs.
                log.exception("scratch_not_swept")
            await asyncio.sleep(EVERY.total_seconds())

    async def sweep(self) -> list[ScratchFacts]:
        """What was removed now."""
        gone = list(await self._ports.scratch.sweep(self._wanted))
        for facts in gone:
            await self._note(facts)
            log.info("scratch_removed", scratch=facts.id, server=facts.server, state=facts.state)
        return gone

    async def _wanted(self, scratch: str) -> bool:
        """By a run that is not over, or by a plan that waits for signatures."""
        async with self._database.session() as session:
            return await runs.wants(session, f"scratch:{scratch}")

    async def _note(self, facts: ScratchFacts) -> None:
        broken = facts.state is ScratchState.BROKEN
        why = "its restore did not end" if broken else f"its time was over at {facts.expires_at:%Y-%m-%d %H:%M} UTC"
        async with self._database.session() as session:
            known = await traces(session, facts.mark.rpartition(":")[2])
            told = f"Removed scratch instance `{facts.id}` of `{facts.server}`: {why}"
            await tell_removed(session, known, told, data=facts.model_dump(mode="json"), at=self._ports.clock.now())
