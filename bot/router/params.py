"""What the commands of the router take. Field names are those of the actions and queries they lead to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from actions.site import Frozen


def _severity(value: object) -> object:
    """`1`, `sev1` and `SEV-1` are SEV1."""
    if not isinstance(value, str):
        return value
    bare = value.strip().upper().replace("-", "").removeprefix("SEV")
    return f"SEV{bare}"


def _number(value: object) -> object:
    """`7` and `#7` are 7."""
    return value.strip().removeprefix("#") if isinstance(value, str) else value


def _item(value: object) -> object:
    """`E-7` and `e7` are 7."""
    return value.strip().upper().removeprefix("E").removeprefix("-") if isinstance(value, str) else value


def _sha256(text: str) -> str:
    found = text.strip().lower()
    if len(found) != 64 or not set(found) <= set("0123456789abcdef"):
        raise ValueError("a SHA-256 is 64 hexadecimal digits")
    return found


Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255)]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2900)]
Severity = Annotated[Literal["SEV1", "SEV2", "SEV3", "SEV4"], BeforeValidator(_severity)]
Number = Annotated[int, BeforeValidator(_number), Field(ge=1, le=1_000_000_000)]


Item = Annotated[int, BeforeValidator(_item), Field(ge=1, le=1_000_000_000)]
Sha256 = Annotated[str, AfterValidator(_sha256)]


class Nothing(Frozen):
    """For commands that take nothing."""


class Help(Frozen):
    topic: str | None = None


class OptionalDatabase(Frozen):
    database: Name | None = None


class Database(Frozen):
    database: Name


class Verify(Frozen):
    database: Name
    backup: Name | None = None  # None: the newest


class Adopt(Frozen):
    database: Name
    source_key: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1024)]


class Base(Frozen):
    server: Name | None = None  # or a database on it; None: the only one with base backups
    kind: Literal["full", "incremental"] = "full"


class CheckBase(Frozen):
    server: Name | None = None
    backup: Name | None = None  # None: the newest full one


class Prove(Frozen):
    server: Name | None = None
    moment: Literal["latest", "random"] = "latest"
    dump: Name | None = None  # "newest" or the name of one


class Expire(Frozen):
    server: Name | None = None


class Pin(Frozen):
    server: Name
    backup: Name
    why: Reason


class Delete(Frozen):
    server: Name
    backup: Name


class Unpin(Frozen):
    server: Name
    backup: Name


class Restore(Frozen):
    database: Name
    backup: Name | None = None  # None: the recommended one
    before: Name | None = None  # when the impact began, as `Point.at`; None: as the open incident says
    instance_suspect: bool = False  # the server itself may be damaged: the copy goes to its spare server


MOMENTS = ("at", "lsn", "xid", "name", "before_drop", "before_delete", "before_truncate", "before_update", "latest")
"""The options of which each makes a restore one to a moment."""


class Point(Frozen):
    database: Name
    at: Name | None = None
    lsn: Name | None = None
    xid: Number | None = None
    name: Name | None = None
    before_drop: Name | None = None
    before_delete: Name | None = None
    before_truncate: Name | None = None
    before_update: Name | None = None
    latest: bool = False
    backup: Name | None = None  # base to start from; None: the newest before the moment
    amcheck: bool = False
    keep: Number | None = None  # hours


class Follow(Frozen):
    database: Name
    delay: Name | None = None  # `4h`
    instead_of: Name | None = None  # the standby whose place it takes


class Halt(Frozen):
    scratch: Name
    at: Name | None = None
    lsn: Name | None = None
    xid: Number | None = None
    name: Name | None = None
    before_drop: Name | None = None
    before_delete: Name | None = None
    before_truncate: Name | None = None
    before_update: Name | None = None
    latest: bool = False
    database: Name | None = None


class Find(Frozen):
    database: Name
    table: Name
    change: Literal["drop", "truncate", "delete", "update"] | None = None
    since: Name | None = None


class Rescue(Frozen):
    scratch: Name
    table: Name
    missing_rows: bool = False
    as_name: Name | None = None
    database: Name | None = None


class Swap(Frozen):
    scratch: Name
    database: Name | None = None


class Promote(Swap):
    old_primary_is_dead: bool = False


class RecoveryPoint(Frozen):
    point: Name
    scratch: Name | None = None
    secret: Annotated[str, StringConstraints(strip_whitespace=True, max_length=1000)] = ""  # with commas between


class Scratch(Frozen):
    scratch: Name


class DrillDone(Frozen):
    drill: Name
    note: Annotated[str, StringConstraints(strip_whitespace=True, max_length=2900)] = ""


class DrillPostpone(Frozen):
    drill: Name
    date: Name  # ISO 8601
    why: Text


class OptionalCluster(Frozen):
    cluster: Name | None = None  # None: the only one with a controller


class OptionalManifests(Frozen):
    name: Name | None = None  # None: the only one of the plan


class OptionalPoint(Frozen):
    point: Name | None = None


class PinPoint(Frozen):
    point: Name
    why: Reason


class UnpinPoint(Frozen):
    point: Name


class OptionalBucket(Frozen):
    bucket: Name | None = None


class OptionalFiles(Frozen):
    name: Name | None = None


class Files(Frozen):
    name: Name


class RestoreFiles(Frozen):
    name: Name
    prefix: Annotated[str, StringConstraints(max_length=1024)] = ""
    copy_id: Name | None = None  # None: the newest
    replace: bool = False
    into: Name | None = None  # None: their own bucket


class UndeleteFiles(Frozen):
    name: Name
    at: Name  # "10:25", "2026-02-26 10:25 UTC", "2h ago"
    prefix: Annotated[str, StringConstraints(max_length=1024)] = ""
    replace: bool = False


class OptionalRun(Frozen):
    run: Name | None = None  # None: the only one that is open


class Answer(Frozen):
    run: Name | None = None
    step: Number | None = None  # the one that is asked about, to be sure


class OptionalService(Frozen):
    service: Name | None = None


class Service(Frozen):
    service: Name


class Scale(Frozen):
    service: Name
    replicas: Annotated[int, BeforeValidator(_number), Field(ge=0, le=1000)]


class OpenIncident(Frozen):
    title: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=140)]
    severity: Severity = "SEV1"
    scenario: Name | None = None
    commander: Name | None = None  # short name in the roster; None: who opens it
    impact: Name | None = None  # start of impact: "10m", "10:40" (UTC) or ISO 8601; None: now
    channel: Name | None = None  # a channel id, or "new"; None: where the command was typed


class CloseIncident(Frozen):
    summary: str = Field(default="", max_length=2900)
    incident: Number | None = None  # None: the channel's open one


class Note(Frozen):
    text: Text
    at: Name | None = None  # when it happened, as `OpenIncident.impact`
    incident: Number | None = None


class Amend(Frozen):
    entry: Number  # the number of the entry on the timeline
    text: Text
    incident: Number | None = None


class SuspectSlack(Frozen):
    text: str = Field(default="", max_length=2900)
    incident: Number | None = None


class Review(Frozen):
    plan: Name
    text: Text


class Incident(Frozen):
    incident: Number | None = None


class Timeline(Frozen):
    format: Literal["channel", "md", "json", "jsonl", "html"] = "channel"
    incident: Number | None = None
    page: Number = 1


class ListEvidence(Frozen):
    incident: Number | None = None  # None: the channel's open one, or all


class ShowEvidence(Frozen):
    item: Item


class AddEvidence(Frozen):
    title: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]
    where: Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)] = ""
    source: Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)] = ""
    classification: Literal["normal", "restricted", "secret-bearing"] = "normal"
    sha256: Sha256 | None = None
    file: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = None  # on the command line alone
    incident: Number | None = None


class HandEvidence(Frozen):
    item: Item
    person: Name
    why: Text


class RecordEvidence(Frozen):
    item: Item
    action: Name
    why: Annotated[str, StringConstraints(strip_whitespace=True, max_length=2900)] = ""
    where: Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)] = ""
    sha256: Sha256 | None = None


class VerifyEvidence(Frozen):
    incident: Number | None = None  # None: all
