"""The log: leaves in the order they were sealed, checkpoints, and which plans are used up.

A leaf is written by a trigger with its row (revision 0003). It gets its place when the sealer sees it, so a transaction
that commits late is placed late and never lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from storage.session import notify
from storage.tables import CheckpointRow, ConsumedPlan, LeafRow, LogEpoch, SealedLeaf, Subtree, UnsealedLeaf

WANTED, SEALED = "seal", "sealed"
"""Queues of the NOTIFY channel: somebody waits for the sealer; a checkpoint was written."""


BLOCK = 1024
"""Leaves of one subtree that is kept."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Leaves without a place."""

    count: int
    oldest: datetime | None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of the log with the text its leaf is the hash of; `position` is None before it is sealed."""

    position: int | None
    kind: str
    ref: int
    text: str


async def hold(session: AsyncSession) -> bool:
    """Become the one who seals until this transaction ends; False when another one seals."""
    return bool(await session.scalar(text("SELECT pg_try_advisory_xact_lock(hashtext('drbot sealer'))")))


async def ask(session: AsyncSession) -> None:
    """Have what is committed by now sealed at once."""
    await notify(session, WANTED)


async def epoch(session: AsyncSession) -> LogEpoch:
    """The life this database is in."""
    return (await session.execute(select(LogEpoch).order_by(col(LogEpoch.epoch).desc()).limit(1))).scalar_one()


async def begin_epoch(session: AsyncSession, row: LogEpoch) -> None:
    """Start a new life of the database; the sealer writes its first checkpoint."""
    session.add(row)
    await session.flush()
    await notify(session, WANTED)


async def newest(session: AsyncSession) -> CheckpointRow | None:
    """The checkpoint over all that is sealed."""
    statement = select(CheckpointRow).order_by(col(CheckpointRow.number).desc()).limit(1)
    return (await session.execute(statement)).scalar_one_or_none()


async def numbered(session: AsyncSession, number: int) -> CheckpointRow | None:
    """The checkpoint of this number."""
    return await session.get(CheckpointRow, number)


async def first_of(session: AsyncSession, epoch: int) -> CheckpointRow | None:
    """The checkpoint an epoch began with; None before it is sealed."""
    statement = select(CheckpointRow).where(col(CheckpointRow.epoch) == epoch).order_by(col(CheckpointRow.number))
    return (await session.execute(statement.limit(1))).scalar_one_or_none()


async def started_with(session: AsyncSession, number: int) -> LogEpoch | None:
    """The epoch whose first checkpoint has this number."""
    statement = select(LogEpoch).where(col(LogEpoch.number) == number - 1, col(LogEpoch.epoch) > 0)
    return (await session.execute(statement.order_by(col(LogEpoch.epoch).desc()).limit(1))).scalar_one_or_none()


async def after(session: AsyncSession, number: int, *, limit: int) -> Sequence[CheckpointRow]:
    """The checkpoints that follow one, in order."""
    statement = select(CheckpointRow).where(col(CheckpointRow.number) > number)
    return (await session.execute(statement.order_by(col(CheckpointRow.number)).limit(limit))).scalars().all()


async def count(session: AsyncSession) -> int:
    """How many leaves have a place."""
    return int(await session.scalar(select(func.coalesce(func.max(SealedLeaf.position) + 1, 0))) or 0)


async def hashes(session: AsyncSession, start: int, end: int) -> list[bytes]:
    """The hashes of the leaves from `start` up to `end`, in order."""
    statement = (
        select(col(LeafRow.hash))
        .join(SealedLeaf, col(SealedLeaf.leaf_id) == col(LeafRow.id))
        .where(col(SealedLeaf.position) >= start, col(SealedLeaf.position) < end)
        .order_by(col(SealedLeaf.position))
    )
    return list((await session.execute(statement)).scalars())


_PLACE = text(
    """
    WITH taken AS (
        DELETE FROM unsealed_leaf
        WHERE leaf_id IN (SELECT leaf_id FROM unsealed_leaf ORDER BY leaf_id LIMIT :limit)
        RETURNING leaf_id
    ), placed AS (
        INSERT INTO sealed_leaf (position, leaf_id)
        SELECT :size + row_number() OVER (ORDER BY leaf_id) - 1, leaf_id FROM taken
        RETURNING position, leaf_id
    )
    SELECT leaf.hash FROM placed JOIN leaf ON leaf.id = placed.leaf_id ORDER BY placed.position
    """
)


async def place(session: AsyncSession, *, size: int, limit: int) -> list[bytes]:
    """Put waiting leaves behind the first `size`, oldest first; their hashes in order."""
    return list((await session.execute(_PLACE, {"size": size, "limit": limit})).scalars())


async def add_subtree(session: AsyncSession, number: int, root: bytes) -> None:
    """Note the root over a whole block of leaves."""
    session.add(Subtree(number=number, hash=root))


async def subtrees(session: AsyncSession, count: int) -> list[bytes]:
    """The roots of the first `count` blocks, in order."""
    statement = select(col(Subtree.hash)).where(col(Subtree.number) < count).order_by(col(Subtree.number))
    return list((await session.execute(statement)).scalars())


async def add(session: AsyncSession, row: CheckpointRow) -> None:
    """Write a checkpoint and wake those who wait for one."""
    session.add(row)
    await session.flush()
    await notify(session, SEALED)


async def started(session: AsyncSession) -> list[tuple[str, str]]:
    """Plans, with their digests, whose run has started and which no checkpoint says so of yet."""
    statement = text(
        """
        SELECT plan.id, plan.digest FROM run JOIN plan ON plan.id = run.id
        WHERE run.started_at IS NOT NULL AND NOT EXISTS (SELECT FROM consumed_plan WHERE plan_id = run.id)
        ORDER BY run.started_at, plan.id
        """
    )
    return [(row.id, row.digest) for row in await session.execute(statement)]


async def consume(session: AsyncSession, plans: Sequence[tuple[str, str]], *, number: int) -> None:
    """Note which checkpoint says that these plans, with their digests, are used up."""
    if plans:
        rows = [{"plan_id": plan, "digest": digest, "number": number} for plan, digest in plans]
        await session.execute(insert(ConsumedPlan).values(rows).on_conflict_do_nothing())


async def consumed(session: AsyncSession, plan_id: str) -> ConsumedPlan | None:
    """The note that this plan is used up."""
    return await session.get(ConsumedPlan, plan_id)


async def last_signature(session: AsyncSession, plan_id: str) -> int | None:
    """The place of the plan's last signature in the log; None while one of them has none."""
    statement = text(
        """
        SELECT CASE WHEN count(*) = count(sealed_leaf.position) THEN max(sealed_leaf.position) END
        FROM signature
        LEFT JOIN leaf ON leaf.kind = 'signature' AND leaf.ref = signature.id
        LEFT JOIN sealed_leaf ON sealed_leaf.leaf_id = leaf.id
        WHERE signature.plan_id = :plan
        """
    )
    found = await session.scalar(statement, {"plan": plan_id})
    return None if found is None else int(found)


