"""Runs: claiming by a lease with an epoch, locks, the journal."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, func, not_, or_, select, text, true, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from actions.contract import JournalEntry, Lock
from actions.errors import PermanentError
from storage.session import notify, readable
from storage.tables import SHARED_SLOTS, JournalRow, PlanRow, RunLock, RunRow, lock_range

HELD = ("running", "paused", "asking")
"""States in which a run keeps its locks."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """The runs that one kind of worker looks after: those of `actions`, and those that carry one of them on (`again`),
    or all the others."""

    actions: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    others: bool = True

    def holds(self) -> ColumnElement[bool]:
        """The condition on a plan."""
        about = func.coalesce(col(PlanRow.document)["about"].astext, "")
        theirs = col(PlanRow.action).in_(self.actions) | (col(PlanRow.action).in_(self.again) & about.in_(self.actions))
        return not_(theirs) if self.others else theirs


EVERY_RUN = Share()


class LeaseLostError(PermanentError):
    """Another worker has taken this run over, or it was ended; nothing more may be written for it."""


async def get(session: AsyncSession, run_id: str) -> RunRow | None:
    return await session.get(RunRow, run_id)


async def held(session: AsyncSession, run_id: str) -> RunRow | None:
    """The run, locked for this transaction, whoever owns it."""
    statement = select(RunRow).where(col(RunRow.id) == run_id).with_for_update()
    return (await session.execute(statement.execution_options(populate_existing=True))).scalar_one_or_none()


async def awaiting(session: AsyncSession, *, plan_schema: int, share: Share = EVERY_RUN) -> Sequence[RunRow]:
    """Runs that wait for signatures or for a lock, oldest first."""
    statement = (
        select(RunRow)
        .join(PlanRow, col(PlanRow.id) == col(RunRow.id))
        .where(col(RunRow.state) == "awaiting", col(RunRow.plan_schema) <= plan_schema, share.holds())
        .order_by(col(RunRow.id))
    )
    return (await session.execute(statement)).scalars().all()


async def in_state(session: AsyncSession, states: Iterable[str]) -> Sequence[RunRow]:
    """The runs in one of these states, oldest plan first."""
    statement = select(RunRow).where(col(RunRow.state).in_(tuple(states))).order_by(col(RunRow.id))
    return (await session.execute(statement)).scalars().all()


async def open_heir(session: AsyncSession, run_id: str) -> RunRow | None:
    """A run that is not over and works with what this one has left: a retry, or one that undoes it, or theirs."""
    heirs = text("""
        WITH RECURSIVE heir(id) AS (
            SELECT id FROM plan WHERE document->'params'->>'run' = :run
            UNION
            SELECT plan.id FROM plan JOIN heir ON plan.document->'params'->>'run' = heir.id
        )
        SELECT id FROM heir
    """)
    names = (await session.execute(heirs, {"run": run_id})).scalars().all()
    statement = select(RunRow).where(col(RunRow.id).in_(names), col(RunRow.ended_at).is_(None)).limit(1)
    return (await session.execute(statement)).scalar_one_or_none()


async def orphaned(
    session: AsyncSession, *, plan_schema: int, lease: timedelta, share: Share = EVERY_RUN
) -> Sequence[str]:
    """Runs whose owner has been silent for a lease. None while the server itself is younger than a lease: then it was
    the server that was away, and the owners must get the time to renew."""
    statement = (
        select(col(RunRow.id))
        .join(PlanRow, col(PlanRow.id) == col(RunRow.id))
        .where(
            col(RunRow.state) == "running",
            col(RunRow.plan_schema) <= plan_schema,
            share.holds(),
            text("lease_until < clock_timestamp()"),
            text("pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => :lease)").bindparams(
                lease=lease.total_seconds()
            ),
        )
        .order_by(col(RunRow.lease_until))
    )
    return (await session.execute(statement)).scalars().all()


async def silence(session: AsyncSession) -> timedelta | None:
    """How long from now until the first lease in force runs out, if nobody renews it; None without one."""
    left = text("""
        SELECT extract(epoch FROM min(lease_until) - clock_timestamp())::float8 FROM run
        WHERE state = 'running' AND lease_until > clock_timestamp()
    """)
    seconds = (await session.execute(left)).scalar_one()
    return None if seconds is None else timedelta(seconds=seconds)


async def claim(
    session: AsyncSession, run_id: str, *, owner: str, lease: timedelta, locks: Iterable[Lock]
) -> int | None:
    """Make the run ours and return its epoch; None when it is somebody else's or a lock is taken (try later). When it
    started the database notes by itself (revision 0009)."""
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
    if run.state == "awaiting":
        values["message"] = ""  # why it waited
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


async def holders(session: AsyncSession, run_id: str, locks: Iterable[Lock]) -> Sequence[RunRow]:
    """The other runs that hold a lock which keeps these from being taken."""
    wanted = [
        (col(RunLock.key) == lock.key)
        & (true() if lock.exclusive else col(RunLock.slots) == lock_range(exclusive=True, slot=0))
        for lock in locks
    ]
    if not wanted:
        return ()
    statement = (
        select(RunRow)
        .where(col(RunRow.id).in_(select(col(RunLock.run_id)).where(or_(*wanted))), col(RunRow.id) != run_id)
        .order_by(col(RunRow.id))
    )
    return (await session.execute(statement)).scalars().all()


async def wants(session: AsyncSession, key: str) -> bool:
    """Whether a run that is not over has this lock or will take it, or a plan that can still be signed would."""
    statement = (
        select(col(RunRow.id))
        .join(PlanRow, col(PlanRow.id) == col(RunRow.id))
        .where(col(RunRow.ended_at).is_(None), col(PlanRow.document).contains({"locks": [{"key": key}]}))
        .where((col(RunRow.state) != "awaiting") | (col(PlanRow.expires_at) > func.clock_timestamp()))
        .limit(1)
    )
    return (await session.execute(statement)).scalar_one_or_none() is not None


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


_LAST_LOAD = text(
    """
    SELECT (load.step ->> 'database_bytes')::bigint, line.elapsed_ms, line.at
    FROM journal AS line
    JOIN plan ON plan.id = line.run_id AND plan.action = 'restore.dump'
    CROSS JOIN LATERAL (SELECT plan.document -> 'steps' -> line.step AS step) AS load
    WHERE line.state = 'verified' AND line.elapsed_ms > 0
      AND load.step ->> 'kind' = 'load_dump'
      AND load.step ->> 'database' = :database
      AND (load.step ->> 'database_bytes')::bigint > 0
      AND 1 = (
          SELECT count(*) FROM journal AS begun
          WHERE begun.run_id = line.run_id AND begun.step = line.step AND begun.state = 'applying'
      )
    ORDER BY line.seq DESC
    LIMIT 1
    """
)


async def last_load(session: AsyncSession, database: str) -> tuple[int, int, datetime] | None:
    """Bytes, milliseconds and end of the newest load of this database's dump that went through at the first try."""
    row = (await session.execute(_LAST_LOAD, {"database": database})).one_or_none()
    return None if row is None else (row[0], row[1], row[2])


