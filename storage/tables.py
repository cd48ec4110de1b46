"""The tables. The record is append-only: a trigger refuses UPDATE and DELETE on `journal`, `signature`, `refusal`,
`timeline_entry` and `custody_event`, and another makes each of their rows a leaf of one log (revision 0003).

The `run` row is the job: claimed by a lease with an epoch; `run_lock` rows are guarded by an exclusion constraint,
which is the real lock. Times are timestamptz, stored and read in UTC.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, INT4RANGE, JSONB, ExcludeConstraint, Range
from sqlmodel import Field, SQLModel

SHARED_SLOTS = 1_000_000
"""Upper end of the slot range an exclusive lock occupies; a shared lock occupies one slot of it."""


def _json() -> Any:
    return Column(JSONB, nullable=False, server_default="{}")


def _moment(*, nullable: bool = False, now: bool = False) -> Any:
    return Column(DateTime(timezone=True), nullable=nullable, server_default=func.clock_timestamp() if now else None)


def _serial() -> Any:
    return Column(BigInteger, Identity(always=True), primary_key=True)


class Incident(SQLModel, table=True):
    """One incident; its history is on the timeline."""

    __table_args__ = (Index("incident_open", "channel", "number", postgresql_where=text("closed_at IS NULL")),)
    id: str = Field(primary_key=True)
    number: int | None = Field(default=None, sa_column=Column(Integer, Identity(always=True), unique=True))
    title: str
    severity: str
    scenario: str = ""
    commander: str
    channel: str = Field(index=True)
    impact_started_at: datetime = Field(sa_column=_moment())
    declared_at: datetime = Field(sa_column=_moment())
    closed_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))
    recovered_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))
    slack_suspect_since: datetime | None = Field(default=None, sa_column=_moment(nullable=True))
    rto_s: int


class TimelineEntry(SQLModel, table=True):
    """One line of the record. `source_key` makes an outside event (a message, a click) land once."""

    __tablename__ = "timeline_entry"
    __table_args__ = (
        Index("timeline_entry_drill", "seq", postgresql_where=text("kind = 'drill'")),
        Index("timeline_entry_suspicion", "incident_id", postgresql_where=text("kind = 'suspect_slack'")),
    )
    seq: int | None = Field(default=None, sa_column=_serial())
    incident_id: str | None = Field(default=None, foreign_key="incident.id", index=True)
    kind: str
    actor: str
    occurred_at: datetime = Field(sa_column=_moment())
    recorded_at: datetime | None = Field(default=None, sa_column=_moment(now=True))
    text: str = Field(sa_column=Column(Text, nullable=False))
    data: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    permalink: str | None = None
    source_key: str | None = Field(default=None, unique=True)


class CustodyEvent(SQLModel, table=True):
    """One event in the custody of an item of evidence. The item is its first event, `collected`, and what follows."""

    __tablename__ = "custody_event"
    __table_args__ = (UniqueConstraint("item", "seq"),)
    id: int | None = Field(default=None, sa_column=_serial())
    item: int = Field(sa_type=BigInteger)  # shown as E-1, E-2, without gaps over all incidents
    seq: int  # within the item, from 1
    incident_id: str = Field(foreign_key="incident.id", index=True)
    action: str
    actor: str
    holder: str = ""  # who has it from then on; empty: as before
    occurred_at: datetime = Field(sa_column=_moment())
    recorded_at: datetime | None = Field(default=None, sa_column=_moment(now=True))
    reason: str = Field(default="", sa_column=Column(Text, nullable=False))
    location: str = Field(default="", sa_column=Column(Text, nullable=False))
    sha256: str = ""  # of the content, hex
    data: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    source_key: str | None = Field(default=None, unique=True)


class InboxRow(SQLModel, table=True):
    """A click or command as it arrived, stored before the ack. The key makes Slack's retries land once."""

    __tablename__ = "inbox"
    __table_args__ = (Index("inbox_unfinished", "received_at", postgresql_where=text("finished_at IS NULL")),)
    key: str = Field(primary_key=True)
    kind: str
    payload: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    received_at: datetime | None = Field(default=None, sa_column=_moment(now=True))
    finished_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))


class RequestRow(SQLModel, table=True):
    """What somebody asked the worker for: a query, a plan, a recommendation."""

    __tablename__ = "request"
    __table_args__ = (Index("request_plan", "plan_id", postgresql_where=text("plan_id <> ''")),)
    id: int | None = Field(default=None, sa_column=_serial())
    kind: str
    name: str
    params: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    person: str
    slack_user: str = ""
    channel: str = ""
    reply: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    reason: str = ""
    typed: str = ""
    incident_id: str | None = None
    state: str = Field(default="new", index=True)
    error: str = ""
    plan_id: str = ""
    source_key: str | None = Field(default=None, unique=True)
    created_at: datetime | None = Field(default=None, sa_column=_moment(now=True))


