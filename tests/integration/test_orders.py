"""Orders to a run, and who gives way to whom."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from actions.adapters.clock import SystemClock
from actions.contract import JournalState
from bot.ports import ReplyTo, Who
from bot.router import Command
from bot.services.approvals import SCHEDULE
from bot.services.cards import PlanCard, PlanState, StepState
from storage import inbox, outbox, requests
from storage.tables import RequestRow
from tests.fakes.toy import CLEAR, WORLD, ToyStep
from tests.fixtures.office import CHANNEL, OfficeForTests
from tests.fixtures.waiting import eventually
from tests.integration.test_answers import a_run, answered, asked, journal, signed

pytestmark = pytest.mark.integration

LONG = 30.0
"""Seconds a step takes that is to be ended before its end."""


class Later(SystemClock):
    """When nothing that was signed now may start any more."""

    def now(self) -> datetime:
        return super().now() + timedelta(minutes=16)


async def begun(office: OfficeForTests, card: PlanCard, step: int) -> None:
    """Return once this step is being carried out."""

    async def applying() -> bool:
        return (step, JournalState.APPLYING, "") in await journal(office, card)

    await eventually(applying)


async def locks(office: OfficeForTests, card: PlanCard) -> int:
    query = text("SELECT count(*) FROM run_lock WHERE run_id = :run")
    async with office.memory.session() as session:
        return int((await session.execute(query, {"run": card.plan_id})).scalar_one())


async def ordered_by(office: OfficeForTests, card: PlanCard) -> list[str]:
    query = text("SELECT actor FROM timeline_entry WHERE kind = 'order' AND data->>'plan' = :run ORDER BY seq")
    async with office.memory.session() as session:
        return list((await session.execute(query, {"run": card.plan_id})).scalars())


async def test_a_pause_waits_for_the_end_of_the_step_and_keeps_the_locks(office: OfficeForTests) -> None:
    async with office.working(workers=2):
        card = await a_run(office, PlanState.RUNNING, steps=3, seconds=0.6, key="pause")
        await begun(office, card, 0)
        assert "pauses once" in await office.ordered("sam", "run.pause", card, reason="the vendor is on the phone")
        paused = await office.until(card, PlanState.PAUSED)
        assert WORLD[card.plan_id] == ["do 1"]
        assert paused.message == (
            "Sam Sato has ordered it to pause: the vendor is on the phone. Nothing is half done; step 2 has not begun."
        )
        assert await locks(office, card) == 1
        assert "is paused already" in await office.ordered("sam", "run.stop", card)
        assert "goes on" in await office.ordered("daniel", "run.resume", card)
        await office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 2", "do 3"]
    assert await ordered_by(office, card) == ["Sam Sato", "Daniel Dietrich"]
    assert await locks(office, card) == 0


async def test_a_paused_run_does_not_go_on_without_valid_signatures(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_run(office, PlanState.RUNNING, steps=2, seconds=0.6, key="void")
        await begun(office, card, 0)
        await office.ordered("sam", "run.pause", card)
        await office.until(card, PlanState.PAUSED)
        async with office.memory.session() as session:
            await session.execute(text("""UPDATE plan SET document = jsonb_set(document, '{target}', '"other"')"""))
        refused = await office.ordered("sam", "run.resume", card)
    assert "its signatures no longer suffice" in refused
    assert WORLD[card.plan_id] == ["do 1"]


async def test_an_abort_ends_between_steps_and_puts_back(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_run(office, PlanState.RUNNING, steps=3, seconds=0.6, key="abort")
        await begun(office, card, 0)
        await office.ordered("sam", "run.abort", card)
        ended = await office.until(card, PlanState.ABORTED)
        assert "is aborted" in await office.ordered("sam", "run.pause", card)
    assert WORLD[card.plan_id] == ["do 1", "undo 1"]
    assert "Sam Sato has ordered it to be aborted" in ended.message
    assert [step.state for step in ended.steps] == [StepState.UNDONE, StepState.ABORTED, StepState.WAITING]


async def test_a_paused_run_can_be_aborted(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_run(office, PlanState.RUNNING, steps=2, seconds=0.6, key="pause-abort")
        await begun(office, card, 0)
        await office.ordered("sam", "run.pause", card)
        await office.until(card, PlanState.PAUSED)
        await office.ordered("sam", "run.abort", card)
        await office.until(card, PlanState.ABORTED)
    assert WORLD[card.plan_id] == ["do 1", "undo 1"]


async def test_a_stop_ends_the_step_in_its_middle_says_what_is_found_and_asks(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_run(office, PlanState.RUNNING, steps=2, seconds=LONG, key="stop")
        await begun(office, card, 0)
        await office.ordered("sam", "run.stop", card)
        stopped = await office.until(card, PlanState.ASKING)
        assert WORLD[card.plan_id] == ["stop 1"]
        assert stopped.message == (
            "Sam Sato has ordered it to stop at once. Step 1 (Count 1) was stopped within. Looked at since, it has not "
            "happened, or not completely."
        )
        assert [(step, state) for step, state, _ in await journal(office, card)] == [(0, "applying"), (0, "asking")]
        assert "stands still and asks" in await office.ordered("sam", "run.abort", card)
        await answered(office, "run.undo", card)
        await office.until(card, PlanState.ABORTED)
    assert WORLD[card.plan_id] == ["stop 1", "undo 1"]


async def test_a_stop_is_obeyed_by_the_worker_that_takes_over(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_run(office, PlanState.RUNNING, steps=2, seconds=LONG, key="stop-later")
        await begun(office, card, 0)
    order = """UPDATE run SET "order" = 'stop', message = 'Sam Sato has ordered it to stop at once.' WHERE id = :run"""
    async with office.memory.session() as session:
        await session.execute(text(order), {"run": card.plan_id})
    async with office.working():
        await office.until(card, PlanState.ASKING)
    assert WORLD[card.plan_id] == ["stop 1"]


async def test_orders_that_make_no_sense_are_refused_with_the_next_thing_to_do(office: OfficeForTests) -> None:
    async with office.working():
        waiting = await office.planned(await office.ask("olivia", "toy.run", key="waiting"))
        assert "deny its plan" in await office.ordered("sam", "run.pause", waiting)
        assert "asks nothing; it is awaiting" in await office.ordered("sam", "run.again", waiting)
        assert "not paused" in await office.ordered("sam", "run.resume", waiting)
        card = await asked(office, key="asks")
        assert "`/dr run happened`" in await office.ordered("sam", "run.pause", card)
        assert "There is no run `nothing`" in await office.refused(await office.ask("sam", "run.pause", run="nothing"))
        assert "asks nothing" in await office.refused(await office.ask("olivia", "run.happened", run=waiting.plan_id))


async def test_a_run_need_not_be_named_when_only_one_is_open(office: OfficeForTests) -> None:
    async with office.working():
        assert "No run is open" in await office.refused(await office.ask("sam", "run.again"))
        card = await asked(office, key="alone")
        answer = await office.planned(await office.ask("olivia", "run.happened"))
        assert answer.summary.startswith(f"Run `{card.plan_id}`")
        other = await asked(office, key="second")
        named = await office.refused(await office.ask("olivia", "run.happened"))
    assert f"`{card.plan_id}` (toy.run, asking)" in named
    assert f"`{other.plan_id}` (toy.run, asking)" in named


async def test_the_status_names_every_run_that_is_not_over(office: OfficeForTests) -> None:
    async with office.working():
        card = await asked(office, key="status")
        line = f"Run `{card.plan_id}` asking: Count to 3. {card.message}"
        request = await office.ask("sam", "status")

        async def told() -> bool:
            async with office.memory.session() as session:
                rows = await outbox.answers(session, request)
            return bool(rows) and rows[0].payload["report"]["lines"] == ["No open incident.", line]

        await eventually(told)


async def test_strangers_order_nothing(office: OfficeForTests) -> None:
    async with office.working():
        card = await asked(office, key="stranger")
        who = Who(slack_user="U0STRANGER", channel=CHANNEL)
        with pytest.raises(Exception, match="not on the roster"):
            await office.desk.ask(who, Command(name="run.again", params={"run": card.plan_id}), reply=ReplyTo())


async def routine(office: OfficeForTests, **params: Any) -> PlanCard:
    """A run that the schedule asked for, as the clock does, and no incident knows of."""
    channel, reason = office.plan.channels.on_call, "scheduled by the plan"
    params |= {"risk": "REVERSIBLE"}  # the schedule can ask for nothing that others must sign
    who = {"source": "clock", "channel": channel}
    key = f"schedule/toy/{params['key']}"
    command = {"name": "toy.run", "params": params, "reason": reason}
    async with office.memory.session() as session:
        await inbox.store(session, key, "schedule", {"kind": "ask", "who": who, "command": command})
        row = RequestRow(
            kind="command",
            name="toy.run",
            params=params,
            person=SCHEDULE,
            channel=channel,
            reply={"who": who},
            reason=reason,
            source_key=key,
        )
        number = await requests.add(session, row)
    assert number is not None
    return await office.planned(number)


async def an_incident(office: OfficeForTests) -> None:
    command = Command(name="incident.open", params={"title": "Orders are gone"})
    await office.desk.ask(office.who("olivia"), command, reply=ReplyTo(channel=CHANNEL))


async def test_a_routine_run_gives_way_to_an_incident_between_its_steps(office: OfficeForTests) -> None:
    await an_incident(office)
    async with office.working(workers=2):
        dump = await routine(office, steps=40, seconds=0.3, key="way")
        await begun(office, dump, 0)
        urgent = await office.planned(await office.ask("olivia", "toy.run", key="way"))
        await signed(office, urgent)
        ended = await office.until(dump, PlanState.PREEMPTED)
        await office.until(urgent, PlanState.SUCCEEDED)
    done = [line.removeprefix("do ") for line in WORLD[dump.plan_id] if line.startswith("do ")]
    assert WORLD[dump.plan_id][len(done) :] == [f"undo {number}" for number in reversed(done)]
    assert 1 <= len(done) < 40
    assert f"It gives way to run {urgent.plan_id} of an incident" in ended.message
    async with office.memory.session() as session:
        lines = (await session.execute(text("SELECT incident_id, text FROM timeline_entry WHERE kind = 'order'"))).all()
    way = f"It gives way to run {urgent.plan_id} of an incident (Count to 2)."
    again = "The schedule asks for it again."
    assert [line.text for line in lines if line.incident_id is None] == [f"Run {dump.plan_id}: {way} {again}"]
    assert [line.text for line in lines if line.incident_id is not None] == [
        f"Run {urgent.plan_id} takes the place of routine run {dump.plan_id} (toy.run)"
    ]


async def test_what_can_be_interrupted_gives_way_at_once(office: OfficeForTests) -> None:
    await an_incident(office)
    async with office.working(workers=2):
        dump = await routine(office, steps=1, seconds=LONG, interruptible=True, key="at-once")
        await begun(office, dump, 0)
        urgent = await office.planned(await office.ask("olivia", "toy.run", key="at-once"))
        await signed(office, urgent)
        await office.until(urgent, PlanState.SUCCEEDED)
        ended = await office.desk.plan_card(dump.token)
    assert ended.state is PlanState.PREEMPTED
    assert WORLD[dump.plan_id] == ["stop 1", "undo 1"]
    assert "was stopped within" in ended.message


async def test_a_recovery_is_made_way_for_without_an_incident_too(office: OfficeForTests) -> None:
    office.recoveries = frozenset({"toy.run"})
    async with office.working(workers=2):
        dump = await routine(office, steps=1, seconds=LONG, interruptible=True, key="recovery")
        await begun(office, dump, 0)
        urgent = await office.planned(await office.ask("olivia", "toy.run", key="recovery"))
        await signed(office, urgent)
        await office.until(urgent, PlanState.SUCCEEDED)
        ended = await office.desk.plan_card(dump.token)
    assert ended.state is PlanState.PREEMPTED
    assert f"It gives way to run {urgent.plan_id}, a recovery (Count to 2)." in ended.message


async def test_only_routine_runs_give_way_and_only_to_incidents(office: OfficeForTests) -> None:
    async with office.working(workers=2):
        dump = await routine(office, steps=1, seconds=LONG, interruptible=True, key="no-incident")
        await begun(office, dump, 0)
        waiting = await office.planned(await office.ask("olivia", "toy.run", key="no-incident"))
        await signed(office, waiting)

        async def said() -> bool:
            card = await office.desk.plan_card(waiting.token)
            return card.message == f"Waits for run {dump.plan_id} (toy.run, running), which holds the target."

        await eventually(said)
        assert (await office.desk.plan_card(dump.token)).state is PlanState.RUNNING
    at_work, office.ports = office.ports, replace(office.ports, clock=Later())
    async with office.working(workers=2):
        late = await office.until(waiting, PlanState.EXPIRED)
    office.ports = at_work
    assert f"It waited for run {dump.plan_id} (toy.run, running), which holds the target" in late.message
    assert "Ask for it once more when that run has ended" in late.message
    assert "`execution_expiry`" in late.message
    await an_incident(office)
    async with office.working(workers=2):
        asked_for = await a_run(office, PlanState.RUNNING, steps=1, seconds=LONG, interruptible=True, key="people")
        await begun(office, asked_for, 0)
        urgent = await office.planned(await office.ask("olivia", "toy.run", key="people"))
        await signed(office, urgent)
        await asyncio.sleep(0.5)
        assert (await office.desk.plan_card(asked_for.token)).state is PlanState.RUNNING
    assert urgent.plan_id not in WORLD


async def test_a_retry_counts_as_recovery_of_the_incident(office: OfficeForTests) -> None:
    await office.desk.ask(
        office.who("olivia"), Command(name="incident.open", params={"title": "Gone"}), reply=ReplyTo(channel=CHANNEL)
    )
    async with office.working():
        card = await a_run(office, PlanState.FAILED, steps=1, fails=1, key="recovers")
        CLEAR.add(card.plan_id)
        again = await office.planned(await office.ask("olivia", "run.retry", run=card.plan_id))
        await signed(office, again)
        await office.until(again, PlanState.SUCCEEDED)
    async with office.memory.session() as session:
        recovered = await session.execute(text("SELECT recovered_at FROM incident"))
        assert recovered.scalar_one() is not None


async def test_what_comes_after_service_is_back_is_no_part_of_the_rto(
    office: OfficeForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyStep, "afterwards", property(lambda step: step.number == 2))
    await an_incident(office)
    async with office.working():
        card = await a_run(office, PlanState.SUCCEEDED, steps=2, seconds=0.5, key="later")
    async with office.memory.session() as session:
        recovered = (await session.execute(text("SELECT recovered_at FROM incident"))).scalar_one()
        lines = "SELECT at FROM journal WHERE run_id = :run AND state = 'verified' ORDER BY step"
        first, second = (await session.execute(text(lines), {"run": card.plan_id})).scalars().all()
    assert recovered == first < second


async def test_a_plan_of_another_version_starts_nothing_and_holds_nobody_up(office: OfficeForTests) -> None:
    async with office.working():
        newer = await office.planned(await office.ask("olivia", "toy.run", key="newer"))
        running = await a_run(office, PlanState.RUNNING, steps=2, seconds=LONG, key="middle")
        await begun(office, running, 0)
    unknown = """UPDATE plan SET document = jsonb_set(document, '{steps,0,kind}', '"toy.later"') WHERE id = :run"""
    async with office.memory.session() as session:
        for card in (newer, running):
            await session.execute(text(unknown), {"run": card.plan_id})
    async with office.working():
        other = await a_run(office, PlanState.SUCCEEDED, key="other")

        async def asks() -> bool:
            query = text("SELECT state, message FROM run WHERE id = :run")
            async with office.memory.session() as session:
                row = (await session.execute(query, {"run": running.plan_id})).one()
            return row.state == "asking" and "`toy.later`" in row.message

        await eventually(asks, within=60)
    assert newer.plan_id not in WORLD
    assert WORLD[other.plan_id] == ["do 1", "do 2"]
    assert await locks(office, running) == 1


async def test_a_worker_that_is_told_to_end_hands_over_at_once(office: OfficeForTests) -> None:
    """Nobody waits for the lease of a worker that said goodbye."""
    first = asyncio.create_task(office.worker(lease=timedelta(hours=1)).run())
    card = await a_run(office, PlanState.RUNNING, steps=2, seconds=0.5, key="term")
    await begun(office, card, 0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    async with office.working():
        await office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 2"]
