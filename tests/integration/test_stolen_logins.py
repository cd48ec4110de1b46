"""What somebody can do who has stolen the database login of one process, and nothing else: the limits that
docs/reference/threats.md promises, and what is left."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from actions.adapters.embedded_postgres import EmbeddedPostgres
from bot.plan_file import DrPlan
from bot.ports import ReplyTo
from bot.router import Command
from bot.services.cards import PlanCard, PlanState
from storage import inbox
from storage.roles import DatabaseRole
from storage.session import Database, NotAllowedError
from tests.fakes.toy import WORLD
from tests.fixtures.keyed import PERSONS, keyed_plan
from tests.fixtures.logins import make_logins
from tests.fixtures.office import CHANNEL, OfficeForTests
from tests.fixtures.ssh_keys import MakeKey
from tests.integration.test_office import a_plan, incident, refusals

pytestmark = [pytest.mark.integration, pytest.mark.attack]


async def sign_as_daniel(session: AsyncSession, office: OfficeForTests, card: PlanCard) -> None:
    """A click that Daniel never made, and the signature that rests on it."""
    deed = {"kind": "sign", "token": card.token, "act": "approve", "digest": card.digest, "typed": "toy"}
    who = office.who("daniel").model_dump(mode="json")
    key = f"view:{uuid.uuid4()}"
    await inbox.store(session, key, "deed", {**deed, "reason": "seen", "ts": "1.0", "who": who})
    statement = """
        INSERT INTO signature (plan_id, person, act, digest, reason, typed, source, account, inbox_key, at)
        VALUES (:plan, 'daniel', 'approve', :digest, 'seen', 'toy', 'slack', 'U0DANIEL', :key, clock_timestamp())
    """
    await session.execute(text(statement), {"plan": card.plan_id, "digest": card.digest, "key": key})
    await session.execute(text("SELECT pg_notify('drbot', 'signature')"))


def wanting_a_key(keys: dict[str, Path]) -> DrPlan:
    """The plan of the tests, where one signature of what destroys is a key's."""
    document: dict[str, Any] = keyed_plan(keys).model_dump(mode="json")
    for rule in document["approval"]["rules"]:
        rule["key_required"] = rule["risk"] == "DESTRUCTIVE"
    return DrPlan.model_validate(document)


async def test_with_the_slack_login_everybodys_slack_signature_can_be_forged(office: OfficeForTests) -> None:
    """This is what such a login is: Slack itself speaks through it. The next test shows what to do about it."""
    async with office.working():
        card = await a_plan(office)
        async with office.in_front.session() as session:
            await sign_as_daniel(session, office, card)
        await office.until(card, PlanState.SUCCEEDED)


async def test_where_a_key_is_asked_for_the_slack_login_starts_nothing(memory: Database, make_key: MakeKey) -> None:
    office = OfficeForTests(memory, wanting_a_key({person: make_key(person) for person in PERSONS}))
    try:
        async with office.working():
            card = await a_plan(office)
            async with office.in_front.session() as session:
                await sign_as_daniel(session, office, card)
            await asyncio.sleep(0.3)
            now = await office.desk.plan_card(card.token)
    finally:
        await office.close()
    assert now.state is PlanState.PENDING
    assert any("key" in item for item in now.missing), now.missing
    assert card.plan_id not in WORLD


async def test_where_a_key_is_asked_for_the_commanders_account_starts_nothing_alone(
    memory: Database, make_key: MakeKey
) -> None:
    """Break-glass is no way around it: the commander's click is one that such a login can forge."""
    office = OfficeForTests(memory, wanting_a_key({person: make_key(person) for person in PERSONS}))
    opened = Command(name="incident.open", params={"title": "Orders are gone", "commander": "olivia"})
    toy = Command(name="toy.run", reason="nobody answers", typed="toy", break_glass=True)
    try:
        async with office.working():
            await office.desk.ask(office.who("olivia"), opened, reply=ReplyTo(channel=CHANNEL))
            said = await office.refused(await office.desk.ask(office.who("olivia"), toy, reply=ReplyTo()) or 0)
            codes = await refusals(office)
    finally:
        await office.close()
    assert "a rule of this plan asks for one" in said
    assert codes == ["key_required"]


