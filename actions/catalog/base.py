"""Base backups of a server: make one, check one."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from datetime import timedelta
from typing import ClassVar

from pydantic import Field

from actions.backup.physical import BackupKind, PhysicalEntry
from actions.backup.windows import dead_ends
from actions.contract import Action, DrillOf, Finding, Lock, Observation, Plan, Precondition, Risk, Step, Verdict
from actions.engines import engine_of
from actions.errors import UserError
from actions.ports import Ports
from actions.site import Frozen, PhysicalPolicy
from actions.steps.base_choice import base_estimate, parent_for, server_named, usable_bases
from actions.steps.base_wanted import BaseWanted
from actions.steps.bases import CheckBase, CopyBases, MakeBase, base
from actions.steps.choice import READ_RATE
from actions.steps.facts import ServerIs
from actions.steps.naming import backup_id, job_name
from actions.steps.page_checksums import server_findings
from actions.steps.phrases import moment, size
from actions.steps.scratch_facts import BaseIs


class BaseParams(Frozen):
    """Which server (by its name or a database's; the only one when none is named), and how much of it."""

    server: str | None = None
    kind: BackupKind = BackupKind.FULL
    requested_by: str = ""
    # The schedule asks because an alarm does. Left out where it is not so: stored requests stay the same.
    alarmed: bool = Field(default=False, exclude_if=operator.not_)


class Base(Action[BaseParams]):
    """A base backup of a whole server: all pages, or those that changed."""

    name: ClassVar[str] = "backup.base"
    summary: ClassVar[str] = "Make a base backup of a server now, full or incremental"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = BaseParams
    steps: ClassVar[tuple[type[Step], ...]] = (MakeBase, CopyBases)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (ServerIs, BaseIs, BaseWanted)

    async def plan(self, params: BaseParams, ports: Ports, plan_id: str) -> Plan:
        server = server_named(ports.site, params.server)
        policy, facts = ports.site.physical_of(server), await ports.postgres.server(server)
        entries = await ports.physical.catalogue(server)
        now = ports.clock.now()
        wanted = params.kind is BackupKind.INCREMENTAL
        parent = await _parent(ports, server, entries, facts.system_id) if wanted else None
        step = _step(params, policy, parent, plan_id, ports.site.endpoint_of(policy.bucket))
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Make {step.backup_kind} backup `{step.backup}` of server `{server}`",
            risk=self.risk,
            target=server,
            params=params.model_dump(mode="json"),
            # Shared with whatever works on a database of it: a restore makes such a routine backup give way.
            locks=(
                *(
                    Lock(key=f"database:{key}", exclusive=False)
                    for key, database in sorted(ports.site.databases.items())
                    if database.server == server
                ),
                Lock(key=f"base:{server}"),
            ),
            steps=(step, *_copied(ports, policy, step, plan_id)),
            preconditions=(
                ServerIs.of(facts),
                *_parent_is(server, parent),
                *((BaseWanted(server=server),) if params.alarmed else ()),
            ),
            made_at=now,
            findings=(
                *(_no_parent(server) if wanted and parent is None else ()),
                *server_findings(server, facts.checksums),
            ),
            observations=(
                Observation(name="newest full", value=_newest(entries, BackupKind.FULL)),
                Observation(name="newest incremental", value=_newest(entries, BackupKind.INCREMENTAL)),
            ),
            estimate=base_estimate(entries, step.backup_kind),
        )


def _step(
    params: BaseParams, policy: PhysicalPolicy, parent: PhysicalEntry | None, plan_id: str, store: str | None
) -> MakeBase:
    return MakeBase(
        job=job_name(plan_id, 1),
        server=policy.server,
        backup=backup_id(policy.server, plan_id),
        backup_kind=BackupKind.FULL if parent is None else BackupKind.INCREMENTAL,
        parent=None if parent is None else parent.manifest.id,
        engine=policy.engine,
        stanza=engine_of(policy).label(policy),
        bucket=policy.bucket,
        endpoint=store,
        prefix=policy.prefix,
        recipients=policy.recipients,
        requested_by=params.requested_by,
    )


