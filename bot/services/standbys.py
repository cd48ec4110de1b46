"""Feeds the scratch instances that follow the archive, wakes those that do not run, and tells the on-call channel of
one that is not what it is kept for, once for each change."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import structlog

from actions.backup.physical import Following, ScratchFacts
from actions.backup.scratch_place import ElsewhereError
from actions.errors import DrError
from actions.ports import Ports
from actions.steps.alarms import Alarm
from actions.steps.standby import standby_problem
from bot.services.alarms import end_alarm, raise_alarm
from storage import alarms as stored
from storage import runs
from storage.session import Database

log = structlog.get_logger()

EVERY = timedelta(seconds=15)
PATIENCE = timedelta(minutes=2)
"""How long it may be in trouble before anybody is told: one that is woken needs a moment."""

STANDBY = "standby/standby:"
"""Before the id of an instance: the key of its alarm."""


class Standbys:
    """One in each worker, for the instances of its machine."""

    def __init__(self, database: Database, ports: Ports, *, on_call: str) -> None:
        self._database = database
        self._ports = ports
        self._on_call = on_call
        self._since: dict[str, datetime] = {}  # in trouble, as seen from here
        self._said: dict[str, str] = {}  # why it could not be tended
        self._at_work: dict[str, asyncio.Task[None]] = {}  # by instance

    async def run(self) -> None:
        """Tend them until cancelled."""
        try:
            while True:
                try:
                    await self.tend()
                except DrError as error:
                    log.warning("standbys_not_tended", error=str(error))
                except Exception:
                    # A full disk, a folder that is removed meanwhile: neither may end the worker and its runs.
                    log.exception("standbys_not_tended")
                await asyncio.sleep(EVERY.total_seconds())
        finally:
            for task in self._at_work.values():
                task.cancel()
            await asyncio.gather(*self._at_work.values(), return_exceptions=True)

    async def tend(self) -> None:
        """All that follow, once. One that cannot be tended, or is brought WAL for hours, keeps no other from it."""
        for facts in await self._ports.scratch.instances():
            if facts.following is not None and facts.id not in self._at_work:
                self._at_work[facts.id] = asyncio.create_task(self._look_after(facts, facts.following))
        if self._at_work:
            await asyncio.wait(self._at_work.values(), timeout=EVERY.total_seconds())
        for scratch, task in list(self._at_work.items()):
            if task.done():
                del self._at_work[scratch]
                if (error := task.exception()) is not None:
                    log.warning("standby_not_tended", scratch=scratch, error=str(error), exc_info=error)
        await self._forget()

    async def _look_after(self, facts: ScratchFacts, told: Following) -> None:
        if told.halting is not None:
            if not await self._wanted(facts.id):  # the run that was to stop it is over, and it is neither
                await self._judge(facts.id)
        elif await self._tend(facts):
            await self._judge(facts.id)

    async def _wanted(self, scratch: str) -> bool:
        async with self._database.session() as session:
            return await runs.wants(session, f"scratch:{scratch}")

    async def _tend(self, facts: ScratchFacts) -> bool:
        """Whether it is this machine's. It is woken also where nothing can be brought to it."""
        try:
            await self._ports.physical.feed(facts.server, facts.id)
        except DrError as error:
            log.warning("standby_not_fed", scratch=facts.id, server=facts.server, error=str(error))
        except Exception:
            log.exception("standby_not_fed", scratch=facts.id, server=facts.server)
        self._said.pop(facts.id, None)
        try:
            await self._ports.scratch.tend(facts.id)
        except ElsewhereError as error:
            log.warning("standby_not_tended", scratch=facts.id, server=facts.server, error=str(error))
            return False
        except DrError as error:
            self._said[facts.id] = str(error)
            log.warning("standby_not_tended", scratch=facts.id, server=facts.server, error=str(error))
        except Exception:
            log.exception("standby_not_tended", scratch=facts.id, server=facts.server)
        return True

    async def _judge(self, scratch: str) -> None:
        facts, now = await self._ports.scratch.find(scratch), self._ports.clock.now()
        if facts is None or facts.following is None:
            return
        problem = standby_problem(facts, facts.following, now)
        async with self._database.session() as session:
            if problem is None:
                self._since.pop(scratch, None)
                await end_alarm(session, f"{STANDBY}{scratch}", now, channel=self._on_call)
            elif now - self._since.setdefault(scratch, now) >= PATIENCE:
                what, hint = problem
                if not facts.address and scratch in self._said:
                    what = f"{what}: {self._said[scratch]}"
                text = f"`{facts.name}`, the standby of `{facts.server}`, {what.removesuffix('.')}."
                alarm = Alarm(key=f"{STANDBY}{scratch}", text=text, hint=hint)
                await raise_alarm(session, alarm, now, channel=self._on_call)

    async def _forget(self) -> None:
        """End the alarms of those that were removed, stopped at a moment or promoted. What was never here is left to
        the machine that it is on."""
        async with self._database.session() as session:
            keys = [row.key for row in await stored.standing(session) if row.key.startswith(STANDBY)]
        for key in keys:
            scratch = key.removeprefix(STANDBY)
            facts = await self._ports.scratch.find(scratch)
            if facts is None and not await self._ports.scratch.removed(scratch):
                continue
            if facts is None or facts.following is None:
                self._since.pop(scratch, None)
                async with self._database.session() as session:
                    await end_alarm(session, key, self._ports.clock.now(), channel=self._on_call)
