"""Slack under suspicion: one person says so, nothing of Slack counts from then on, and two keys end it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from actions.approval import Act
from actions.errors import UserError
from bot.ports import ReplyTo
from bot.router import Command
from bot.services.cards import IncidentCard, PlanState
from bot.services.statements import Statement
from bot.services.suspicion import Suspicion
from storage import incidents
from tests.fakes.toy import WORLD
from tests.fixtures.keyed import KeyedOffice
from tests.fixtures.office import CHANNEL

pytestmark = [pytest.mark.integration, pytest.mark.attack]


async def incident(keyed: KeyedOffice, name: str, person: str = "olivia", **params: Any) -> None:
    command = Command(name=f"incident.{name}", params=params)
    await keyed.office.desk.ask(keyed.office.who(person), command, reply=ReplyTo(channel=CHANNEL))


async def the_card(keyed: KeyedOffice) -> IncidentCard:
    async with keyed.office.memory.session() as session:
        row = await incidents.by_number(session, 1)
        assert row is not None
        return await keyed.office.incidents.card(session, row)


def suspicion(keyed: KeyedOffice) -> Suspicion:
    return keyed.office.services(keyed.office.at_terminal)[2].suspicion


async def clear(keyed: KeyedOffice, person: str, said: Statement | None = None, *, key_of: str = "") -> str:
    said = said or await suspicion(keyed).statement(person, None, "sessions revoked")
    return await suspicion(keyed).hand_in(person, keyed.proof(said, keyed.keys[key_of or person]))


async def by_slack(keyed: KeyedOffice, person: str, token: str, digest: str, act: Act = Act.APPROVE) -> str:
    return await keyed.office.desk.sign(
        keyed.office.who(person), token, act=act, digest=digest, typed="toy", reason="seen", channel="", ts=""
    )


async def test_nothing_of_slack_counts_until_two_keys_say_so(keyed: KeyedOffice) -> None:
    office = keyed.office
    await incident(keyed, "open", title="Orders are gone")
    async with office.working():
        before = await office.planned(await office.ask("olivia", "toy.run"))
        await incident(keyed, "suspect_slack", "sam", text="that was not me")
        with pytest.raises(UserError, match="drbot sign"):
            await by_slack(keyed, "daniel", before.token, before.digest)
        now = await office.desk.plan_card(before.token)
        assert "the requester's own signature" in now.missing  # given in Slack, so it does not count any more
        assert (await the_card(keyed)).slack_suspect_since is not None

        # two keys carry it: the requester's own, and another one
        await keyed.sign("olivia", before)
        await keyed.sign("daniel", before)
        await office.until(before, PlanState.SUCCEEDED)

        with pytest.raises(UserError, match="two persons"):
            await incident(keyed, "clear_suspect_slack", "sam")
        assert "second person" in await clear(keyed, "sam")
        with pytest.raises(UserError, match="already recorded"):
            await clear(keyed, "sam")
        with pytest.raises(UserError, match="none of erik's keys"):
            await clear(keyed, "erik", key_of="sam")
        assert (await the_card(keyed)).slack_suspect_since is not None
        assert "count from now on" in await clear(keyed, "erik")
        assert (await the_card(keyed)).slack_suspect_since is None

        after = await office.planned(await office.ask("olivia", "toy.run"))
        await by_slack(keyed, "daniel", after.token, after.digest)
        await office.until(after, PlanState.SUCCEEDED)
    assert WORLD[before.plan_id] == WORLD[after.plan_id] == ["do 1", "do 2"]


async def test_a_plan_that_slack_had_signed_does_not_start(keyed: KeyedOffice) -> None:
    office = keyed.office
    await incident(keyed, "open", title="Orders are gone")
    async with office.working():
        card = await office.planned(await office.ask("olivia", "toy.run", key="held"))
    await by_slack(keyed, "daniel", card.token, card.digest)  # complete, and no worker is there
    await incident(keyed, "suspect_slack", "sam")
    async with office.working():
        later = await keyed.ask("olivia")
        await keyed.sign("olivia", later)
        await keyed.sign("daniel", later)
        await office.until(later, PlanState.SUCCEEDED)
        assert (await office.desk.plan_card(card.token)).state is PlanState.PENDING
    assert card.plan_id not in WORLD


async def codes(keyed: KeyedOffice) -> list[str]:
    async with keyed.office.memory.session() as session:
        return list((await session.execute(text("SELECT code FROM refusal ORDER BY id"))).scalars())


async def test_who_is_turned_down_when_it_is_to_be_cleared_stands_in_the_record(keyed: KeyedOffice) -> None:
    async def refused(words: str, person: str, said: Statement | None = None, *, key_of: str = "") -> str:
        with pytest.raises(UserError, match=words):
            await clear(keyed, person, said, key_of=key_of)
        async with keyed.office.memory.session() as session:
            query = text("SELECT code || ' ' || person FROM refusal ORDER BY id DESC LIMIT 1")
            return str((await session.execute(query)).scalar_one())

    assert await refused("in no incident", "sam") == "not_possible sam"
    await incident(keyed, "open", title="Orders are gone")
    await incident(keyed, "suspect_slack", "sam")
    sams, eriks = [await suspicion(keyed).statement(person, 1, "all is well") for person in ("sam", "erik")]

    assert await refused("not on the roster", "nobody", key_of="sam") == "not_on_roster nobody"
    assert await refused("none of sam's keys", "sam", key_of="erik") == "bad_proof sam"
    nowhere = sams.model_copy(update={"subject": "plan x"})
    assert await refused("about no incident", "sam", nowhere) == "unknown_name sam"
    await clear(keyed, "sam")
    assert await refused("already recorded", "sam") == "already_signed sam"
    await clear(keyed, "erik")
    assert await refused("not under suspicion", "erik", eriks) == "not_possible erik"
    assert len(await codes(keyed)) == 6


async def test_the_incident_of_a_suspicion_stays_open(keyed: KeyedOffice) -> None:
    """Closing it would be the first thing that a hijacked account does."""
    await incident(keyed, "open", title="Orders are gone")
    await incident(keyed, "suspect_slack", "sam")
    with pytest.raises(UserError, match="stays open while Slack is under suspicion"):
        await incident(keyed, "close", "daniel")
    assert (await the_card(keyed)).open
    assert await codes(keyed) == ["slack_suspect"]
    for person in ("sam", "erik"):
        await clear(keyed, person)
    await incident(keyed, "close", "daniel")
    assert not (await the_card(keyed)).open


async def test_a_suspicion_holds_when_the_database_says_that_its_incident_is_closed(keyed: KeyedOffice) -> None:
    """What the stolen login of the slack process may write. Two keys end it as ever."""
    await incident(keyed, "open", title="Orders are gone")
    await incident(keyed, "suspect_slack", "sam")
    async with keyed.office.in_front.session() as session:
        await session.execute(text("UPDATE incident SET closed_at = clock_timestamp(), slack_suspect_since = NULL"))
    async with keyed.office.working():
        await by_slack_alone(keyed)
        for person in ("sam", "erik"):
            await clear(keyed, person)
        card = await keyed.office.planned(await keyed.office.ask("olivia", "toy.run"))
        await by_slack(keyed, "daniel", card.token, card.digest)
        await keyed.office.until(card, PlanState.SUCCEEDED)


async def by_slack_alone(keyed: KeyedOffice) -> None:
    """Two accounts ask and approve as always; the request is refused, and the record says why."""
    before = await codes(keyed)
    assert "under suspicion" in await keyed.office.refused(await keyed.office.ask("olivia", "toy.run"))
    assert await codes(keyed) == [*before, "slack_suspect"]


async def test_the_column_alone_does_not_end_it(keyed: KeyedOffice) -> None:
    await incident(keyed, "open", title="Orders are gone")
    await incident(keyed, "suspect_slack", "sam")
    async with keyed.office.in_front.session() as session:  # what a stolen Slack process may do
        await session.execute(text("UPDATE incident SET slack_suspect_since = NULL"))
        await session.execute(
            text(
                "INSERT INTO timeline_entry (incident_id, kind, actor, occurred_at, text, data) "
                "SELECT id, 'clear_suspect_slack', 'x', now(), 'x', '{\"person\": \"sam\", \"proof\": \"x\"}' "
                "FROM incident, generate_series(1, 3)"
            )
        )
    assert (await the_card(keyed)).slack_suspect_since is not None


async def test_a_clearing_of_an_earlier_suspicion_is_no_use_for_a_later_one(keyed: KeyedOffice) -> None:
    await incident(keyed, "open", title="Orders are gone")
    await incident(keyed, "suspect_slack", "sam")
    with pytest.raises(UserError, match="is under suspicion since"):
        await incident(keyed, "suspect_slack", "olivia")
    said = await suspicion(keyed).statement("olivia", 1, "all is well")
    old = keyed.proof(said)
    for person in ("sam", "erik"):
        await clear(keyed, person)
    with pytest.raises(UserError, match="not under suspicion"):
        await suspicion(keyed).hand_in("olivia", old)
    await incident(keyed, "suspect_slack", "sam")
    with pytest.raises(UserError, match="digest is not"):
        await suspicion(keyed).hand_in("olivia", old)


async def test_everybody_is_told_also_outside_slack(keyed: KeyedOffice) -> None:
    await incident(keyed, "open", title="Orders are gone")
    await incident(keyed, "suspect_slack", "sam", text="<!channel> *look*")
    async with keyed.office.memory.session() as session:
        rows = (await session.execute(text("SELECT kind, channel, payload FROM outbox ORDER BY id"))).all()
    told = [(kind, channel) for kind, channel, payload in rows if "no signatures" in str(payload.get("text"))]
    assert told == [("page", ""), ("text", CHANNEL), ("text", keyed.office.plan.channels.on_call)]
    assert not any("<!channel>" in str(payload) for _, _, payload in rows)


async def test_the_terminal_says_it_too(keyed: KeyedOffice) -> None:
    await incident(keyed, "open", title="Orders are gone")
    assert "timeline" in (await keyed.counter("daniel").ask("incident", ["suspect-slack", "look", "at", "this"]))[0]
    card = await the_card(keyed)
    assert card.slack_suspect_since is not None
    with pytest.raises(UserError, match="keys"):
        await keyed.counter("daniel").ask("incident", ["clear-suspect-slack"])
    async with keyed.office.memory.session() as session:
        rows = (await session.execute(text("SELECT person, code FROM refusal"))).all()
    assert [tuple(row) for row in rows] == [("daniel", "slack_suspect")]
