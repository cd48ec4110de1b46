"""Requests that lead to no plan and acts on what there is not: each leaves a row with its reason code."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from actions.approval import Act
from actions.contract import Action, Finding, Plan, Verdict
from actions.errors import UserError
from actions.ports import Ports
from bot.ports import ReplyTo, Who
from bot.router import Command
from bot.services.cards import PlanState
from bot.services.statements import CLEAR, statement
from bot.services.suspicion import Suspicion
from storage import runs
from storage.session import Database
from tests.fakes.clock import TravellingClock
from tests.fakes.toy import Toy, ToyCatalogue, ToyParams
from tests.fixtures.keyed import KeyedOffice
from tests.fixtures.office import OfficeForTests, shipped_plan
from tests.integration.test_answers import a_run, asked
from tests.integration.test_orders import begun
from tests.integration.test_policy import act

pytestmark = pytest.mark.integration


async def refusals(office: OfficeForTests) -> list[tuple[str | None, str, str, str]]:
    async with office.memory.session() as session:
        rows = await session.execute(text("SELECT plan_id, person, account, code FROM refusal ORDER BY id"))
        return [tuple(row) for row in rows]


class Stopped(Toy):
    async def plan(self, params: ToyParams, ports: Ports, plan_id: str) -> Plan:
        plan = await super().plan(params, ports, plan_id)
        stop = Finding(check="space", verdict=Verdict.STOP, detail="There is no room.", hint="Make some.")
        return plan.model_copy(update={"findings": (stop,)})


class StoppedCatalogue(ToyCatalogue):
    def action(self, name: str, /) -> Action[Any]:
        return Stopped() if name == "toy.run" else super().action(name)


async def test_a_plan_that_its_own_findings_stop(office: OfficeForTests) -> None:
    office.catalogue = StoppedCatalogue()
    async with office.working():
        said = await office.refused(await office.ask("olivia", "toy.run"))
    assert said == "There is no room. Make some."
    assert await refusals(office) == [(None, "olivia", "U0OLIVIA", "stopped")]


class Away(Toy):
    async def plan(self, params: ToyParams, ports: Ports, plan_id: str) -> Plan:
        raise UserError("No backup is newer; make one first.")


class AwayCatalogue(ToyCatalogue):
    def action(self, name: str, /) -> Action[Any]:
        return Away() if name == "toy.run" else super().action(name)


async def what(office: OfficeForTests) -> list[str]:
    """What the rows say was asked for, and the end of why it was not done."""
    async with office.memory.session() as session:
        told = (await session.execute(text("SELECT text FROM refusal ORDER BY id"))).scalars().all()
        assert await session.scalar(text("SELECT count(*) FROM leaf WHERE kind = 'refusal'")) == len(told)
        return [f"{said.partition(':')[0]} ... {said[-22:]}" for said in told]


async def test_what_cannot_be_planned_or_does_not_fit(office: OfficeForTests) -> None:
    office.catalogue = AwayCatalogue()
    async with office.working():
        assert "make one first" in await office.refused(await office.ask("olivia", "toy.run"))
        assert "do not fit" in await office.refused(await office.ask("sam", "toy.run", steps="many"))
    assert await refusals(office) == [
        (None, "olivia", "U0OLIVIA", "not_possible"),
        (None, "sam", "U0SAM", "malformed"),
    ]
    assert await what(office) == ["toy.run ... newer; make one first.", "toy.run ... teger. See `/dr help`."]


async def test_an_order_that_is_not_obeyed_and_a_step_that_is_not_skipped(office: OfficeForTests) -> None:
    async with office.working():
        waiting = await office.planned(await office.ask("olivia", "toy.run", key="waits"))
        assert "has not started" in await office.ordered("sam", "run.abort", waiting)
        card = await asked(office, key="no-skip")
        assert "asks, so there is nothing to pause" in await office.ordered("daniel", "run.pause", card)
        assert "not optional" in await office.refused(await office.ask("olivia", "run.skip", run=card.plan_id))
    assert await refusals(office) == [
        (None, "sam", "U0SAM", "not_possible"),
        (None, "daniel", "U0DANIEL", "not_possible"),
        (None, "olivia", "U0OLIVIA", "not_optional"),
    ]
    assert [said.partition(" ")[0] for said in await what(office)] == ["run.abort", "run.pause", "run.skip"]


async def test_at_a_terminal_a_missing_incident_is_told_with_what_to_add(office: OfficeForTests) -> None:
    sam, note = Who(source="cli", person="sam"), Command(name="incident.note", params={"text": "gone"})
    with pytest.raises(UserError, match="which stands for a terminal; add `--incident NUMBER`"):
        await office.terminal.ask(sam, note, reply=ReplyTo())


async def test_who_is_mistaken_is_on_record_and_not_told_to_the_crowd(office: OfficeForTests) -> None:
    for name, params in (("incident.note", {"text": "gone"}), ("evidence.record", {"item": 7, "action": "sealed"})):
        with pytest.raises(UserError, match=r"no open incident|no evidence"):
            await office.desk.ask(office.who("sam"), Command(name=name, params=params), reply=ReplyTo())
    show = Command(name="incident.show", params={"incident": 7})
    with pytest.raises(UserError, match="no incident 7"):
        await office.terminal.read(Who(source="cli", person="sam"), show)
    assert await refusals(office) == [
        (None, "sam", "U0SAM", "not_possible"),
        (None, "sam", "U0SAM", "not_possible"),
        (None, "sam", "sam", "not_possible"),
    ]
    async with office.memory.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM outbox")) == 0


async def test_a_review_that_is_refused_is_on_record_once(office: OfficeForTests) -> None:
    async with office.working():
        card = await office.planned(await office.ask("olivia", "toy.run"))
    review = Command(name="review", params={"plan": card.plan_id, "text": "seen"})
    with pytest.raises(UserError):
        await office.desk.ask(office.who("daniel"), review, reply=ReplyTo())
    [(plan, person, _, _)] = await refusals(office)
    assert (plan, person) == (card.plan_id, "daniel")


async def test_an_order_to_a_run_there_is_not(office: OfficeForTests) -> None:
    async with office.working():
        said = await office.refused(await office.ask("sam", "run.pause", run="nothing"))
    assert "There is no run `nothing`" in said
    assert await refusals(office) == [(None, "sam", "U0SAM", "unknown_name")]


async def test_what_slack_may_not_do_and_a_review_of_nothing(office: OfficeForTests) -> None:
    refused = {
        "Slack cannot clear itself": Command(name="incident.clear_suspect_slack", params={}),
        "There is no plan `nothing`": Command(name="review", params={"plan": "nothing", "text": "seen"}),
    }
    for said, command in refused.items():
        with pytest.raises(UserError, match=said):
            await office.desk.ask(office.who("sam"), command, reply=ReplyTo())
    assert await refusals(office) == [
        (None, "sam", "U0SAM", "slack_suspect"),
        (None, "sam", "U0SAM", "unknown_name"),
    ]


async def test_a_run_that_may_not_go_on(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_run(office, PlanState.RUNNING, steps=2, seconds=0.6, key="may not")
        await begun(office, card, 0)
        await office.ordered("sam", "run.pause", card)
        await office.until(card, PlanState.PAUSED)
        async with office.memory.session() as session:
            await session.execute(text("""UPDATE plan SET document = jsonb_set(document, '{target}', '"other"')"""))
        assert "no longer suffice" in await office.ordered("sam", "run.resume", card)
    assert await refusals(office) == [(None, "sam", "U0SAM", "bad_proof")]


async def test_silence_is_a_refusal_once_over_all_workers(memory: Database) -> None:
    """Nobody has signed; every worker sees that the time is over, and one of them says so."""
    clock = TravellingClock()
    office = OfficeForTests(memory, shipped_plan(), clock=clock)
    try:
        async with office.working():
            card = await office.planned(await office.ask("olivia", "toy.run"))
        clock.ahead = timedelta(days=1)
        async with office.working(workers=4):
            await ended(office, card.plan_id)
        assert await refusals(office) == [(card.plan_id, "drbot", "", "expired")]
        async with memory.session() as session:
            said = "SELECT count(*) FROM timeline_entry WHERE text LIKE 'Plan % expired: %'"
            assert await session.scalar(text(said)) == 1
            assert await session.scalar(text("SELECT count(*) FROM leaf WHERE kind = 'refusal'")) == 1
    finally:
        await office.close()


async def test_a_denial_and_what_it_voids_are_in_the_export_however_old(memory: Database) -> None:
    clock = TravellingClock()
    office = OfficeForTests(memory, shipped_plan(), clock=clock)
    try:
        opened = Command(name="incident.open", params={"title": "Orders are gone"})
        await office.desk.ask(office.who("olivia"), opened, reply=ReplyTo())
        async with office.working():
            denied = await office.planned(await office.ask("olivia", "toy.run", key="denied"))
            same = await office.planned(await office.ask("olivia", "toy.run", key="the same"))
        await office.posted(denied)
        await act(office, "daniel", denied, Act.DENY)
        clock.ahead = timedelta(days=30)
        async with office.working():
            await ended(office, same.plan_id)
        lines = (await office.incidents.exported(1, "jsonl")).splitlines()[1:]
        leaves = [json.loads(json.loads(line)["leaf"]) for line in lines]
        told = {(leaf["kind"], leaf["row"].get("act", leaf["row"].get("code"))) for leaf in leaves}
        assert {("signature", "deny"), ("refusal", "denied")} <= told
    finally:
        await office.close()


async def ended(office: OfficeForTests, plan: str) -> None:
    """The run has ended, and every worker has looked again since."""
    async with asyncio.timeout(20):
        while True:
            async with office.memory.session() as session:
                run = await runs.get(session, plan)
            if run is not None and run.ended_at is not None:
                break
            await asyncio.sleep(0.02)
    await asyncio.sleep(1)


async def test_proofs_about_what_there_is_not(keyed: KeyedOffice) -> None:
    signing, now = keyed.signing("daniel"), keyed.clock.now()
    with pytest.raises(UserError, match="There is no plan `nothing`"):
        await signing.act("nothing", Act.APPROVE)
    about: dict[str, Any] = {"act": "approve", "digest": "0" * 64, "person": "daniel", "reason": "seen", "at": now}
    for subject in ("plan nothing", "incident nothing"):
        with pytest.raises(UserError):
            await signing.hand_in(keyed.proof(statement(subject=subject, **about)))
    office = keyed.office
    suspicion = Suspicion(office.at_terminal, office.policy, office.clock, on_call="")
    said = statement(**about | {"act": CLEAR, "subject": "incident nothing"})
    with pytest.raises(UserError, match="about no incident"):
        await suspicion.hand_in("daniel", keyed.proof(said))
    assert await refusals(office) == [(None, "daniel", "daniel", "unknown_name")] * 4
