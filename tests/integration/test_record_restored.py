"""The bot's own database comes back from a backup in which a signature was not used yet."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from psycopg import sql
from sqlalchemy import text

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.contract import Verdict
from bot.doctor import Doctor
from bot.services.cards import PlanState
from bot.services.record.checkpoint import Signed, Signer
from storage.session import Database
from tests.fakes.clock import TravellingClock
from tests.fakes.toy import WORLD, ToyStep
from tests.fixtures.adopting import AdoptersForTests
from tests.fixtures.ledger import LedgerForTests
from tests.fixtures.office import OfficeForTests
from tests.fixtures.ssh_keys import MakeKey
from tests.integration.test_office import a_plan, approve

pytestmark = [pytest.mark.integration, pytest.mark.attack]

PATIENCE = timedelta(seconds=20)


@pytest_asyncio.fixture
async def sealed(office: OfficeForTests) -> AsyncIterator[LedgerForTests]:
    """The office's record, sealed while the test says so."""
    made = LedgerForTests(office.memory, office.clock)
    office.record = made.watch(database=office.at_work, patience=PATIENCE)
    yield made
    await made.as_clock.dispose()


@pytest_asyncio.fixture
async def restored(pg_server: EmbeddedPostgres) -> AsyncIterator[Database]:
    """An empty database to restore into."""
    name = "memory_restored"
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    database = Database(pg_server.dsn(name))
    yield database
    await database.dispose()
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


async def refused(office: OfficeForTests, code: str, plan: str) -> None:
    """A worker has refused it for this reason, and the record says so; that nothing was done the test sees itself."""
    async with office.memory.session() as session:
        rows = await session.execute(text("SELECT plan_id, person, code, length(text) > 20 FROM refusal"))
        assert [tuple(row) for row in rows] == [(plan, "drbot", code, True)]
        leaves = "SELECT count(*) FROM leaf JOIN refusal ON leaf.kind = 'refusal' AND leaf.ref = refusal.id"
        assert (await session.execute(text(leaves))).scalar_one() == 1


async def run_tool(server: EmbeddedPostgres, tool: str, *arguments: str) -> None:
    await asyncio.to_thread(subprocess.run, [str(server.tool(tool)), *arguments], check=True)


