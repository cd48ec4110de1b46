"""Feeds the scratch instances that follow the archive, and wakes those that do not run."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from actions.backup.physical import ScratchFacts
from actions.errors import DrError
from actions.ports import Ports

log = structlog.get_logger()

EVERY = timedelta(seconds=15)


class Standbys:
    """One in each worker, for the instances of its machine."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    async def run(self) -> None:
        """Tend them until cancelled."""
        while True:
            try:
                await self.tend()
            except DrError as error:
                log.warning("standbys_not_tended", error=str(error))
            except Exception:
                # A full disk, a folder that is removed meanwhile: neither may end the worker and its runs.
                log.exception("standbys_not_tended")
            await asyncio.sleep(EVERY.total_seconds())

    async def tend(self) -> None:
        """All that follow, once. One that cannot be tended keeps no other from it."""
        for facts in await self._ports.scratch.instances():
            if facts.following is not None and facts.following.halting is None:
                await self._tend(facts)

    async def _tend(self, facts: ScratchFacts) -> None:
        try:
            await self._ports.physical.feed(facts.server, facts.id)
            await self._ports.scratch.tend(facts.id)
        except DrError as error:
            log.warning("standby_not_tended", scratch=facts.id, server=facts.server, error=str(error))
        except Exception:
            log.exception("standby_not_tended", scratch=facts.id, server=facts.server)
