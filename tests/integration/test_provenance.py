"""A signature counts only when it follows from the click or command that is stored for it."""

from __future__ import annotations

import asyncio
import threading
import uuid
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from actions.approval import Code, State
from bot.ports import ReplyTo, Who
from bot.router import Command
from bot.services.cards import PlanCard, PlanState
from storage import inbox, plans, requests
from storage.session import NotAllowedError
from tests.fakes.toy import WORLD
from tests.fixtures.office import CHANNEL, OfficeForTests
from tests.integration.test_office import a_plan, approve

pytestmark = [pytest.mark.integration, pytest.mark.attack]


async def change(office: OfficeForTests, statement: str, **values: Any) -> None:
    """As a superuser who stops at nothing: even the triggers are off."""
    async with office.memory.session() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        result = await session.execute(text(statement), values)
        assert result.rowcount == 1, statement  # type: ignore[attr-defined]


async def void(office: OfficeForTests, card: PlanCard) -> str:
    """The reason, once the worker has refused the plan and said so in the record; nothing was done."""
    ended = await office.until(card, PlanState.VOID)
    told = await entries(office, card)
    async with asyncio.timeout(10):
        while not told:  # the card derives the state; the worker's word comes a moment later
            await asyncio.sleep(0.02)
            told = await entries(office, card)
    assert [line for line in told if ended.message in line] == told
    assert card.plan_id not in WORLD
    async with office.memory.session() as session:
        query = text("SELECT code, person FROM refusal WHERE plan_id = :plan")
        refused = [tuple(row) for row in await session.execute(query, {"plan": card.plan_id})]
    assert refused == [(Code.BAD_PROOF, "drbot")]
    return ended.message


async def entries(office: OfficeForTests, card: PlanCard) -> list[str]:
    async with office.memory.session() as session:
        query = text("SELECT text FROM timeline_entry WHERE kind = 'run' AND data ->> 'plan' = :plan")
        return list((await session.execute(query, {"plan": card.plan_id})).scalars())


FORGED = """
    INSERT INTO signature (plan_id, person, act, digest, reason, typed, source, account, inbox_key, at)
    SELECT plan_id, 'daniel', 'approve', digest, 'seen', 'toy', :source, 'U0DANIEL', :key, clock_timestamp()
    FROM signature WHERE plan_id = :plan AND act = 'request'
"""


async def forge(office: OfficeForTests, card: PlanCard, key: str, source: str = "slack") -> None:
    async with office.memory.session() as session:
        await session.execute(text(FORGED), {"plan": card.plan_id, "key": key, "source": source})
        await session.execute(text("SELECT pg_notify('drbot', 'signature')"))


def click(office: OfficeForTests, card: PlanCard, **changes: Any) -> dict[str, Any]:
    """Daniel's approval, as Slack's side stores it before the ack."""
    deed: dict[str, Any] = {"kind": "sign", "token": card.token, "act": "approve", "digest": card.digest}
    deed |= {"typed": "toy", "reason": "seen", "ts": "1.0", "who": office.who("daniel").model_dump(mode="json")}
    return deed | changes


async def stored(office: OfficeForTests, payload: dict[str, Any], kind: str = "deed") -> str:
    key = f"view:{uuid.uuid4()}"
    async with office.memory.session() as session:
        assert await inbox.store(session, key, kind, payload)
    return key


async def test_a_signature_without_a_click_voids_the_plan(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_plan(office)
        await forge(office, card, "")
        assert "no click or command is stored" in await void(office, card)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token": "another"}, "to another plan"),
        ({"act": "deny"}, "it was to deny"),
        ({"digest": "0" * 64}, "another version"),
        ({"reason": "looks fine"}, "the reason is another one"),
        ({"typed": "tyo"}, "the typed name is another one"),
        ({"who": {"slack_user": "U0SAM", "team": "T1"}}, "the account is another one"),
        ({"who": {"source": "cli", "person": "daniel"}}, "the account is another one"),
        ({"kind": "note"}, "cannot be read"),
    ],
)
async def test_a_signature_that_says_something_else_than_its_click_voids_the_plan(
    office: OfficeForTests, changes: dict[str, Any], words: str
) -> None:
    async with office.working():
        card = await a_plan(office)
        await forge(office, card, await stored(office, click(office, card, **changes)))
        assert words in await void(office, card)


