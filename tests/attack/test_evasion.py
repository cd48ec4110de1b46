"""Ways around a rule that itself holds: another channel, another incident, another name. Rows E1 on of
docs/reference/attacks.md."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from actions.contract import Plan, Risk, new_plan_id
from actions.errors import UserError
from bot.ports import ReplyTo
from bot.router import Command
from bot.services.cards import PlanState
from bot.services.policy import stored
from storage import plans
from storage.session import NotAllowedError
from storage.tables import PlanRow
from tests.attack.conftest import Setting
from tests.attack.launch import TARGET, StartJob
from tests.attack.stage import OLIVIA, REASON, Stage, with_roster
from tests.attack.test_identity import rule
from tests.fakes.clock import TravellingClock
from tests.fixtures.memory import put_forward
from tests.fixtures.office import CHANNEL, OfficeForTests, put_in_force

pytestmark = [pytest.mark.attack, pytest.mark.integration]

ELSEWHERE = "C0ELSEWHERE"


async def incident(stage: Stage, name: str, person: str, **params: Any) -> None:
    command = Command(name=f"incident.{name}", params=params)
    await stage.office.desk.ask(
        stage.office.who(person, ELSEWHERE), command, reply=ReplyTo(channel=ELSEWHERE, user=person)
    )


async def test_e1_suspect_slack_is_not_left_by_another_channel(stage: Stage) -> None:
    """Two hijacked accounts ask where there is no incident, and try to close the one that knows of them."""
    await incident(stage, "open", "olivia", title="Somebody else clicks")
    await incident(stage, "suspect_slack", "sam", text="that was not me")
    assert (await stage.ask())[0] == 200
    await stage.refused("slack_suspect")
    with pytest.raises(UserError, match="stays open"):
        await incident(stage, "close", "daniel")
    await stage.refused("slack_suspect", times=2)


def jobs(plan_id: str, action: str, risk: Risk) -> Plan:
    """What starts a job, under a name and a risk that need nobody else."""
    return Plan(
        id=plan_id,
        action=action,
        summary="Look at the databases",
        risk=risk,
        target=TARGET,
        params={},
        steps=(StartJob(job=plan_id),),
        made_at=datetime.now(UTC),
    )


async def command_of(stage: Stage, name: str) -> str:
    """The key under which a command of Olivia's is stored that she did type."""
    command = Command(name=name, params={}, reason=REASON)
    asked = {"kind": "ask", "command": command.model_dump(mode="json")}
    return await stage.office.desk.keep(stage.office.who("olivia"), asked)


async def written(stage: Stage, plan: Plan, key: str, **columns: Any) -> None:
    """The plan and its request, written with the stolen login of a worker."""
    now = datetime.now(UTC)
    row: dict[str, Any] = {
        "id": plan.id,
        "action": plan.action,
        "document": plan.model_dump(mode="json"),
        "digest": plan.digest,
        "risk": plan.risk,
        "plan_schema": plan.plan_schema,
        "requester": "olivia",
        "reason": REASON,
        "channel": CHANNEL,
        "token": f"forged-{plan.id}",
        "policy": stored(stage.office.policy.version),
        "created_at": now,
        "expires_at": now + timedelta(hours=1),
    }
    signed = text("""
        INSERT INTO signature (plan_id, person, act, digest, reason, typed, source, account, inbox_key, at)
        VALUES (:plan, 'olivia', 'request', :digest, :reason, '', 'slack', :account, :key, clock_timestamp())
    """)
    values = {"plan": plan.id, "digest": plan.digest, "reason": REASON, "account": OLIVIA, "key": key}
    async with stage.office.at_work.session() as session:
        await plans.add(session, PlanRow(**(row | columns)))
        await session.execute(signed, values)


async def test_e4_commands_by_hand_that_are_not_those_of_the_steps_are_not_run(stage: Stage) -> None:
    """The stolen login of a worker: people would read, and in need type, something else than what the steps do."""
    key = await command_of(stage, "restore.dump")
    honest = jobs(new_plan_id(), "restore.dump", Risk.DESTRUCTIVE)
    await written(stage, honest.model_copy(update={"by_hand": (("dropdb shop",),)}), key)
    await stage.refused("not_declared")
    assert "commands by hand" in await stage.value("SELECT text FROM refusal")


