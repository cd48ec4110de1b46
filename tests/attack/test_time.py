"""Two at once, too late, too early, and after a crash. Rows C1 to C14 of docs/reference/attacks.md."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from actions.ports import Clock
from bot.ports import ReplyTo, Who
from bot.router import Command
from bot.services.cards import PlanState
from bot.slack import accounts
from tests.attack.conftest import Setting
from tests.attack.launch import TARGET
from tests.attack.stage import DANIEL, REASON, SAM, Posted, Stage, with_roster
from tests.attack.test_identity import by_group, person, rule
from tests.fakes.slack import signed_http
from tests.fixtures.office import OfficeForTests, shipped_plan
from tests.fixtures.waiting import eventually

pytestmark = [pytest.mark.attack, pytest.mark.integration]


class SteppingClock(Clock):
    """The time of this machine, set forward or back."""

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.sleep(duration.total_seconds())


async def as_owner(stage: Stage, statement: str, **values: Any) -> None:
    """What only somebody with the owner's rights on the database can do."""
    async with stage.memory.session() as session:
        await session.execute(text(statement), values)


async def test_c1_five_sendings_of_one_form_are_one_signature(stage: Stage) -> None:
    plan = await stage.plan()
    view = await stage.window(plan)
    bodies = [signed_http(stage.slack.submission(view, user=DANIEL, reason="seen", typed=TARGET)) for _ in range(5)]
    await asyncio.gather(*(stage.post(*body) for body in bodies))
    await stage.until(plan, PlanState.SUCCEEDED)
    assert await stage.signers(plan) == [("olivia", "request"), ("daniel", "approve")]
    assert len(stage.executor.starts) == 1


async def test_c1_two_forms_of_one_person_are_one_signature(setting: Setting) -> None:
    def two(document: dict[str, Any]) -> None:
        rule(document, "DESTRUCTIVE")["persons_besides_requester"] = 2

    async with setting(change=two) as stage:
        plan = await stage.plan()
        views = [await stage.window(plan), await stage.window(plan)]
        told = await asyncio.gather(*(stage.submit(view) for view in views))
        assert sorted("already recorded" in item for item in told) == [False, True]
        await stage.refused("already_signed", plan)


async def test_c2_two_approvers_at_one_instant_start_one_run(setting: Setting) -> None:
    def two(document: dict[str, Any]) -> None:
        rule(document, "DESTRUCTIVE")["persons_besides_requester"] = 2
        rule(document, "DESTRUCTIVE")["slots"] = []

    async with setting(change=two, workers=3) as stage:
        for number in range(1, 4):
            plan = await stage.plan()
            daniel, sam = await stage.window(plan), await stage.window(plan, user=SAM)
            await asyncio.gather(stage.submit(daniel), stage.submit(sam, user=SAM))
            await stage.until(plan, PlanState.SUCCEEDED)
            assert len(stage.executor.starts) == number
        assert await stage.codes() == []
        # One who comes a moment later starts no second run.
        await stage.sign_late(plan, user=SAM)
        await stage.refused("already_started", plan, starts=3)


async def queued(stage: Stage, count: int) -> None:
    """Return once so many wait for the plan that is held."""
    waiting = (
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
        " WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted"
    )

    async def there() -> bool:
        return await stage.values(waiting) == [count]

    await eventually(there)


@pytest.mark.parametrize("first", ["approve", "deny"])
async def test_c3_a_denial_at_the_same_instant_wins(setting: Setting, first: str) -> None:
    """Both come in while the plan is held, and the workers behind them, so that none can look between them."""
    async with setting(workers=0) as stage, AsyncExitStack() as stack:
        async with stage.office.working(1):
            plan = await stage.plan()
        approve, deny = await stage.window(plan), await stage.window(plan, user=SAM, action="plan.deny")
        sendings = {
            "approve": lambda: stage.submit(approve),
            "deny": lambda: stage.submit(deny, user=SAM, reason="wrong hour"),
        }
        held = "SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"
        async with stage.memory.session() as session:
            await session.execute(text(held), {"key": f"drbot plan {plan.card.plan_id}"})
            sending = [asyncio.create_task(sendings.pop(first)())]
            await queued(stage, 1)
            sending += [asyncio.create_task(sendings.popitem()[1]())]
            await queued(stage, 2)
            await stack.enter_async_context(stage.office.working(2))
            await queued(stage, 4)
        await asyncio.gather(*sending)
        await stage.until(plan, PlanState.DENIED)
        await stage.sign_late(plan)
        await stage.refused("denied", plan, times=1 if first == "approve" else 2)


