"""Steps that decide about another run of the bot: answer what it asks, put back what it did."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializeAsAny, ValidationInfo, field_validator, model_validator

from actions.contract import Kept, Kinds, Precondition, Probe, Step, revived
from actions.errors import PermanentError, VerificationError
from actions.ports import Answer, Ports, Progress, RunFacts


class RunAsks(Precondition):
    """The run still asks this very question."""

    kind: Literal["run_asks"] = "run_asks"
    run: str
    question: int

    @property
    def summary(self) -> str:
        return f"Run `{self.run}` still asks question {self.question} of its journal"

    async def violation(self, ports: Ports) -> str | None:
        facts = await ports.runs.find(self.run)
        if facts is None:
            return f"There is no run `{self.run}`."
        if facts.question == self.question:
            return None
        given = facts.answered.get(self.question)
        return f"Run `{self.run}` has been answered: {given}." if given else f"Run `{self.run}` is {facts.state} now."


class RunIs(Precondition):
    """The run is over, and nothing has been done in it since."""

    kind: Literal["run_is"] = "run_is"
    run: str
    state: str
    lines: int

    @property
    def summary(self) -> str:
        return f"Run `{self.run}` is {self.state}, with {self.lines} lines of journal"

    async def violation(self, ports: Ports) -> str | None:
        facts = await ports.runs.find(self.run)
        if facts is None:
            return f"There is no run `{self.run}`."
        if (facts.state, facts.lines) == (self.state, self.lines):
            return None
        return f"Run `{self.run}` is {facts.state} with {facts.lines} lines of journal now."


class AnswerRun(Step):
    """One signed answer in the journal of a run that asks, which then obeys it."""

    kind: Literal["answer_run"] = "answer_run"
    run: str
    question: int
    number: int  # of the step that is asked about, from 1
    asked: str
    answer: Answer
    effect: str
    commands: tuple[str, ...]
    plan: str

    @property
    def summary(self) -> str:
        return f"Answer run `{self.run}` about step {self.number} ({self.asked}): {WORDS[self.answer]}"

    @property
    def before(self) -> str:
        return "the run stands still and asks"

    @property
    def after(self) -> str:
        return self.effect

    def by_hand(self) -> tuple[str, ...]:
        return self.commands

    async def probe(self, ports: Ports) -> Probe:
        given = (await self._found(ports)).answered.get(self.question)
        if given not in (None, self.answer):
            raise PermanentError(f"Run `{self.run}` has been answered otherwise: {given}. Nothing was changed.")
        return Probe.TODO if given is None else Probe.DONE

    async def _found(self, ports: Ports) -> RunFacts:
        facts = await ports.runs.find(self.run)
        if facts is None:
            raise PermanentError(f"There is no run `{self.run}`.")
        return facts

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - one transaction
        await ports.runs.answer(self.run, self.question, self.answer, plan=self.plan)

    async def verify(self, ports: Ports) -> None:
        if (await self._found(ports)).answered.get(self.question) is not self.answer:
            raise VerificationError(f"Run `{self.run}` does not have this answer. Look at its card.")


WORDS = {
    Answer.HAPPENED: "it has happened",
    Answer.REPEAT: "it has not happened, do it again",
    Answer.SKIPPED: "skip it",
    Answer.ABORTED: "abort and undo",
    Answer.LEFT: "leave everything as it stands",
}


class UndoStep(Step):
    """A finished step of another run, put back."""

    kind: Literal["undo_step"] = "undo_step"
    run: str
    number: int  # in that run, from 1
    step: SerializeAsAny[Step]

    @field_validator("step", mode="before")
    @classmethod
    def _revive(cls, value: Any, info: ValidationInfo) -> Any:
        return revived(info.context.steps, value, info.context) if isinstance(info.context, Kinds) else value

    @model_validator(mode="before")
    @classmethod
    def _as_patient(cls, data: Any) -> Any:
        """Putting back may take as long as the step itself."""
        if isinstance(data, dict) and isinstance(data.get("step"), Step):
            return {"timeout": data["step"].timeout, **data}
        return data

    @property
    def summary(self) -> str:
        return f"Put back step {self.number} of run `{self.run}`: {self.step.summary}"

    @property
    def before(self) -> str:
        return self.step.after

    @property
    def after(self) -> str:
        return self.step.before

    @property
    def gives_back(self) -> Kept | None:
        return self.step.keeps

    def by_hand(self) -> tuple[str, ...]:
        return self.step.undo_by_hand()

    async def probe(self, ports: Ports) -> Probe:  # noqa: ARG002
        # A step that is half there looks as one that is not, so nothing but doing it tells; it is safe to repeat.
        return Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - the contract of undo has none
        await self.step.undo(ports)

    async def verify(self, ports: Ports) -> None:
        await self.step.undone(ports)
