"""Whether a stored plan is one that its action makes: its kinds of steps, its risk, and where it speaks of another run
that run's own plan.

Which signatures a plan needs follows from its action and its risk. Both stand in the plan, and who can write plans into
the bot's database could call the swap of a database a reversible status; so a worker looks before it believes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from actions.contract import Action, Kinds, Plan, Precondition, Step
from actions.errors import UserError
from actions.steps.run_control import AnswerRun, UndoStep
from storage import plans

ActionOf = Callable[[str], Action[Any]]
"""The action of a name. Raises UserError where there is none."""


class Declared:
    """Holds plans against the actions there are."""

    def __init__(self, kinds: Kinds, action: ActionOf) -> None:
        self._kinds = kinds
        self._action = action

    async def misfit(self, session: AsyncSession, plan: Plan) -> str | None:
        """What the plan's action would not have made; None when nothing is."""
        return await self._misfit(session, plan, frozenset())

    async def _misfit(self, session: AsyncSession, plan: Plan, seen: frozenset[str]) -> str | None:
        try:
            action = self._action(plan.action)
        except UserError:
            return f"`{plan.action}` is no action"
        if not plan.steps:
            return "it has no step"
        if action.of_a_run:
            return await self._about_a_run(session, action, plan, seen | {plan.id})
        least = action.least_risk(plan)
        if plan.risk.level < least.level:
            return f"it is called {plan.risk}, and a plan of `{plan.action}` with these steps is {least}"
        if plan.about:
            return f"it is about a run, which `{plan.action}` is not"
        return _foreign(action, plan.steps, plan.preconditions)

    async def _about_a_run(
        self, session: AsyncSession, action: Action[Any], plan: Plan, seen: frozenset[str]
    ) -> str | None:
        """It may hold what its own action declares and the very steps of the run, at no lower risk than the run's."""
        run = str(plan.params.get("run"))
        row = None if run in seen else await plans.get(session, run)
        if row is None:
            return f"there is no run `{run}` for it to be about"
        base = self._kinds.plan(row.document)
        if base.digest != row.digest:
            return f"the plan of run `{run}` does not match its digest"
        wrong = await self._misfit(session, base, seen)
        if wrong is not None:
            return f"run `{run}`: {wrong}"
        if plan.about != (base.about or base.action) or plan.target != base.target:
            return f"run `{run}` is about `{base.about or base.action}` of `{base.target}`"
        if plan.risk.level < base.risk.level:
            return f"it is called {plan.risk}, and run `{run}` is {base.risk}"
        steps = [step for step in plan.steps if step not in base.steps]
        preconditions = [item for item in plan.preconditions if item not in base.preconditions]
        return _foreign(action, steps, preconditions) or _elsewhere(run, base, steps)


def _foreign(action: Action[Any], steps: Iterable[Step], preconditions: Iterable[Precondition]) -> str | None:
    """The first kind that the action does not declare."""
    allowed = {*action.steps, *action.preconditions}
    for item in (*steps, *preconditions):
        if type(item) not in allowed:
            return f"`{action.name}` has no `{getattr(item, 'kind', '')}`"
    return None


def _elsewhere(run: str, base: Plan, steps: Iterable[Step]) -> str | None:
    """The first step that reaches into another run, or puts back what this one never held."""
    for step in steps:
        if isinstance(step, AnswerRun | UndoStep) and step.run != run:
            return f"a step of it reaches into run `{step.run}`"
        if isinstance(step, UndoStep) and step.step not in base.steps[step.number - 1 : step.number]:
            return f"run `{run}` has no such step {step.number}"
    return None
