"""What an action is: read this first.

An action turns parameters and the live world into a `Plan`; a plan is data that people sign; its steps are carried out
by `actions.runner`, which journals every one. A plan has three parts. *Intent* and *preconditions* form the digest that
people sign; *observations* are shown beside them and may change without voiding a signature.
"""

from __future__ import annotations

import hashlib
import operator
import secrets as random_source
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, Generic, Self, TypeVar

import rfc8785
from pydantic import Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator, model_validator

from actions.errors import PermanentError, VerificationError
from actions.ports import Ports, Progress
from actions.site import Frozen

PLAN_SCHEMA = 1
"""Raised when an older bot could not execute a newer plan; a worker leaves plans above its own number alone."""


class Risk(StrEnum):
    """How much can be lost. Ordered: the policy may raise a risk, never lower it."""

    READ = "READ"
    REVERSIBLE = "REVERSIBLE"
    DISRUPTIVE = "DISRUPTIVE"
    DESTRUCTIVE = "DESTRUCTIVE"
    IRREVERSIBLE = "IRREVERSIBLE"

    @property
    def level(self) -> int:
        return list(Risk).index(self)


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    STOP = "stop"


class Finding(Frozen):
    """Something a signer should know. A STOP finding makes the plan unsignable and says what to do."""

    check: str
    verdict: Verdict
    detail: str
    hint: str = ""


class Observation(Frozen):
    """A figure of the moment (size, lag, estimate): shown, not signed."""

    name: str
    value: str


class Probe(StrEnum):
    """DONE: the effect is there. TODO: it is not, and `apply` may run. UNKNOWN: cannot be told; people decide."""

    DONE = "done"
    TODO = "todo"
    UNKNOWN = "unknown"


class Lock(Frozen):
    """A key such as `database:superprismora`. Runs with conflicting locks never run at the same time."""

    key: str
    exclusive: bool = True


class Precondition(Frozen, ABC):
    """A signed fact about the world with its tolerance, read again right before the first step."""

    spent: ClassVar[bool] = False
    """Whether it is only of interest to a first try: steps of the same plan make it untrue."""

    kind: str

    @property
    @abstractmethod
    def summary(self) -> str:
        """One sentence for the signers."""

    @property
    def acts_on(self) -> str:
        """Of a server that the steps act on: which one it is, and where, for whoever is about to press a button."""
        return ""

    @abstractmethod
    async def violation(self, ports: Ports) -> str | None:
        """None while it holds, else one sentence with the difference."""


class Kept(Frozen):
    """Something of the world that is set aside and stays as it was: evidence, when it is done for an incident. `key`
    tells it from everything else that was ever kept."""

    key: str
    title: str
    location: str


