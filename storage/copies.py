"""Dumps that went into the local copy alone, as far as the plans tell."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

UNSENT = """
    SELECT p.document #>> '{steps,0,database}', p.document #>> '{steps,0,backup}'
      FROM plan p JOIN run r ON r.id = p.id
     WHERE p.action = 'backup.dump' AND r.state = 'succeeded' AND p.document #>> '{steps,0,copy_only}' = 'true'
       AND r.ended_at > clock_timestamp() - make_interval(secs => :within)
       AND NOT EXISTS (SELECT FROM plan u JOIN run v ON v.id = u.id
                        WHERE u.action = 'backup.upload'
                          AND u.document #>> '{params,backup}' = p.document #>> '{steps,0,backup}'
                          AND v.state NOT IN ('failed', 'stale', 'expired', 'void', 'denied'))
     ORDER BY r.ended_at
"""


async def unsent(session: AsyncSession, *, within: timedelta) -> list[tuple[str, str]]:
    """Database and backup of every such dump for which no upload has succeeded or is under way, oldest first."""
    rows = await session.execute(text(UNSENT), {"within": within.total_seconds()})
    return [(database, backup) for database, backup in rows]
