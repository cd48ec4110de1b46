"""Tells the on-call channel that nobody carries anything out: workers watch the backups, and nobody watches workers."""

from __future__ import annotations

from datetime import datetime, timedelta

from actions.steps.moments import exact
from storage import outbox, processes, timeline
from storage.session import Database

SILENT = timedelta(minutes=5)
"""A worker that is replaced is back sooner."""

ROLE = "worker"
ALARM = "no-worker"


class WorkerWatch:
    """One in each clock; each silence and each return is told once over all of them, whichever has begun anew."""

    def __init__(self, database: Database, *, on_call: str) -> None:
        self._database, self._on_call = database, on_call
        self._since: datetime | None = None  # this clock has seen nobody since

    async def look(self, now: datetime) -> str:
        """What was told now; empty: nothing."""
        async with self._database.session() as session:
            told = await timeline.about(session, "alarm", "alarm", ALARM)
            last = told[-1] if told else None
            silent = last is not None and last.data.get("state") == "silent"
            if any(ROLE in row.roles.split(",") for row in await processes.alive(session, within=SILENT)):
                self._since = None
                if not silent:
                    return ""
                state, text = "over", "A worker is back: what was asked for goes on."
            else:
                self._since = self._since or now
                if silent or now - self._since < SILENT:
                    return ""
                there = await processes.alive(session, within=timedelta(days=1))
                known = [row.seen_at for row in there if ROLE in row.roles.split(",") and row.seen_at is not None]
                since = f"The last one was seen at {exact(max(known))}." if known else "None was seen for a day."
                state = "silent"
                text = (
                    "No worker is there: nothing is carried out, no backup is made, and nobody watches them. "
                    f"{since} Start `drbot run --role worker`."
                )
            new = await timeline.add(
                session,
                incident_id=None,
                kind="alarm",
                actor="drbot",
                occurred_at=now,
                text=text,
                data={"alarm": ALARM, "state": state},
                # Two clocks that look at once follow the same entry.
                source_key=f"{ALARM}/{state}/{0 if last is None else last.seq}",
            )
            if new:
                await outbox.add(session, "text", self._on_call, payload={"text": text})
        return text if new else ""
