"""Restore a database from a dump: loaded beside production, proven there, then switched in by name.

Nothing is dropped. Until the comparison has passed nothing of production is touched; from then on every step is undone
by the runner when a later one fails, newest first, which gives production as it was.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import AwareDatetime, Field

from actions.contract import (
    Action,
    Lock,
    Observation,
    Plan,
    Precondition,
    Risk,
    Step,
)
from actions.ports import Ports
from actions.site import DatabaseRef, Frozen
from actions.steps.application import CheckApplication, Repoint
from actions.steps.choice import (
    alternative,
    checked_words,
    chosen,
    estimate_words,
    loss_sentence,
    restore_estimate,
    usable_entries,
)
from actions.steps.connected import SeeConnected
from actions.steps.copies import CompareCopy, LoadDump
from actions.steps.databases import CloseDatabase, GiveName, MarkLive, SwapDatabases
from actions.steps.dump_loading import loaded
from actions.steps.facts import BackupIs, ConfigIs, DatabaseIs, DiskFree, NamesFree, ServerIs, WorkloadIs
from actions.steps.gitops import ResumeGitOps, SuspendGitOps, controller_locks
from actions.steps.known_backups import known_backups
from actions.steps.naming import (
    live_mark,
    quarantine_name,
    restore_name,
    scratch_mark,
)
from actions.steps.phrases import moment, size, span, version
from actions.steps.restore_findings import restore_findings, since_impact
from actions.steps.scene import Scene, config_place, host_value, look
from actions.steps.switch import Switch
from actions.steps.writers import StartWriters, StopWriters

ALTERNATIVES = 5


class RestoreParams(Frozen):
    """What to restore. Without a backup the newest usable one is taken, `before` the damage where that is known."""

    database: str = Field(min_length=1)
    backup: str | None = None
    before: AwareDatetime | None = None
    instance_suspect: bool = False


class Restore(Action[RestoreParams]):
    """A database as a dump has it, the present one kept in quarantine."""

    name: ClassVar[str] = "restore.dump"
    summary: ClassVar[str] = "Restore a database from a dump, proven beside production before it is switched in"
    risk: ClassVar[Risk] = Risk.DESTRUCTIVE
    recovers: ClassVar[bool] = True
    recovery: ClassVar[bool] = True
    params = RestoreParams
    steps: ClassVar[tuple[type[Step], ...]] = (
        LoadDump,
        CompareCopy,
        SuspendGitOps,
        StopWriters,
        CloseDatabase,
        SwapDatabases,
        GiveName,
        MarkLive,
        Repoint,
        StartWriters,
        CheckApplication,
        SeeConnected,
        ResumeGitOps,
    )
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (
        ServerIs,
        DatabaseIs,
        BackupIs,
        NamesFree,
        DiskFree,
        WorkloadIs,
        ConfigIs,
    )

    async def plan(self, params: RestoreParams, ports: Ports, plan_id: str) -> Plan:
        ports.site.database(params.database)
        ports.site.backup(params.database)
        known = await known_backups(ports, params.database)
        entries = known.entries
        entry = chosen(params.database, entries, backup=params.backup, before=params.before)
        scene = await look(ports, params.database, entry, instance_suspect=params.instance_suspect)
        draft = _Draft(scene, plan_id)
        last = await ports.runs.last_load(params.database)
        others = [item for item in usable_entries(entries, before=params.before) if item != entry][:ALTERNATIVES]
        findings = (*since_impact(entry, params.before), *restore_findings(scene, draft.new_names), *known.findings)
        return Plan(
            id=plan_id,
            action=self.name,
            summary=draft.summary,
            risk=self.risk,
            target=params.database,
            params=params.model_dump(mode="json"),
            locks=draft.locks,
            steps=draft.steps,
            preconditions=draft.preconditions,
            made_at=scene.now,
            findings=findings,
            observations=(*_observations(scene), Observation(name="estimate", value=estimate_words(last))),
            alternatives=tuple(alternative(scene.database, item, scene.now) for item in others),
            estimate=restore_estimate(entry, last),
            data_loss=loss_sentence(scene.database, entry, scene.now),
        )


class _Draft:
    """The signed part of a restore plan: a scene and a plan id in, steps and preconditions out."""

    def __init__(self, scene: Scene, plan_id: str) -> None:
        self._scene = scene
        self._plan_id = plan_id
        name, server = scene.database.name, scene.target.server.name
        self._server = server
        self._aside = quarantine_name(name, plan_id)
        # On a spare server nothing is in the way, so the copy has its own name from the start.
        self._into = DatabaseRef(server, name if scene.on_spare else restore_name(name, plan_id))
        self._mark = scratch_mark(plan_id)
        application = scene.application
        present = () if application is None else application.workloads
        # Without a way to point it there, the application keeps what it has.
        self._workloads = present if not scene.on_spare or scene.repointable else ()
        self._switch = Switch(
            plan_id=plan_id,
            home=scene.database.ref,
            production=scene.production,
            target=DatabaseRef(server, name),
            system_id=scene.target.server.system_id,
            copy_name=self._into.name,
            copy_mark=self._mark,
            aside=self._aside,
            owner=scene.database.owner,
            application=application,
            workloads=self._workloads,
            moved_to=self._new_host if scene.on_spare else "",
        )

    @property
    def summary(self) -> str:
        scene = self._scene
        backup = scene.entry.manifest.id
        if scene.on_spare:
            return f"Restore `{scene.key}` from `{backup}` on spare server `{self._server}`, application pointed there"
        return f"Restore `{scene.key}` from `{backup}` beside production, then switch it in"

    @property
    def _new_host(self) -> str:
        """Where the application finds a database on the spare server, as its ConfigMap writes hosts."""
        target = self._scene.target
        return target.host or host_value(target.server.address, self._scene.config_value or "")

    @property
    def locks(self) -> tuple[Lock, ...]:
        service = self._scene.database.service
        locks = [Lock(key=f"database:{self._scene.key}"), *controller_locks(self._workloads)]
        return tuple(locks if service is None else [*locks, Lock(key=f"service:{service}")])

    @property
    def new_names(self) -> tuple[str, ...]:
        return (self._into.name,) if self._scene.on_spare else (self._into.name, self._aside)

    @property
    def steps(self) -> tuple[Step, ...]:
        switch = self._elsewhere() if self._scene.on_spare else self._switch.beside()
        return (*loaded(self._scene, self._into, self._plan_id, 1), *switch)

    def _elsewhere(self) -> list[Step]:
        """GitOps stays suspended: resumed, it would point the application back at the old server."""
        live = MarkLive(target=self._into, copy_mark=self._mark, live_mark=live_mark(self._plan_id))
        place = config_place(self._scene.application)
        if not self._scene.repointable or place is None or self._scene.application is None:
            return [live]
        cluster, namespace, config_map = place
        repoint = Repoint(
            cluster=cluster,
            namespace=namespace,
            config_map=config_map,
            key=self._scene.application.service.config_key,
            value_before=self._scene.config_value or "",
            value=self._new_host,
        )
        return [*self._switch.stop(), *self._switch.close(), live, repoint, *self._switch.start()]

    @property
    def preconditions(self) -> tuple[Precondition, ...]:
        scene, server = self._scene, self._scene.target.server
        manifest = scene.entry.manifest
        found: list[Precondition] = [
            BackupIs(database=scene.key, backup=manifest.id, manifest_sha256=scene.entry.manifest_sha256),
            ServerIs.of(server, serves=True),
            NamesFree(server=server.name, names=self.new_names),
            DiskFree(server=server.name, at_least=scene.disk_needed),
        ]
        if scene.home is not None:
            oid = None if scene.production is None else scene.production.oid
            found.append(DatabaseIs(target=scene.database.ref, oid=oid))
        found += [WorkloadIs.of(facts) for facts in self._workloads]
        found += (
            [_config_fact(step) for step in self._elsewhere() if isinstance(step, Repoint)] if scene.on_spare else []
        )
        return tuple(found)


def _config_fact(step: Repoint) -> ConfigIs:
    return ConfigIs(
        cluster=step.cluster,
        namespace=step.namespace,
        config_map=step.config_map,
        key=step.key,
        value=step.value_before,
    )


def _observations(scene: Scene) -> tuple[Observation, ...]:
    manifest, production, free = scene.entry.manifest, scene.production, scene.target.server.free_bytes
    lines = [
        ("backup", f"`{manifest.id}`, state of {moment(manifest.snapshot_at)}, {checked_words(scene.entry)}"),
        ("dump", f"{size(manifest.stored.bytes)} stored, {size(manifest.database_bytes)} of database"),
        ("made of", f"`{manifest.server}`, PostgreSQL {version(manifest.server_version)}"),
        ("target", f"`{scene.target.server.name}` at {scene.target.server.address or 'unknown address'}"),
        ("disk free", "unknown" if free is None else size(free)),
    ]
    if production is None:
        lines.append(("production", "does not exist"))
    else:
        lines += [("production", size(production.bytes)), ("sessions now", str(production.sessions))]
        if not scene.on_spare:
            lines.append(("old database", f"kept in quarantine for {span(scene.database.quarantine)}"))
    if scene.application is not None:
        ready = ", ".join(f"`{item.ref.name}` {item.ready} of {item.replicas}" for item in scene.application.workloads)
        lines.append(("ready now", ready or "no workload found"))
    return tuple(Observation(name=name, value=value) for name, value in lines)
