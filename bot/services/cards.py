"""What people are shown, as values: services fill these from the database, views turn them into blocks or text."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from actions.approval import Act
from actions.contract import Finding, Observation, Risk
from actions.site import Frozen


class PlanState(StrEnum):
    """Where a plan stands, signatures and run together."""

    PENDING = "pending"
    DENIED = "denied"
    EXPIRED = "expired"
    VOID = "void"
    APPROVED = "approved"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ASKING = "asking"
    STALE = "stale"
    PAUSED = "paused"
    ABORTED = "aborted"
    PREEMPTED = "pre-empted"


class StepState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    VERIFIED = "verified"
    FAILED = "failed"
    ASKING = "asking"
    UNDOING = "undoing"
    UNDONE = "undone"
    ANSWERED = "answered"
    SKIPPED = "skipped"
    ABORTED = "aborted"


class StepLine(Frozen):
    """One step of a plan and where it stands."""

    number: int  # from 1
    summary: str
    before: str = ""
    after: str = ""
    by_hand: tuple[str, ...] = ()
    optional: bool = False
    state: StepState = StepState.WAITING
    elapsed: timedelta | None = None
    progress: str = ""  # "412 MB of 690 MB, 96 MB/s, about 3 s left"
    detail: str = ""


class SignerLine(Frozen):
    """One recorded signature."""

    person: str  # display name
    act: Act
    at: datetime
    reason: str = ""


class GlassLine(Frozen):
    """A plan that one person starts alone, and what others make of it."""

    person: str  # display name
    delay: timedelta  # in which anybody may veto
    ready_at: datetime | None = None  # its end, once it was signed
    review_by: datetime | None = None
    reviewers: tuple[str, ...] = ()
    reviewers_needed: int = 2


class Demands(Frozen):
    """What the policy asks of the signers of a plan."""

    persons: int  # the requester included
    slots: str = ""  # "1 of dba AND 1 of sre"
    may_sign: tuple[str, ...] = ()  # "dba: Dan Dietrich, Dora Dahl"
    key_required: bool = False
    freeze: str = ""  # "Black Friday, until 2026-12-01 06:00 UTC", while it holds
    start_within: timedelta = timedelta(0)  # of the last signature
    start_by: datetime | None = None  # once it is signed
    overrules: str = ""  # "Overrules the denial of plan X by N"
    overruled_reason: str = ""  # why N had denied it, in his words
    slack_suspect_since: datetime | None = None
    glass: GlassLine | None = None


class PlanCard(Frozen):
    """A plan with its signatures and its run: one message, one modal, one report."""

    plan_id: str
    token: str  # random, carried by the buttons
    action: str
    summary: str
    risk: Risk
    target: str
    typed_target: bool  # a signer must type the target
    short_code: str
    digest: str
    requester: str  # display name
    state: PlanState
    signers: tuple[SignerLine, ...] = ()
    missing: tuple[str, ...] = ()
    steps: tuple[StepLine, ...] = ()
    preconditions: tuple[str, ...] = ()
    acts_on: tuple[str, ...] = ()  # servers: name, role, place, timeline id, version
    findings: tuple[Finding, ...] = ()
    observations: tuple[Observation, ...] = ()
    alternatives: tuple[str, ...] = ()
    data_loss: str = ""
    estimate: timedelta | None = None
    expires_at: datetime
    incident: str = ""  # title
    rto_deadline: datetime | None = None
    demands: Demands | None = None  # None for a plan that no rule covers
    started_at: datetime | None = None
    expected_at: datetime | None = None  # its end as measured by the running phase
    ended_at: datetime | None = None
    message: str = ""  # why it ended as it did


class IncidentCard(Frozen):
    """An incident at a glance."""

    id: str
    number: int
    title: str
    severity: str
    commander: str  # display name
    open: bool
    scenario: str = ""
    impact_started_at: datetime
    declared_at: datetime
    closed_at: datetime | None = None
    recovered_at: datetime | None = None  # the application's own check passed after a recovery run
    rto: timedelta
    running: tuple[str, ...] = ()
    next_step: str = ""
    slack_suspect_since: datetime | None = None  # nothing that came through Slack is a signature

    @property
    def rto_deadline(self) -> datetime:
        return self.impact_started_at + self.rto

    @property
    def achieved_rto(self) -> timedelta | None:
        return None if self.recovered_at is None else self.recovered_at - self.impact_started_at


class TimelineLine(Frozen):
    """One entry of the record, with what people put beside it later."""

    seq: int
    kind: str
    actor: str
    occurred_at: datetime
    recorded_at: datetime
    text: str
    permalink: str | None = None
    amendments: tuple[str, ...] = ()


class CustodyLine(Frozen):
    """One event in the custody of an item; `position` is its place in the sealed log, once it is proven."""

    seq: int
    action: str
    actor: str
    holder: str = ""
    occurred_at: datetime
    recorded_at: datetime
    reason: str = ""
    location: str = ""
    sha256: str = ""
    position: int | None = None


class EvidenceItem(Frozen):
    """An item of evidence with its chain of custody."""

    label: str  # "E-3"
    title: str
    classification: str
    source: str = ""
    method: str = ""
    holder: str = ""
    location: str = ""
    sha256: str = ""  # of the content, when it was collected
    events: tuple[CustodyLine, ...]