async def test_while_slack_is_suspect_the_slack_login_starts_nothing(office: OfficeForTests) -> None:
    """Nor does it end the suspicion: only two keys do."""
    await incident(office, "open", title="Somebody else clicks")
    async with office.working():
        card = await a_plan(office)
        await office.ask("olivia", "incident.suspect_slack", reason="that was not me")
        async with office.in_front.session() as session:
            await session.execute(text("UPDATE incident SET slack_suspect_since = NULL"))
            await sign_as_daniel(session, office, card)
        await asyncio.sleep(0.3)
        now = await office.desk.plan_card(card.token)
    assert now.state is PlanState.PENDING
    assert card.plan_id not in WORLD


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE run SET state = 'running', lease_until = clock_timestamp() - interval '1 minute'",
        "INSERT INTO journal (run_id, epoch, step, state, detail, at, elapsed_ms) VALUES ('x', 1, 0, '', '', now(), 0)",
        "UPDATE plan SET digest = 'x'",
        "UPDATE inbox SET payload = '{}'",
        "UPDATE signature SET person = 'sam'",
        "UPDATE incident SET recovered_at = clock_timestamp()",
        "DELETE FROM refusal",
        "DELETE FROM timeline_entry",
        "INSERT INTO plan_version (sha256, document, plan_id) VALUES ('x', 'x', '')",
    ],
)
@pytest.mark.parametrize("login", ["in_front", "at_terminal", "on_time"])
async def test_no_login_but_the_workers_reaches_a_run_and_none_the_past(
    office: OfficeForTests, login: str, statement: str
) -> None:
    database: Database = getattr(office, login)
    with pytest.raises(NotAllowedError):
        async with database.session() as session:
            await session.execute(text(statement))


async def test_with_the_workers_login_a_run_can_be_marked_and_no_worker_carries_it_out(office: OfficeForTests) -> None:
    """The worker that takes it over derives everything anew before the first step."""
    async with office.working():
        card = await a_plan(office)
        async with office.at_work.session() as session:
            await session.execute(
                text("""
                    UPDATE run SET state = 'running', epoch = 1,
                        lease_until = clock_timestamp() - interval '1 minute' WHERE id = :plan
                """),
                {"plan": card.plan_id},
            )
            await session.execute(text("SELECT pg_notify('drbot', 'signature')"))
        ended = await office.until(card, PlanState.FAILED)
    assert "signatures no longer suffice" in ended.message
    assert card.plan_id not in WORLD


MARK = "UPDATE run SET state = 'running' WHERE id = 'p1'"
DATED_BACK = """
    INSERT INTO run (id, state, plan_schema, owner, epoch, progress, message, started_at)
    VALUES (:plan, :state, 1, '', 0, '{}', '', '2026-01-01')
"""


