"""When a drill was last held and is next due, and what is to be said of it. Pure: the plan, the record, a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum

from actions.schedules import Schedule
from actions.steps.phrases import moment, span
from bot.plan_file import Drill

DAY = timedelta(days=1)
WEEK = timedelta(days=7)


class Act(StrEnum):
    """What is on record of a drill. FAILED is what the bot tried by itself."""

    DONE = "done"
    POSTPONED = "postponed"
    FAILED = "failed"


@dataclass(frozen=True)
class Held:
    """One act, as recorded."""

    act: Act
    at: datetime
    due: datetime  # the instant it was about
    to: datetime | None = None  # where it was postponed to
    by: str = ""
    note: str = ""


@dataclass(frozen=True)
class Standing:
    """Where a drill stands."""

    drill: Drill
    last: datetime | None
    next: datetime
    postponed: bool = False
    failed: str = ""  # what the bot's own try at this instant ended with

    def late(self, now: datetime) -> bool:
        """Whether it is overdue; it may take the whole day it is due on."""
        return now >= self.next + DAY


def standing(drill: Drill, acts: Sequence[Held], now: datetime) -> Standing:
    """`acts` in the order they were recorded."""
    schedule = Schedule(drill.schedule)
    done = [act for act in acts if act.act is Act.DONE]
    last = done[-1].at if done else (None if drill.last is None else _at(drill.last, schedule))
    if done:
        # One that was held early counts for the instant it was held for.
        following = schedule.after(max(done[-1].at, done[-1].due))
    elif drill.next is not None:
        following = _at(drill.next, schedule)
    else:
        following = schedule.after(last if last is not None else now - DAY)
    after = acts[acts.index(done[-1]) + 1 :] if done else acts
    moved = [act.to for act in after if act.act is Act.POSTPONED and act.to is not None]
    if moved:
        following = moved[-1]
    failed = [act for act in after if act.act is Act.FAILED]
    if failed and (again := schedule.after(max(failed[-1].at, following))) <= now:
        return Standing(drill, last, again)  # the next of its kind is a new try
    return Standing(drill, last, following, postponed=bool(moved), failed=failed[-1].note if failed else "")


def _at(day: date, schedule: Schedule) -> datetime:
    """That day at the schedule's time of day."""
    some = schedule.after(datetime(2026, 1, 1, tzinfo=UTC))
    return datetime.combine(day, time(some.hour, some.minute), tzinfo=UTC)


def postponed_to(found: Standing, day: date) -> datetime:
    """The instant on another day."""
    return datetime.combine(day, found.next.timetz())


@dataclass(frozen=True)
class Reminder:
    """One sentence that is due now; `stage` says which of the four it is, so that it is said once."""

    stage: str
    text: str


def reminder(found: Standing, now: datetime, *, by_itself: bool) -> Reminder | None:
    """A week before, a day before, at the start, and every week while it is overdue; None in between."""
    drill, left = found.drill, found.next - now
    name = f"Drill `{drill.name}` ({drill.title})"
    if left > WEEK:
        return None
    if left > timedelta(0):
        stage = "7d" if left > DAY else "1d"
        how = "It runs by itself." if by_itself else f"Postpone it with `/dr-drill postpone {drill.name} DATE REASON`."
        return Reminder(stage, f"{name} is due in {span(left)}, {moment(found.next)}. {how}")
    if not found.late(now):
        return Reminder("start", f"{name} is due now. {instructions(drill, by_itself=by_itself)}")
    why = f" The bot's own try failed: {found.failed}" if found.failed else ""
    text = (
        f"{name} is overdue since {moment(found.next)}, by {span(-left)}.{why} {instructions(drill, by_itself=False)}"
    )
    return Reminder(f"overdue-{-left // WEEK}", text)


def instructions(drill: Drill, *, by_itself: bool) -> str:
    """What is done when it is due, and by whom."""
    if by_itself:
        return "The bot runs it and reports here."
    steps = "; ".join(f"{number}. {step.text}" for number, step in enumerate(drill.steps, start=1))
    then = f"Then say so: `/dr-drill done {drill.name} NOTE`."
    return f"{steps}. {then}" if steps else then