async def of_earlier_epoch(session: AsyncSession, plan_id: str) -> bool:
    """Whether the plan was signed before the database's present life began. By the order of the leaves, since the
    clocks of two machines may differ."""
    statement = text(
        """
        SELECT coalesce(
            (SELECT min(leaf.id) FROM leaf JOIN signature ON leaf.ref = signature.id
                WHERE leaf.kind = 'signature' AND signature.plan_id = :plan)
            < (SELECT leaf.id FROM leaf JOIN log_epoch ON leaf.ref = log_epoch.epoch
                WHERE leaf.kind = 'log_epoch' AND log_epoch.epoch > 0 ORDER BY log_epoch.epoch DESC LIMIT 1),
            false)
        """
    )
    return bool(await session.scalar(statement, {"plan": plan_id}))


async def waiting(session: AsyncSession) -> Waiting:
    """What has no place yet."""
    statement = select(func.count(), func.min(LeafRow.at)).join(UnsealedLeaf, col(UnsealedLeaf.leaf_id) == LeafRow.id)
    number, oldest = (await session.execute(statement)).one()
    return Waiting(count=number, oldest=oldest)


_OF_INCIDENT = text(
    """
    WITH plans AS (SELECT id FROM plan WHERE incident_id = :incident),
    content AS (
        SELECT 'timeline_entry' AS kind, t.seq AS ref, to_jsonb(t) AS value
            FROM timeline_entry t WHERE t.incident_id = :incident
        UNION ALL SELECT 'custody_event', t.id, to_jsonb(t) FROM custody_event t WHERE t.incident_id = :incident
        UNION ALL SELECT 'signature', t.id, to_jsonb(t) FROM signature t JOIN plans ON plans.id = t.plan_id
        UNION ALL SELECT 'refusal', t.id, to_jsonb(t) FROM refusal t JOIN plans ON plans.id = t.plan_id
        UNION ALL SELECT 'journal', t.seq, to_jsonb(t) FROM journal t JOIN plans ON plans.id = t.run_id
    )
    SELECT sealed_leaf.position, content.kind, content.ref,
        jsonb_build_object('kind', content.kind, 'row', content.value)::text AS text
    FROM content
    LEFT JOIN leaf ON leaf.kind = content.kind AND leaf.ref = content.ref
    LEFT JOIN sealed_leaf ON sealed_leaf.leaf_id = leaf.id
    ORDER BY sealed_leaf.position NULLS LAST, content.kind, content.ref
    """
)


