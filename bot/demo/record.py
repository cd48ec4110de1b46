"""The bot's record, read from its own PostgreSQL: what the story checks its end against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg.rows import class_row


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A plan after its run. `achieved_rto_s` is None while the incident has not recovered."""

    state: str
    message: str
    signatures: int
    refusals: int
    achieved_rto_s: float | None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the timeline; `at` is text, in UTC."""

    at: str
    actor: str
    text: str


_OUTCOME = """
    SELECT run.state, run.message,
        (SELECT count(DISTINCT person) FROM signature
            WHERE plan_id = plan.id AND act IN ('request', 'approve') AND digest = plan.digest)::int AS signatures,
        (SELECT count(*) FROM refusal WHERE plan_id = plan.id)::int AS refusals,
        extract(epoch FROM incident.recovered_at - incident.impact_started_at)::float AS achieved_rto_s
    FROM plan JOIN run ON run.id = plan.id LEFT JOIN incident ON incident.id = plan.incident_id
    WHERE plan.token = %s
"""
_TIMELINE = """
    SELECT to_char(occurred_at AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"') AS at, actor, text
    FROM timeline_entry WHERE incident_id = (SELECT incident_id FROM plan WHERE token = %s) ORDER BY seq
"""


async def outcome(dsn: str, token: str) -> Outcome | None:
    """Where the plan behind this button stands; None when there is no such plan."""
    async with (
        await psycopg.AsyncConnection.connect(dsn) as connection,
        connection.cursor(row_factory=class_row(Outcome)) as cursor,
    ):
        await cursor.execute(_OUTCOME, [token])
        return await cursor.fetchone()


async def timeline(dsn: str, token: str) -> Sequence[Line]:
    """The timeline of the plan's incident, in the order it was recorded."""
    async with (
        await psycopg.AsyncConnection.connect(dsn) as connection,
        connection.cursor(row_factory=class_row(Line)) as cursor,
    ):
        await cursor.execute(_TIMELINE, [token])
        return await cursor.fetchall()


async def quarantined(server_dsn: str, database: str) -> str | None:
    """The name of the database that was set aside last, as PostgreSQL lists it."""
    query = "SELECT datname FROM pg_database WHERE starts_with(datname, %s) ORDER BY oid DESC LIMIT 1"
    async with await psycopg.AsyncConnection.connect(server_dsn) as connection:
        cursor = await connection.execute(query, [f"{database}_quarantine_"])
        row = await cursor.fetchone()
    return None if row is None else str(row[0])