class Step(Frozen, ABC):
    """One change of the world, resolved to exact names. Holds references to secrets, never secrets."""

    kind: str
    timeout: timedelta = timedelta(minutes=10)
    undo_on_failure: bool = False
    """Signed promise: when a later step fails, the runner undoes this one by itself (newest first)."""
    # Left out where it is not so: a plan that was signed before there were optional steps keeps its digest.
    optional: bool = Field(default=False, exclude_if=operator.not_)
    """Signed promise: the plan is worth going on with when this one fails. The run asks then, and it may be skipped."""

    interruptible: ClassVar[bool] = False
    """Whether it may be broken off at once when an incident needs its locks: nothing is lost but the work done."""
    afterwards: ClassVar[bool] = False
    """Whether service is back before it, in a plan that recovers: its time is no part of the achieved RTO."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """Imperative, with exact names."""

    @property
    def before(self) -> str:
        """What is there now."""
        return ""

    @property
    def after(self) -> str:
        """What will be there."""
        return ""

    @property
    def keeps(self) -> Kept | None:
        """What is set aside once this is verified; given back by its undo."""
        return None

    @property
    def gives_back(self) -> Kept | None:
        """What was set aside and is in use again once this is verified."""
        return None

    @abstractmethod
    def by_hand(self) -> tuple[str, ...]:
        """The commands that do the same without the bot, one a line, no secret in them."""

    @abstractmethod
    async def probe(self, ports: Ports) -> Probe: ...

    @abstractmethod
    async def apply(self, ports: Ports, progress: Progress) -> None: ...

    @abstractmethod
    async def verify(self, ports: Ports) -> None:
        """Raise VerificationError unless the world is as `after` says."""

    async def outcome(self, ports: Ports) -> str:  # noqa: ARG002 - the signature of those that have one
        """What people should know now that it is verified, for the journal and the report; nothing by default."""
        return ""

    async def stop(self, ports: Ports) -> None:
        """End what this step has running outside the bot; nothing of it may run on when this returns. Must be safe to
        repeat. Nothing by default: what the bot does itself has ended already."""

    async def undo(self, ports: Ports) -> None:  # noqa: ARG002 - the signature of those that can
        """Put the world back. Must be safe to repeat, and safe when `apply` never ran or ran half."""
        raise PermanentError(f"{self.summary}: cannot be undone.")

    def undo_by_hand(self) -> tuple[str, ...]:
        """The commands that put it back without the bot; needed where there is an `undo` to speak of."""
        return ()

    async def undone(self, ports: Ports) -> None:
        """Raise VerificationError unless `undo` has put the world back."""
        if await self.probe(ports) is Probe.DONE:
            raise VerificationError(f"{self.summary}: this is still so, although it was put back. Look at the target.")


class Asked(Frozen):
    """How a plan was asked for: what decides about its signatures besides what it does. Signed with it."""

    requester: str
    reason: str
    channel: str
    incident: str | None
    break_glass: bool
    policy: str  # digests of the rules and the roster it was made under
    overrules: str  # the denied plan that it replaces
    expires_at: datetime


class Plan(Frozen):
    """What will be done, as data. `id` is given by the caller so that planning twice gives the same plan."""

    plan_schema: int = PLAN_SCHEMA
    id: str
    action: str
    summary: str
    risk: Risk
    target: str  # what a signer of a destructive plan types
    params: Mapping[str, Any]
    # The action of the run it decides about, whose approval rules it falls under as well; empty for any other plan.
    about: str = Field(default="", exclude_if=operator.not_)
    # Added when it is stored for signing; an action knows nothing of it.
    asked: Asked | None = Field(default=None, exclude_if=operator.not_)
    # Added then as well: what its signers read. A later version may word the commands of a step anew.
    by_hand: tuple[tuple[str, ...], ...] | None = None
    locks: tuple[Lock, ...] = ()
    steps: tuple[SerializeAsAny[Step], ...]
    preconditions: tuple[SerializeAsAny[Precondition], ...] = ()
    # shown, not signed
    made_at: datetime
    findings: tuple[Finding, ...] = ()
    observations: tuple[Observation, ...] = ()
    alternatives: tuple[str, ...] = ()
    estimate: timedelta | None = None  # how long the steps will take
    # Of the estimate, in the order they come, called as they are in reports of progress. Empty where nobody knows.
    phases: tuple[tuple[str, timedelta], ...] = Field(default=(), exclude_if=operator.not_)
    data_loss: str = ""  # one sentence, empty when nothing is lost

    @field_validator("steps", "preconditions", mode="before")
    @classmethod
    def _revive(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = info.context if isinstance(info.context, Kinds) else None
        if kinds is None:
            return value
        table: Mapping[str, type[Frozen]] = kinds.steps if info.field_name == "steps" else kinds.preconditions
        return tuple(revived(table, item, kinds) for item in value)

    @model_validator(mode="after")
    def _each_step_has_commands(self) -> Self:
        if self.by_hand is not None and len(self.by_hand) != len(self.steps):
            raise ValueError("`by_hand` has commands for another number of steps than there are")
        return self

    def worded(self) -> tuple[tuple[str, ...], ...]:
        """The commands by hand of each step, as this version of the bot words them."""
        return tuple(step.by_hand() for step in self.steps)

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """The commands by hand of each step that are signed: the stored ones, once there are any."""
        return self.worded() if self.by_hand is None else self.by_hand

    def signed_part(self) -> dict[str, Any]:
        """The intent and the preconditions: everything that the digest covers. Of a plan that was read, what it was
        written with: a field that a later version has added stands at its default, and nobody has signed it."""
        shown = {"made_at", "findings", "observations", "alternatives", "estimate", "phases", "data_loss", "by_hand"}
        # A stored plan names every field its version had, so also this one, which nobody gives a plan that is made.
        read = "plan_schema" in self.model_fields_set
        data = self.model_dump(mode="json", exclude=shown, exclude_unset=read)
        data["by_hand"] = [list(lines) for lines in self.commands]
        return data

    @property
    def digest(self) -> str:
        """SHA-256, hex, over the RFC 8785 form of `signed_part` in NFC."""
        return hashlib.sha256(unicodedata.normalize("NFC", canonical(self.signed_part())).encode()).hexdigest()

    @property
    def short_code(self) -> str:
        """First eight hex digits of the digest, for people to compare."""
        return self.digest[:8]

    @property
    def stopped(self) -> tuple[Finding, ...]:
        """The findings that forbid this plan."""
        return tuple(finding for finding in self.findings if finding.verdict is Verdict.STOP)


def canonical(value: Any) -> str:
    """RFC 8785 JSON text."""
    return rfc8785.dumps(value).decode()


@dataclass(frozen=True)
class Kinds:
    """The step and precondition types by `kind`, to read a plan back from JSON."""

    steps: Mapping[str, type[Step]]
    preconditions: Mapping[str, type[Precondition]]

    def plan(self, document: Mapping[str, Any]) -> Plan:
        """Raise UnknownKindError for a kind, or for a form of one, that this version of the bot does not know."""
        try:
            return Plan.model_validate(document, context=self)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UnknownKindError(
                f"This version of the bot cannot read the plan (`{where}`: {first['msg']}); the version that made it "
                "must run it."
            ) from error


class UnknownKindError(PermanentError):
    """A plan of another version of the bot holds a step this one does not know."""


def revived(table: Mapping[str, type[Frozen]], item: Any, kinds: Kinds) -> Any:
    """A step or precondition out of its JSON; what is an object already stays as it is."""
    if not isinstance(item, Mapping):
        return item
    kind = str(item.get("kind"))
    if kind not in table:
        raise UnknownKindError(f"This version of the bot knows no `{kind}`; a newer one must run this plan.")
    return table[kind].model_validate(item, context=kinds)


def new_plan_id() -> str:
    """Ten characters, lower case and digits: short enough for names derived from it, 50 bits of chance."""
    alphabet = "abcdefghijkmnpqrstuvwxyz23456789"
    return "".join(random_source.choice(alphabet) for _ in range(10))


ParamsT = TypeVar("ParamsT", bound=Frozen)


class DrillOf(StrEnum):
    """What an action is run for, one by one, when it is a drill; the name of its one parameter as well."""

    DATABASE = "database"
    SERVER = "server"


class Action(ABC, Generic[ParamsT]):
    """One thing the bot can do. Its class attributes are read by help, README, approvers and tests."""

    name: ClassVar[str]
    summary: ClassVar[str]
    risk: ClassVar[Risk]  # the highest a plan of it can have
    params: type[ParamsT]
    steps: ClassVar[tuple[type[Step], ...]] = ()
    preconditions: ClassVar[tuple[type[Precondition], ...]] = ()
    drillable: ClassVar[DrillOf | None] = None
    """The clock may run it as a drill, for each of these: it shows something and leaves all as it was."""
    recovers: ClassVar[bool] = False
    """Its success ends the RTO clock of the incident."""
    recovery: ClassVar[bool] = False
    """One person may start it under break-glass: it brings service back, and deletes, rotates and rules nothing."""
    of_a_run: ClassVar[bool] = False
    """Its plans are about another run (`params.run`): they hold that run's steps beside their own, at its risk."""

    def least_risk(self, plan: Plan) -> Risk:  # noqa: ARG002 - the signature of those that look
        """The lowest risk that a plan with these steps may have: a stored plan that claims less is refused."""
        return self.risk

    @abstractmethod
    async def plan(self, params: ParamsT, ports: Ports, plan_id: str) -> Plan:
        """Look at the world, change nothing. Raise UserError when it cannot be planned."""


