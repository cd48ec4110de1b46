"""Runs: claiming by a lease with an epoch, locks, the journal."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, or_, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from actions.contract import JournalEntry, Lock
from actions.errors import PermanentError
from storage.session import notify, readable
from storage.tables import SHARED_SLOTS, JournalRow, RunLock, RunRow, lock_range

HELD = ("running", "asking")
"""States in which a run keeps its locks."""


class LeaseLostError(PermanentError):
    """Another worker has taken this run over, or it was ended; nothing more may be written for it."""


async def get(session: AsyncSession, run_id: str) -> RunRow | None:
    return await session.get(RunRow, run_id)


async def awaiting(session: AsyncSession, *, plan_schema: int) -> Sequence[RunRow]:
    """Runs that wait for signatures or for a lock, oldest first."""
    statement = (
        select(RunRow)
        .where(col(RunRow.state) == "awaiting", col(RunRow.plan_schema) <= plan_schema)
        .order_by(col(RunRow.id))
    )
    return (await session.execute(statement)).scalars().all()


async def orphaned(session: AsyncSession, *, plan_schema: int, lease: timedelta) -> Sequence[str]:
    """Runs whose owner has been silent for a lease. None while the server itself is younger than a lease: then it was
    the server that was away, and the owners must get the time to renew."""
    statement = (
        select(col(RunRow.id))
        .where(
            col(RunRow.state) == "running",
            col(RunRow.plan_schema) <= plan_schema,
            text("lease_until < clock_timestamp()"),
            text("pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => :lease)").bindparams(
                lease=lease.total_seconds()
            ),
        )
        .order_by(col(RunRow.lease_until))
    )
    return (await session.execute(statement)).scalars().all()


async def claim(
    session: AsyncSession, run_id: str, *, owner: str, lease: timedelta, locks: Iterable[Lock]
) -> int | None:
    """Make the run ours and return its epoch; None when it is somebody else's or a lock is taken (try later)."""
    statement = (
        select(RunRow)
        .where(
            col(RunRow.id) == run_id,
            or_(
                col(RunRow.state) == "awaiting",
                (col(RunRow.state) == "running") & text("lease_until < clock_timestamp()"),
            ),
        )
        .with_for_update(skip_locked=True)
    )
    run = (await session.execute(statement)).scalar_one_or_none()
    if run is None or (run.state == "awaiting" and not await _lock(session, run_id, locks)):
        return None
    values: dict[str, Any] = {"state": "running", "owner": owner, "epoch": run.epoch + 1}
    if run.started_at is None:
        values["started_at"] = text("clock_timestamp()")
    await session.execute(
        update(RunRow)
        .where(col(RunRow.id) == run_id)
        .values(**values, lease_until=text("clock_timestamp() + make_interval(secs => :lease)"))
        .execution_options(synchronize_session=False),
        {"lease": lease.total_seconds()},
    )
    return run.epoch + 1


async def _lock(session: AsyncSession, run_id: str, locks: Iterable[Lock]) -> bool:
    try:
        async with session.begin_nested():
            for lock in sorted(locks, key=lambda item: item.key):
                slot = random.randrange(SHARED_SLOTS)  # noqa: S311 - not a secret; a clash only means "try later"
                session.add(RunLock(key=lock.key, run_id=run_id, slots=lock_range(exclusive=lock.exclusive, slot=slot)))
            await session.flush()
    except IntegrityError:
        return False
    return True


async def renew(session: AsyncSession, run_id: str, *, owner: str, epoch: int, lease: timedelta) -> None:
    """Keep the lease. Raises LeaseLostError when the run is no longer ours."""
    result = await session.execute(
        update(RunRow)
        .where(col(RunRow.id) == run_id, col(RunRow.owner) == owner, col(RunRow.epoch) == epoch)
        .where(col(RunRow.state) == "running")
        .values(lease_until=text("clock_timestamp() + make_interval(secs => :lease)"))
        .returning(col(RunRow.id))
        .execution_options(synchronize_session=False),
        {"lease": lease.total_seconds()},
    )
    if result.first() is None:
        raise LeaseLostError(f"Run {run_id} has another owner.")


