"""Finds what loads left on the servers when a server or a job died, tells of it, and removes it when it is safe."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from actions.backup.leftovers import (
    Leftover,
    Story,
    in_order,
    leftovers,
    reason_to_keep,
    remove,
    works,
)
from actions.errors import DrError
from actions.ports import Ports
from actions.steps.naming import job_name
from storage.leftovers import Traces, tell_removed, traces
from storage.session import Database

log = structlog.get_logger()

EVERY = timedelta(minutes=5)
LOADS = ("load_dump", "copy_database")  # the kinds of steps that make a complete copy


@dataclass(frozen=True)
class Found:
    """One thing that was left, and why it is still there; `kept` is None when it may be removed now."""

    item: Leftover
    kept: str | None


class Leftovers:
    """One in each worker. Several do no harm: what one has removed the others do not find."""

    def __init__(self, database: Database, ports: Ports) -> None:
        self._database = database
        self._ports = ports
        self._seen: dict[Leftover, datetime] = {}

    async def run(self) -> None:
        """Look and remove until cancelled."""
        while True:
            try:
                await self.sweep()
            except DrError as error:
                log.warning("leftovers_not_swept", error=str(error))
            await asyncio.sleep(EVERY.total_seconds())

    async def look(self) -> list[Found]:
        """What is left now, without what belongs to a run that is not over."""
        items, silent = await leftovers(self._ports)
        now = self._ports.clock.now()
        # A server that does not answer says nothing of what is on it.
        kept = {item: since for item, since in self._seen.items() if item.server in silent}
        self._seen = kept | {item: self._seen.get(item, now) for item in items}
        found = []
        for item in in_order(items):
            async with self._database.session() as session:
                story = _story(item, await traces(session, item.plan))
            if story.known and not story.over:
                continue
            found.append(Found(item, await self._kept(item, story)))
        return found

    async def sweep(self) -> list[Leftover]:
        """Remove what may go; what could not be removed is tried again at the next look."""
        due = [found.item for found in await self.look() if found.kept is None]
        return [item for item in due if await self._remove(item)]

    async def _kept(self, item: Leftover, story: Story) -> str | None:
        now, seen = self._ports.clock.now(), self._seen.get(item)
        kept = reason_to_keep(item, story, self._ports.site, seen=seen, now=now)
        if kept is None and await works(self._ports, story):
            return f"A job of plan {item.plan} is still at work."
        return kept

    async def _remove(self, item: Leftover) -> bool:
        try:
            async with self._database.session() as session:
                # Held, so that nobody takes the run up again between this look and the end of the removal.
                known = await traces(session, item.plan, hold=True)
                if await self._kept(item, _story(item, known)) is not None:
                    return False
                await remove(self._ports, item)
                await self._note(session, item, known)
        except DrError as error:
            log.warning("leftover_not_removed", kind=item.kind, server=item.server, name=item.name, error=str(error))
            return False
        log.info("leftover_removed", kind=item.kind, server=item.server, name=item.name, plan=item.plan)
        return True

    async def _note(self, session: AsyncSession, item: Leftover, known: Traces | None) -> None:
        whose = f"run {item.plan} is over" if known is not None else f"nothing is known of plan {item.plan}"
        told = f"Removed {item.shown}, left by a load that did not end in order: {whose}, nobody used it"
        await tell_removed(session, known, told, data=item.model_dump(mode="json"), at=self._ports.clock.now())


def _story(item: Leftover, known: Traces | None) -> Story:
    if known is None:
        return Story(jobs=(job_name(item.plan, 1),))  # every plan that loads begins with its load
    # Read as data: the plan may be of another version of the bot.
    steps = known.plan.document.get("steps", [])
    return Story(
        known=True,
        ended_at=known.run.ended_at,
        succeeded=known.run.state == "succeeded",
        whole=any(step.get("kind") in LOADS and number in known.verified for number, step in enumerate(steps)),
        jobs=tuple(str(step["job"]) for step in steps if step.get("job")),
    )
