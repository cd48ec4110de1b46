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
from actions.steps.alarms import UPGRADED
from actions.steps.health import PROVE
from actions.steps.phrases import span
from bot.plan_file import DrPlan
from bot.services import second_tries
from bot.services.approvals import SCHEDULE, Policy
from bot.services.drills import Drills
from bot.services.quorum import warn_of_gaps
from bot.services.schedules import Past, Recurring, due, recurring
from bot.services.worker_watch import WorkerWatch
from storage import alarms, copies, inbox, incidents, outbox, requests, schedules, timeline
from storage.session import Database
from storage.tables import Incident, RequestRow

log = structlog.get_logger()

CLICKS_KEPT = timedelta(days=90)

COPIES_SENT_WITHIN = timedelta(days=30)
"""How long an upload is asked for; older local copies are the doctor's business."""

RTO_MARKS = (50, 75, 100)
"""Percent of the RTO at which the incident's channel is told."""


class DrClock:
    """Backups and drills by the plan's schedule, and RTO marks."""

    def __init__(self, database: Database, plan: DrPlan, clock: Clock) -> None:
        self._database = database
        self._plan = plan
        self._clock = clock
        self._workers = WorkerWatch(database, on_call=plan.channels.on_call)
        self._drills = Drills(database, plan, Policy(plan), clock)

    def scheduled(self) -> AsyncIOScheduler:
        """What fires when; not started yet."""
        scheduler = AsyncIOScheduler(timezone=UTC)
        options = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        # Every instant of the plan is at the beginning of a minute. What was missed is seen at the next one.
        at_once = {"next_run_time": self._clock.now()} | options
        scheduler.add_job(self._tick, CronTrigger(second=1, timezone=UTC), **at_once)
        scheduler.add_job(self._hold_drills, IntervalTrigger(minutes=1, timezone=UTC), **options)
        scheduler.add_job(self._test_upgrades, IntervalTrigger(minutes=1, timezone=UTC), **options)
        scheduler.add_job(self._look_for_workers, IntervalTrigger(minutes=1, timezone=UTC), **options)
        scheduler.add_job(self._marks, IntervalTrigger(seconds=10, timezone=UTC), **options)
        scheduler.add_job(self._forget, CronTrigger(hour=3, minute=17, timezone=UTC), **options)
        scheduler.add_job(self._catch_up, IntervalTrigger(minutes=5, timezone=UTC), **options)
        # Also at the start: no clock may have run at that hour. It is told once a day whoever looks.
        scheduler.add_job(self._signers, CronTrigger(hour=6, minute=30, timezone=UTC), **at_once)
        return scheduler

    async def run(self) -> None:
        """Fire until cancelled."""
        scheduler = self.scheduled()
        scheduler.start()
        log.info("clock_started")
        try:
            await asyncio.Event().wait()
        finally:
            scheduler.shutdown(wait=False)

    async def _tick(self) -> None:
        await self.tick(self._clock.now())

    async def tick(self, now: datetime) -> list[str]:
        """Ask for everything that is due by the plan's schedule, once over all replicas; the keys it was asked under.
        Of instants that were missed the newest alone, and nothing while the one before it is open."""
        asked = []
        for line in recurring(self._plan, await self._wanted()):
            try:
                async with self._database.session() as session:
                    newest = await schedules.newest(session, line.prefix, until=now)
                    opened = [name for name in line.group if await schedules.is_open(session, f"schedule/{name}/")]
                    found = due(line, Past(newest, open=bool(opened)), now)
                    if found is not None and not found.asks:
                        await inbox.store(session, line.key(found.instant), "schedule", {"begins": line.name})
                    again = False
                    if found is None and newest is not None:
                        on_call = self._plan.channels.on_call
                        again = await second_tries.wanted(session, line, newest, now, on_call=on_call)
                if found is not None and found.asks and await self._request(line, found.instant):
                    asked.append(line.key(found.instant))
                elif again and newest is not None and not opened and await self._once_more(line, newest):
                    asked.append(second_tries.second_key(line, newest))
            except DrError as error:
                log.warning("schedule_failed", name=line.name, error=str(error))
        return asked

    async def _request(self, line: Recurring, instant: datetime) -> bool:
        channel = "" if line.quiet else self._plan.channels.on_call
        return await self._ask(line.key(instant), line.action, dict(line.params), line.reason, channel=channel)

    async def _once_more(self, line: Recurring, instant: datetime) -> bool:
        channel, key = "" if line.quiet else self._plan.channels.on_call, second_tries.second_key(line, instant)
        reason = f"{line.reason}, once more after it failed"
        return await self._ask(key, line.action, dict(line.params), reason, channel=channel)

    async def _wanted(self) -> list[str]:
        """The servers for which an alarm wants a new base backup."""
        try:
            async with self._database.session() as session:
                standing = await alarms.standing(session)
        except DrError as error:
            log.warning("alarms_not_read", error=str(error))
            return []
        return sorted({row.key.partition("/")[2].removeprefix("server:") for row in standing if row.wants_base})

    async def _hold_drills(self) -> None:
        try:
            await self.hold_drills(self._clock.now())
        except DrError as error:
            log.warning("drills_failed", error=str(error))

    async def hold_drills(self, now: datetime) -> list[str]:
        """Remind of drills, ask for those that the bot runs by itself, report those that have ended; what was told."""
        told = await self._drills.remind(now)
        for key, action, params, reason in await self._drills.to_run(now):
            await self._ask(key, action, dict(params), reason)
        return told + await self._drills.settle(now)

    async def _test_upgrades(self) -> None:
        try:
            await self.test_upgrades(self._clock.now())
        except DrError as error:
            log.warning("upgrades_not_tested", error=str(error))

    async def test_upgrades(self, now: datetime) -> list[str]:
        """Ask for a restore test of what was upgraded since its last proof, once after each proof; the keys it was
        asked under."""
        async with self._database.session() as session:
            standing = [row for row in await alarms.standing(session) if row.key.startswith(UPGRADED)]
        asked: list[str] = []
        for row in standing:
            async with self._database.session() as session:
                if await schedules.is_open(session, f"schedule/{UPGRADED}"):
                    break  # one after the other: what waits too long for its lock is not carried out any more
            subject = row.key.partition("/")[2]
            params = await self._drills.upgraded(subject, row.raised_at, now)
            key = f"schedule/{row.key}"
            if params is not None and await self._ask(key, PROVE, dict(params), "upgraded since the last restore test"):
                asked.append(key)
        return asked

    async def _look_for_workers(self) -> None:
        try:
            await self._workers.look(self._clock.now())
        except DrError as error:
            log.warning("workers_not_looked_for", error=str(error))

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

    async def _ask(
        self, key: str, name: str, params: dict[str, str], reason: str, *, channel: str | None = None
    ) -> bool:
        """Ask as the schedule, in the on-call channel unless another is given (empty: in none); False when this was
        asked before, or could not be."""
        channel = self._plan.channels.on_call if channel is None else channel
        try:
            async with self._database.session() as session:
                who = {"source": "clock", "channel": channel}
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
                        channel=channel,
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
            f"RTO: {passed[-1]} % of {span(timedelta(seconds=row.rto_s))} is used, {span(left)} left."
            if left > timedelta(0)
            else f"RTO of {span(timedelta(seconds=row.rto_s))} missed by {span(-left)}; recovery goes on."
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