class PlanRow(SQLModel, table=True):
    """A plan as it was signed: never changed after it is stored."""

    __tablename__ = "plan"
    id: str = Field(primary_key=True)
    action: str
    document: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    digest: str
    risk: str
    plan_schema: int
    requester: str
    reason: str
    incident_id: str | None = Field(default=None, foreign_key="incident.id", index=True)
    channel: str
    token: str = Field(unique=True)
    policy: str = Field(
        default="", sa_column_kwargs={"server_default": ""}
    )  # digest of the policy and roster it was made under
    break_glass: bool = Field(default=False, sa_column_kwargs={"server_default": "false"})
    overrules: str = Field(
        default="", sa_column_kwargs={"server_default": ""}
    )  # the denied plan that this one replaces
    created_at: datetime = Field(sa_column=_moment())
    expires_at: datetime = Field(sa_column=_moment())


class SignatureRow(SQLModel, table=True):
    """One act of one person on one digest."""

    __tablename__ = "signature"
    __table_args__ = (
        # One click is one signature.
        Index("signature_inbox_key", "inbox_key", unique=True, postgresql_where=text("inbox_key <> ''")),
        Index("signature_denied", "at", postgresql_where=text("act = 'deny'")),
    )
    id: int | None = Field(default=None, sa_column=_serial())
    plan_id: str = Field(foreign_key="plan.id", index=True)
    person: str
    act: str
    digest: str
    reason: str
    typed: str = ""
    source: str
    account: str
    proof: str = Field(
        default="", sa_column_kwargs={"server_default": ""}
    )  # an OpenSSH signature over the statement, armored; empty for Slack
    inbox_key: str = Field(default="", sa_column_kwargs={"server_default": ""})  # the stored click this was made from
    at: datetime = Field(sa_column=_moment())


class RefusalRow(SQLModel, table=True):
    """Something somebody was not allowed to do, with the reason code."""

    __tablename__ = "refusal"
    id: int | None = Field(default=None, sa_column=_serial())
    plan_id: str | None = Field(default=None, index=True)
    account: str
    person: str = ""
    code: str
    text: str
    at: datetime | None = Field(default=None, sa_column=_moment(now=True))


class RunRow(SQLModel, table=True):
    """The run of a plan, from the moment it waits for signatures."""

    __tablename__ = "run"
    id: str = Field(primary_key=True, foreign_key="plan.id")
    state: str = Field(default="awaiting", index=True)
    plan_schema: int
    owner: str = ""
    epoch: int = 0
    lease_until: datetime | None = Field(default=None, sa_column=_moment(nullable=True))
    progress: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    message: str = ""
    order: str = Field(default="", sa_column_kwargs={"server_default": ""})  # what a person ordered: pause, abort, stop
    approved_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))
    started_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))  # a trigger's to write
    ended_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))


class RunLock(SQLModel, table=True):
    """A lock held by a run: exclusive ones occupy all slots of a key, shared ones a slot each."""

    __tablename__ = "run_lock"
    __table_args__ = (ExcludeConstraint(("key", "="), ("slots", "&&"), using="gist", name="run_lock_conflict"),)
    id: int | None = Field(default=None, sa_column=_serial())
    key: str
    run_id: str = Field(foreign_key="run.id", index=True)
    slots: Any = Field(sa_column=Column(INT4RANGE, nullable=False))


class JournalRow(SQLModel, table=True):
    """One line of a run's journal, written under the epoch that was in force."""

    __tablename__ = "journal"
    seq: int | None = Field(default=None, sa_column=_serial())
    run_id: str = Field(foreign_key="run.id", index=True)
    epoch: int
    step: int
    state: str
    detail: str = Field(default="", sa_column=Column(Text, nullable=False))
    at: datetime = Field(sa_column=_moment())
    elapsed_ms: int = 0


class OutboxRow(SQLModel, table=True):
    """Something Slack is to be told. Cards (`plan`, `incident`) are rendered from the database when they are sent."""

    __tablename__ = "outbox"
    __table_args__ = (
        Index("outbox_due", "state", "due_at"),
        Index("outbox_request", text("((payload ->> 'request')::bigint)")),
    )
    id: int | None = Field(default=None, sa_column=_serial())
    kind: str
    channel: str
    ref: str = ""
    payload: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    state: str = "pending"
    attempts: int = 0
    error: str = ""
    due_at: datetime | None = Field(default=None, sa_column=_moment(now=True))
    sent_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))


class CardMessage(SQLModel, table=True):
    """Where a card stands in Slack, so that it is updated and not posted again."""

    __tablename__ = "card_message"
    kind: str = Field(primary_key=True)
    ref: str = Field(primary_key=True)
    channel: str = Field(primary_key=True)
    ts: str