@pytest.mark.parametrize(
    ("before", "mark"),
    [
        ((), MARK),
        ((), "UPDATE run SET state = 'asking' WHERE id = 'p1'"),
        ((), "UPDATE run SET state = 'succeeded' WHERE id = 'p1'"),
        ((), DATED_BACK.replace(":plan, :state", "'p2', 'running'")),
        ((), "INSERT INTO run SELECT * FROM run WHERE id = 'p1' ON CONFLICT (id) DO UPDATE SET state = 'running'"),
        (
            (
                "CREATE FUNCTION lent.clock_timestamp() RETURNS timestamptz RETURN timestamptz '2026-01-01'",
                "SET search_path = lent, public, pg_catalog",
            ),
            MARK,
        ),
    ],
)
async def test_with_the_workers_login_a_start_has_the_time_of_the_database(
    pg_server: EmbeddedPostgres, office: OfficeForTests, before: Sequence[str], mark: str
) -> None:
    """Also where somebody has lent it a schema, and it brings a clock along."""
    worker = await logged_in(pg_server, office)
    for plan in ("p1", "p2"):
        await activation(office, plan, "", ())
    async with office.memory.session() as session:
        await session.execute(text("CREATE SCHEMA lent"))
        await session.execute(text(f"GRANT CREATE, USAGE ON SCHEMA lent TO {DatabaseRole.WORKER}"))
    async with office.at_work.session() as session:
        await session.execute(text(DATED_BACK), {"plan": "p1", "state": "awaiting"})
    try:
        async with office.memory.session() as session:
            assert (await session.execute(text("SELECT started_at FROM run"))).scalar_one() is None
        async with worker.session() as session:
            for statement in (*before, mark):
                await session.execute(text(statement))
        started = text("SELECT clock_timestamp() - started_at AS ago FROM run WHERE state <> 'awaiting'")
        for _ in range(2):  # the second time after another touch
            async with office.memory.session() as session:
                assert timedelta(0) <= (await session.execute(started)).scalar_one() < timedelta(minutes=1)
            async with worker.session() as session:
                await session.execute(text("UPDATE run SET epoch = epoch + 1"))
    finally:
        await worker.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE run SET started_at = '2026-01-01'",
        "UPDATE run SET started_at = NULL",
        "UPDATE run SET state = 'awaiting' WHERE id = 'p1'",
        "UPDATE run SET state = 'running' WHERE id = 'p2'",
        "UPDATE run SET state = 'awaiting' WHERE id = 'p2'",
        "UPDATE run SET state = 'succeeded' WHERE id = 'p2'",
        "INSERT INTO run SELECT * FROM run WHERE id = 'p2' ON CONFLICT (id) DO UPDATE SET state = 'running'",
        "DELETE FROM run",
        "TRUNCATE run CASCADE",
        "ALTER TABLE run DISABLE TRIGGER kept",
        "DROP TRIGGER kept ON run",
        "ALTER TABLE run ENABLE REPLICA TRIGGER kept",
        "SET session_replication_role = replica",
        "CREATE OR REPLACE FUNCTION keep_run() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$",
        "ALTER FUNCTION keep_run() RESET ALL",
    ],
)
async def test_with_the_workers_login_no_start_is_moved_and_no_run_that_is_over_begins_again(
    pg_server: EmbeddedPostgres, office: OfficeForTests, statement: str
) -> None:
    worker = await logged_in(pg_server, office)
    for plan in ("p1", "p2"):
        await activation(office, plan, "", ())
    async with office.at_work.session() as session:
        for plan, state in (("p1", "running"), ("p2", "failed")):
            await session.execute(text(DATED_BACK), {"plan": plan, "state": state})
    try:
        with pytest.raises(NotAllowedError):
            async with worker.session() as session:
                await session.execute(text(statement))
    finally:
        await worker.dispose()


async def logged_in(pg_server: EmbeddedPostgres, office: OfficeForTests) -> Database:
    """Not acting as the worker's role, but by the login that is a member of it and of nothing else."""
    name = psycopg.conninfo.conninfo_to_dict(office.memory.url)["dbname"]
    urls = await make_logins(pg_server, str(name))
    return Database(urls[DatabaseRole.WORKER], role=DatabaseRole.WORKER, pool_size=1)