async def of_incident(session: AsyncSession, incident_id: str) -> list[Entry]:
    """Everything the log holds about an incident, its evidence and its plans, in the order of the log."""
    await session.execute(text("SET LOCAL TimeZone = 'UTC'"))
    rows = await session.execute(_OF_INCIDENT, {"incident": incident_id})
    return [Entry(position=row.position, kind=row.kind, ref=row.ref, text=row.text) for row in rows]


_PAGE = text(
    """
    SELECT s.position, l.kind, l.ref, jsonb_build_object('kind', l.kind, 'row', CASE l.kind
        WHEN 'timeline_entry' THEN (SELECT to_jsonb(t) FROM timeline_entry t WHERE t.seq = l.ref)
        WHEN 'custody_event' THEN (SELECT to_jsonb(t) FROM custody_event t WHERE t.id = l.ref)
        WHEN 'signature' THEN (SELECT to_jsonb(t) FROM signature t WHERE t.id = l.ref)
        WHEN 'refusal' THEN (SELECT to_jsonb(t) FROM refusal t WHERE t.id = l.ref)
        WHEN 'journal' THEN (SELECT to_jsonb(t) FROM journal t WHERE t.seq = l.ref)
        WHEN 'plan_version' THEN (SELECT to_jsonb(t) FROM plan_version t WHERE t.seq = l.ref)
        WHEN 'log_epoch' THEN (SELECT to_jsonb(t) FROM log_epoch t WHERE t.epoch = l.ref)
    END)::text AS text
    FROM sealed_leaf s JOIN leaf l ON l.id = s.leaf_id
    WHERE s.position >= :start ORDER BY s.position LIMIT :limit
    """
)


async def page(session: AsyncSession, *, start: int, limit: int) -> list[Entry]:
    """Sealed entries from a position on, in the order of the log."""
    await session.execute(text("SET LOCAL TimeZone = 'UTC'"))
    rows = await session.execute(_PAGE, {"start": start, "limit": limit})
    return [Entry(position=row.position, kind=row.kind, ref=row.ref, text=row.text) for row in rows]
