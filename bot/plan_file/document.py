"""The whole plan file as one immutable value."""

from collections.abc import Sequence
from typing import Literal, Protocol, Self, TypeVar

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from actions.errors import UserError
from bot.plan_file.approval import Approval
from bot.plan_file.jobs import Jobs
from bot.plan_file.people import Channels, Person, WorkspaceId
from bot.plan_file.procedures import Contact, Drill, Objectives, PlanDocument, Runbook, Scenario
from bot.plan_file.protection import Backups, DatabaseBackup
from bot.plan_file.record import EvidenceStore, Record
from bot.plan_file.rules import broken_rules, choose
from bot.plan_file.values import Part, SecretRef, Text
from bot.plan_file.windows import Shift
from bot.plan_file.world import Bucket, Cluster, Database, Server, Service

RULES_ERROR = "plan_rules"
"""Type of the validation error that reports broken rules between parts."""


class UnknownNameError(UserError):
    """The plan has nothing of that kind and name; the text names the nearest."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Item = TypeVar("_Item", bound=_Named)


def _named(kind: str, name: str, items: Sequence[_Item]) -> _Item:
    for item in items:
        if item.name == name:
            return item
    raise UnknownNameError(
        f"there is no {kind} `{name}` in the plan; {choose(kind, name, [item.name for item in items])}"
    )


class DrPlan(Part):
    """A disaster-recovery plan. Secrets are references, times are UTC."""

    version: Literal[1]
    """Version of this file's format."""
    name: Text
    """Name of the plan."""
    owner: Text
    """Who answers for it."""
    workspace: WorkspaceId | None = None
    """Slack workspace the roster's accounts belong to."""
    document: PlanDocument | None = None
    """Head and foot of the written plan."""
    channels: Channels
    """Where the bot speaks."""
    objectives: Objectives
    """RPO and RTO."""
    scenarios: tuple[Scenario, ...] = Field(min_length=1)
    """Disasters, each with its own RTO."""
    servers: tuple[Server, ...] = Field(min_length=1)
    """PostgreSQL servers."""
    databases: tuple[Database, ...] = Field(min_length=1)
    """Databases."""
    clusters: tuple[Cluster, ...] = ()
    """Kubernetes clusters."""
    services: tuple[Service, ...] = ()
    """Applications."""
    buckets: tuple[Bucket, ...] = ()
    """Buckets of S3-compatible stores."""
    backups: Backups
    """Copies: what, when, where, how long, and the keys."""
    jobs: Jobs | None = None
    """Heavy steps as Jobs of a cluster; without it they are processes beside the worker."""
    pager: SecretRef | None = None
    """Webhook (https) that reaches people outside Slack: break-glass, runs that ask, Slack under suspicion."""
    record: Record | None = None
    """How the record is sealed; without it nobody else can vouch for it, and destructive plans are refused."""
    evidence: EvidenceStore | None = None
    """Where files that are evidence are kept; without it only their hash and place are on record."""
    approval: Approval
    """How many persons must sign what."""
    roster: tuple[Person, ...] = Field(min_length=1)
    """Who may ask and sign."""
    rota: tuple[Shift, ...] = ()
    """Who can be reached when; every day it is checked that there are enough signers at all times."""
    contacts: tuple[Contact, ...] = ()
    """Whom to call."""
    runbooks: tuple[Runbook, ...] = ()
    """Procedures."""
    drills: tuple[Drill, ...] = ()
    """Rehearsals."""

    @model_validator(mode="after")
    def parts_fit_together(self) -> Self:
        """Refuse unknown, repeated and contradicting names; `check` tells where they stand."""
        # What was not said is not there for the rules either: a default contradicts nobody.
        broken = broken_rules(self.model_dump(mode="json", exclude_unset=True))
        if broken:
            sentences = "; ".join(f"{rule.wrong}, {rule.right}" for rule in broken)
            raise PydanticCustomError(RULES_ERROR, "{sentences}", {"sentences": sentences})
        return self

    def scenario(self, name: str) -> Scenario:
        """The scenario of that name. Raises UnknownNameError, like all look-ups here."""
        return _named("scenario", name, self.scenarios)

    def server(self, name: str) -> Server:
        """The server of that name."""
        return _named("server", name, self.servers)

    def database(self, name: str) -> Database:
        """The database of that name."""
        return _named("database", name, self.databases)

    def cluster(self, name: str) -> Cluster:
        """The cluster of that name."""
        return _named("cluster", name, self.clusters)

    def service(self, name: str) -> Service:
        """The service of that name."""
        return _named("service", name, self.services)

    def bucket(self, name: str) -> Bucket:
        """The bucket of that name."""
        return _named("bucket", name, self.buckets)

    def namespace(self, service: Service) -> str:
        """The namespace a service runs in: its own, or its cluster's."""
        return service.namespace or self.cluster(service.cluster).namespace

    def backup_of(self, database: str) -> DatabaseBackup:
        """How a database is backed up."""
        for backup in self.backups.databases:
            if backup.database == database:
                return backup
        names = [backup.database for backup in self.backups.databases]
        raise UnknownNameError(
            f"the plan has no backup of a database `{database}`; {choose('database', database, names)}"
        )

    def person(self, slack_id: str) -> Person | None:
        """The person a Slack account belongs to; None for accounts the roster does not know."""
        return next((person for person in self.roster if slack_id in person.slack_ids), None)
