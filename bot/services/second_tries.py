"""What the schedule asked for and what was not done: told, and asked for once more.

Both rest on keys of the instant that failed, so over replicas and restarts each happens once: `<key>/failed` and
`<key>/failed-again` are told, `<key>/again` is asked.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from actions.steps.phrases import moment
from bot.services.schedules import Again, Recurring, second_at
from storage import inbox, outbox, schedules
from storage.schedules import Failure

WITHIN = timedelta(days=1)
"""How long a failure is news, and its second try worth while: a clock that was away longer leaves it to the alarms."""

LONGEST = 700  # characters of what a run said

VERBS = {"refused": "could not be planned", "pre-empted": "gave way", "failed": "failed"}


async def wanted(session: AsyncSession, line: Recurring, instant: datetime, now: datetime, *, on_call: str) -> bool:
    """Whether what this instant asked for is to be asked for once more now, under `second_key`. Tells the on-call
    channel of what has failed, each failure once."""
    again = line.again
    if again is None:
        return False
    key = line.key(instant)
    second = await schedules.failed(session, second_key(line, instant))
    failure = second or await schedules.failed(session, key)
    if failure is None or now - failure.at > WITHIN or (failure.state == "refused" and not again.refused):
        return False
    opened, done = await schedules.since(session, failure, action=line.action, target=again.target, params=again.same)
    if done:
        return False
    at = None if second is not None else second_at(line, instant, failure.at)
    if again.tells and on_call:
        told = f"{key}/failed-again" if second is not None else f"{key}/failed"
        if await inbox.store(session, told, "schedule", {"failed": line.name}):
            text = words(again, instant, failure, at, last=second is not None)
            await outbox.add(session, "text", on_call, payload={"text": text})
    return at is not None and at <= now and not opened


def second_key(line: Recurring, instant: datetime) -> str:
    """What its second try is asked under; no key of an instant, so that nothing takes it for one."""
    return f"{line.key(instant)}/again"


def words(again: Again, instant: datetime, failure: Failure, at: datetime | None, *, last: bool) -> str:
    """The sentences for the one on call."""
    verb = VERBS.get(failure.state, "did not run")
    run = f" (run {failure.plan})" if failure.plan else ""
    said = failure.message.strip()
    said = f"{said[:LONGEST]} ..." if len(said) > LONGEST else said
    first = f"The scheduled {again.what} due {moment(instant)} {verb}{' again' if last else ''}{run}"
    first += f": {said}" if said else "."
    if first[-1] not in ".!?":
        first += "."
    if at is not None:
        return f"{first} It is asked for once more at {moment(at)}, unless one is made before."
    return f"{first} It is not tried again before its next time: look at what it says, then `{again.by_hand}`."