async def test_a_signature_that_comes_in_while_a_plan_is_judged_is_not_believed_unseen(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_plan(office)
    key = await stored(office, click(office, card, who={"slack_user": "U0SAM", "team": "T1"}))
    forged = threading.Event()

    def forge_behind(_: object, __: object, statement: str, *___: object) -> None:
        if "FROM signature" in statement and not forged.is_set():
            forged.set()
            query = FORGED.replace(":plan", "%(plan)s").replace(":key", "%(key)s").replace(":source", "'slack'")
            with psycopg.connect(office.memory.url, autocommit=True) as connection:
                connection.execute(query, {"plan": card.plan_id, "key": key})

    event.listen(office.at_work.engine.sync_engine, "after_cursor_execute", forge_behind)
    approvals, _, _ = office.services(office.at_work)
    async with office.at_work.session() as session:
        row = await plans.get(session, card.plan_id)
        assert row is not None
        judged = [(await approvals.decision(session, row, office.clock.now())).state for _ in range(2)]
    assert forged.is_set()
    assert judged == [State.PENDING, State.VOID]


async def test_the_same_row_from_its_own_click_counts(office: OfficeForTests) -> None:
    """The counter-proof of the test above: nothing but the difference made those void."""
    async with office.working():
        card = await a_plan(office)
        await forge(office, card, await stored(office, click(office, card)))
        await office.until(card, PlanState.SUCCEEDED)


async def test_a_click_of_another_kind_of_process_does_not_count(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_plan(office)
        await forge(office, card, await stored(office, click(office, card), kind="schedule"))
        assert "came in as `schedule`" in await void(office, card)


async def test_a_source_that_nobody_knows_does_not_count(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_plan(office)
        await forge(office, card, await stored(office, click(office, card)), source="carrier pigeon")
        assert "not by carrier pigeon" in await void(office, card)


async def test_one_click_is_one_signature(office: OfficeForTests) -> None:
    async with office.working():
        card = await a_plan(office)
        key = await stored(office, click(office, card))
        await forge(office, card, key)
        with pytest.raises(DBAPIError, match="signature_inbox_key"):
            await forge(office, card, key)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("person", "sam", "the account is Daniel Dietrich's"),
        ("account", "U0SAM", "the account is another one"),
        ("reason", "I was never asked", "the reason is another one"),
        ("typed", "", "the typed name is another one"),
        ("at", "2020-01-01", "the time is another one"),
        ("inbox_key", "", "no click or command is stored"),
    ],
)
async def test_an_edited_signature_voids_the_plan(office: OfficeForTests, column: str, value: str, words: str) -> None:
    card = await a_signed_plan(office)
    kind = "timestamptz" if column == "at" else "text"
    await change(
        office,
        f"UPDATE signature SET {column} = :value\\:\\:text\\:\\:{kind} WHERE plan_id = :plan AND act = 'approve'",
        value=value,
        plan=card.plan_id,
    )
    async with office.working():
        assert words in await void(office, card)


async def a_signed_plan(office: OfficeForTests) -> PlanCard:
    """Complete signatures, and no worker to start it."""
    async with office.working():
        card = await a_plan(office)
    await approve(office, "daniel", card)
    return card


async def test_an_edited_click_voids_the_plan_too(office: OfficeForTests) -> None:
    card = await a_signed_plan(office)
    await change(
        office,
        """
        UPDATE inbox SET payload = jsonb_set(payload, '{reason}', '"anything"')
        WHERE key = (SELECT inbox_key FROM signature WHERE plan_id = :plan AND act = 'approve')
        """,
        plan=card.plan_id,
    )
    async with office.working():
        assert "the reason is another one" in await void(office, card)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("{command,name}", '"toy.other"', "`toy.other` was asked for"),
        ("{command,params,key}", '"other"', "`key` was another one"),
        ("{command,typed}", '"tyo"', "the typed name is another one"),
        ("{who,slack_user}", '"U0SAM"', "the account is another one"),
    ],
)
async def test_a_request_that_was_another_one_voids_the_plan(
    office: OfficeForTests, path: str, value: str, words: str
) -> None:
    async with office.working():
        card = await a_plan(office, key="toy")
        await ask_otherwise(office, card, path, value)
        assert words in await void(office, card)


