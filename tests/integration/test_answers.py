"""A run that asks people: each answer is a plan with the signatures its risk needs, and is obeyed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import text

from actions.approval import Act
from actions.contract import Probe
from actions.ports import Ports
from bot.services.cards import PlanCard, PlanState, StepState
from storage.leftovers import traces
from tests.fakes.toy import CLEAR, WORLD, ToyStep
from tests.fixtures.office import CHANNEL, OfficeForTests
from tests.fixtures.waiting import eventually

pytestmark = pytest.mark.integration


async def signed(office: OfficeForTests, card: PlanCard) -> None:
    await office.posted(card)
    who = office.who("daniel")
    await office.desk.sign(
        who,
        card.token,
        act=Act.APPROVE,
        digest=card.digest,
        typed="toy",
        reason="so have I",
        channel=who.channel,
        ts="1.0",
    )


async def a_run(office: OfficeForTests, *states: PlanState, **params: Any) -> PlanCard:
    """A run of the toy that both have signed, in one of these states."""
    card = await office.planned(await office.ask("olivia", "toy.run", **params))
    await signed(office, card)
    return await office.until(card, *states)


async def asked(office: OfficeForTests, **params: Any) -> PlanCard:
    """A run that has stopped at its unclear second step."""
    return await a_run(office, PlanState.ASKING, **{"steps": 3, "unclear": 2, **params})


async def answered(office: OfficeForTests, name: str, card: PlanCard, **params: Any) -> PlanCard:
    """The plan of an answer, signed by both, at its end."""
    answer = await office.planned(await office.ask("olivia", name, reason="looked at it", run=card.plan_id, **params))
    assert answer.state is PlanState.PENDING
    await signed(office, answer)
    return await office.until(answer, PlanState.SUCCEEDED, PlanState.FAILED, PlanState.STALE)


async def journal(office: OfficeForTests, card: PlanCard) -> Sequence[tuple[int, str, str]]:
    query = text("SELECT step, state, detail FROM journal WHERE run_id = :run ORDER BY seq")
    async with office.memory.session() as session:
        return [tuple(row) for row in await session.execute(query, {"run": card.plan_id})]


async def test_a_run_that_asks_calls_people(office: OfficeForTests) -> None:
    async with office.working():
        card = await asked(office, key="call")
    async with office.memory.session() as session:
        told = (await session.execute(text("SELECT kind, channel, payload->>'text' AS said FROM outbox"))).all()
    words = [(row.kind, row.channel) for row in told if row.said and card.plan_id in row.said and "decide" in row.said]
    assert set(words) == {("page", ""), ("text", office.plan.channels.on_call), ("text", CHANNEL)}


async def test_it_happened_is_journalled_as_attested_and_the_run_goes_on(office: OfficeForTests) -> None:
    async with office.working(workers=2):
        card = await asked(office, key="happened")
        assert (await answered(office, "run.happened", card, step=2)).state is PlanState.SUCCEEDED
        ended = await office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 3"]
    lines = [(state, detail) for step, state, detail in await journal(office, card) if step == 1]
    assert [state for state, _ in lines] == ["asking", "happened", "verified"]
    assert "Olivia Ortega (looked at it), Daniel Dietrich (so have I)" in lines[1][1]
    assert lines[2][1] == "People have looked at it and attest it."
    assert [step.state for step in ended.steps] == [StepState.VERIFIED] * 3


async def test_it_did_not_happen_is_done_once_more(office: OfficeForTests) -> None:
    async with office.working():
        card = await asked(office, key="repeat")
        assert (await answered(office, "run.repeat", card)).state is PlanState.SUCCEEDED
        await office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 2", "do 3"]
    states = [state for step, state, _ in await journal(office, card) if step == 1]
    assert states == ["asking", "repeat", "applying", "verified"]


async def test_abort_and_undo_puts_back_newest_first(office: OfficeForTests) -> None:
    async with office.working():
        card = await asked(office, key="undo")
        answer = await answered(office, "run.undo", card)
        ended = await office.until(card, PlanState.ABORTED)
    assert WORLD[card.plan_id] == ["do 1", "undo 2", "undo 1"]
    assert "put back" in ended.message
    assert answer.steps[0].by_hand == ("echo not 2", "echo not 1")
    assert answer.steps[0].after == "the run puts back step(s) 2, 1"


async def test_left_as_it_stands_the_locks_are_given_back(office: OfficeForTests) -> None:
    async with office.working():
        card = await asked(office, key="leave")
        waiting = await office.planned(await office.ask("olivia", "toy.run", key="leave"))
        await signed(office, waiting)
        assert (await answered(office, "run.leave", card)).state is PlanState.SUCCEEDED
        await office.until(waiting, PlanState.SUCCEEDED)
        ended = await office.desk.plan_card(card.token)
    assert ended.state is PlanState.FAILED
    assert "Everything is left as it stands: Olivia Ortega" in ended.message
    assert WORLD[card.plan_id] == ["do 1"]


async def test_an_answer_has_the_risk_of_its_run_and_needs_two_persons(office: OfficeForTests) -> None:
    async with office.working():
        card = await asked(office, key="alone")
        refused = await office.refused(await office.ask("olivia", "run.happened", typed="tyo", run=card.plan_id))
        assert "`toy`" in refused
        answer = await office.planned(await office.ask("olivia", "run.happened", run=card.plan_id))
        assert (answer.risk, answer.target, answer.state) == (card.risk, "toy", PlanState.PENDING)
        assert answer.missing
        assert (await office.desk.plan_card(card.token)).state is PlanState.ASKING


async def test_of_two_answers_the_second_is_refused_with_the_difference(office: OfficeForTests) -> None:
    async with office.working():
        card = await asked(office, key="two")
        late = await office.planned(await office.ask("olivia", "run.undo", run=card.plan_id))
        await answered(office, "run.happened", card)
        await office.until(card, PlanState.SUCCEEDED)
        await signed(office, late)
        stale = await office.until(late, PlanState.STALE)
    assert "has been answered: happened" in stale.message
    assert WORLD[card.plan_id] == ["do 1", "do 3"]


async def test_only_an_optional_step_can_be_skipped(office: OfficeForTests) -> None:
    async with office.working():
        card = await asked(office, key="no-skip")
        assert "not optional" in await office.refused(await office.ask("olivia", "run.skip", run=card.plan_id))
        assert "asks about step 2, not 1" in await office.refused(
            await office.ask("olivia", "run.repeat", run=card.plan_id, step=1)
        )
        optional = await a_run(office, PlanState.ASKING, steps=3, fails=2, optional=2, key="skip")
        assert "optional: skip it" in optional.message
        await answered(office, "run.skip", optional)
        ended = await office.until(optional, PlanState.SUCCEEDED)
    assert WORLD[optional.plan_id] == ["do 1", "do 3"]
    assert [step.state for step in ended.steps] == [StepState.VERIFIED, StepState.SKIPPED, StepState.VERIFIED]
    assert "looked at it" in ended.steps[1].detail


async def test_looking_again_probes_the_unclear_step_and_repeats_nothing(office: OfficeForTests) -> None:
    async with office.working():
        card = await asked(office, key="again")
        await office.ordered("daniel", "run.again", card)

        async def asked_twice() -> bool:
            return [state for step, state, _ in await journal(office, card) if step == 1] == ["asking", "asking"]

        await eventually(asked_twice)
        again = await office.until(card, PlanState.ASKING)
        assert "it cannot be told" in again.message
        assert WORLD[card.plan_id] == ["do 1"]
        CLEAR.add(card.plan_id)
        WORLD[card.plan_id].append("do 2")  # it had happened, as is seen now
        await office.ordered("daniel", "run.again", card)
        await office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 2", "do 3"]


@pytest.mark.attack
async def test_looking_again_is_no_unsigned_word_that_it_did_not_happen(
    office: OfficeForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One person, the requester included, may have it looked at; to have it done takes the signatures of its risk."""
    async with office.working():
        card = await asked(office, key="unsigned")
        CLEAR.add(card.plan_id)
        probe = ToyStep.probe

        async def todo(step: ToyStep, ports: Ports) -> Probe:
            return await probe(step, ports) if step.number != 2 or "do 2" in WORLD[step.plan_id] else Probe.TODO

        monkeypatch.setattr(ToyStep, "probe", todo)
        await office.ordered("olivia", "run.again", card)

        async def asked_twice() -> bool:
            return [state for step, state, _ in await journal(office, card) if step == 1] == ["asking", "asking"]

        await eventually(asked_twice)
        again = await office.until(card, PlanState.ASKING)
        assert "it has not happened, or not completely" in again.message
        assert WORLD[card.plan_id] == ["do 1"]
        await answered(office, "run.repeat", card)
        await office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 2", "do 3"]


