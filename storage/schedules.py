"""What the clock has asked for, and what of it is still open."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

NEWEST = """
    SELECT max(right(key, -length(:prefix))) FROM inbox
    WHERE kind = 'schedule' AND starts_with(key, :prefix) AND right(key, -length(:prefix)) ~ '^[0-9T:Z-]+$'
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


async def newest(session: AsyncSession, prefix: str) -> datetime | None:
    """The newest instant that was taken under `prefix`, which ends in a slash; None when none was."""
    found = (await session.execute(text(NEWEST), {"prefix": prefix})).scalar_one()
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