class ProcessRow(SQLModel, table=True):
    """A running process of the bot and what it knows of itself, renewed every few seconds."""

    __tablename__ = "process"
    id: str = Field(primary_key=True)
    roles: str
    notes: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    seen_at: datetime | None = Field(default=None, sa_column=_moment(now=True))


class AccountRow(SQLModel, table=True):
    """A Slack account of the roster, as Slack last described it."""

    __tablename__ = "account"
    account: str = Field(primary_key=True)
    problem: str = ""  # why it may not sign; empty when nothing speaks against it
    groups: list[str] = Field(default_factory=list, sa_column=Column(JSONB, nullable=False, server_default="[]"))
    seen_at: datetime | None = Field(default=None, sa_column=_moment(now=True))


class PlanVersion(SQLModel, table=True):
    """A version of the plan file that was activated; the newest one is in force."""

    __tablename__ = "plan_version"
    seq: int | None = Field(default=None, sa_column=_serial())
    sha256: str
    document: str = Field(sa_column=Column(Text, nullable=False))
    plan_id: str = ""  # whose signatures activated it; empty for the first
    activated_at: datetime | None = Field(default=None, sa_column=_moment(now=True))


class LeafRow(SQLModel, table=True):
    """One row of the record, hashed by the trigger that wrote it. `form` names the columns the hash is over."""

    __tablename__ = "leaf"
    __table_args__ = (UniqueConstraint("kind", "ref"),)
    id: int | None = Field(default=None, sa_column=_serial())
    kind: str  # the table
    ref: int = Field(sa_type=BigInteger)  # the row's number in it
    form: int
    hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    at: datetime | None = Field(default=None, sa_column=_moment(now=True))


class UnsealedLeaf(SQLModel, table=True):
    """A leaf that has no place in the log yet."""

    __tablename__ = "unsealed_leaf"
    leaf_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))


class SealedLeaf(SQLModel, table=True):
    """The place of a leaf in the log, from 0 and without gaps."""

    __tablename__ = "sealed_leaf"
    position: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    leaf_id: int = Field(sa_column=Column(BigInteger, unique=True, nullable=False))


class Subtree(SQLModel, table=True):
    """The root over 1024 leaves in a row, from `number` times 1024 on: so that a proof need not read all leaves."""

    __tablename__ = "subtree"
    number: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class CheckpointRow(SQLModel, table=True):
    """A signed statement about the first `size` leaves; it added those from `base` on."""

    __tablename__ = "checkpoint"
    number: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    epoch: int = Field(sa_type=BigInteger)
    base: int = Field(sa_type=BigInteger)
    size: int = Field(sa_type=BigInteger)
    root: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    at: datetime = Field(sa_column=_moment())
    body: str = Field(sa_column=Column(Text, nullable=False))
    signature: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class ConsumedPlan(SQLModel, table=True):
    """A plan whose run has started, and the number of the checkpoint that says so: it can never start again."""

    __tablename__ = "consumed_plan"
    plan_id: str = Field(primary_key=True)
    digest: str
    number: int = Field(sa_type=BigInteger)


class LogEpoch(SQLModel, table=True):
    """A life of this database. A person starts a new one when the witnesses know another past than the database does;
    the two agree on the first `base` leaves."""

    __tablename__ = "log_epoch"
    epoch: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    base: int = Field(sa_type=BigInteger)
    number: int = Field(sa_type=BigInteger)  # of the newest checkpoint at the witnesses at that time
    person: str
    reason: str
    started_at: datetime | None = Field(default=None, sa_column=_moment(now=True))


class AlarmRow(SQLModel, table=True):
    """Something that is wrong with backups, or was: one row a key, used again. `seen_at` is when the world was read."""

    __tablename__ = "alarm"
    key: str = Field(primary_key=True)
    text: str = Field(sa_column=Column(Text, nullable=False))
    wants_base: bool
    raised_at: datetime = Field(sa_column=_moment())
    cleared_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))
    seen_at: datetime = Field(sa_column=_moment())


class TurnRow(SQLModel, table=True):
    """When something that one process of many does at a time was last begun."""

    __tablename__ = "turn"
    name: str = Field(primary_key=True)
    taken_at: datetime = Field(sa_column=_moment())


class VisitRow(SQLModel, table=True):
    """When a person of the roster asked lately; the turns that were granted."""

    __tablename__ = "visit"
    person: str = Field(primary_key=True)
    at: list[datetime] = Field(sa_column=Column(ARRAY(DateTime(timezone=True)), nullable=False))
    refused: bool = False  # the last one was not granted


def lock_range(*, exclusive: bool, slot: int) -> Range[int]:
    """The slots a lock occupies."""
    return Range(0, SHARED_SLOTS) if exclusive else Range(slot, slot + 1)
