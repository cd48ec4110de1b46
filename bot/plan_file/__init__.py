"""dr-plan.yml: the customer's plan as frozen models, checked before anything starts.

`load` gives the plan or a UserError, `check` lists every problem with its
line, `schema` is the JSON Schema, `dump` writes a plan built by a program.
"""

from actions.contract import Risk
from actions.site import WorkloadKind
from bot.plan_file.approval import Approval, ApprovalRule, BreakGlass, Slot
from bot.plan_file.check import Problem, Severity, check, check_text, load, load_text, read_file, report
from bot.plan_file.document import DrPlan, UnknownNameError
from bot.plan_file.jobs import JobClaim, Jobs, JobSecret
from bot.plan_file.people import Channels, Person
from bot.plan_file.procedures import (
    Contact,
    Drill,
    Objectives,
    PlanDocument,
    PlanStatus,
    PlanStep,
    Runbook,
    Scenario,
)
from bot.plan_file.protection import (
    LOCAL,
    Backups,
    BaseBackup,
    ComponentBackup,
    DatabaseBackup,
    DumpBackup,
    FileBackup,
    FilesCopy,
    ImageMirror,
    ImageRegistry,
    IncrementalBackup,
    RecoveryPoints,
    ScratchLimits,
    SecretsEscrow,
    StanzaSecret,
    WalArchive,
)
from bot.plan_file.record import Record, WitnessPlace
from bot.plan_file.values import (
    Duration,
    SecretRef,
    TextRef,
    format_duration,
    is_reference,
    parse_bytes,
    parse_duration,
)
from bot.plan_file.windows import Freeze, Shift, Weekday
from bot.plan_file.world import (
    Bucket,
    BucketPurpose,
    Cluster,
    ConfigMapKey,
    Database,
    Invariant,
    ObjectLock,
    Server,
    ServerRole,
    Service,
    Workload,
)
from bot.plan_file.writing import dump, schema

__all__ = [
    "LOCAL",
    "Approval",
    "ApprovalRule",
    "Backups",
    "BaseBackup",
    "BreakGlass",
    "Bucket",
    "BucketPurpose",
    "Channels",
    "Cluster",
    "ComponentBackup",
    "ConfigMapKey",
    "Contact",
    "Database",
    "DatabaseBackup",
    "DrPlan",
    "Drill",
    "DumpBackup",
    "Duration",
    "FileBackup",
    "FilesCopy",
    "Freeze",
    "ImageMirror",
    "ImageRegistry",
    "IncrementalBackup",
    "Invariant",
    "JobClaim",
    "JobSecret",
    "Jobs",
    "ObjectLock",
    "Objectives",
    "Person",
    "PlanDocument",
    "PlanStatus",
    "PlanStep",
    "Problem",
    "Record",
    "RecoveryPoints",
    "Risk",
    "Runbook",
    "Scenario",
    "ScratchLimits",
    "SecretRef",
    "SecretsEscrow",
    "Server",
    "ServerRole",
    "Service",
    "Severity",
    "Shift",
    "Slot",
    "StanzaSecret",
    "TextRef",
    "UnknownNameError",
    "WalArchive",
    "Weekday",
    "WitnessPlace",
    "Workload",
    "WorkloadKind",
    "check",
    "check_text",
    "dump",
    "format_duration",
    "is_reference",
    "load",
    "load_text",
    "parse_bytes",
    "parse_duration",
    "read_file",
    "report",
    "schema",
]
