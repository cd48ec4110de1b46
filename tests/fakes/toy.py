"""A toy action whose steps only count in a dictionary: to test and to measure what carries steps out."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, ClassVar

from pydantic import AwareDatetime

from actions.catalog import run
from actions.contract import Action, Kinds, Lock, Plan, Probe, Query, Risk, Step
from actions.errors import PermanentError, UserError, VerificationError
from actions.ports import Ports, Progress
from actions.site import Frozen
from actions.steps.run_control import AnswerRun, RunAsks, RunIs, UndoStep

WORLD: dict[str, list[str]] = {}
"""What the toy steps did, by plan id."""

CLEAR: set[str] = set()
"""Plans whose trouble has been repaired: their steps neither fail nor are unclear any more."""

HELD: set[int] = set()
"""Numbers of the steps that do not end before they are let go."""


class ToyParams(Frozen):
    """How many steps, how long each takes, and which one fails."""

    steps: int = 2
    seconds: float = 0
    fails: int | None = None
    unclear: int | None = None
    optional: int | None = None
    interruptible: bool = False
    risk: Risk = Risk.DESTRUCTIVE
    key: str = "toy"
    before: AwareDatetime | None = None


class ToyStep(Step):
    kind: str = "toy.count"
    plan_id: str
    number: int
    milliseconds: int = 0
    fails: bool = False
    unclear: bool = False

    @property
    def summary(self) -> str:
        return f"Count {self.number}"

    def by_hand(self) -> tuple[str, ...]:
        return (f"echo {self.number}",)

    async def probe(self, ports: Ports) -> Probe:
        if self.unclear and self.plan_id not in CLEAR:
            return Probe.UNKNOWN
        return Probe.DONE if f"do {self.number}" in WORLD.get(self.plan_id, []) else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:
        await asyncio.sleep(self.milliseconds / 1000)
        while self.number in HELD:  # noqa: ASYNC110 - an event is of one loop, and this of all tests
            await asyncio.sleep(0.02)
        if self.fails and self.plan_id not in CLEAR:
            raise PermanentError(f"step {self.number} was told to fail.")
        WORLD.setdefault(self.plan_id, []).append(f"do {self.number}")

    async def verify(self, ports: Ports) -> None:
        if f"do {self.number}" not in WORLD.get(self.plan_id, []):
            raise VerificationError("not counted.")

    async def stop(self, ports: Ports) -> None:
        WORLD.setdefault(self.plan_id, []).append(f"stop {self.number}")

    def undo_by_hand(self) -> tuple[str, ...]:
        return (f"echo not {self.number}",)

    async def undone(self, ports: Ports) -> None:
        if WORLD[self.plan_id].count(f"undo {self.number}") == 0:
            raise VerificationError("still counted.")

    async def undo(self, ports: Ports) -> None:
        WORLD.setdefault(self.plan_id, []).append(f"undo {self.number}")


class ToyPatience(ToyStep):
    """Gives way at once."""

    interruptible: ClassVar[bool] = True
    kind: str = "toy.patience"


class Toy(Action[ToyParams]):
    name: ClassVar[str] = "toy.run"
    summary: ClassVar[str] = "Count"
    risk: ClassVar[Risk] = Risk.DESTRUCTIVE
    recovers: ClassVar[bool] = True
    params = ToyParams
    steps: ClassVar[tuple[type[Step], ...]] = (ToyStep, ToyPatience)

    def least_risk(self, plan: Plan) -> Risk:
        return Risk.READ if plan.params.get("risk") == plan.risk else self.risk

    async def plan(self, params: ToyParams, ports: Ports, plan_id: str) -> Plan:
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Count to {params.steps}",
            risk=params.risk,
            target="toy",
            params=params.model_dump(mode="json", exclude={"seconds"}),
            locks=(Lock(key=params.key),),
            steps=tuple(
                (ToyPatience if params.interruptible else ToyStep)(
                    plan_id=plan_id,
                    number=number,
                    milliseconds=round(params.seconds * 1000),
                    fails=number == params.fails,
                    unclear=number == params.unclear,
                    optional=number == params.optional,
                    undo_on_failure=True,
                    timeout=timedelta(minutes=1),
                )
                for number in range(1, params.steps + 1)
            ),
            made_at=ports.clock.now(),
        )


class ToyCatalogue:
    """A catalogue of the toy, and of what decides about its runs."""

    QUERIES: tuple[type[Query[Any]], ...] = ()

    def action(self, name: str, /) -> Action[Any]:
        known: dict[str, type[Action[Any]]] = {kind.name: kind for kind in run.ACTIONS}
        if name not in known and name != Toy.name:
            raise UserError(f"There is no action `{name}`.")
        return known.get(name, Toy)()

    def query(self, name: str, /) -> Query[Any]:
        raise AssertionError(f"the toy catalogue has no query {name}")

    def kinds(self) -> Kinds:
        return Kinds(
            steps={"toy.count": ToyStep, "toy.patience": ToyPatience, "answer_run": AnswerRun, "undo_step": UndoStep},
            preconditions={"run_asks": RunAsks, "run_is": RunIs},
        )