async def test_c3_a_denial_before_the_start_stops_a_signed_plan(setting: Setting) -> None:
    async with setting(workers=0) as stage:
        async with stage.office.working(1):
            plan = await stage.plan()
        deny = await stage.window(plan, user=SAM, action="plan.deny")
        await stage.sign(plan)
        await stage.submit(deny, user=SAM, reason="wrong hour")
        async with stage.office.working(1):
            await stage.until(plan, PlanState.DENIED)
            await stage.untouched()
        await stage.sign_late(plan)
        await stage.refused("denied", plan)


async def test_c3_a_denial_after_the_start_is_told_that_it_is_too_late(stage: Stage) -> None:
    plan = await stage.plan()
    deny = await stage.window(plan, user=SAM, action="plan.deny")
    await stage.sign(plan)
    await stage.until(plan, PlanState.SUCCEEDED)
    assert "has started" in await stage.submit(deny, user=SAM, reason="wrong hour")
    await stage.refused("already_started", plan, starts=1)


@pytest.mark.parametrize("late", [0, 1])
async def test_c4_the_last_moment_is_too_late(setting: Setting, late: int) -> None:
    clock = SteppingClock()
    async with setting(clock=clock) as stage:
        plan = await stage.plan()
        view = await stage.window(plan)
        [expires] = await stage.values("SELECT expires_at FROM plan")
        clock.offset = expires - datetime.now(UTC) - timedelta(seconds=-late)
        told = await stage.submit(view)
        assert "expired" in told or "in time" in told
        await stage.refused("expired", plan, by_worker=1)
        await stage.until(plan, PlanState.EXPIRED)


async def test_c4_an_expiry_that_somebody_moved_voids_the_plan(stage: Stage) -> None:
    plan = await stage.plan()
    view = await stage.window(plan)
    await as_owner(stage, "UPDATE plan SET expires_at = expires_at + interval '1 day'")
    await stage.submit(view)
    await stage.until(plan, PlanState.VOID)


async def test_c5_a_clock_set_back_revives_nothing(setting: Setting) -> None:
    clock = SteppingClock()
    async with setting(clock=clock) as stage:
        plan = await stage.plan()
        view = await stage.window(plan)
        clock.offset = timedelta(days=1)
        await as_owner(stage, "SELECT pg_notify('drbot', 'signature')")
        await stage.until(plan, PlanState.EXPIRED)
        clock.offset = timedelta(hours=-2)
        await stage.submit(view)
        assert await stage.state(plan) is PlanState.EXPIRED
        await stage.refused("expired", plan, by_worker=1)
        numbers = await stage.values("SELECT seq FROM timeline_entry ORDER BY recorded_at")
        assert numbers == sorted(numbers), "the order of the record is not the clock's"


async def test_c6_signed_and_not_started_in_time_is_not_started(setting: Setting) -> None:
    clock = SteppingClock()
    async with setting(workers=0, clock=clock) as stage:
        async with stage.office.working(1):
            plan = await stage.plan()
        assert "starts now" in await stage.sign(plan)
        clock.offset = timedelta(hours=1)  # the bot was down meanwhile
        async with stage.office.working(1):
            await stage.until(plan, PlanState.EXPIRED)
            await stage.refused_by_worker("expired", plan)


async def test_c6_an_unclear_step_is_not_started_again(stage: Stage) -> None:
    plan = await stage.plan()
    stage.executor.unclear = True
    await stage.sign(plan)
    await stage.until(plan, PlanState.ASKING)
    await stage.untouched()
    assert await stage.value("SELECT state FROM journal ORDER BY seq DESC LIMIT 1") == "asking"


async def test_c7_many_workers_start_one_run_once(setting: Setting) -> None:
    async with setting(workers=6) as stage:
        for number in range(1, 4):
            plan = await stage.plan()
            await stage.sign(plan)
            await stage.until(plan, PlanState.SUCCEEDED)
            assert len(stage.executor.starts) == number
        # A take-over, which a slow machine may see, starts nothing anew.
        assert await stage.value("SELECT count(*) FROM journal WHERE state = 'verified' AND step = 0") == 3


async def test_c8_a_signature_on_other_words_does_not_count(stage: Stage) -> None:
    plan = await stage.plan()
    view = await stage.window(plan)
    private = stage.slack.views[view]["private_metadata"]
    stage.slack.views[view]["private_metadata"] = private.replace(plan.card.digest, "0" * 64)
    assert "was replaced" in await stage.submit(view)
    await stage.refused("stale_revision", plan)


async def test_c8_a_plan_that_was_changed_in_the_database_does_not_run(stage: Stage) -> None:
    plan = await stage.plan()
    view = await stage.window(plan)
    await as_owner(stage, """UPDATE plan SET document = jsonb_set(document, '{summary}', '"harmless"')""")
    await as_owner(stage, "SELECT pg_notify('drbot', 'signature')")
    await stage.until(plan, PlanState.VOID)
    await stage.refused_by_worker("bad_proof", plan)
    await stage.submit(view)
    assert await stage.codes() == ["bad_proof", "stale_revision"]
    await stage.untouched()


