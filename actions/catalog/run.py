"""Decide about another run: answer what it asks, try it again, put back what it did.

An answer is a plan like any other, with the risk of the run that asks: it goes through the same signatures, and its one
step writes the answer where the asking run finds it. Its lock is the run itself, so that it does not wait for the locks
the asking run holds.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from actions.case import Code
from actions.contract import Action, Finding, JournalState, Lock, Plan, Precondition, Risk, Step, Verdict
from actions.errors import RefusedError, UserError
from actions.ports import Answer, Ports, RunFacts
from actions.site import Frozen
from actions.steps.run_control import WORDS, AnswerRun, RunAsks, RunIs, UndoStep

OVER = ("succeeded", "failed", "aborted", "pre-empted")


class RunParams(Frozen):
    """Which run."""

    run: str = Field(min_length=1)


class AnswerParams(RunParams):
    """Which run and, to be sure that both mean the same, which of its steps, counted from 1."""

    step: int | None = Field(default=None, ge=1)


class _Answering(Action[AnswerParams]):
    """What all answers have in common."""

    risk: ClassVar[Risk] = Risk.IRREVERSIBLE  # as high as the run's own
    of_a_run: ClassVar[bool] = True
    params = AnswerParams
    steps: ClassVar[tuple[type[Step], ...]] = (AnswerRun,)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (RunAsks,)
    answer: ClassVar[Answer]

    async def plan(self, params: AnswerParams, ports: Ports, plan_id: str) -> Plan:
        facts = await _found(ports, params.run)
        if facts.question is None or facts.step is None:
            raise UserError(f"Run `{facts.id}` asks nothing; it is {facts.state}. Look at its card.")
        number = facts.step + 1
        if params.step not in (None, number):
            raise UserError(f"Run `{facts.id}` asks about step {number}, not {params.step}. Look at its card again.")
        asked: Plan = facts.plan
        step = asked.steps[facts.step]
        self._check(facts, step)
        effect, commands = self._effect(facts)
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Run `{facts.id}` ({asked.summary}): {WORDS[self.answer]}",
            risk=asked.risk,
            target=asked.target,
            params=params.model_dump(mode="json"),
            about=asked.about or asked.action,
            locks=(Lock(key=f"run:{facts.id}"),),
            steps=(
                AnswerRun(
                    run=facts.id,
                    question=facts.question,
                    number=number,
                    asked=step.summary,
                    answer=self.answer,
                    effect=effect,
                    commands=commands or (f"drbot plan show {facts.id}",),
                    plan=plan_id,
                ),
            ),
            preconditions=(RunAsks(run=facts.id, question=facts.question),),
            made_at=ports.clock.now(),
            findings=(Finding(check="question", verdict=Verdict.WARN, detail=facts.message),),
            data_loss=asked.data_loss,
        )

    def _check(self, facts: RunFacts, step: Step) -> None:
        """Raise UserError where this answer makes no sense."""

    def _effect(self, facts: RunFacts) -> tuple[str, tuple[str, ...]]:
        """What follows, and the commands that do it without the bot."""
        if facts.backward:
            return self._going_back(facts)
        plan: Plan = facts.plan
        at = facts.step or 0
        rest = [index for index in range(at + 1, len(plan.steps)) if facts.last.get(index) not in _PASSED]
        if self.answer is Answer.REPEAT:
            rest = [at, *rest]
        commands = tuple(line for index in rest for line in plan.steps[index].by_hand())
        following = f"the run goes on with step {rest[0] + 1}" if rest else "the run has succeeded"
        return f"{_COUNTS[self.answer].format(number=at + 1)}{following}", commands

    def _going_back(self, facts: RunFacts) -> tuple[str, tuple[str, ...]]:
        plan: Plan = facts.plan
        left = [index for index in put_back(facts) if self.answer is not Answer.HAPPENED or index != facts.step]
        commands = tuple(line for index in left for line in plan.steps[index].undo_by_hand())
        numbers = ", ".join(str(index + 1) for index in left)
        return (f"the run puts back step(s) {numbers}" if left else "the run has put everything back"), commands


class Happened(_Answering):
    """People have looked: the effect is there."""

    name: ClassVar[str] = "run.happened"
    summary: ClassVar[str] = "Tell a run that asks: it has happened, go on"
    answer: ClassVar[Answer] = Answer.HAPPENED


class Repeat(_Answering):
    """People have looked: the effect is not there."""

    name: ClassVar[str] = "run.repeat"
    summary: ClassVar[str] = "Tell a run that asks: it has not happened, do it again"
    answer: ClassVar[Answer] = Answer.REPEAT


class Undo(_Answering):
    """No further: the steps that promise it are put back, newest first."""

    name: ClassVar[str] = "run.undo"
    summary: ClassVar[str] = "Tell a run that asks: abort, and undo what was done"
    answer: ClassVar[Answer] = Answer.ABORTED

    def _check(self, facts: RunFacts, step: Step) -> None:  # noqa: ARG002
        if facts.backward:
            raise UserError(
                f"Run `{facts.id}` is being put back already; it asks about that. Answer with `/dr run happened` when "
                "you have put it back by hand, or `/dr run repeat` to try again."
            )

    def _effect(self, facts: RunFacts) -> tuple[str, tuple[str, ...]]:
        effect, commands = self._going_back(facts)
        kept = [f"{index + 1}" for index in sorted(facts.last) if index not in put_back(facts) and index != facts.step]
        tail = f"; step(s) {', '.join(kept)} stay as they are" if kept else ""
        return f"{effect}{tail}", commands


class Skip(_Answering):
    """Only a step that the signed plan calls optional."""

    name: ClassVar[str] = "run.skip"
    summary: ClassVar[str] = "Tell a run that asks: leave out the optional step, go on"
    answer: ClassVar[Answer] = Answer.SKIPPED

    def _check(self, facts: RunFacts, step: Step) -> None:
        if not step.optional or facts.backward:
            raise RefusedError(
                f"Step {(facts.step or 0) + 1} of run `{facts.id}` is not optional, so it cannot be skipped. Answer "
                "with `/dr run happened`, `/dr run repeat` or `/dr run undo`.",
                code=Code.NOT_OPTIONAL,
            )


class Leave(_Answering):
    """The run ends where it stands; its locks are given back."""

    name: ClassVar[str] = "run.leave"
    summary: ClassVar[str] = "Tell a run that asks: end here, leave everything as it stands"
    answer: ClassVar[Answer] = Answer.LEFT

    def _effect(self, facts: RunFacts) -> tuple[str, tuple[str, ...]]:
        return f"run `{facts.id}` has failed, nothing is put back, its locks are free for other runs", ()


class Retry(Action[RunParams]):
    """The same plan once more, under the same names: what is done is found by its probe and not done again."""

    name: ClassVar[str] = "run.retry"
    summary: ClassVar[str] = "Try a run again after its cause was repaired, as a new plan"
    risk: ClassVar[Risk] = Risk.IRREVERSIBLE  # as high as the run's own
    of_a_run: ClassVar[bool] = True
    params = RunParams
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (RunIs,)

    async def plan(self, params: RunParams, ports: Ports, plan_id: str) -> Plan:
        facts = await _found(ports, params.run)
        if facts.state not in OVER or facts.state == "succeeded":
            raise UserError(
                f"Run `{facts.id}` is {facts.state}; only one that failed or was aborted can be retried. "
                "Look at its card."
            )
        tried: Plan = facts.plan
        done = [index + 1 for index, state in sorted(facts.last.items()) if state == JournalState.VERIFIED]
        kept = f"Finished and kept: step(s) {', '.join(map(str, done))}." if done else "No finished step is left."
        return tried.model_copy(
            update={
                "id": plan_id,
                "action": self.name,
                "params": params.model_dump(mode="json"),
                "about": tried.about or tried.action,
                "summary": f"Again, after run `{facts.id}` {facts.state}: {tried.summary}",
                "locks": (*tried.locks, Lock(key=f"run:{facts.id}")),
                "preconditions": (*_lasting(tried, facts), RunIs(run=facts.id, state=facts.state, lines=facts.lines)),
                "made_at": ports.clock.now(),
                "findings": (
                    Finding(
                        check="first try",
                        verdict=Verdict.WARN,
                        detail=f"{facts.message} {kept}",
                        hint="Every step is looked at before it is done; what is there already is not done again.",
                    ),
                ),
                "observations": (),
                "alternatives": (),
            }
        )


class UndoFinished(Action[RunParams]):
    """What a run did, taken back in reverse, as far as its steps can be."""

    name: ClassVar[str] = "run.undo_finished"
    summary: ClassVar[str] = "Undo the finished steps of a run that is over, as a new plan"
    risk: ClassVar[Risk] = Risk.IRREVERSIBLE  # as high as the run's own
    of_a_run: ClassVar[bool] = True
    params = RunParams
    steps: ClassVar[tuple[type[Step], ...]] = (UndoStep,)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (RunIs,)

    async def plan(self, params: RunParams, ports: Ports, plan_id: str) -> Plan:
        facts = await _found(ports, params.run)
        if facts.state not in OVER:
            raise UserError(
                f"Run `{facts.id}` is {facts.state}; only one that is over can be undone as a new plan. "
                f"To turn back a run under way, `/dr run abort {facts.id}`."
            )
        done: Plan = facts.plan
        numbers = put_back(facts)
        if not numbers:
            raise UserError(
                f"Nothing of run `{facts.id}` is left that can be put back: `drbot plan show {facts.id}` tells "
                "what it did."
            )
        fixed = [
            Finding(
                check="undo",
                verdict=Verdict.WARN,
                detail=f"Step {index + 1} ({done.steps[index].summary}) cannot be put back and stays.",
            )
            for index, state in sorted(facts.last.items())
            if state == JournalState.VERIFIED and index not in numbers
        ]
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Undo run `{facts.id}`: {done.summary}",
            risk=done.risk,
            target=done.target,
            params=params.model_dump(mode="json"),
            about=done.about or done.action,
            locks=(*done.locks, Lock(key=f"run:{facts.id}")),
            steps=tuple(UndoStep(run=facts.id, number=index + 1, step=done.steps[index]) for index in numbers),
            preconditions=(RunIs(run=facts.id, state=facts.state, lines=facts.lines),),
            made_at=ports.clock.now(),
            findings=tuple(fixed),
        )


ACTIONS = (Happened, Repeat, Undo, Skip, Leave, Retry, UndoFinished)

_PASSED = (JournalState.VERIFIED, JournalState.SKIPPED)

_COUNTS = {
    Answer.HAPPENED: "step {number} counts as done, on the word of those who sign; ",
    Answer.REPEAT: "",
    Answer.SKIPPED: "step {number} is left out; ",
}


def put_back(facts: RunFacts) -> tuple[int, ...]:
    """The steps that promise an undo and were begun, newest first."""
    plan: Plan = facts.plan
    return tuple(
        index
        for index in sorted(facts.last, reverse=True)
        if facts.last[index] not in (JournalState.UNDONE, JournalState.PREEMPTED) and plan.steps[index].undo_on_failure
    )


def _lasting(plan: Plan, facts: RunFacts) -> tuple[Precondition, ...]:
    """What must hold although some steps have been carried out once."""
    return tuple(item for item in plan.preconditions if not (facts.last and item.spent))


async def _found(ports: Ports, run: str) -> RunFacts:
    facts = await ports.runs.find(run)
    if facts is None:
        raise UserError(f"There is no run `{run}`; `/dr status` shows those there are.")
    return facts