async def test_with_the_clocks_login_only_the_schedule_can_ask_and_it_signs_nothing(office: OfficeForTests) -> None:
    """It may ask as the schedule, whose word counts only where nobody else must sign."""
    request = text("""
        INSERT INTO request (kind, name, params, person, slack_user, channel, reply, reason, typed, state, error,
            plan_id, source_key)
        VALUES ('command', 'toy.run', '{}', 'schedule', '', :channel, CAST(:reply AS jsonb), 'because', 'toy', 'new',
            '', '', 'schedule/forged') RETURNING id
    """)
    asked = {"kind": "ask", "who": {"source": "clock"}, "command": {"name": "toy.run", "reason": "because"}}
    async with office.working():
        async with office.on_time.session() as session:
            await inbox.store(session, "schedule/forged", "schedule", asked)
            values = {"channel": CHANNEL, "reply": '{"who": {"source": "clock"}}'}
            number = (await session.execute(request, values)).scalar_one()
            await session.execute(text("SELECT pg_notify('drbot', 'request')"))
        assert await office.refused(number)
    assert await plans(office) == 0


async def plans(office: OfficeForTests) -> int:
    async with office.memory.session() as session:
        return int((await session.execute(text("SELECT count(*) FROM plan"))).scalar_one())


DOCUMENT = "whoever: I am the roster\n"
VERSION = "INSERT INTO plan_version (sha256, document, plan_id) VALUES (:sha256, :document, :plan)"


async def test_with_the_workers_login_no_plan_file_is_put_in_force_that_nobody_signed(
    pg_server: EmbeddedPostgres, office: OfficeForTests
) -> None:
    """It would put its thief on the roster. `session_user` counts, so this needs the login and not the role alone."""
    worker = await logged_in(pg_server, office)
    sha256 = hashlib.sha256(DOCUMENT.encode()).hexdigest()
    values = {"sha256": sha256, "document": DOCUMENT, "plan": "p1"}
    try:
        async with worker.session() as session:
            await session.execute(text(VERSION), {**values, "plan": ""})  # the first, on an empty table
        for signers in ((), ("daniel",), ("daniel", "olivia")):  # olivia has asked for it
            await activation(office, f"p{len(signers)}", sha256, signers)
            with pytest.raises(NotAllowedError, match="nobody has signed for this version"):
                async with worker.session() as session:
                    await session.execute(text(VERSION), {**values, "plan": f"p{len(signers)}"})
        await activation(office, "p3", sha256, ("daniel", "sam"))
        with pytest.raises(NotAllowedError, match="nobody has signed for this version"):
            async with worker.session() as session:
                await session.execute(text(VERSION), {**values, "plan": "p3", "document": DOCUMENT + "# and more"})
        dated = "INSERT INTO plan_version (sha256, document, plan_id, activated_at) VALUES (:sha256, :document, :plan, "
        async with worker.session() as session:
            made = text(dated + "clock_timestamp() - interval '1 day') RETURNING clock_timestamp() - activated_at")
            ago = (await session.execute(made, {**values, "plan": "p3"})).scalar_one()
        assert timedelta(0) <= ago < timedelta(minutes=1), "it came into force when it did"
        # Nor does what two have signed for once come back after another one.
        with pytest.raises(NotAllowedError, match="plan p3 has put its version of the plan file in force already"):
            async with worker.session() as session:
                await session.execute(text(VERSION), {**values, "plan": "p3"})
    finally:
        await worker.dispose()


async def activation(office: OfficeForTests, plan: str, sha256: str, signers: Sequence[str]) -> None:
    """A plan that olivia has asked for, to put this version in force, and who has approved it."""
    made = text("""
        INSERT INTO plan (id, action, document, digest, risk, plan_schema, requester, reason, channel, token,
            created_at, expires_at)
        VALUES (:plan, 'plan.activate', jsonb_build_object('steps', jsonb_build_array(jsonb_build_object('sha256',
            CAST(:sha256 AS text)))), 'd', 'IRREVERSIBLE', 1, 'olivia', '', 'C', :plan, now(), now())
    """)
    signed = text("""
        INSERT INTO signature (plan_id, person, act, digest, reason, typed, source, account, at)
        VALUES (:plan, :person, 'approve', 'd', '', '', 'slack', '', now())
    """)
    async with office.memory.session() as session:
        await session.execute(made, {"plan": plan, "sha256": sha256})
        for person in signers:
            await session.execute(signed, {"plan": plan, "person": person})