async def test_an_answer_survives_the_death_of_every_worker(office: OfficeForTests) -> None:
    """The answer is in the journal; whoever comes next finds it there and obeys it once."""
    async with office.working():
        card = await asked(office, key="survives", seconds=0.2)
        answer = await office.planned(await office.ask("olivia", "run.happened", run=card.plan_id))
        await signed(office, answer)
        await office.until(answer, PlanState.SUCCEEDED)
    for _ in range(2):
        async with office.working():
            pass
    async with office.working():
        await office.until(card, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 3"]
    assert [state for step, state, _ in await journal(office, card) if step == 1] == ["asking", "happened", "verified"]


async def test_a_failed_run_is_tried_again_after_the_repair(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_run(office, PlanState.FAILED, steps=3, fails=2, key="retry")
        WORLD[card.plan_id][:] = ["do 1"]  # as if its first step were one that is kept
        CLEAR.add(card.plan_id)
        again = await office.planned(await office.ask("olivia", "run.retry", run=card.plan_id))
        assert again.action == "run.retry"
        async with office.memory.session() as session:
            left = await traces(session, card.plan_id)
            assert left is not None
            assert (left.run.id, left.run.ended_at) == (again.plan_id, None)
        assert again.summary.startswith(f"Again, after run `{card.plan_id}` failed")
        await signed(office, again)
        await office.until(again, PlanState.SUCCEEDED)
        async with office.memory.session() as session:
            left = await traces(session, card.plan_id)
            assert left is not None
            assert left.run.id == card.plan_id
        assert "only one that failed" in await office.refused(
            await office.ask("olivia", "run.retry", run=again.plan_id)
        )
    assert WORLD[card.plan_id] == ["do 1", "do 2", "do 3"]


async def test_a_finished_run_is_undone_by_a_plan_of_its_own(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_run(office, PlanState.SUCCEEDED, steps=2, key="undo-finished")
        undo = await office.planned(await office.ask("olivia", "run.undo_finished", run=card.plan_id))
        assert [step.summary for step in undo.steps] == [
            f"Put back step {number} of run `{card.plan_id}`: Count {number}" for number in (2, 1)
        ]
        assert [step.by_hand for step in undo.steps] == [("echo not 2",), ("echo not 1",)]
        assert (undo.risk, undo.state) == (card.risk, PlanState.PENDING)
        await signed(office, undo)
        await office.until(undo, PlanState.SUCCEEDED)
    assert WORLD[card.plan_id] == ["do 1", "do 2", "undo 2", "undo 1"]