class Report(Frozen):
    """What a READ action answers: a title, lines of text, and rows for a table."""

    title: str
    lines: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    findings: tuple[Finding, ...] = ()


class Query(ABC, Generic[ParamsT]):
    """A READ action: answers at once, changes nothing, leaves no run."""

    name: ClassVar[str]
    summary: ClassVar[str]
    risk: ClassVar[Risk] = Risk.READ
    params: type[ParamsT]

    @abstractmethod
    async def read(self, params: ParamsT, ports: Ports) -> Report: ...


class JournalState(StrEnum):
    """What the journal says of a step. APPLYING without an end means: probe, then ask.

    HAPPENED, REPEAT and SKIPPED are what people answered when the run asked, ABORTED what they answered or ordered,
    PREEMPTED that it gives way to an incident.
    """

    APPLYING = "applying"
    VERIFIED = "verified"
    FAILED = "failed"
    ASKING = "asking"
    UNDOING = "undoing"
    UNDONE = "undone"
    HAPPENED = "happened"
    REPEAT = "repeat"
    SKIPPED = "skipped"
    ABORTED = "aborted"
    LEFT = "left"
    PREEMPTED = "pre-empted"


class JournalEntry(Frozen):
    """One line of a run's journal."""

    step: int
    state: JournalState
    detail: str = ""
    at: datetime
    elapsed_ms: int = Field(default=0, ge=0)