async def ask_otherwise(office: OfficeForTests, card: PlanCard, path: str, value: str) -> None:
    await change(
        office,
        """
        UPDATE inbox SET payload = jsonb_set(payload, CAST(:path AS text[]), CAST(:value AS jsonb))
        WHERE key = (SELECT inbox_key FROM signature WHERE plan_id = :plan AND act = 'request')
        """,
        path=path,
        value=value,
        plan=card.plan_id,
    )
    async with office.memory.session() as session:
        await session.execute(text("SELECT pg_notify('drbot', 'signature')"))


async def test_an_edit_in_the_middle_of_a_run_stops_it(office: OfficeForTests) -> None:
    """The guard looks before every step."""
    async with office.working():
        card = await a_plan(office, steps=4, seconds=0.3)
        await approve(office, "daniel", card)
        await office.until(card, PlanState.RUNNING)
        await change(
            office, "UPDATE signature SET reason = 'x' WHERE plan_id = :plan AND act = 'approve'", plan=card.plan_id
        )
        ended = await office.until(card, PlanState.FAILED)
    assert "does not follow from what was received" in ended.message
    assert "do 4" not in WORLD[card.plan_id]


async def test_what_arrived_is_never_changed(office: OfficeForTests) -> None:
    key = await stored(office, {"kind": "note"})
    for statement in ("UPDATE inbox SET payload = '{}'", "UPDATE inbox SET received_at = now()", "TRUNCATE inbox"):
        with pytest.raises(DBAPIError, match="append-only"):
            async with office.memory.session() as session:
                await session.execute(text(statement))
    async with office.in_front.session() as session:
        await inbox.finish(session, key)
        assert await inbox.finished(session, key)


async def test_old_rows_go_unless_a_signature_or_an_open_request_rests_on_them(office: OfficeForTests) -> None:
    card = await a_signed_plan(office)
    await stored(office, {"kind": "note"})
    waiting = await office.ask("olivia", "toy.run")
    async with office.on_time.session() as session:
        assert await inbox.prune(session, older=timedelta(days=1)) == 0
        assert await inbox.prune(session, older=timedelta(0)) == 1
    async with office.memory.session() as session:
        open_one = await requests.get(session, waiting)
        keys = set((await session.execute(text("SELECT key FROM inbox"))).scalars())
        signed = text("SELECT inbox_key FROM signature WHERE plan_id = :plan")
        resting = set((await session.execute(signed, {"plan": card.plan_id})).scalars())
    assert open_one is not None
    assert keys == {*resting, open_one.source_key}
    with pytest.raises(NotAllowedError, match="a signature rests on the click"):
        async with office.on_time.session() as session:
            await session.execute(text("DELETE FROM inbox"))


async def test_the_command_line_rests_on_what_it_was_told(office: OfficeForTests) -> None:
    command = Command(name="toy.run", params={"key": "cli"}, reason="x", typed="toy")
    await office.terminal.ask(Who(source="cli", person="olivia", channel=CHANNEL), command, reply=ReplyTo())
    async with office.memory.session() as session:
        query = text(
            "SELECT i.kind, i.payload #>> '{command,name}' FROM request r JOIN inbox i ON i.key = r.source_key"
        )
        assert [tuple(row) for row in await session.execute(query)] == [("desk.cli", "toy.run")]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("expires_at", "expires_at + interval '1 day'"),
        ("policy", "'another/policy'"),
        ("break_glass", "true"),
        ("overrules", "'x'"),
        ("requester", "'daniel'"),
        ("reason", "'because'"),
        ("channel", "'C0OTHER'"),
        ("risk", "'REVERSIBLE'"),
        ("action", "'status'"),
    ],
)
async def test_an_edited_column_beside_the_plan_voids_it(office: OfficeForTests, column: str, value: str) -> None:
    """They decide about signatures, and are signed with the plan."""
    async with office.working():
        card = await a_plan(office)
        await change(office, f"UPDATE plan SET {column} = {value} WHERE id = :plan", plan=card.plan_id)
        await wake(office)
        assert "is not what was signed" in await void(office, card)


async def wake(office: OfficeForTests) -> None:
    async with office.memory.session() as session:
        await session.execute(text("SELECT pg_notify('drbot', 'signature')"))


async def test_a_plan_that_follows_from_no_stored_request_is_void(office: OfficeForTests) -> None:
    """A worker's login writes plans and says which request led to one; it writes no request."""
    async with office.working():
        card = await a_plan(office)
        await change(office, "UPDATE request SET incident_id = 'x' WHERE plan_id = :plan", plan=card.plan_id)
        await wake(office)
        assert "no request for it is stored" in await void(office, card)
