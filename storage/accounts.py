"""What Slack last said of the roster's accounts: written by the process with Slack's tokens, read by the workers, so
that nobody waits for Slack when something is executed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from storage.session import notify
from storage.tables import AccountRow


async def note(session: AsyncSession, account: str, *, problem: str, groups: Collection[str]) -> None:
    """Keep why an account may not sign, empty when nothing speaks against it, and the groups it is in."""
    values = {"problem": problem, "groups": sorted(groups), "seen_at": text("clock_timestamp()")}
    statement = insert(AccountRow).values(account=account, **values)
    await session.execute(statement.on_conflict_do_update(index_elements=["account"], set_=values))
    await notify(session, "signature")  # a plan may rest on this account


async def of(session: AsyncSession, accounts: Collection[str]) -> Sequence[AccountRow]:
    """What is known of these accounts."""
    statement = select(AccountRow).where(col(AccountRow.account).in_(accounts)).order_by(col(AccountRow.account))
    return (await session.execute(statement)).scalars().all()


async def unseen_signers(session: AsyncSession, *, within: timedelta) -> Sequence[str]:
    """Accounts that signed a plan which waits to start, and that nobody has looked at within this time."""
    statement = text("""
        SELECT DISTINCT signature.account
        FROM signature JOIN run ON run.id = signature.plan_id LEFT JOIN account USING (account)
        WHERE run.state = 'awaiting' AND signature.source = 'slack' AND signature.act IN ('request', 'approve')
            AND (account.seen_at IS NULL OR account.seen_at < clock_timestamp() - make_interval(secs => :within))
        ORDER BY 1
    """)
    return (await session.execute(statement, {"within": within.total_seconds()})).scalars().all()
