"""Alarms, told to the on-call channel once for each change, and recorded: what is wrong, and that it is right again."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from actions.steps.alarms import Alarm
from actions.steps.phrases import span
from storage import alarms as stored
from storage import outbox, timeline
from storage.tables import AlarmRow


async def raise_alarm(session: AsyncSession, alarm: Alarm, at: datetime, *, channel: str) -> str | None:
    """Let it stand since it was seen `at`; what was told, None where it stood already."""
    if not await stored.raise_(session, alarm.key, alarm.text, wants_base=alarm.wants_base, seen_at=at):
        return None
    return await _tell(session, raised(alarm), alarm.key, at, state="raised", channel=channel)


async def end_alarm(session: AsyncSession, key: str, at: datetime, *, channel: str) -> str | None:
    """It is over; what was told, None where it did not stand."""
    ended = await stored.clear(session, key, seen_at=at)
    if ended is None:
        return None
    return await _tell(session, recovered(ended, at), key, at, state="over", channel=channel)


async def _tell(session: AsyncSession, text: str, key: str, at: datetime, *, state: str, channel: str) -> str:
    await timeline.add(
        session,
        incident_id=None,
        kind="alarm",
        actor="drbot",
        occurred_at=at,
        text=text,
        data={"alarm": key, "state": state},
        source_key=f"alarm/{key}/{state}/{at.isoformat()}",
    )
    await outbox.add(session, "text", channel, payload={"text": text})
    return text


def raised(alarm: Alarm) -> str:
    return f"Backup alarm: {alarm.text} {alarm.hint}"


def recovered(row: AlarmRow, at: datetime) -> str:
    return f"Backup alarm over after {span(at - row.raised_at)}: {row.text}"