_FULL_SINCE = text(
    """
    SELECT min(run.started_at) FROM run JOIN plan ON plan.id = run.id
    WHERE plan.action = 'backup.base' AND plan.document ->> 'target' = :server
      AND plan.document -> 'steps' -> 0 ->> 'backup_kind' = 'full'
      AND run.state = 'running' AND run.lease_until > clock_timestamp()
    """
)


async def full_since(session: AsyncSession, server: str) -> datetime | None:
    """When the run began that a worker makes a full base backup of this server in."""
    found: datetime | None = (await session.execute(_FULL_SINCE, {"server": server})).scalar_one_or_none()
    return found


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
    """Leave the run in its final state and give its locks back; one that asks people or is paused keeps them."""
    run = await ours(session, run_id, owner=owner, epoch=epoch)
    message = readable(session, message)
    if state == "paused" and run.order in ("abort", "yield"):
        # Ordered while it was about to stand still: the next worker that looks obeys.
        run.owner = ""
        session.add(run)
        await session.flush()
        await _wake(session, run_id, state="running")
        return
    run.state, run.message, run.owner, run.order = state, message, "", ""
    run.ended_at = None if state in HELD else at
    session.add(run)
    if state not in HELD:
        await session.execute(delete(RunLock).where(col(RunLock.run_id) == run_id))
    await notify(session, "signature")  # a run that waited for these locks may start


