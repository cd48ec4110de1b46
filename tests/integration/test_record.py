"""The record as a log: leaves by trigger, places by the sealer, checkpoints at witnesses, a database that forgot."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from actions.errors import PermanentError, TemporaryError, UnknownOutcomeError, UserError, VerificationError
from actions.merkle import Tree
from bot.services.record.adoption import begin
from bot.services.record.checkpoint import Checkpoint, Signed
from bot.services.record.watch import Footing
from bot.services.record.witness import newest_of
from storage import record, timeline
from storage.roles import DatabaseRole
from storage.session import NotAllowedError
from storage.tables import PlanRow, RunRow, SignatureRow
from tests.fakes.witness import MemoryWitness
from tests.fixtures.adopting import AdoptersForTests
from tests.fixtures.ledger import LedgerForTests
from tests.fixtures.ssh_keys import MakeKey

pytestmark = pytest.mark.integration


async def a_plan(ledger: LedgerForTests, plan_id: str = "plan000001", *, started: bool = True) -> PlanRow:
    """A signed plan whose run has started."""
    now = ledger.clock.now()
    row = PlanRow(
        id=plan_id,
        action="toy.run",
        digest=hashlib.sha256(plan_id.encode()).hexdigest(),
        risk="DESTRUCTIVE",
        plan_schema=1,
        requester="olivia",
        reason="gone",
        channel="C1",
        token=plan_id,
        created_at=now,
        expires_at=now,
    )
    async with ledger.memory.session() as session:
        session.add(row)
        await session.flush()
        session.add(RunRow(id=plan_id, plan_schema=1, state="running" if started else "awaiting"))
        session.add(
            SignatureRow(
                plan_id=plan_id, person="olivia", act="request", digest=row.digest, reason="gone", source="slack",
                account="U1", at=now,
            )
        )  # fmt: skip
    return row


async def test_every_row_of_the_record_is_a_leaf_with_the_hash_of_its_text(ledger: LedgerForTests) -> None:
    await ledger.note("it's “odd”, \\ 9 < 10\n€")
    await a_plan(ledger)
    async with ledger.memory.session() as session:
        await timeline.refuse(session, plan_id="plan000001", account="U9", person="", code="stranger", text="no")
        await session.execute(
            text("INSERT INTO journal (run_id, epoch, step, state, detail, at, elapsed_ms) "
                 "VALUES ('plan000001', 1, 0, 'applying', '', now(), 1)")
        )  # fmt: skip
        await session.execute(text("INSERT INTO plan_version (sha256, document, plan_id) VALUES ('ab', 'x', '')"))
    async with ledger.memory.session() as session:
        await session.execute(text("SET LOCAL TimeZone = 'Asia/Tokyo'"))
        await timeline.refuse(session, plan_id=None, account="U9", person="", code="stranger", text="far away")
    await ledger.sealer().seal()
    kinds = ["log_epoch", "timeline_entry", "signature", "refusal", "journal", "plan_version", "refusal"]
    async with ledger.memory.session() as session:
        found = (
            await session.execute(
                text("SELECT kind, ref, hash FROM leaf JOIN sealed_leaf ON leaf_id = id ORDER BY position")
            )
        ).all()
        assert [row.kind for row in found] == kinds
        await session.execute(text("SET LOCAL TimeZone = 'UTC'"))
        for kind, ref, stored in found:
            key = {"signature": "id", "refusal": "id", "log_epoch": "epoch"}.get(kind, "seq")
            value = await session.scalar(
                text(
                    f"SELECT jsonb_build_object('kind', '{kind}', 'row', to_jsonb(t))::text "
                    f"FROM {kind} t WHERE {key} = :ref"
                ),
                {"ref": ref},
            )
            assert hashlib.sha256(b"\x00" + str(value).encode()).digest() == stored
        newest = await record.newest(session)
    assert newest is not None
    assert newest.root == Tree([row.hash for row in found]).root


async def test_a_transaction_that_commits_late_is_placed_late_and_not_lost(ledger: LedgerForTests) -> None:
    await ledger.sealed("first")
    async with ledger.memory.session() as slow:
        await timeline.add(
            slow, incident_id=None, kind="note", actor="Olivia", occurred_at=ledger.clock.now(), text="slow"
        )
        await ledger.sealed("quick")
    await ledger.sealed()
    async with ledger.memory.session() as session:
        texts = await session.execute(
            text("SELECT t.text FROM sealed_leaf s JOIN leaf l ON l.id = s.leaf_id "
                 "JOIN timeline_entry t ON t.seq = l.ref WHERE l.kind = 'timeline_entry' ORDER BY s.position")
        )  # fmt: skip
        assert list(texts.scalars()) == ["first", "quick", "slow"]


async def test_a_rolled_back_entry_leaves_no_leaf_and_no_gap(ledger: LedgerForTests) -> None:
    async with ledger.memory.engine.connect() as connection:
        await connection.execute(text("INSERT INTO refusal (account, person, code, text) VALUES ('U9', '', 'x', 'x')"))
        await connection.rollback()
    await ledger.sealed("after")
    assert await ledger.scalar("SELECT count(*) FROM leaf WHERE kind = 'refusal'") == 0
    assert await ledger.scalar("SELECT max(position) + 1 - count(*) FROM sealed_leaf") == 0


async def test_several_sealers_and_writers_lose_nothing(ledger: LedgerForTests) -> None:
    async def write(name: str) -> None:
        for number in range(40):
            await ledger.note(f"{name} {number}")

    async with ledger.sealing(3):
        await asyncio.gather(*(write(f"writer {number}") for number in range(4)))
        async with asyncio.timeout(20):
            for witness in ledger.kept:
                while not await ledger.is_up_to_date(witness):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
    assert await ledger.scalar("SELECT count(DISTINCT leaf_id) FROM sealed_leaf") == 161
    assert await ledger.scalar("SELECT max(position) FROM sealed_leaf") == 160
    async with ledger.memory.session() as session:
        tree = Tree(await record.hashes(session, 0, 161))
        newest = await record.newest(session)
    assert newest is not None
    assert newest.root == tree.root
    for witness in ledger.kept:
        found = [ledger.trust.check(Signed.read(line)) for line in witness.lines]
        assert {item.number for item in found} == set(range(1, newest.number + 1))


async def test_a_witness_that_is_away_holds_nobody_up_and_is_brought_all_later(ledger: LedgerForTests) -> None:
    away, there = ledger.kept
    away.away = True
    async with ledger.sealing():
        for number in range(3):
            await ledger.note(f"note {number}")
            await asyncio.sleep(0.12)
        async with asyncio.timeout(10):
            while not await ledger.is_up_to_date(there):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert away.lines == []
        away.away = False
        async with asyncio.timeout(15):
            while not await ledger.is_up_to_date(away):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert away.lines == there.lines


async def test_the_clock_alone_seals(ledger: LedgerForTests) -> None:
    worker = ledger.memory.acting_as(DatabaseRole.WORKER)
    try:
        await ledger.note("one")
        with pytest.raises(NotAllowedError):
            await ledger.sealer(database=worker).seal()
    finally:
        await worker.dispose()


async def test_a_head_is_told_in_the_channel_when_there_is_news(ledger: LedgerForTests) -> None:
    sealer = ledger.sealer(channel="C0AUDIT")
    for _ in range(3):
        await ledger.note("news")
        await sealer.seal()
    query = "SELECT count(*) FROM outbox WHERE channel = 'C0AUDIT' AND payload ->> 'text' LIKE 'Record: checkpoint 1 %'"
    assert await ledger.scalar("SELECT count(*) FROM outbox") == await ledger.scalar(query) == 1


async def test_the_channel_of_an_incident_is_told_every_half_hour_and_at_its_end(ledger: LedgerForTests) -> None:
    clock = ledger.clock
    sealer = ledger.sealer(channel="C0AUDIT")

    async def told(minutes: int, *statements: str) -> list[str]:
        """The channels that are told of what is sealed so many minutes later, after these statements."""
        clock.advance(timedelta(minutes=minutes))  # type: ignore[attr-defined]
        async with ledger.memory.session() as session:
            await session.execute(text("DELETE FROM outbox"))
            for statement in statements:
                await session.execute(text(statement), {"now": clock.now()})
        await ledger.note("news")
        await sealer.seal()
        async with ledger.memory.session() as session:
            rows = await session.execute(text("SELECT channel, payload ->> 'text' FROM outbox ORDER BY channel"))
            found = [tuple(row) for row in rows]
        head = f"Record: checkpoint {await ledger.number()} at "
        assert [said for _, said in found if not said.startswith(head)] == []
        return [channel for channel, _ in found]

    def opened(name: str, channel: str) -> str:
        return (
            "INSERT INTO incident (id, title, severity, commander, channel, scenario, impact_started_at, declared_at, "
            f"rto_s) VALUES ('{name}', 'gone', 'SEV1', 'olivia', '{channel}', '', :now, :now, 3600)"
        )

    assert await told(0, opened("one", "C0ONE"), opened("two", "C0TWO"), opened("silent", "")) == ["C0AUDIT"]
    assert await told(9) == []
    assert await told(1) == ["C0AUDIT"]
    assert await told(20) == ["C0AUDIT", "C0ONE", "C0TWO"]
    # It moved into a channel of its own: where it was asked for nobody is told.
    assert await told(5, "UPDATE incident SET channel = 'C0NEW' WHERE id = 'two'") == []
    assert await told(0, "UPDATE incident SET closed_at = :now WHERE id = 'one'") == ["C0ONE"]
    assert await told(30) == ["C0AUDIT", "C0NEW"]
    assert await told(60, "UPDATE incident SET closed_at = :now WHERE id = 'two'") == ["C0AUDIT", "C0NEW"]
    assert await told(60) == ["C0AUDIT"]


# ---------------------------------------------------------------- before a destructive step


async def test_a_plan_is_covered_once_a_witness_has_seen_its_signature_and_its_start(ledger: LedgerForTests) -> None:
    row = await a_plan(ledger)
    with pytest.raises(PermanentError, match=r"has not sealed them; check that `drbot run --role clock`"):
        await ledger.watch().covered(row)
    ledger.kept[0].away = True
    await ledger.sealed()
    await ledger.watch().covered(row)
    ledger.kept[1].away = True
    with pytest.raises(PermanentError, match=r"`local`.*is away.*`vault`.*is away"):
        await ledger.watch().covered(row)


async def test_a_witness_that_has_not_seen_the_last_signature_does_not_cover_it(ledger: LedgerForTests) -> None:
    row = await a_plan(ledger)
    await ledger.sealed()
    async with ledger.memory.session() as session:
        session.add(
            SignatureRow(
                plan_id=row.id, person="daniel", act="approve", digest=row.digest, reason="seen", source="slack",
                account="U2", at=ledger.clock.now(),
            )
        )  # fmt: skip
    await ledger.sealer().seal()  # and not published
    with pytest.raises(PermanentError, match="older than the last signature"):
        await ledger.watch().covered(row)


async def test_an_old_checkpoint_covers_nothing(ledger: LedgerForTests) -> None:
    row = await a_plan(ledger)
    await ledger.sealed()
    ledger.clock.advance(timedelta(minutes=10, seconds=1))  # type: ignore[attr-defined]
    with pytest.raises(PermanentError, match=r"is 0:10:01 old, the plan allows 0:10:00"):
        await ledger.watch().covered(row)
    await ledger.sealed()  # no news, and yet a checkpoint: the log is alive
    await ledger.watch().covered(row)


async def test_a_forged_checkpoint_covers_nothing(ledger: LedgerForTests) -> None:
    row = await a_plan(ledger)
    sealer = ledger.sealer(key=Ed25519PrivateKey.generate())
    await sealer.seal()
    await ledger.published(sealer)
    with pytest.raises(PermanentError, match="has no checkpoint yet"):
        await ledger.watch().covered(row)


@pytest.mark.parametrize("first", [0, 1])
async def test_a_witness_of_another_past_outweighs_one_that_covers(ledger: LedgerForTests, first: int) -> None:
    """Whoever answers first: the database and one witness may have gone back together."""
    row = await a_plan(ledger)
    await ledger.sealed()
    behind, ahead = ledger.kept[first], ledger.kept[1 - first]
    behind.away = True
    await ledger.sealed("since")
    behind.away = False
    async with ledger.memory.session() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        await session.execute(text("DELETE FROM checkpoint WHERE number = 2"))
    watch = ledger.watch()
    with pytest.raises(
        UnknownOutcomeError, match=rf"`{ahead.name}` holds checkpoint 2.*this database has checkpoint 1"
    ):
        await watch.covered(row)
    ahead.away = True  # and what it has shown is not forgotten
    with pytest.raises(UnknownOutcomeError, match="shown checkpoint 2, this database has only 1"):
        await watch.number()
    assert "shown checkpoint 2" in await watch.disagreement()
    assert not await watch.may_claim()


async def test_a_witness_that_hangs_holds_up_no_step_that_another_one_covers(ledger: LedgerForTests) -> None:
    class Hanging(MemoryWitness):
        async def newest(self, limit: int) -> Sequence[str]:
            await asyncio.sleep(60)
            return await super().newest(limit)

    row = await a_plan(ledger)
    await ledger.sealed()
    async with asyncio.timeout(4.5):  # less than a call to a witness may take
        await ledger.watch(witnesses=[Hanging("far"), *ledger.kept]).covered(row)


async def test_the_guard_wakes_the_sealer(ledger: LedgerForTests) -> None:
    async with ledger.sealing():
        row = await a_plan(ledger)
        await ledger.watch(patience=timedelta(seconds=10)).covered(row)


# ---------------------------------------------------------------- a database that forgot


async def forget(ledger: LedgerForTests, *plans: str, above: int) -> None:
    """Put the database back to an earlier state, as a restore from a backup would."""
    async with ledger.memory.session() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        gone = (
            "SELECT ref FROM leaf JOIN sealed_leaf ON leaf_id = id WHERE kind = 'timeline_entry' AND position >= :above"
        )
        for statement in (
            "DELETE FROM checkpoint WHERE size > :above",
            f"DELETE FROM timeline_entry WHERE seq IN ({gone})",
            "DELETE FROM leaf l USING sealed_leaf s WHERE s.leaf_id = l.id AND s.position >= :above",
            "DELETE FROM sealed_leaf WHERE position >= :above",
        ):
            await session.execute(text(statement), {"above": above})
        for plan in plans:
            await session.execute(text("DELETE FROM consumed_plan WHERE plan_id = :plan"), {"plan": plan})
            await session.execute(text("UPDATE run SET started_at = NULL, state = 'awaiting'"))


async def test_a_restored_database_starts_nothing_and_seals_nothing(ledger: LedgerForTests) -> None:
    await ledger.sealed("one", "two")
    await ledger.sealed("three")
    assert await ledger.watch().may_claim()
    await forget(ledger, above=3)
    watch = ledger.watch()
    assert "restored from a backup" in await watch.disagreement()
    assert not await watch.may_claim()
    assert not await ledger.sealer().agrees()
    ledger.kept[0].away = True  # one witness is enough to know
    assert "Witness `local`" in await watch.disagreement()


async def test_a_run_notices_that_its_database_goes_back_though_no_witness_is_asked(ledger: LedgerForTests) -> None:
    footing = Footing(ledger.watch())
    await ledger.sealed("one")
    await footing.holds()
    await ledger.sealed("two")
    await footing.holds()
    await footing.holds()
    await forget(ledger, above=2)
    with pytest.raises(UnknownOutcomeError, match=r"gone back under this run, from checkpoint 2 to 1.*`drbot record"):
        await footing.holds()


async def test_a_database_made_anew_is_noticed(ledger: LedgerForTests) -> None:
    await ledger.sealed("one", "two")
    await forget(ledger, above=0)
    assert "this database has none" in await ledger.watch().disagreement()


async def test_a_rewritten_checkpoint_is_noticed(ledger: LedgerForTests) -> None:
    await ledger.sealed("one", "two")
    async with ledger.memory.session() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        await session.execute(text("UPDATE checkpoint SET body = replace(body, 'size', 'sise')"))
    assert "its record was rewritten" in await ledger.watch().disagreement()


async def test_leaves_that_were_changed_are_not_signed(ledger: LedgerForTests) -> None:
    await ledger.sealed("one", "two")
    async with ledger.memory.session() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        await session.execute(text("UPDATE leaf SET hash = sha256('x') WHERE id = 2"))
    await ledger.note("three")
    with pytest.raises(PermanentError, match="are not those that were signed"):
        await ledger.sealer().seal()


async def test_places_that_nobody_signed_are_not_built_on(ledger: LedgerForTests) -> None:
    await ledger.sealed("one")
    await ledger.note("two")
    async with ledger.memory.session() as session:
        await session.execute(text("INSERT INTO sealed_leaf SELECT 2, leaf_id FROM unsealed_leaf"))
    with pytest.raises(PermanentError, match="places that no checkpoint covers"):
        await ledger.sealer().seal()


async def test_adopting_starts_an_epoch_in_which_the_past_is_void(ledger: LedgerForTests, make_key: MakeKey) -> None:
    both = AdoptersForTests(ledger, make_key)
    await ledger.sealed("one")
    earlier = await a_plan(ledger, "before0001", started=False)
    await ledger.sealed()  # three leaves: this is what the backup has
    used = await a_plan(ledger, "used000001")
    await ledger.sealed("two")
    await forget(ledger, used.id, above=3)
    cli = ledger.memory.acting_as(DatabaseRole.CLI)
    adoption = both.adoption(cli)
    with pytest.raises(UserError, match="Say why"):
        await adoption.statement("olivia", " ")
    words, _ = await adoption.statement("olivia", "the disk failed")
    assert "agree on 3 entries. 2 more that the witnesses know are given up; 0 that only this database" in words
    assert "a second person must run the same command" in await both.signs(adoption, "olivia")
    watch, clock = ledger.watch(), ledger.as_clock
    assert not await begin(clock, ledger.watch(database=clock), ledger.clock)  # one person is not enough
    assert "the sealer starts epoch 1" in await both.signs(adoption, "daniel")
    assert await begin(clock, ledger.watch(database=clock), ledger.clock)
    await cli.dispose()

    assert not await watch.may_claim()  # not before the sealer knows what is used up
    await ledger.sealed()
    assert await watch.may_claim()
    async with ledger.memory.session() as session:
        assert "restored after this plan was signed" in await watch.void(session, earlier, started=False)
        assert "restored after this plan was signed" in await watch.void(session, earlier, started=True)
        assert await record.consumed(session, used.id) is not None
    later = await a_plan(ledger, "after00001", started=False)
    async with ledger.memory.session() as session:
        assert await watch.void(session, later, started=False) == ""
    newest = await newest_of(ledger.kept[0], ledger.trust)
    assert newest is not None
    assert (newest.epoch, newest.base) == (1, 3)
    with pytest.raises(UserError, match="nothing to adopt"):
        await both.adoption(ledger.memory).statement("olivia", "again")


async def test_what_a_witness_knows_as_used_never_starts(ledger: LedgerForTests) -> None:
    row = await a_plan(ledger)
    await ledger.sealed()
    async with ledger.memory.session() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))  # as a restore writes it
        await session.execute(text("UPDATE run SET started_at = NULL, state = 'awaiting'"))
        assert "has run already" in await ledger.watch().void(session, row, started=False)
        assert await ledger.watch().void(session, row, started=True) == ""


async def test_no_witness_no_new_epoch(ledger: LedgerForTests, make_key: MakeKey) -> None:
    await ledger.sealed("one", "two")
    await forget(ledger, above=0)
    await AdoptersForTests(ledger, make_key).adopt(ledger.memory)
    for witness in ledger.kept:
        witness.away = True
    with pytest.raises(TemporaryError, match="No witness can be read"):
        await ledger.sealer().seal()


async def test_the_log_is_append_only_for_its_owner_too(ledger: LedgerForTests) -> None:
    await ledger.sealed("one")
    for table in ("leaf", "sealed_leaf", "checkpoint", "consumed_plan", "log_epoch"):
        for change in (f"DELETE FROM {table}", f"TRUNCATE {table}"):
            with pytest.raises((DBAPIError, PermanentError), match="append-only"):
                async with ledger.memory.session() as session:
                    await session.execute(text(change))


def test_a_checkpoint_is_read_as_it_was_written(ledger: LedgerForTests) -> None:
    made = Checkpoint(
        number=7, epoch=0, base=3, size=9, root="ab" * 32, at=ledger.clock.now(), key="k", consumed=()
    )  # fmt: skip
    assert Checkpoint.parse(made.body()) == made
    for wrong in ("", "something else", made.body().replace("size 9", "size 09"), made.body() + "more\n"):
        with pytest.raises(VerificationError):
            Checkpoint.parse(wrong)
