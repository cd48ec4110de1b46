"""The clock: what happens by itself. It only inserts; workers and senders do the rest.

APScheduler is a mere clock here: every replica has its own, in memory, and each firing carries a key made of its name
and instant, so that the database lets exactly one of them through.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from actions.errors import DrError
from actions.ports import Clock
from bot.plan_file import DrPlan, cron_fields
from bot.services.approvals import SCHEDULE
from bot.services.quorum import warn_of_gaps
from storage import copies, inbox, incidents, outbox, requests, timeline
from storage.session import Database
from storage.tables import Incident, RequestRow

log = structlog.get_logger()

BY_SCHEDULE = "scheduled by the plan"

CLICKS_KEPT = timedelta(days=90)

COPIES_SENT_WITHIN = timedelta(days=30)
"""How long an upload is asked for; older local copies are the doctor's business."""

RTO_MARKS = (50, 75, 100)
"""Percent of the RTO at which the incident's channel is told."""


class DrClock:
    """Scheduled dumps and RTO marks."""

    def __init__(self, database: Database, plan: DrPlan, clock: Clock) -> None:
        self._database = database
        self._plan = plan
        self._clock = clock

    async def run(self) -> None:
        """Fire until cancelled."""
        scheduler = AsyncIOScheduler(timezone=UTC)
        options = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        for backup in self._plan.backups.databases:
            trigger = CronTrigger(timezone=UTC, **cron_fields(backup.dump.schedule))
            scheduler.add_job(self._dump, trigger, args=[backup.database], **options)
        scheduler.add_job(self._marks, IntervalTrigger(seconds=10, timezone=UTC), **options)
        scheduler.add_job(self._forget, CronTrigger(hour=3, minute=17, timezone=UTC), **options)
        scheduler.add_job(self._catch_up, IntervalTrigger(minutes=5, timezone=UTC), **options)
        scheduler.add_job(self._signers, CronTrigger(hour=6, minute=30, timezone=UTC), **options)
        scheduler.start()
        log.info("clock_started")
        try:
            await asyncio.Event().wait()
        finally:
            scheduler.shutdown(wait=False)

    async def _dump(self, database: str) -> None:
        minute = self._clock.now().replace(second=0, microsecond=0)
        await self.request_dump(database, minute)

    async def request_dump(self, database: str, instant: datetime) -> bool:
        """Ask for the dump of one instant; False when a replica has done so already."""
        key = f"schedule/dump/{database}/{instant:%Y-%m-%dT%H:%MZ}"
        return await self._ask(key, "backup.dump", {"database": database}, BY_SCHEDULE)

    async def _signers(self) -> None:
        try:
            await warn_of_gaps(self._database, self._plan, self._clock.now())
        except DrError as error:
            log.warning("signers_not_checked", error=str(error))

    async def _catch_up(self) -> None:
        await self.catch_up(self._clock.now())

    async def catch_up(self, now: datetime) -> None:
        """Ask for the upload of every dump that is in the local copy alone: once an hour, until it is in the bucket."""
        try:
            async with self._database.session() as session:
                unsent = await copies.unsent(session, within=COPIES_SENT_WITHIN)
        except DrError as error:
            log.warning("catching_up_failed", error=str(error))
            return
        for database, backup in unsent:
            key = f"schedule/upload/{backup}/{now:%Y-%m-%dT%HZ}"
            params = {"database": database, "backup": backup}
            await self._ask(key, "backup.upload", params, "it is in the local copy alone")

    async def _ask(self, key: str, name: str, params: dict[str, str], reason: str) -> bool:
        """Ask as the schedule; False when this was asked before, or could not be."""
        try:
            async with self._database.session() as session:
                who = {"source": "clock", "channel": self._plan.channels.on_call}
                asked = {"name": name, "params": params, "reason": reason}
                if not await inbox.store(session, key, "schedule", {"kind": "ask", "who": who, "command": asked}):
                    return False
                await requests.add(
                    session,
                    RequestRow(
                        kind="command",
                        name=name,
                        params=params,
                        person=SCHEDULE,
                        channel=self._plan.channels.on_call,
                        reply={"who": who},
                        reason=reason,
                        source_key=key,
                    ),
                )
        except DrError as error:
            log.warning("schedule_failed", name=name, error=str(error))
            return False
        return True

    async def _forget(self) -> None:
        """Once a day: clicks that nothing rests on any more."""
        try:
            async with self._database.session() as session:
                log.info("inbox_pruned", rows=await inbox.prune(session, older=CLICKS_KEPT))
        except DrError as error:
            log.warning("inbox_not_pruned", error=str(error))

    async def _marks(self) -> None:
        try:
            async with self._database.session() as session:
                rows = [row for row in await incidents.newest(session) if row.closed_at is None]
            for row in rows:
                if row.recovered_at is None:
                    await self.mark(row, self._clock.now())
        except DrError as error:
            log.warning("marks_failed", error=str(error))

    async def mark(self, row: Incident, now: datetime) -> int | None:
        """Tell the channel the highest mark that has passed, once; returns it when it was told now."""
        spent = (now - row.impact_started_at).total_seconds() / row.rto_s * 100
        passed = [mark for mark in RTO_MARKS if spent >= mark]
        if not passed:
            return None
        left = timedelta(seconds=round(row.rto_s - (now - row.impact_started_at).total_seconds()))
        text = (
            f"RTO: {passed[-1]} % of {timedelta(seconds=row.rto_s)} is used, {left} left."
            if left > timedelta(0)
            else f"RTO of {timedelta(seconds=row.rto_s)} missed by {-left}; recovery goes on."
        )
        async with self._database.session() as session:
            new = await timeline.add(
                session,
                incident_id=row.id,
                kind="rto",
                actor="drbot",
                occurred_at=now,
                text=text,
                source_key=f"rto/{row.id}/{passed[-1]}",
            )
            if not new:
                return None
            await outbox.add(session, "text", row.channel, payload={"text": text})
            await outbox.add(session, "incident", row.channel, ref=row.id)
        return passed[-1]