async def close_unsigned(session: AsyncSession, run_id: str, *, state: str, message: str, at: datetime) -> bool:
    """End a run that never started: denied, expired or void. False when another worker has ended or started it."""
    closed = await session.execute(
        update(RunRow)
        .where(col(RunRow.id) == run_id, col(RunRow.state) == "awaiting")
        .values(state=state, message=message, ended_at=at)
        .returning(col(RunRow.id))
    )
    return closed.first() is not None


async def order(session: AsyncSession, run_id: str, *, order: str, message: str) -> bool:
    """Tell a run that is running, or is paused, what to do. A paused one is woken up to obey. False when it is neither,
    or has an order that outweighs this one."""
    outweighed = {"pause": ("", "pause"), "yield": ("", "pause", "yield"), "abort": ("", "pause", "yield", "abort")}
    statement = (
        update(RunRow)
        .where(col(RunRow.id) == run_id, col(RunRow.state).in_(("running", "paused")))
        .values(order=order, message=message)
    )
    if order in outweighed:
        statement = statement.where(col(RunRow.order).in_(outweighed[order]))
    ordered = await session.execute(statement.returning(col(RunRow.id)).execution_options(synchronize_session=False))
    if ordered.first() is None:
        return False
    await _wake(session, run_id, state="paused")
    await notify(session, "order")
    return True


async def resume(session: AsyncSession, run_id: str, *, state: str) -> bool:
    """Let a run that asks people, or is paused, be carried on as it stands: its locks are still held, and its unclear
    step is probed again. False when it is not in this state."""
    statement = (
        update(RunRow)
        .where(col(RunRow.id) == run_id, col(RunRow.state) == state)
        .values(order="", message="")
        .returning(col(RunRow.id))
        .execution_options(synchronize_session=False)
    )
    if (await session.execute(statement)).first() is None:
        return False
    await _wake(session, run_id, state=state)
    return True


async def answer(
    session: AsyncSession, run_id: str, *, question: int, answer: str, detail: str, at: datetime, left: bool
) -> bool:
    """Journal what people answered to this very question, and let the run obey it. One that is `left` ends as it stands
    and gives its locks back. False when the run does not ask this any more."""
    run = await held(session, run_id)
    lines = await journal(session, run_id)
    if run is None or run.state != "asking" or not lines or lines[-1].seq != question:
        return False
    session.add(JournalRow(run_id=run_id, epoch=run.epoch, step=lines[-1].step, state=answer, detail=detail, at=at))
    run.order, run.message = "", f"{run.message} {detail}".strip() if left else ""
    session.add(run)
    await session.flush()
    if not left:
        await _wake(session, run_id, state="asking")
        return True
    run.state, run.ended_at = "failed", at
    await session.flush()
    await session.execute(delete(RunLock).where(col(RunLock.run_id) == run_id))
    await notify(session, "signature")  # a run that waited for these locks may start
    return True


async def ask(session: AsyncSession, run_id: str, *, message: str, silent: timedelta) -> bool:
    """Have a run ask people that nobody has carried on for so long after its lease. False when it is not so far."""
    result = await session.execute(
        update(RunRow)
        .where(col(RunRow.id) == run_id, col(RunRow.state) == "running")
        .where(text("lease_until < clock_timestamp() - make_interval(secs => :silent)"))
        .values(state="asking", message=message, owner="")
        .returning(col(RunRow.id))
        .execution_options(synchronize_session=False),
        {"silent": silent.total_seconds()},
    )
    return result.first() is not None


async def waits(session: AsyncSession, run_id: str, *, message: str) -> bool:
    """Say why a signed run does not start. False when that is said already."""
    result = await session.execute(
        update(RunRow)
        .where(col(RunRow.id) == run_id, col(RunRow.state) == "awaiting", col(RunRow.message) != message)
        .values(message=message)
        .returning(col(RunRow.id))
        .execution_options(synchronize_session=False)
    )
    return result.first() is not None


async def _wake(session: AsyncSession, run_id: str, *, state: str) -> None:
    """Have the next worker that looks carry on a run that stands still in this state."""
    await session.execute(
        update(RunRow)
        .where(col(RunRow.id) == run_id, col(RunRow.state) == state)
        .values(state="running", owner="", lease_until=text("clock_timestamp()"))
        .execution_options(synchronize_session=False)
    )
    await notify(session, "signature")


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
