"""The bot's memory on a real PostgreSQL: claims, locks, the append-only record, the outbox."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

from actions.contract import JournalEntry, JournalState, Lock
from actions.errors import TemporaryError
from storage import inbox, migrations, outbox, plans, requests, runs, timeline, visits
from storage.roles import DatabaseRole
from storage.runs import LeaseLostError
from storage.session import Database
from storage.tables import PlanRow, RequestRow
from tests.fixtures.waiting import eventually

NOW = datetime(2026, 2, 26, 10, 30, tzinfo=UTC)
LEASE = timedelta(seconds=30)


async def a_plan(memory: Database, name: str) -> None:
    async with memory.session() as session:
        row = PlanRow(
            id=name,
            action="restore.dump",
            document={},
            digest="d" * 64,
            risk="DESTRUCTIVE",
            plan_schema=1,
            requester="olivia",
            reason="gone",
            channel="C1",
            token=f"token-{name}",
            created_at=NOW,
            expires_at=NOW + timedelta(minutes=15),
        )
        await plans.add(session, row)


async def claim(memory: Database, run: str, owner: str, *locks: Lock) -> int | None:
    async with memory.session() as session:
        return await runs.claim(session, run, owner=owner, lease=LEASE, locks=locks)


async def expire_lease(memory: Database, run: str) -> None:
    async with memory.session() as session:
        statement = text("UPDATE run SET lease_until = clock_timestamp() - interval '1 second' WHERE id = :run")
        await session.execute(statement, {"run": run})


async def test_the_migrations_and_the_models_agree(memory: Database) -> None:
    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), SQLModel.metadata))

    async with memory.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


def test_the_newest_revision_is_the_last_one() -> None:
    assert ScriptDirectory.from_config(migrations.config()).get_current_head() == migrations.NEWEST


async def test_migrating_twice_changes_nothing(memory: Database) -> None:
    await asyncio.gather(memory.migrate(), memory.migrate())


@pytest.mark.parametrize("table", ["timeline_entry", "custody_event", "signature", "refusal", "journal"])
@pytest.mark.parametrize("change", ["DELETE FROM {}", "TRUNCATE {}"])
async def test_the_record_refuses_changes(memory: Database, table: str, change: str) -> None:
    with pytest.raises(DBAPIError, match="append-only"):
        async with memory.session() as session:
            await session.execute(text(change.format(table)))


async def test_a_click_is_stored_once(memory: Database) -> None:
    async with memory.session() as session:
        assert await inbox.store(session, "envelope-1", "command", {"text": "x"})
    async with memory.session() as session:
        assert not await inbox.store(session, "envelope-1", "command", {"text": "x"})


async def test_an_outside_event_lands_on_the_timeline_once(memory: Database) -> None:
    async def add() -> bool:
        async with memory.session() as session:
            return await timeline.add(
                session,
                incident_id=None,
                kind="message",
                actor="olivia",
                occurred_at=NOW,
                text="hello",
                source_key="slack:C1:1.0",
            )

    assert sorted(await asyncio.gather(add(), add(), add())) == [False, False, True]


async def test_one_of_many_claims_a_run(memory: Database) -> None:
    await a_plan(memory, "p1")
    epochs = await asyncio.gather(*(claim(memory, "p1", f"w{number}") for number in range(8)))
    assert sorted(epoch for epoch in epochs if epoch is not None) == [1]


async def test_exclusive_locks_conflict_and_shared_ones_do_not(memory: Database) -> None:
    for name in ("p1", "p2", "p3", "p4"):
        await a_plan(memory, name)
    database, shared = Lock(key="database:a"), Lock(key="database:a", exclusive=False)
    assert await claim(memory, "p1", "w1", shared) == 1
    assert await claim(memory, "p2", "w1", shared) == 1
    assert await claim(memory, "p3", "w1", database) is None
    assert await claim(memory, "p4", "w1", Lock(key="database:b")) == 1
    for name in ("p1", "p2"):
        async with memory.session() as session:
            await runs.end(session, name, owner="w1", epoch=1, state="succeeded", message="", at=NOW)
    assert await claim(memory, "p3", "w1", database) == 1


async def test_conflicting_runs_never_run_together(memory: Database) -> None:
    names = [f"p{number}" for number in range(6)]
    for name in names:
        await a_plan(memory, name)
    epochs = await asyncio.gather(*(claim(memory, name, f"w-{name}", Lock(key="database:a")) for name in names))
    assert [epoch for epoch in epochs if epoch is not None] == [1]


async def test_a_run_that_asks_keeps_its_locks(memory: Database) -> None:
    await a_plan(memory, "p1")
    await a_plan(memory, "p2")
    await claim(memory, "p1", "w1", Lock(key="database:a"))
    async with memory.session() as session:
        await runs.end(session, "p1", owner="w1", epoch=1, state="asking", message="?", at=NOW)
    assert await claim(memory, "p2", "w1", Lock(key="database:a")) is None


async def test_a_taken_over_run_refuses_its_former_owner(memory: Database) -> None:
    await a_plan(memory, "p1")
    await claim(memory, "p1", "w1", Lock(key="database:a"))
    assert await claim(memory, "p1", "w2") is None
    await expire_lease(memory, "p1")
    assert await claim(memory, "p1", "w2") == 2

    entry = JournalEntry(step=0, state=JournalState.APPLYING, at=NOW)
    writes: list[Callable[[AsyncSession], Awaitable[None]]] = [
        lambda s: runs.append(s, "p1", owner="w1", epoch=1, entry=entry),
        lambda s: runs.renew(s, "p1", owner="w1", epoch=1, lease=LEASE),
        lambda s: runs.end(s, "p1", owner="w1", epoch=1, state="succeeded", message="", at=NOW),
    ]
    for write in writes:
        with pytest.raises(LeaseLostError):
            async with memory.session() as session:
                await write(session)
    async with memory.session() as session:
        await runs.append(session, "p1", owner="w2", epoch=2, entry=entry)
        assert [row.epoch for row in await runs.journal(session, "p1")] == [2]


async def test_orphans_are_runs_whose_lease_ran_out(memory: Database) -> None:
    await a_plan(memory, "p1")
    await claim(memory, "p1", "w1")

    async def orphans(lease: timedelta) -> list[str]:
        async with memory.session() as session:
            return list(await runs.orphaned(session, plan_schema=1, lease=lease))

    assert await orphans(timedelta(0)) == []
    await expire_lease(memory, "p1")
    assert await orphans(timedelta(0)) == ["p1"]
    # A server younger than a lease was away itself: its clients must get the time to renew.
    assert await orphans(timedelta(days=365)) == []


async def test_a_worker_knows_when_the_first_lease_runs_out(memory: Database) -> None:
    async def silence() -> timedelta | None:
        async with memory.session() as session:
            return await runs.silence(session)

    assert await silence() is None
    await a_plan(memory, "p1")
    assert await silence() is None
    await claim(memory, "p1", "w1")
    left = await silence()
    assert left is not None
    assert LEASE - timedelta(seconds=10) < left <= LEASE
    # One that has run out already is no reason to look again soon: whoever can take it over does so at once.
    await expire_lease(memory, "p1")
    assert await silence() is None


async def test_a_run_given_up_is_an_orphan_at_once(memory: Database) -> None:
    await a_plan(memory, "p1")
    await claim(memory, "p1", "w1")
    async with memory.session() as session:
        await runs.give_up(session, "p1", owner="w1", epoch=1)
    assert await claim(memory, "p1", "w2") == 2


async def test_a_newer_plan_is_left_to_a_newer_bot(memory: Database) -> None:
    await a_plan(memory, "p1")
    async with memory.session() as session:
        assert [row.id for row in await runs.awaiting(session, plan_schema=1)] == ["p1"]
        assert await runs.awaiting(session, plan_schema=0) == []


async def test_cards_wait_once_and_other_messages_all(memory: Database) -> None:
    async with memory.session() as session:
        for _ in range(3):
            await outbox.add(session, "plan", "C1", ref="p1")
            await outbox.add(session, "text", "C1", payload={"text": "hello"})
    async with memory.session() as session:
        assert sorted(row.kind for row in await outbox.due(session, 10)) == ["plan", "text", "text", "text"]


async def test_a_card_drawn_while_it_is_sent_is_sent_again(memory: Database) -> None:
    async with memory.session() as session:
        await outbox.add(session, "plan", "C1", ref="p1")
    async with memory.session() as session:
        assert len(await outbox.claim(session, 10, hold=timedelta(minutes=1))) == 1
    async with memory.session() as session:
        await outbox.add(session, "plan", "C1", ref="p1")
        assert len(await outbox.due(session, 10)) == 1


async def test_what_a_dead_sender_held_is_due_again(memory: Database) -> None:
    async with memory.session() as session:
        await outbox.add(session, "text", "C1", payload={"text": "x"})
    async with memory.session() as session:
        await outbox.claim(session, 10, hold=timedelta(0))
    async with memory.session() as session:
        await outbox.requeue_silent(session)
        assert [row.attempts for row in await outbox.due(session, 10)] == [1]


async def test_notify_wakes_a_listener_at_commit(memory: Database) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    listener = asyncio.create_task(memory.listen(heard.put_nowait))
    try:
        assert await asyncio.wait_for(heard.get(), 5) == ""
        await a_plan(memory, "p1")
        assert await asyncio.wait_for(heard.get(), 5) == "signature"
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)


async def test_an_absent_database_is_a_temporary_error() -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(TemporaryError, match="does not answer"):
        await database.ready()
    await database.dispose()


async def test_a_silent_transaction_gives_its_locks_back(memory: Database) -> None:
    async with memory.session() as session:
        limit = (await session.execute(text("SHOW idle_in_transaction_session_timeout"))).scalar_one()
    assert limit == "10s"
    async with memory.session() as session:
        await requests.add(session, RequestRow(kind="query", name="status", person="olivia"))
        assert await requests.take(session) is not None
        limit = (await session.execute(text("SHOW idle_in_transaction_session_timeout"))).scalar_one()
    assert limit == "10min"


async def test_turns_are_counted_over_all_processes_and_come_back(memory: Database) -> None:
    within = timedelta(seconds=1)

    async def take(person: str) -> bool:
        async with memory.session() as session:
            return await visits.take(session, person, turns=3, within=within)

    assert sorted(await asyncio.gather(*(take("olivia") for _ in range(8)))) == [False] * 5 + [True] * 3
    assert await take("daniel")
    async with memory.session() as session:
        oldest, first = await visits.refuse(session, "olivia", within=within)
        again = await visits.refuse(session, "olivia", within=within)
    assert first
    assert again == (oldest, False)
    await eventually(lambda: take("olivia"))
    # Turns that are yet to come were written by somebody who wants her locked out.
    async with memory.session() as session:
        future = (
            "UPDATE visit SET at = array_fill(clock_timestamp() + interval '1 day', ARRAY[60]) WHERE person = 'olivia'"
        )
        await session.execute(text(future))
    assert await take("olivia")


async def test_what_comes_back_while_all_connections_are_closed_is_closed_as_well(memory: Database) -> None:
    other = memory.acting_as(DatabaseRole.WORKER)
    async with other.session() as session:
        own = (await session.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        closing = asyncio.create_task(other.dispose())
        await asyncio.sleep(0.05)
    await closing

    async def gone() -> bool:
        async with memory.session() as session:
            there = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
            return bool((await session.execute(there, {"pid": own})).scalar_one() == 0)

    await eventually(gone, within=5)


async def test_who_is_cancelled_while_connecting_leaves_no_connection(memory: Database) -> None:
    """A worker that is stopped, or a question that takes too long, at any moment of a new connection. psycopg warns of
    a connection that is forgotten while it is open, and warnings are errors."""

    async def asks(database: Database) -> None:
        async with database.session() as session:
            await session.execute(text("SELECT 1"))

    for number in range(40):
        other = memory.acting_as(DatabaseRole.WORKER)
        task = asyncio.create_task(asks(other))
        await asyncio.sleep(number / 4000)  # a connection takes some milliseconds
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await other.dispose()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        gc.collect()
    assert not told
