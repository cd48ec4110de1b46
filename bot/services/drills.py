"""Drills: listed, held, postponed by people; reminded of, and where the bot can, run and reported by itself.

What happened to a drill is on the timeline and nowhere else: "last tested" and "next test" are as true as the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from actions import registry
from actions.contract import DrillOf, Report
from actions.errors import UserError
from actions.ports import Clock
from actions.schedules import Schedule
from actions.steps.health import PROVE, dump_target
from actions.steps.phrases import moment
from bot.plan_file import Drill, DrPlan
from bot.router import Command
from bot.services.drill_dates import Act, Held, Standing, instructions, postponed_to, reminder, standing
from bot.services.policy import Policy
from storage import inbox, outbox, schedules, timeline
from storage.session import Database

KIND = "drill"
LIST, NEXT = "drill.list", "drill.next"
QUERIES = (LIST, NEXT)
NEWEST = "newest"
RHYTHM_OVER = timedelta(days=731)

LONGEST = timedelta(days=180)
"""A drill that is put off for longer is no drill any more."""


class Drills:
    """The drills of the plan and what is on record of them."""

    def __init__(self, database: Database, plan: DrPlan, policy: Policy, clock: Clock) -> None:
        self._database = database
        self._plan = plan
        self._policy = policy
        self._clock = clock

    # ------------------------------------------------------------ people

    async def handle(self, person: str, command: Command, *, key: str) -> None:
        """Carry out `drill.done` or `drill.postpone`, once for a `key`. Raises UserError for the person who asked."""
        drill, now = self._named(str(command.params["drill"])), self._clock.now()
        name = self._policy.name(person)
        async with self._database.session() as session:
            found = await self._standing(session, drill, now)
            if command.name == "drill.done":
                note = str(command.params.get("note") or "")
                act = Held(Act.DONE, now, found.next, by=name, note=note)
                text = f"Drill `{drill.name}` was held" + (f": {note}" if note else ".")
            else:
                to = postponed_to(found, _day(str(command.params["date"]), now))
                note = str(command.params["why"])
                act = Held(Act.POSTPONED, now, found.next, to=to, by=name, note=note)
                text = f"Drill `{drill.name}` is postponed from {moment(found.next)} to {moment(to)}: {note}"
            if await _record(session, drill, act, text, key=f"drill/{key}"):
                await outbox.add(session, "text", self._channel(drill), payload={"text": f"{name}: {text}"})

    async def report(self, session: AsyncSession, query: str) -> Report:
        """All drills, or the next one."""
        now = self._clock.now()
        found = [await self._standing(session, drill, now) for drill in self._plan.drills]
        found.sort(key=lambda item: item.next)
        if query == NEXT and found:
            first = found[0]
            by_itself = bool(self._targets(first.drill)) and not first.failed
            said = reminder(first, now, by_itself=by_itself)
            lines = () if said is None else (said.text,)
            if first.next > now:  # once it is due, the reminder has them
                lines = (*lines, instructions(first.drill, by_itself=by_itself))
            return Report(title="Next drill", lines=lines, columns=_COLUMNS, rows=(_row(first, now),))
        return Report(
            title="Drills",
            lines=() if found else ("The plan file has no drills; add them under `drills`.",),
            columns=_COLUMNS if found else (),
            rows=tuple(_row(item, now) for item in found),
        )

    # ------------------------------------------------------------ the clock

    async def remind(self, now: datetime) -> list[str]:
        """Say what is due to be said, once over all replicas."""
        told = []
        for drill in self._plan.drills:
            async with self._database.session() as session:
                found = await self._standing(session, drill, now)
                said = reminder(found, now, by_itself=bool(self._targets(drill)) and not found.failed)
                if said is None:
                    continue
                key = f"schedule/remind/{drill.name}/{found.next.isoformat()}/{said.stage}"
                if await inbox.store(session, key, "schedule", {"drill": drill.name}):
                    await outbox.add(session, "text", self._channel(drill), payload={"text": said.text})
                    told.append(said.text)
        return told

    async def to_run(self, now: datetime) -> list[tuple[str, str, Mapping[str, str], str]]:
        """What the bot does by itself and is due: key, action, parameters and reason of each request."""
        wanted = []
        for drill in self._plan.drills:
            async with self._database.session() as session:
                found = await self._standing(session, drill, now)
                if found.next <= now and not found.failed:
                    wanted += await self._asked_now(session, found)
        return wanted

    async def _asked_now(self, session: AsyncSession, found: Standing) -> list[tuple[str, str, Mapping[str, str], str]]:
        """Everything at once, but each test of a dump once all before it are over: they share one machine, and what
        waits for its lock longer than `execution_expiry` is not carried out any more."""
        wanted: list[tuple[str, str, Mapping[str, str], str]] = []
        reason = f"drill `{found.drill.name}` of the plan"
        for target, params in self._targets(found.drill).items():
            before = [key for key, *_ in wanted]
            if "dump" in params and not all([await schedules.ended(session, key) for key in before]):
                break
            wanted.append((_key(found, target), str(found.drill.action), params, reason))
        return wanted

    async def settle(self, now: datetime) -> list[str]:
        """Record and report the drills that the bot has run by itself and that have ended."""
        told = []
        for drill in self._plan.drills:
            targets = self._targets(drill)
            async with self._database.session() as session:
                found = await self._standing(session, drill, now)
                if found.next > now or found.failed or not targets:
                    continue
                ends = {target: await schedules.ended(session, _key(found, target)) for target in targets}
                act = _outcome(ends, found, now)
                if act is None:
                    continue
                text = f"Drill `{drill.name}` {'passed' if act.act is Act.DONE else 'failed'}: {act.note}"
                key = f"drill/{drill.name}/{found.next.isoformat()}/{act.act}"
                if await _record(session, drill, act, text, key=key):
                    await outbox.add(session, "text", self._channel(drill), payload={"text": text})
                    told.append(text)
        return told

    async def next_of(self, action: str, target: str) -> datetime | None:
        """When the bot next runs this action on this target by itself; None where no drill of the plan does it."""
        now, found = self._clock.now(), list[datetime]()
        for drill in self._plan.drills:
            if drill.action == action and target in self._targets(drill):
                async with self._database.session() as session:
                    stands = await self._standing(session, drill, now)
                # What failed is left to people until its next regular day.
                found.append(Schedule(drill.schedule).after(now) if stands.failed else stands.next)
        return min(found, default=None)

    async def rhythm_of(self, action: str, target: str) -> timedelta | None:
        """The longest time between two instants at which the bot runs this action on this target by itself, of the
        next two years; None where no drill of the plan does it."""
        now = self._clock.now()
        lines = [
            sorted(Schedule(drill.schedule).between(now, now + RHYTHM_OVER))
            for drill in self._plan.drills
            if drill.action == action and target in self._targets(drill)
        ]
        instants = sorted({instant for line in lines for instant in line})
        if len(instants) < 2:
            return RHYTHM_OVER if lines else None
        return max(later - earlier for earlier, later in pairwise(instants))

    async def upgraded(self, subject: str, since: datetime, now: datetime) -> Mapping[str, str] | None:
        """The parameters of the restore test that is due because of an upgrade seen `since` then, at the time of day of
        the plan's own tests: for `server:NAME` or the name of a database. None before that, where no drill of the plan
        tests it, and where its own test comes first."""
        target = subject.removeprefix("server:") if subject.startswith("server:") else dump_target(subject)
        for drill in self._plan.drills:
            params = self._targets(drill).get(target)
            if drill.action != PROVE or params is None:
                continue
            at = Schedule(drill.schedule).after(since)  # only its time of day counts
            first = since.replace(hour=at.hour, minute=at.minute, second=0, microsecond=0)
            due = first if first > since else first + timedelta(days=1)
            async with self._database.session() as session:
                stands = await self._standing(session, drill, now)
            if due <= now and (stands.failed or not since <= stands.next <= due):
                return params
        return None

    # ------------------------------------------------------------ parts

    def _targets(self, drill: Drill) -> Mapping[str, Mapping[str, str]]:
        """What the bot can run of it by itself: for each server or database the parameters. Nothing where a plan that
        is in force since an earlier version names an action that is no drill: that one is left to people."""
        of = registry.names().get(drill.action or "")
        if of is None:
            return {}
        backups, found = self._plan.backups.databases, set[str]()
        if of is DrillOf.SERVER:
            found = {self._plan.database(item.database).server for item in backups if item.base is not None}
        else:
            found = {item.database for item in backups}
        targets = {each: {of.value: each} for each in sorted(found)}
        if drill.action == PROVE:
            # Dumps are the second copy, made by other means: that base backups can be restored proves nothing of them.
            targets |= {
                dump_target(item.database): {"server": item.database, "dump": NEWEST}
                for item in sorted(backups, key=lambda item: item.database)
            }
        return targets

    def _named(self, name: str) -> Drill:
        for drill in self._plan.drills:
            if drill.name == name:
                return drill
        known = ", ".join(f"`{drill.name}`" for drill in self._plan.drills) or "none"
        raise UserError(f"The plan file has no drill `{name}`. There are: {known}.")

    def _channel(self, drill: Drill) -> str:
        return drill.channel or self._plan.channels.on_call

    async def _standing(self, session: AsyncSession, drill: Drill, now: datetime) -> Standing:
        entries = await timeline.about(session, KIND, "drill", drill.name)
        return standing(drill, [_held(entry.data, entry.actor, entry.occurred_at) for entry in entries], now)


_COLUMNS = ("drill", "frequency", "last tested", "next test", "state")


def _row(found: Standing, now: datetime) -> tuple[str, ...]:
    state = "overdue" if found.late(now) else "due" if found.next <= now else "postponed" if found.postponed else ""
    if found.failed:
        state = f"failed: {found.failed}"
    last = "never" if found.last is None else moment(found.last)
    return (found.drill.name, found.drill.frequency, last, moment(found.next), state or "planned")


def _key(found: Standing, target: str) -> str:
    return f"schedule/drill/{found.drill.name}/{target}/{found.next.isoformat()}"


def _outcome(ends: Mapping[str, tuple[str, str, str] | None], found: Standing, now: datetime) -> Held | None:
    """None while one of them is still open."""
    over = {target: end for target, end in ends.items() if end is not None}
    if len(over) < len(ends):
        return None
    bad = [
        f"`{target}`: {f'run {plan}' if plan else 'the request'} {state}. {message}".strip()
        for target, (plan, state, message) in over.items()
        if state != "succeeded"
    ]
    if bad:
        return Held(Act.FAILED, now, found.next, by="drbot", note=" ".join(bad))
    said = [f"`{target}` (run {plan}). {message}".strip() for target, (plan, _, message) in over.items()]
    return Held(Act.DONE, now, found.next, by="drbot", note=" ".join(said))


async def _record(session: AsyncSession, drill: Drill, act: Held, text: str, *, key: str) -> bool:
    data: dict[str, Any] = {"drill": drill.name, "act": act.act, "due": act.due.isoformat(), "note": act.note}
    if act.to is not None:
        data["to"] = act.to.isoformat()
    return await timeline.add(
        session,
        incident_id=None,
        kind=KIND,
        actor=act.by,
        occurred_at=act.at,
        text=text,
        data=data,
        source_key=key,
    )


def _held(data: Mapping[str, Any], by: str, at: datetime) -> Held:
    to = data.get("to")
    return Held(
        act=Act(data["act"]),
        at=at,
        due=datetime.fromisoformat(data["due"]),
        to=None if to is None else datetime.fromisoformat(to),
        by=by,
        note=str(data.get("note", "")),
    )


def _day(text: str, now: datetime) -> date:
    """A day to come, within half a year."""
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"`{text}` is no day; write it as `{now + timedelta(days=7):%Y-%m-%d}`.") from error
    if not now.date() < day <= (now + LONGEST).date():
        last = (now + LONGEST).date()
        raise UserError(
            f"A drill can be postponed to a day after today and not after {last}; `{day}` is none. Give another day."
        )
    return day
