"""What the clock has asked for, and what of it is still open."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

NEWEST = """
    SELECT max(right(key, -length(:prefix))) FROM inbox
    WHERE kind = 'schedule' AND starts_with(key, :prefix) AND right(key, -length(:prefix)) ~ '^[0-9T:Z-]+$'
      AND right(key, -length(:prefix)) <= :until
"""

OPEN = """
    SELECT EXISTS (
        SELECT FROM request q LEFT JOIN run r ON r.id = q.plan_id AND q.plan_id <> ''
        WHERE starts_with(q.source_key, :prefix)
          AND (q.state = 'new' OR (q.plan_id <> '' AND r.id IS NOT NULL AND r.ended_at IS NULL))
    )
"""

ENDED = """
    SELECT q.plan_id, r.state, r.message, q.state, q.error, (
        SELECT string_agg(j.detail, ' ' ORDER BY j.seq) FROM journal j
        WHERE j.run_id = r.id AND j.state = 'verified' AND j.detail <> ''
    )
    FROM request q LEFT JOIN run r ON r.id = q.plan_id AND q.plan_id <> ''
    WHERE q.source_key = :key AND (q.state = 'failed' OR r.ended_at IS NOT NULL)
"""

NOT_DONE = ("failed", "stale", "expired", "void", "pre-empted")
"""How a run ends without having done what it was for, when no person wanted it so."""

FAILED = """
    SELECT q.plan_id,
           CASE WHEN q.state = 'failed' THEN 'refused' ELSE r.state END,
           CASE WHEN q.state = 'failed' THEN q.error ELSE r.message END,
           coalesce(r.ended_at, q.created_at)
    FROM request q LEFT JOIN run r ON r.id = q.plan_id AND q.plan_id <> ''
    WHERE q.source_key = :key AND (q.state = 'failed' OR r.state = ANY(:states) AND r.ended_at IS NOT NULL)
"""

SINCE = """
    SELECT coalesce(bool_or(r.ended_at IS NULL), false),
           coalesce(bool_or(r.state = 'succeeded' AND r.ended_at > :since), false)
    FROM plan p JOIN run r ON r.id = p.id
    WHERE p.created_at > :since - interval '7 days'
      AND (
        p.action = :action
          AND (CAST(:target AS text) = '' OR p.document ->> 'target' = CAST(:target AS text))
          AND p.document -> 'params' @> CAST(:params AS jsonb)
        OR p.document #>> '{params,run}' = :failed
      )
"""


@dataclass(frozen=True)
class Failure:
    """How something that was asked for ended without being done. `plan` is empty where none could be made."""

    plan: str
    state: str  # of its run; "refused" where there was none
    message: str
    at: datetime


async def newest(session: AsyncSession, prefix: str, *, until: datetime) -> datetime | None:
    """The newest instant not later than `until` that was taken under `prefix`, which ends in a slash; None when none
    was. A later one was taken by a clock that went wrong, and must not keep the true ones from being asked for."""
    asked = {"prefix": prefix, "until": f"{until.astimezone(UTC):%Y-%m-%dT%H:%MZ}"}
    found = (await session.execute(text(NEWEST), asked)).scalar_one()
    return None if found is None else datetime.fromisoformat(found)


async def is_open(session: AsyncSession, prefix: str) -> bool:
    """Whether something that was asked for under `prefix` waits or runs."""
    return bool((await session.execute(text(OPEN), {"prefix": prefix})).scalar_one())


async def ended(session: AsyncSession, key: str) -> tuple[str, str, str] | None:
    """Plan, state and message of what was asked for under this key (of a run that succeeded: what its steps found);
    None while it is open or unknown."""
    row = (await session.execute(text(ENDED), {"key": key})).first()
    if row is None:
        return None
    plan, state, message, asked, error, found = row
    if asked == "failed":
        return "", "refused", str(error)
    return str(plan), str(state), str(message or found or "")


async def failed(session: AsyncSession, key: str) -> Failure | None:
    """What became of what was asked for under this key, where that is not done; None while it is open, done, or ended
    by people."""
    row = (await session.execute(text(FAILED), {"key": key, "states": list(NOT_DONE)})).first()
    return None if row is None else Failure(str(row[0]), str(row[1]), str(row[2]), row[3])


async def since(
    session: AsyncSession, failure: Failure, *, action: str, target: str, params: Mapping[str, str]
) -> tuple[bool, bool]:
    """Whether the same is open now, whoever asked for it, and whether it was done since it failed: by another run, or
    by a plan of people about the run that failed. An empty target is any."""
    asked = {"since": failure.at, "action": action, "target": target, "params": json.dumps(dict(params))}
    row = (await session.execute(text(SINCE), asked | {"failed": failure.plan or "-"})).one()
    return bool(row[0]), bool(row[1])