async def test_a_used_signature_is_not_revived_by_a_restore(
    office: OfficeForTests,
    sealed: LedgerForTests,
    restored: Database,
    pg_server: EmbeddedPostgres,
    tmp_path: Path,
    make_key: MakeKey,
) -> None:
    async with sealed.sealing():
        async with office.working():
            card = await a_plan(office)
        await approve(office, "daniel", card)  # complete, and no worker is there to start it
        backup = tmp_path / "backup.dump"
        await run_tool(pg_server, "pg_dump", "-Fc", "-f", str(backup), "-d", office.memory.url)
        async with office.working():
            await office.until(card, PlanState.SUCCEEDED)
        async with asyncio.timeout(10):
            while not await sealed.is_up_to_date(sealed.kept[0]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    done = list(WORLD[card.plan_id])
    assert done == ["do 1", "do 2"]

    await run_tool(pg_server, "pg_restore", "-d", restored.url, str(backup))
    again = OfficeForTests(restored, office.plan)
    after = LedgerForTests(restored, office.clock)
    after.key, after.public, after.trust, after.kept = sealed.key, sealed.public, sealed.trust, sealed.kept
    both = AdoptersForTests(after, make_key)
    again.record = after.watch(database=again.at_work, patience=PATIENCE)
    try:
        async with after.sealing(), again.working():
            await asyncio.sleep(1.5)
            assert (await again.desk.plan_card(card.token)).state is PlanState.APPROVED  # by its rows it could run
            assert WORLD[card.plan_id] == done
            findings = await Doctor(again.at_work, again.plan, again.policy, again.ports, record=again.record)._sealed()
            assert any(item.verdict is Verdict.STOP and "restored from a backup" in item.detail for item in findings)

            adoption = both.adoption(again.at_terminal)
            await both.signs(adoption, "olivia")
            await asyncio.sleep(0.3)
            assert (await again.desk.plan_card(card.token)).state is PlanState.APPROVED  # one person is not enough
            assert "Every plan signed before is void" in await both.signs(adoption, "daniel")
            ended = await again.until(card, PlanState.VOID)
            assert "restored after this plan was signed" in ended.message
            await refused(again, "restored", card.plan_id)
            fresh = await a_plan(again)
            await approve(again, "daniel", fresh)
            await again.until(fresh, PlanState.SUCCEEDED)
        assert WORLD[card.plan_id] == done
        assert WORLD[fresh.plan_id] == ["do 1", "do 2"]
    finally:
        await again.close()
        await after.as_clock.dispose()


async def test_a_destructive_run_does_nothing_without_a_witness(office: OfficeForTests, sealed: LedgerForTests) -> None:
    office.record = sealed.watch(database=office.at_work, patience=timedelta(seconds=1))
    assert await office.record.may_claim()
    for witness in sealed.kept:
        witness.away = True
    async with sealed.sealing(), office.working():
        card = await a_plan(office)
        await approve(office, "daniel", card)
        ended = await office.until(card, PlanState.FAILED)
    assert "No witness vouches for the signatures" in ended.message
    assert card.plan_id not in WORLD


async def test_a_new_worker_starts_nothing_before_a_witness_has_answered(
    office: OfficeForTests, sealed: LedgerForTests
) -> None:
    """Not even what destroys nothing: whether its database was restored it cannot know."""
    async with office.working():
        card = await a_plan(office)
    await approve(office, "daniel", card)
    await sealed.sealed("before")
    for witness in sealed.kept:
        witness.away = True
    async with sealed.sealing(), office.working():
        async with asyncio.timeout(20):
            while await sealed.scalar("SELECT count(*) FROM outbox WHERE kind = 'page'") == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert card.plan_id not in WORLD
        await refused(office, "unwitnessed", card.plan_id)
        sealed.kept[1].away = False
        await office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 2"]


@pytest.mark.parametrize("stale", ["empty", "stood still"])
async def test_a_witness_that_knows_nothing_is_not_filled_while_another_may_know_better(
    office: OfficeForTests, sealed: LedgerForTests, stale: str
) -> None:
    """The sealer of a restored database must not make itself the witness that workers wait for."""
    sealed.clock = clock = TravellingClock()
    async with office.working():
        card = await a_plan(office)
    await approve(office, "daniel", card)
    await sealed.sealed("long ago")
    vault, local = sealed.kept
    local.away = True
    clock.ahead = timedelta(minutes=30)
    await sealed.sealed("since")
    local.away = False
    vault.away = True  # what it knows of, the database may have forgotten
    if stale == "empty":
        local.lines.clear()
    held = list(local.lines)
    office.record = sealed.watch(database=office.at_work, patience=PATIENCE)
    async with sealed.sealing(), office.working():
        await asyncio.sleep(1.5)
        assert local.lines == held
        assert card.plan_id not in WORLD
        vault.away = False
        await office.until(card, PlanState.SUCCEEDED)
        async with asyncio.timeout(30):
            while not await sealed.is_up_to_date(local):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_a_database_that_goes_back_under_a_worker_must_be_vouched_for_again(
    office: OfficeForTests, sealed: LedgerForTests
) -> None:
    await sealed.sealed("first")
    watch = sealed.watch()
    assert await watch.may_claim()
    for witness in sealed.kept:
        witness.away = True
    await sealed.sealed("second")
    assert await watch.may_claim()  # every witness away holds up nothing that destroys nothing
    async with office.memory.session() as session:
        await session.execute(text("ALTER TABLE checkpoint DISABLE TRIGGER USER"))
        await session.execute(text("DELETE FROM checkpoint WHERE number = (SELECT max(number) FROM checkpoint)"))
    assert not await watch.may_claim()
    assert watch.unmet


@pytest.mark.parametrize("risk", ["DISRUPTIVE", "DESTRUCTIVE"])
async def test_a_run_whose_database_goes_back_under_it_asks_before_its_next_step(
    office: OfficeForTests, sealed: LedgerForTests, risk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = ToyStep.apply

    async def while_it_is_restored(self: ToyStep, *rest: Any) -> None:
        await apply(self, *rest)
        if self.number == 2:
            await forget_the_newest(office)

    monkeypatch.setattr(ToyStep, "apply", while_it_is_restored)
    await sealed.sealed("one")
    await sealed.sealed("two")
    async with sealed.sealing(), office.working():
        card = await a_plan(office, steps=3, risk=risk)
        await approve(office, "daniel", card)
        ended = await office.until(card, PlanState.ASKING)
    assert "restored from a backup" in ended.message
    assert "`drbot record adopt`" in ended.message
    assert WORLD[card.plan_id] == ["do 1", "do 2"]


async def forget_the_newest(office: OfficeForTests) -> None:
    """As after a restore from a backup that is some seconds old; the run itself stands as it did."""
    async with office.memory.session() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        await session.execute(text("SELECT pg_advisory_xact_lock(hashtext('drbot sealer'))"))  # nothing is half sealed
        await session.execute(text("DELETE FROM checkpoint WHERE number > 1"))


async def test_one_witness_is_enough(office: OfficeForTests, sealed: LedgerForTests) -> None:
    sealed.kept[0].away = True
    async with sealed.sealing(), office.working():
        card = await a_plan(office)
        await approve(office, "daniel", card)
        await office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 2"]


async def test_a_run_of_the_past_is_not_taken_over_after_a_restore(
    office: OfficeForTests, sealed: LedgerForTests, make_key: MakeKey
) -> None:
    """A backup taken in the middle of a run: whether its step was done is not in the database any more."""
    async with sealed.sealing():
        async with office.working():
            card = await a_plan(office, steps=2, seconds=30)
            await approve(office, "daniel", card)
            await office.until(card, PlanState.RUNNING)
        before = list(WORLD.get(card.plan_id, []))
        lines = list(sealed.kept[0].lines)
    # The witnesses know one checkpoint more than this database does.
    newest = sealed.trust.check(Signed.read(lines[-1]))
    signer = Signer(sealed.key)
    beyond = newest.model_copy(update={"number": newest.number + 1, "base": newest.size, "root": "ab" * 32})
    more = Signed(body=beyond.body(), signature=signer.sign(beyond), leaves=b"").line()
    for witness in sealed.kept:
        witness.lines.append(more)
    await AdoptersForTests(sealed, make_key).adopt(office.at_terminal)
    office.record = sealed.watch(database=office.at_work, patience=PATIENCE)
    async with sealed.sealing(), office.working():
        ended = await office.until(card, PlanState.FAILED)
    assert "look at the world and ask again" in ended.message
    await refused(office, "restored", card.plan_id)
    assert WORLD.get(card.plan_id, []) == before