def _copied(ports: Ports, policy: PhysicalPolicy, step: MakeBase, plan_id: str) -> tuple[CopyBases, ...]:
    if not policy.copy_bucket:
        return ()
    return (
        CopyBases(
            job=job_name(plan_id, 2),
            server=step.server,
            backup=step.backup,
            bucket=step.bucket,
            endpoint=step.endpoint,
            copy_bucket=policy.copy_bucket,
            copy_endpoint=ports.site.endpoint_of(policy.copy_bucket),
            prefix=step.prefix,
            engine=policy.engine,
        ),
    )


async def _parent(ports: Ports, server: str, entries: Sequence[PhysicalEntry], system_id: str) -> PhysicalEntry | None:
    """A backup of a branch that the server has left is nothing to go on from: no incremental fits on it."""
    dead = dead_ends(await ports.physical.windows(server))
    living = [entry for entry in entries if entry.manifest.id not in dead]
    return parent_for(living, system_id=system_id, now=ports.clock.now())


def _parent_is(server: str, parent: PhysicalEntry | None) -> tuple[Precondition, ...]:
    if parent is None:
        return ()
    return (BaseIs(server=server, backup=parent.manifest.id, manifest_sha256=parent.manifest_sha256),)


def _no_parent(server: str) -> tuple[Finding, ...]:
    return (
        Finding(
            check="parent",
            verdict=Verdict.WARN,
            detail=f"Server `{server}` has no usable full backup, so a full one is made instead of an incremental.",
        ),
    )


def _newest(entries: Sequence[PhysicalEntry], kind: BackupKind) -> str:
    fit = usable_bases(entries, kind=kind)
    return f"`{fit[0].manifest.id}`, {moment(fit[0].manifest.finished_at)}" if fit else "none"


class CheckBaseParams(Frozen):
    """Which base backup is checked; the newest full one when none is named."""

    server: str | None = None
    backup: str | None = None


class Check(Action[CheckBaseParams]):
    """Read a stored base backup completely and check it against its manifest."""

    name: ClassVar[str] = "backup.check_base"
    summary: ClassVar[str] = "Read a stored base backup completely and check every file of it"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = CheckBaseParams
    steps: ClassVar[tuple[type[Step], ...]] = (CheckBase,)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (BaseIs,)
    drillable: ClassVar[DrillOf | None] = DrillOf.SERVER

    async def plan(self, params: CheckBaseParams, ports: Ports, plan_id: str) -> Plan:
        server = server_named(ports.site, params.server)
        policy = ports.site.physical_of(server)
        entry = await _chosen(ports, server, params.backup)
        manifest = entry.manifest
        step = CheckBase(
            job=job_name(plan_id, 1),
            server=server,
            backup=manifest.id,
            bucket=entry.bucket,
            endpoint=ports.site.endpoint_of(entry.bucket),
            key=manifest.stored.key,
            sha256=manifest.stored.sha256,
            engine=policy.engine,
            stanza=engine_of(policy).label(policy),
        )
        checked = "never" if entry.verified_at is None else moment(entry.verified_at)
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Check base backup `{manifest.id}` of `{server}`",
            risk=self.risk,
            target=manifest.id,
            params=params.model_dump(mode="json"),
            locks=(Lock(key=f"backup:{manifest.id}", exclusive=False),),
            steps=(step,),
            preconditions=(BaseIs(server=server, backup=manifest.id, manifest_sha256=entry.manifest_sha256),),
            made_at=ports.clock.now(),
            findings=() if entry.problem is None else (_unusable(entry),),
            observations=(
                Observation(name="stored", value=size(manifest.stored.bytes)),
                Observation(name="state of", value=moment(manifest.finished_at)),
                Observation(name="checked before", value=checked),
            ),
            estimate=timedelta(seconds=1 + manifest.stored.bytes // READ_RATE),
        )


async def _chosen(ports: Ports, server: str, backup: str | None) -> PhysicalEntry:
    if backup is not None:
        found = await base(ports, server, backup)
    else:
        entries = await ports.physical.catalogue(server)
        found = next(iter(usable_bases(entries, kind=BackupKind.FULL) or usable_bases(entries)), None)
    if found is None:
        named = "no usable base backup" if backup is None else f"no base backup `{backup}`"
        raise UserError(f"Server `{server}` has {named}. Make one with `/dr-backup base {server}`.")
    return found


def _unusable(entry: PhysicalEntry) -> Finding:
    return Finding(
        check="backup",
        verdict=Verdict.STOP,
        detail=f"Base backup `{entry.manifest.id}` must not be used: {entry.problem}",
        hint="Check another one, or make a new one with `backup.base`.",
    )