async def test_c9_a_world_that_moved_stops_the_run(stage: Stage) -> None:
    plan = await stage.plan()
    stage.executor.moved = True
    await stage.sign(plan)
    ended = await stage.until(plan, PlanState.STALE)
    assert "moved to another server" in ended.message
    await stage.refused_by_worker("stale_world", plan)
    assert await stage.values("SELECT data->>'outcome' FROM timeline_entry WHERE data ? 'outcome'") == ["stale"]


async def test_c10_the_button_of_a_denied_plan_answers(stage: Stage) -> None:
    plan = await stage.plan()
    late = await stage.window(plan)
    await stage.sign(plan, user=SAM, action="plan.deny", reason="wrong hour")
    await stage.until(plan, PlanState.DENIED)
    view = await stage.window(plan)
    assert "denied" in str(stage.slack.views[view]["blocks"])
    assert "submit" not in stage.slack.views[view]
    assert "wrong hour" in await stage.submit(late)
    await stage.refused("denied", plan)


async def restarted(stage: Stage, change: Any) -> OfficeForTests:
    """The bot as it is after a restart with another plan file."""
    office = OfficeForTests(stage.memory, with_roster(shipped_plan(), change), catalogue=stage.catalogue)
    office.ports = stage.office.ports
    return office


async def voided(stage: Stage, plan: Posted, change: Any, *words: str) -> None:
    """Signed, and then the plan file was changed before the start: nothing runs, and the reason is told."""
    assert "starts now" in await stage.sign(plan)
    office = await restarted(stage, change)
    try:
        async with office.working(1):
            ended = await office.until(plan.card, PlanState.VOID, PlanState.EXPIRED)
            await stage.refused_by_worker("policy_changed", plan)
    finally:
        await office.close()
    for word in words:
        assert word in ended.message
    told = "SELECT count(*) FROM timeline_entry WHERE kind = 'run' AND data->>'plan' = :plan"
    assert await stage.value(told, plan=plan.card.plan_id) == 1


async def test_c11_a_lowered_policy_revives_nothing(setting: Setting) -> None:
    def lower(document: dict[str, Any]) -> None:
        rule(document, "DESTRUCTIVE")["slots"] = []

    async with setting(workers=0) as stage:
        async with stage.office.working(1):
            plan = await stage.plan()
        await voided(stage, plan, lower, "policy")


async def test_i8_who_left_the_roster_before_the_start_does_not_count(setting: Setting) -> None:
    def without_daniel(document: dict[str, Any]) -> None:
        person(document, "daniel")["slack_ids"] = ["U0NEWDBA"]
        person(document, "daniel")["id"] = "newcomer"

    async with setting(workers=0) as stage:
        async with stage.office.working(1):
            plan = await stage.plan()
        await voided(stage, plan, without_daniel, "roster")


