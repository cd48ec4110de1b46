"""Where the sessions of an application are, once it was pointed at another server."""

from __future__ import annotations

import dataclasses

import pytest

from actions import registry
from actions.catalog.promote import Promote, PromoteParams
from actions.catalog.restore import RestoreParams
from actions.contract import JournalState, Plan
from actions.errors import UserError
from actions.runner import Outcome
from actions.site import DatabaseRef
from actions.steps.connected import PATIENCE, SeeConnected
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.history import SCRATCH_ID, with_a_scratch
from tests.fakes.world import API, HEALTH, World, a_world

HOME = DatabaseRef("primary", "shop")


async def promoting(world: World, *, dead: bool = False) -> Plan:
    return await Promote().plan(PromoteParams(scratch=SCRATCH_ID, old_primary_is_dead=dead), world, PLAN_ID)


def place_of(plan: Plan) -> tuple[int, SeeConnected]:
    [(number, step)] = [(number, step) for number, step in enumerate(plan.steps) if isinstance(step, SeeConnected)]
    return number, step


def said(plan: Plan, journal: MemoryJournal) -> str:
    number, _ = place_of(plan)
    [line] = [line for line in journal.lines if (line.step, line.state) == (number, JournalState.VERIFIED)]
    return line.detail


async def test_the_run_says_how_many_sessions_the_new_server_has() -> None:
    world, journal = with_a_scratch(), MemoryJournal()
    plan = await promoting(world)
    assert (await run(plan, world, journal)).outcome is Outcome.SUCCEEDED
    assert said(plan, journal) == "`shop` has 1 session at dr.example:5432. None is left in `primary/shop`."


async def test_an_application_that_has_not_connected_yet_is_told_with_what_to_do() -> None:
    world, journal = with_a_scratch(), MemoryJournal()
    world.cluster.workloads[API].started = None
    plan = await promoting(world)
    begun = world.clock.now()
    assert (await run(plan, world, journal)).outcome is Outcome.SUCCEEDED

    assert world.clock.now() - begun >= PATIENCE
    text = said(plan, journal)
    assert text.startswith("NOT SEEN: `shop` has no session at dr.example:5432")
    assert "kubectl --context main -n shop rollout restart deployment/api" in text
    assert "cronjob" not in text
    assert "pg_stat_activity" in text


async def test_pods_that_stay_with_an_old_primary_that_came_back_make_the_run_ask() -> None:
    world, journal = with_a_scratch(), MemoryJournal()
    old = world.postgres.servers["primary"]
    old.down = True
    plan = await promoting(world, dead=True)
    number, step = place_of(plan)

    def started() -> None:  # its environment still names the old one, which somebody has switched on
        old.down = False
        world.postgres.connect(HOME, "shop")

    world.cluster.workloads[API].started = started
    asked = await run(plan, world, journal)

    assert (asked.outcome, asked.step) == (Outcome.ASKING, number)
    assert "1 session of `shop` is still in `primary/shop`" in asked.message
    assert "rollout restart deployment/api" in asked.message
    assert "This step is optional" in asked.message

    world.postgres.leave("shop")
    world.postgres.connect(DatabaseRef(f"scratch-{SCRATCH_ID}", "shop"), "shop")
    await step.apply(world, lambda _: None)
    await step.verify(world)


async def test_without_a_connection_in_the_plan_file_everybody_but_superusers_is_the_application() -> None:
    world, journal = with_a_scratch(), MemoryJournal()
    service = world.site.services["shop"].model_copy(update={"database_dsn": None})
    world = dataclasses.replace(world, site=world.site.model_copy(update={"services": {"shop": service}}))

    def started() -> None:
        world.postgres.connect(DatabaseRef(f"scratch-{SCRATCH_ID}", "shop"), "somebody")

    world.cluster.workloads[API].started = started
    plan = await promoting(world)
    assert (await run(plan, world, journal)).outcome is Outcome.SUCCEEDED
    assert "`shop` has 1 session at" in said(plan, journal)


async def test_one_that_connects_for_each_question_is_seen_in_the_middle_of_one() -> None:
    world, journal = with_a_scratch(), MemoryJournal()
    scratch = DatabaseRef(f"scratch-{SCRATCH_ID}", "shop")
    world.cluster.workloads[API].started = None
    clients, http = world.postgres.clients, world.service.http

    async def answering(url: str) -> str | None:
        if scratch.server in world.postgres.servers and url == HEALTH:
            world.postgres.connect(scratch, "shop")
        return await http(url)

    async def looking(database: DatabaseRef, role: str, **limits: object) -> int:
        found = await clients(database, role, **limits)  # type: ignore[arg-type]
        if database == scratch:
            world.postgres.leave("shop")
        return found

    world.service.http, world.postgres.clients = answering, looking  # type: ignore[method-assign]
    plan = await promoting(world)
    assert (await run(plan, world, journal)).outcome is Outcome.SUCCEEDED
    assert "`shop` has 1 session at" in said(plan, journal)


@pytest.mark.parametrize(
    ("trouble", "told"),
    [("down", "`primary` does not answer."), ("refused", "`primary` could not be looked at (it refused the login.)")],
)
async def test_an_old_server_that_cannot_be_looked_at_is_told(
    monkeypatch: pytest.MonkeyPatch, trouble: str, told: str
) -> None:
    world, journal = a_world(), MemoryJournal()
    params = RestoreParams(database="shop", instance_suspect=True)
    plan = await registry.action("restore.dump").plan(params, world, PLAN_ID)
    clients = world.postgres.clients

    async def looking(database: DatabaseRef, role: str, **limits: object) -> int:
        if database == HOME and trouble == "refused":
            raise UserError("it refused the login.")
        world.postgres.servers["primary"].down = trouble == "down"
        return await clients(database, role, **limits)  # type: ignore[arg-type]

    monkeypatch.setattr(world.postgres, "clients", looking)
    assert (await run(plan, world, journal)).outcome is Outcome.SUCCEEDED
    assert said(plan, journal) == f"`shop` has 1 session at spare. {told}"


async def test_what_the_plan_file_calls_the_old_server_may_be_the_new_one_by_now() -> None:
    world = with_a_scratch()
    _, step = place_of(await promoting(world))
    world.postgres.servers["primary"] = world.postgres.servers[f"scratch-{SCRATCH_ID}"]
    world.postgres.connect(step.target, "shop")

    await step.verify(world)
    assert "the new server answers by now" in await step.outcome(world)
