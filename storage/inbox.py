"""Clicks and commands as they arrived."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from storage.tables import InboxRow


async def store(session: AsyncSession, key: str, kind: str, payload: Mapping[str, Any]) -> bool:
    """True when it is new; False when this key was stored before (a retry, a double delivery)."""
    statement = insert(InboxRow).values(key=key, kind=kind, payload=dict(payload)).on_conflict_do_nothing()
    result = await session.execute(statement.returning(col(InboxRow.key)))
    return result.first() is not None