async def test_i8_who_left_the_group_before_the_start_does_not_count(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round of look-ups notices; back to pending, and on again when he is back."""
    for pace in ("LOOK_EVERY_S", "FIRST_EVERY_S", "GROUP_LASTS_S", "BETWEEN_S"):
        monkeypatch.setattr(accounts, pace, 0.05)
    async with setting(workers=0, change=by_group) as stage:
        stage.slack.groups["S0DBA"] = {DANIEL}
        async with stage.office.working(1):
            plan = await stage.plan()
        assert "starts now" in await stage.sign(plan)
        stage.slack.groups["S0DBA"] = set()
        noted = "SELECT count(*) FROM account WHERE account = :account AND groups = CAST(:groups AS jsonb)"
        await eventually(lambda: _is_one(stage, noted, account=DANIEL, groups="[]"))
        async with stage.office.working(1):
            card = await stage.until(plan, PlanState.PENDING)
            assert card.missing == ("1 of dba (in S0DBA)",)
            await stage.untouched()
            stage.slack.groups["S0DBA"] = {DANIEL}
            await stage.until(plan, PlanState.SUCCEEDED)


async def _is_one(stage: Stage, query: str, **values: Any) -> bool:
    return bool(await stage.value(query, **values) == 1)


async def test_i14_a_signer_nobody_has_looked_at_since_starts_nothing(setting: Setting) -> None:
    """Slack is away after the signatures; whether the accounts are still there nobody knows."""

    def short(document: dict[str, Any]) -> None:
        document["approval"]["seen_within"] = "2m"

    clock = SteppingClock()
    async with setting(workers=0, clock=clock, change=short) as stage:
        async with stage.office.working(1):
            plan = await stage.plan()
        await stage.sign(plan)
        clock.offset = timedelta(minutes=5)
        async with stage.office.working(1):
            await stage.refused_by_worker("unseen", plan)
            card = await stage.until(plan, PlanState.PENDING)
        assert "a fresh look at the Slack account of Daniel Dietrich" in " ".join(card.missing)
        assert await stage.value("SELECT count(*) FROM outbox WHERE kind = 'page'") == 1


def without_record(document: dict[str, Any]) -> None:
    document["record"] = None


async def test_e3_without_a_record_nothing_destructive_is_asked_for(setting: Setting) -> None:
    async with setting(change=without_record) as stage:
        await stage.ask()
        await stage.refused("unwitnessed")
        assert "`drbot plan activate`" in await stage.value("SELECT text FROM refusal")


async def test_e3_a_record_that_went_after_the_signatures_starts_nothing(setting: Setting) -> None:
    async with setting(workers=0) as stage:
        async with stage.office.working(1):
            plan = await stage.plan()
        await stage.sign(plan)
        office = await restarted(stage, without_record)
        try:
            async with office.working(1):
                await office.until(plan.card, PlanState.VOID)
                await stage.refused_by_worker("unwitnessed", plan)
        finally:
            await office.close()


async def test_c12_without_a_key_the_command_line_signs_nothing(stage: Stage) -> None:
    command = Command(name="restore.dump", params={"database": TARGET}, reason=REASON, typed=TARGET)
    asked = await stage.office.terminal.ask(Who(source="cli", person="olivia"), command, reply=ReplyTo())
    told = await stage.office.refused(asked or 0)
    assert told
    await stage.refused("unsigned")


@pytest.mark.parametrize("table", ["timeline_entry", "signature", "journal"])
async def test_c13_what_cannot_be_recorded_is_not_done(stage: Stage, table: str) -> None:
    plan = await stage.plan()
    view = await stage.window(plan)
    await as_owner(
        stage,
        "CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN RAISE EXCEPTION USING ERRCODE = ''disk_full''; END'",
    )
    await as_owner(
        stage, f"CREATE TRIGGER disk_full BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION disk_full()"
    )
    await stage.send(stage.slack.submission(view, user=DANIEL, reason="seen", typed=TARGET))
    await asyncio.sleep(1)
    await stage.untouched()
    if table != "journal":
        assert await stage.signers(plan) == [("olivia", "request")]
    # Once there is room again, it goes on as if nothing had been.
    await as_owner(stage, "DROP FUNCTION disk_full() CASCADE")
    if table != "journal":
        await stage.sign(plan)
    await eventually(lambda: _started(stage), within=60)


async def _started(stage: Stage) -> bool:
    return len(stage.executor.starts) == 1


async def test_c14_a_quorum_nobody_can_reach_is_refused_at_the_request(setting: Setting) -> None:
    def nobody(document: dict[str, Any]) -> None:
        person(document, "sam")["slack_ids"] = []  # on leave
        rule(document, "DESTRUCTIVE").update({"persons_besides_requester": 2, "slots": []})

    async with setting(change=nobody) as stage:
        await stage.ask()
        await stage.refused("unreachable")
        assert await stage.value("SELECT count(*) FROM plan") == 0


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE signature SET reason = 'something else' WHERE act = 'approve'",
        "UPDATE signature SET person = 'sam' WHERE act = 'approve'",
    ],
    ids=["reason", "person"],
)
async def test_j12_a_record_that_was_edited_starts_nothing(setting: Setting, tampering: str) -> None:
    async with setting(workers=0) as stage:
        plan = await signed_and_waiting(stage)
        await past_the_triggers(stage, tampering)
        async with stage.office.working(1):
            await stage.until(plan, PlanState.VOID)
            await stage.refused_by_worker("bad_proof", plan)


async def test_j13_a_signature_that_never_came_in_starts_nothing(setting: Setting) -> None:
    async with setting(workers=0) as stage:
        plan = await signed_and_waiting(stage)
        await past_the_triggers(stage, "DELETE FROM inbox WHERE key IN (SELECT inbox_key FROM signature)")
        async with stage.office.working(1):
            await stage.until(plan, PlanState.VOID)
            await stage.refused_by_worker("bad_proof", plan)


async def signed_and_waiting(stage: Stage) -> Posted:
    """A plan with all its signatures, that no worker is there to start."""
    async with stage.office.working(1):
        plan = await stage.plan()
    assert "starts now" in await stage.sign(plan)
    return plan


async def past_the_triggers(stage: Stage, statement: str) -> None:
    """As a superuser, for whom the record is not append-only."""
    async with stage.memory.session() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        await session.execute(text(statement))