async def ours(session: AsyncSession, run_id: str, *, owner: str, epoch: int) -> RunRow:
    """The run, locked for this transaction. Raises LeaseLostError when it is no longer ours."""
    statement = (
        select(RunRow)
        .where(col(RunRow.id) == run_id, col(RunRow.owner) == owner, col(RunRow.epoch) == epoch)
        .where(col(RunRow.state) == "running")
        .with_for_update()
    )
    run = (await session.execute(statement)).scalar_one_or_none()
    if run is None:
        raise LeaseLostError(f"Run {run_id} has another owner.")
    return run


async def journal(session: AsyncSession, run_id: str) -> Sequence[JournalRow]:
    statement = select(JournalRow).where(col(JournalRow.run_id) == run_id).order_by(col(JournalRow.seq))
    return (await session.execute(statement)).scalars().all()


async def append(session: AsyncSession, run_id: str, *, owner: str, epoch: int, entry: JournalEntry) -> None:
    """One journal line under our epoch. Raises LeaseLostError when the run is no longer ours."""
    await ours(session, run_id, owner=owner, epoch=epoch)
    session.add(
        JournalRow(
            run_id=run_id,
            epoch=epoch,
            step=entry.step,
            state=entry.state,
            detail=readable(session, entry.detail),
            at=entry.at,
            elapsed_ms=entry.elapsed_ms,
        )
    )
    await session.flush()


async def end(
    session: AsyncSession, run_id: str, *, owner: str, epoch: int, state: str, message: str, at: datetime
) -> None:
    """Leave the run in its final state and give its locks back; one that asks people keeps them."""
    run = await ours(session, run_id, owner=owner, epoch=epoch)
    message = readable(session, message)
    run.state, run.message, run.owner = state, message, ""
    run.ended_at = None if state in HELD else at
    session.add(run)
    if state not in HELD:
        await session.execute(delete(RunLock).where(col(RunLock.run_id) == run_id))
    await notify(session, "signature")  # a run that waited for these locks may start


async def close_unsigned(session: AsyncSession, run_id: str, *, state: str, message: str, at: datetime) -> None:
    """End a run that never started: denied, expired or void."""
    await session.execute(
        update(RunRow)
        .where(col(RunRow.id) == run_id, col(RunRow.state) == "awaiting")
        .values(state=state, message=message, ended_at=at)
    )


async def resume(session: AsyncSession, run_id: str) -> bool:
    """Let a run that asks people be carried on: its locks are still held, and its unclear step is probed again. False
    when it does not ask."""
    result = await session.execute(
        update(RunRow)
        .where(col(RunRow.id) == run_id, col(RunRow.state) == "asking")
        .values(state="running", message="", lease_until=text("clock_timestamp()"))
        .returning(col(RunRow.id))
        .execution_options(synchronize_session=False)
    )
    await notify(session, "signature")
    return result.first() is not None


async def leave(session: AsyncSession, run_id: str, *, message: str, at: datetime) -> bool:
    """End a run that asks people as it stands, and give its locks back. False when it does not ask."""
    result = await session.execute(
        update(RunRow)
        .where(col(RunRow.id) == run_id, col(RunRow.state) == "asking")
        .values(state="failed", message=message, ended_at=at)
        .returning(col(RunRow.id))
        .execution_options(synchronize_session=False)
    )
    left = result.first() is not None
    if left:
        await session.execute(delete(RunLock).where(col(RunLock.run_id) == run_id))
        await notify(session, "signature")  # a run that waited for these locks may start
    return left


async def set_progress(session: AsyncSession, run_id: str, *, epoch: int, progress: dict[str, Any]) -> None:
    """Figures for people; lost with the next crash, which is fine."""
    await session.execute(
        update(RunRow)
        .where(col(RunRow.id) == run_id, col(RunRow.epoch) == epoch)
        .values(progress=readable(session, progress))
    )


async def give_up(session: AsyncSession, run_id: str, *, owner: str, epoch: int) -> None:
    """Hand the run to the next worker at once (an orderly stop)."""
    await session.execute(
        update(RunRow)
        .where(col(RunRow.id) == run_id, col(RunRow.owner) == owner, col(RunRow.epoch) == epoch)
        .values(lease_until=text("clock_timestamp()"))
        .execution_options(synchronize_session=False)
    )
    await notify(session, "signature")
