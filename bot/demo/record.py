"""The bot's record, read from its own PostgreSQL: what the story checks its end against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import psycopg
from psycopg.rows import class_row

from actions.errors import PermanentError


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A plan after its run. `achieved_rto_s` is None while the incident has not recovered."""

    state: str
    message: str
    signatures: int
    refusals: int
    achieved_rto_s: float | None


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Who has the run: the epoch rises with every worker that takes it. `loading` from the moment the copy exists that
    the dump is loaded into until the step is over."""

    state: str
    epoch: int
    loading: bool


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
_HOLD = """
    SELECT run.state, run.epoch, coalesce((
        SELECT j.state = 'applying' AND plan.document->'steps'->j.step->>'kind' = 'load_dump'
        FROM journal j WHERE j.run_id = run.id ORDER BY j.seq DESC LIMIT 1), false) AS loading
    FROM plan JOIN run ON run.id = plan.id WHERE plan.token = %s
"""
_TIMELINE = """
    SELECT to_char(occurred_at AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"') AS at, actor, text
    FROM timeline_entry WHERE incident_id = (SELECT incident_id FROM plan WHERE token = %s) ORDER BY seq
"""


@dataclass(frozen=True, kw_only=True)
class PointPlan:
    """The newest restore to a moment. `told` is what its last step found."""

    plan: str
    moment: str
    told: str


_POINT = """
    SELECT plan.id AS plan, plan.document->'steps'->0->>'target_words' AS moment, coalesce((
        SELECT j.detail FROM journal j WHERE j.run_id = plan.id AND j.state = 'verified' ORDER BY j.seq DESC LIMIT 1
    ), '') AS told
    FROM plan WHERE plan.action = 'restore.point' ORDER BY plan.created_at DESC LIMIT 1
"""


async def newest(dsn: str, action: str) -> str | None:
    """What the buttons of the newest plan of this action carry."""
    query = "SELECT token FROM plan WHERE action = %s ORDER BY created_at DESC LIMIT 1"
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        row = await (await connection.execute(query, [action])).fetchone()
    return None if row is None else str(row[0])


async def point(dsn: str) -> PointPlan:
    """Raises PermanentError when there is none."""
    async with (
        await psycopg.AsyncConnection.connect(dsn) as connection,
        connection.cursor(row_factory=class_row(PointPlan)) as cursor,
    ):
        await cursor.execute(_POINT)
        found = await cursor.fetchone()
    if found is None:
        raise PermanentError("There is no restore to a moment in the record.")
    return found


async def outcome(dsn: str, token: str) -> Outcome | None:
    """Where the plan behind this button stands; None when there is no such plan."""
    async with (
        await psycopg.AsyncConnection.connect(dsn) as connection,
        connection.cursor(row_factory=class_row(Outcome)) as cursor,
    ):
        await cursor.execute(_OUTCOME, [token])
        return await cursor.fetchone()


async def hold(dsn: str, server_dsn: str, token: str, database: str) -> Hold | None:
    """Who has the run behind this button, and whether it is in the middle of its load; None without such a plan."""
    async with (
        await psycopg.AsyncConnection.connect(dsn) as connection,
        connection.cursor(row_factory=class_row(Hold)) as cursor,
    ):
        await cursor.execute(_HOLD, [token])
        found = await cursor.fetchone()
    if found is None or not found.loading:
        return found
    return replace(found, loading=await _newest(server_dsn, f"{database}_restore_") is not None)


async def refused(dsn: str, account: str, code: str) -> bool:
    """Whether the record holds a refusal of this account for this reason that belongs to no plan."""
    query = "SELECT FROM refusal WHERE plan_id IS NULL AND account = %s AND code = %s"
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        return await (await connection.execute(query, [account, code])).fetchone() is not None


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
    return await _newest(server_dsn, f"{database}_quarantine_")


async def _newest(server_dsn: str, prefix: str) -> str | None:
    query = "SELECT datname FROM pg_database WHERE starts_with(datname, %s) ORDER BY oid DESC LIMIT 1"
    async with await psycopg.AsyncConnection.connect(server_dsn) as connection:
        cursor = await connection.execute(query, [prefix])
        row = await cursor.fetchone()
    return None if row is None else str(row[0])