@pytest.mark.parametrize(
    ("action", "risk", "words"),
    [
        ("status", Risk.REVERSIBLE, "`status` is no action"),
        ("restore.dump", Risk.REVERSIBLE, "it is called REVERSIBLE"),
    ],
)
async def test_e2_a_plan_that_no_action_makes_needs_no_approver_and_does_not_run(
    stage: Stage, action: str, risk: Risk, words: str
) -> None:
    """The stolen login of a worker: a plan under another name or risk, resting on a command that somebody did type."""
    key = await command_of(stage, action)
    await written(stage, jobs(new_plan_id(), action, risk), key)
    await stage.refused("not_declared")
    assert words in await stage.value("SELECT text FROM refusal")


async def marked(stage: Stage, set_to: str = "state = 'running'") -> None:
    """A run that the stolen login of a worker marks, as one whose worker fell silent."""
    lease = "epoch = 1, lease_until = clock_timestamp() - interval '1 minute'"
    async with stage.office.at_work.session() as session:
        await session.execute(text(f"UPDATE run SET {set_to}, {lease}"))
        await session.execute(text("SELECT pg_notify('drbot', 'signature')"))


Happening = Callable[[Stage, TravellingClock], Awaitable[OfficeForTests]]


async def an_hour_goes_by(stage: Stage, clock: TravellingClock) -> OfficeForTests:
    clock.ahead = timedelta(hours=1)
    await put_forward(stage.memory, clock.ahead)
    return stage.office


async def a_freeze_begins(stage: Stage, clock: TravellingClock) -> OfficeForTests:
    clock.ahead = timedelta(minutes=10)
    await put_forward(stage.memory, clock.ahead)
    return stage.office


async def the_policy_is_lowered(stage: Stage, clock: TravellingClock) -> OfficeForTests:
    def lower(document: dict[str, Any]) -> None:
        rule(document, "DESTRUCTIVE")["slots"] = []

    later = OfficeForTests(stage.memory, with_roster(stage.office.plan, lower), catalogue=stage.catalogue, clock=clock)
    later.ports = stage.office.ports
    await put_in_force(stage.memory, later.plan)
    return later


def with_a_freeze(document: dict[str, Any]) -> None:
    since, until = (datetime.now(UTC) + timedelta(minutes=minutes) for minutes in (5, 300))
    times = {"since": f"{since:%Y-%m-%d %H:%M} UTC", "until": f"{until:%Y-%m-%d %H:%M} UTC"}
    rule(document, "DESTRUCTIVE")["freezes"] = [{"reason": "Black Friday", **times}]
    rule(document, "DESTRUCTIVE")["execution_expiry"] = "2h"


@pytest.mark.parametrize("state", ["running", "paused", "asking"])
@pytest.mark.parametrize(
    ("happening", "words"),
    [
        (an_hour_goes_by, "it was signed, but could not start in time"),
        (a_freeze_begins, "Missing was the end of the freeze (Black Friday)"),
        (the_policy_is_lowered, "The approval policy has changed since"),
    ],
)
async def test_e5_a_signed_plan_that_may_not_start_is_not_started_by_a_mark(
    setting: Setting, happening: Happening, words: str, state: str
) -> None:
    """The stolen login of a worker: all signatures are genuine, and their time is over. A run that has started is not
    held to it, so the thief says that this one has."""
    clock = TravellingClock()
    change = with_a_freeze if happening is a_freeze_begins else lambda _: None
    async with setting(workers=0, clock=clock, change=change) as stage:
        await put_in_force(stage.memory, stage.office.plan)
        async with stage.office.working(1):
            plan = await stage.plan()
        assert "starts now" in await stage.sign(plan)
        office = await happening(stage, clock)
        await marked(stage, f"state = '{state}'")
        if state != "running":
            await marked(stage)
        try:
            async with office.working(1):
                ended = await office.until(plan.card, PlanState.FAILED)
                await stage.refused_by_worker("undue_start", plan)
        finally:
            if office is not stage.office:
                await office.close()
        assert words in ended.message
        assert "who wrote into the bot's database" in ended.message


async def test_e5_a_mark_is_not_dated_back(setting: Setting) -> None:
    clock = TravellingClock()
    async with setting(workers=0, clock=clock) as stage:
        async with stage.office.working(1):
            plan = await stage.plan()
        assert "starts now" in await stage.sign(plan)
        await an_hour_goes_by(stage, clock)
        with pytest.raises(NotAllowedError, match="permission denied"):
            await marked(stage, "state = 'running', started_at = clock_timestamp()")
        await marked(stage)
        async with stage.office.working(1):
            await stage.until(plan, PlanState.FAILED)
            await stage.refused_by_worker("undue_start", plan)
        with pytest.raises(NotAllowedError, match="is failed, and never running again"):
            await marked(stage)
