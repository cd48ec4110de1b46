"""How often each person has asked lately, counted where every process of the bot sees it: one row a person, with the
instants of the turns that were granted."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

# An instant that is yet to come was written by no turn.
_LATELY = (
    "ARRAY(SELECT t FROM unnest(visit.at) AS t"
    " WHERE t > clock_timestamp() - make_interval(secs => :within) AND t <= clock_timestamp())"
)

_TAKE = text(f"""
    INSERT INTO visit (person, at, refused) VALUES (:person, ARRAY[clock_timestamp()], false)
    ON CONFLICT (person) DO UPDATE SET at = {_LATELY} || clock_timestamp(), refused = false
    WHERE cardinality({_LATELY}) < :turns
    RETURNING person
""")  # noqa: S608 - two texts of this file

_REFUSE = text(f"""
    WITH before AS (SELECT person, refused, {_LATELY} AS lately FROM visit WHERE person = :person FOR UPDATE)
    UPDATE visit SET refused = true FROM before WHERE visit.person = before.person
    RETURNING (SELECT min(t) FROM unnest(before.lately) AS t), before.refused
""")  # noqa: S608 - two texts of this file


async def take(session: AsyncSession, person: str, *, turns: int, within: timedelta) -> bool:
    """Take a turn; False when this person has taken so many within this time."""
    values = {"person": person, "turns": turns, "within": within.total_seconds()}
    return (await session.execute(_TAKE, values)).first() is not None


async def refuse(session: AsyncSession, person: str, *, within: timedelta) -> tuple[datetime | None, bool]:
    """Note that no turn was granted: the earliest one that still counts, and whether this is the first refusal in a
    row."""
    row = (await session.execute(_REFUSE, {"person": person, "within": within.total_seconds()})).one()
    return row[0], not row[1]
