"""What every action must keep, whatever it does: the laws of `test_actions`, applied case by case.

The world is broken at every single call of a port, before and after its effect: once as a death of the bot (nothing
runs any more, not even `finally` of the step that matters), once as an error of the other side.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from actions import registry
from actions.approval import Act, Case, Decision, Person, Rule, Signature, decide
from actions.contract import JournalEntry, Plan
from actions.errors import PermanentError
from actions.ports import Ports
from actions.runner import Outcome, Runner, RunResult
from actions.site import Frozen
from tests.fakes.world import SECRETS, World

PLAN_ID = "k7m2n3p4q5"
MANY = 40
"""Calls of a run. Of one with more, two tests share them out; `make soak` breaks every one in both."""


class Died(BaseException):
    """The bot is gone. Not an Exception, so that nothing of ours can catch it."""


class Moment(StrEnum):
    BEFORE = "before"
    AFTER = "after"


@dataclass
class Fault:
    """Raises `error` at call number `at` (from 1); with `at` 0 it only counts and remembers."""

    at: int = 0
    moment: Moment = Moment.BEFORE
    error: Callable[[str], BaseException] = Died
    spared: frozenset[str] = frozenset()
    calls: list[str] = field(default_factory=list)

    async def through(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        self.calls.append(name)
        here = len(self.calls) == self.at
        if here and self.moment is Moment.BEFORE:
            raise self.error(f"{name} broke before.")
        try:
            answer = await call()
        except Exception as error:
            if here:
                raise self.error(f"{name} broke after.") from error
            raise
        if here:
            raise self.error(f"{name} broke after.")
        return answer


class Fragile:
    """A port whose every asynchronous call goes through a fault."""

    def __init__(self, name: str, port: object, fault: Fault) -> None:
        self._name = name
        self._port = port
        self._fault = fault

    def __getattr__(self, method: str) -> Any:
        found = getattr(self._port, method)
        if not inspect.iscoroutinefunction(found):
            return found

        async def call(*arguments: Any, **named: Any) -> Any:
            return await self._fault.through(f"{self._name}.{method}", lambda: found(*arguments, **named))

        return call


def fragile(ports: Ports, fault: Fault) -> Ports:
    """The same world, every port of it breaking as the fault says."""
    parts: dict[str, Any] = {part.name: getattr(ports, part.name) for part in dataclasses.fields(Ports)}
    for name in parts.keys() - {"site"} - fault.spared:
        parts[name] = Fragile(name, parts[name], fault)
    return Ports(**parts)


class MemoryJournal:
    """A journal that outlives the bot."""

    def __init__(self) -> None:
        self.lines: list[JournalEntry] = []

    async def entries(self) -> Sequence[JournalEntry]:
        return tuple(self.lines)

    async def append(self, entry: JournalEntry) -> None:
        self.lines.append(entry)


@dataclass(frozen=True)
class ActionCase:
    """One action in one world. `asks` lists the kinds of steps whose failure asks people instead of putting back."""

    id: str
    action: str
    params: Frozen
    world: Callable[[], World]
    asks: frozenset[str] = frozenset()
    undoable: bool = True
    final: bool = False  # once it has succeeded it cannot be put back; a failure before that can, or it asks

    async def plan(self, ports: Ports) -> Plan:
        return await registry.action(self.action).plan(self.params, ports, PLAN_ID)


async def run(plan: Plan, ports: Ports, journal: MemoryJournal) -> RunResult:
    """Carry out the plan as it comes back from the database."""
    return await Runner(read_back(plan), ports, journal).run()


def read_back(plan: Plan) -> Plan:
    """Through JSON text and back."""
    return registry.kinds().plan(json.loads(plan.model_dump_json()))


async def died_and_resumed(case: ActionCase, at: int, moment: Moment) -> tuple[RunResult, World]:
    """Run, die at this call, run again with the same journal in the world as it was left."""
    world = case.world()
    plan = await case.plan(world)
    journal = MemoryJournal()
    try:
        await run(plan, fragile(world, Fault(at=at, moment=moment)), journal)
    except Died:
        return await run(plan, world, journal), world
    raise AssertionError(f"there is no call {at}")


@dataclass(frozen=True)
class Failure:
    """How a run ended in which one call failed for good."""

    result: RunResult
    world: World
    call: str
    step: str  # kind of the step the result names


async def failed(case: ActionCase, at: int, moment: Moment) -> Failure:
    """Run with one call that fails for good. Waiting cannot fail, so the clock is spared."""
    world = case.world()
    plan = await case.plan(world)
    fault = Fault(at=at, moment=moment, error=PermanentError, spared=frozenset({"clock"}))
    result = await run(plan, fragile(world, fault), MemoryJournal())
    step = "" if result.step is None else plan.steps[result.step].kind
    return Failure(result=result, world=world, call=fault.calls[at - 1], step=step)


async def calls_to_break(
    case: ActionCase, *, spared: frozenset[str] = frozenset(), ends: Outcome = Outcome.SUCCEEDED
) -> list[int]:
    """Numbers of the calls of a run that nothing disturbs from outside: all, but of a long wait only its edges."""
    world = case.world()
    plan = await case.plan(world)
    fault = Fault(spared=spared)
    result = await run(plan, fragile(world, fault), MemoryJournal())
    assert result.outcome is ends, result.message
    return [number for number in range(1, len(fault.calls) + 1) if not _waiting(fault.calls, number - 1)]


def every_other(calls: Sequence[int], first: int) -> Sequence[int]:
    """All of a run with few calls; of many every second one, from this number of them on."""
    return calls if len(calls) <= MANY else calls[first - 1 :: 2]


def _waiting(calls: Sequence[str], at: int) -> bool:
    """Whether the call is in the middle of a loop that sleeps: like the two rounds before it and the one after."""
    return any(
        at >= 2 * period
        and at + period < len(calls)
        and calls[at - 2 * period : at - period] == calls[at - period : at] == calls[at : at + period]
        and "clock.sleep" in calls[at : at + period]
        for period in range(2, 6)
    )


def signed_by_requester_alone(plan: Plan) -> Decision:
    """What the rules say when nobody but the requester has signed."""
    person = Person(id="ona", name="Ona", roles=frozenset({"dba", "security", "operator"}))
    request = Signature(
        person="ona", act=Act.REQUEST, digest=plan.digest, at=plan.made_at, typed=plan.target, reason="needed"
    )
    case = Case(
        plan=plan,
        requester="ona",
        rules=(Rule(risk=plan.risk, others=0),),
        roster={"ona": person},
        signatures=(request,),
        expires_at=plan.made_at.replace(year=plan.made_at.year + 1),
    )
    return decide(case, plan.made_at)


def secrets_in(text: str) -> list[str]:
    """The secret values of the world that the text gives away."""
    return [value for value in SECRETS.values() if value in text]


def fractions_in(value: object) -> list[float]:
    """Numbers of a JSON document that another canonicalisation could write differently."""
    if isinstance(value, float):
        return [] if value.is_integer() else [value]
    if isinstance(value, dict):
        return [found for item in value.values() for found in fractions_in(item)]
    if isinstance(value, list):
        return [found for item in value for found in fractions_in(item)]
    return []
