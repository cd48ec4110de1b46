"""Tells the on-call channel that nobody carries anything out: workers watch the backups, and nobody watches workers."""

from __future__ import annotations

from datetime import datetime, timedelta

from actions.steps.moments import exact
from storage import outbox, processes, timeline
from storage.session import Database

SILENT = timedelta(minutes=5)
"""A worker that is replaced is back sooner."""

ROLE = "worker"


class WorkerWatch:
    """One in each clock; each silence and each return is told once over all of them."""

    def __init__(self, database: Database, *, on_call: str) -> None:
        self._database, self._on_call = database, on_call
        self._since: datetime | None = None  # this clock has seen nobody since
        self._told = ""  # the silence that was told

    async def look(self, now: datetime) -> str:
        """What was told now; empty: nothing."""
        async with self._database.session() as session:
            there = {row.id: row for row in await processes.alive(session, within=timedelta(days=1))}
            known = [row.seen_at for row in there.values() if ROLE in row.roles.split(",") and row.seen_at is not None]
            quick = await processes.alive(session, within=SILENT)
            if any(ROLE in row.roles.split(",") for row in quick):
                silence, since, told = self._told, None, ""
                state, text = "over", "A worker is back: what was asked for goes on."
            else:
                since = self._since = self._since or now
                if self._told or now - since < SILENT:
                    return ""
                silence = f"The last one was seen at {exact(max(known))}." if known else "None was seen for a day."
                told, state = silence, "silent"
                text = (
                    "No worker is there: nothing is carried out, no backup is made, and nobody watches them. "
                    f"{silence} Start `drbot run --role worker`."
                )
            if not silence:
                self._since = since
                return ""
            new = await timeline.add(
                session,
                incident_id=None,
                kind="alarm",
                actor="drbot",
                occurred_at=now,
                text=text,
                data={"alarm": "no-worker", "state": state},
                source_key=f"no-worker/{state}/{silence}/{now:%Y-%m-%d}",
            )
            if new:
                await outbox.add(session, "text", self._on_call, payload={"text": text})
        self._since, self._told = since, told  # once it is stored: what could not be is tried at the next look
        return text if new else ""
