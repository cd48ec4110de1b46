"""Give back one database as a scratch instance has it: copied beside production, compared, then switched in by name."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar

from pydantic import Field

from actions.backup.manifest import Fingerprint
from actions.backup.physical import ScratchFacts
from actions.contract import Action, Finding, Lock, Observation, Plan, Precondition, Risk, Step, Verdict
from actions.errors import UserError
from actions.ports import DatabaseFacts, Ports
from actions.site import Database, DatabaseRef, Frozen
from actions.steps.application import CheckApplication
from actions.steps.choice import RESTORE_RATE, SWITCH
from actions.steps.databases import CloseDatabase, GiveName, SwapDatabases
from actions.steps.facts import DatabaseIs, DiskFree, NamesFree, ServerIs, WorkloadIs
from actions.steps.gitops import ResumeGitOps, SuspendGitOps
from actions.steps.moments import exact
from actions.steps.naming import job_name, quarantine_name, restore_name, scratch_mark
from actions.steps.phrases import counted, size, span
from actions.steps.scene import DISK_MARGIN, Application, Target, application_of, target_of
from actions.steps.scratch_copies import CompareScratch, CopyDatabase
from actions.steps.scratch_facts import ScratchIs
from actions.steps.standing import database_of, standing
from actions.steps.switch import Switch
from actions.steps.writers import StartWriters, StopWriters

SHOWN = 5


class SwapParams(Frozen):
    """Out of which instance; the database where it holds several of the plan file."""

    scratch: str = Field(min_length=1)
    database: str | None = None


class Swap(Action[SwapParams]):
    """One database as it was at the instance's moment, the present one kept in quarantine."""

    name: ClassVar[str] = "restore.swap"
    summary: ClassVar[str] = "Give back one database as a scratch instance has it, compared before it is switched in"
    risk: ClassVar[Risk] = Risk.DESTRUCTIVE
    recovers: ClassVar[bool] = True
    recovery: ClassVar[bool] = True
    params = SwapParams
    steps: ClassVar[tuple[type[Step], ...]] = (
        CopyDatabase,
        CompareScratch,
        SuspendGitOps,
        StopWriters,
        CloseDatabase,
        SwapDatabases,
        GiveName,
        StartWriters,
        CheckApplication,
        ResumeGitOps,
    )
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (
        ScratchIs,
        ServerIs,
        DatabaseIs,
        NamesFree,
        DiskFree,
        WorkloadIs,
    )

    async def plan(self, params: SwapParams, ports: Ports, plan_id: str) -> Plan:
        scene = await _look(ports, params)
        mark, name = scratch_mark(plan_id), scene.database.name
        into = DatabaseRef(scene.database.server, restore_name(name, plan_id))
        aside = quarantine_name(name, plan_id)
        workloads = () if scene.application is None else scene.application.workloads
        switch = Switch(
            plan_id=plan_id,
            home=scene.database.ref,
            production=scene.production,
            target=scene.database.ref,
            system_id=scene.home.server.system_id,
            copy_name=into.name,
            copy_mark=mark,
            aside=aside,
            owner=scene.database.owner,
            application=scene.application,
            workloads=workloads,
        )
        steps = (
            CopyDatabase(
                job=job_name(plan_id, 1),
                source=scene.source,
                database=scene.key,
                into=into,
                owner=scene.database.owner,
                mark=mark,
                jobs=scene.database.restore_jobs,
            ),
            CompareScratch(source=scene.source, into=into, mark=mark, invariants=scene.database.invariants),
            *switch.beside(),
        )
        service = scene.database.service
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Give back `{scene.key}` as of {scene.moment} out of `{scene.facts.name}`, then switch it in",
            risk=self.risk,
            target=scene.key,
            params=params.model_dump(mode="json"),
            locks=(
                Lock(key=f"scratch:{scene.facts.id}", exclusive=False),
                Lock(key=f"database:{scene.key}"),
                *([Lock(key=f"service:{service}")] if service is not None else []),
            ),
            steps=steps,
            preconditions=(
                ScratchIs.of(scene.facts),
                ServerIs(server=scene.home.server.name, system_id=scene.home.server.system_id),
                DatabaseIs(target=scene.database.ref, oid=None if scene.production is None else scene.production.oid),
                NamesFree(server=into.server, names=(into.name, aside)),
                DiskFree(server=into.server, at_least=scene.needed),
                *(WorkloadIs(ref=found.ref, uid=found.uid) for found in workloads),
            ),
            made_at=ports.clock.now(),
            findings=tuple(_findings(scene)),
            observations=_observations(scene),
            estimate=timedelta(seconds=2 * scene.shown.bytes // RESTORE_RATE) + SWITCH,
            data_loss=_loss(scene, ports),
        )


class _Scene(Frozen):
    facts: ScratchFacts
    key: str
    database: Database
    source: DatabaseRef
    shown: DatabaseFacts  # the database in the instance
    home: Target
    application: Application | None
    there: Fingerprint
    here: Fingerprint | None

    @property
    def production(self) -> DatabaseFacts | None:
        return self.home.database(self.database.name)

    @property
    def needed(self) -> int:
        return self.shown.bytes * 13 // 10 + DISK_MARGIN

    @property
    def moment(self) -> str:
        restored = self.facts.restored
        if restored is None:
            return "an unknown moment"
        return str(restored.target) if restored.reached_at is None else exact(restored.reached_at)


async def _look(ports: Ports, params: SwapParams) -> _Scene:
    facts = await standing(ports, params.scratch)
    key, database = database_of(ports, facts, params.database)
    source = DatabaseRef(facts.name, database.name)
    shown = await ports.postgres.database(source)
    if shown is None:
        raise UserError(f"`{facts.name}` holds no database `{database.name}`. Restore to a later moment.")
    home = await target_of(ports, database.server)
    here = home.database(database.name)
    return _Scene(
        facts=facts,
        key=key,
        database=database,
        source=source,
        shown=shown,
        home=home,
        application=None if database.service is None else await application_of(ports, database.service),
        there=await ports.postgres.fingerprint(source, database.invariants),
        # A closed one cannot be read; it is set aside as it is.
        here=None
        if here is None or not here.allows_connections
        else await ports.postgres.fingerprint(database.ref, database.invariants),
    )


def _loss(scene: _Scene, ports: Ports) -> str:
    reached = None if scene.facts.restored is None else scene.facts.restored.reached_at
    if reached is None:
        return f"Everything written after {scene.moment} is set aside with the present database."
    lost = ports.clock.now() - reached
    word = "beyond" if lost > scene.database.rpo else "within"
    return (
        f"Restores the state of {scene.moment}, loses {span(lost)} (RPO {span(scene.database.rpo)}: {word}); what is "
        "there now is kept in quarantine."
    )


def _findings(scene: _Scene) -> list[Finding]:
    found, home = [], scene.home.server
    if home.in_recovery:
        text = f"Server `{home.name}` is a standby and cannot be written to."
        found.append(Finding(check="server", verdict=Verdict.STOP, detail=text, hint="Promote it first."))
    if home.free_bytes is not None and home.free_bytes < scene.needed:
        found.append(
            Finding(
                check="disk",
                verdict=Verdict.STOP,
                detail=f"`{home.name}` has {size(home.free_bytes)} of disk free, needed are {size(scene.needed)}.",
                hint="Free or add disk, or rescue single tables with `/dr-restore rescue`.",
            )
        )
    lost = _fewer(scene)
    if lost:
        found.append(Finding(check="rows", verdict=Verdict.WARN, detail=f"Only in production now: {lost}."))
    if scene.application is None:
        text = f"The plan file names no service for `{scene.key}`: nothing is stopped or checked."
        found.append(Finding(check="application", verdict=Verdict.WARN, detail=text))
    else:
        for ref in scene.application.missing:
            text = f"{ref} does not exist: it is neither stopped nor started."
            found.append(Finding(check="application", verdict=Verdict.WARN, detail=text))
    return found


def _fewer(scene: _Scene) -> str:
    """Tables of which production has more rows than the instance."""
    if scene.here is None:
        return ""
    more = {name: count - scene.there.rows.get(name, 0) for name, count in scene.here.rows.items()}
    words = [f"{counted(count, 'row')} of `{name}`" for name, count in sorted(more.items()) if count > 0]
    rest = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + rest


def _observations(scene: _Scene) -> tuple[Observation, ...]:
    production, here = scene.production, scene.here
    rows = sum(scene.there.rows.values())
    lines = [
        ("there", f"{counted(len(scene.there.rows), 'table')}, {counted(rows, 'row')}, {size(scene.shown.bytes)}"),
        ("production", "does not exist" if production is None else size(production.bytes)),
        ("old database", f"kept in quarantine for {span(scene.database.quarantine)}"),
    ]
    if here is not None:
        back = [name for name, count in scene.there.rows.items() if here.rows.get(name, -1) < count]
        lines.insert(
            1, ("comes back", ", ".join(f"`{name}`" for name in back[:SHOWN]) or "no table has more rows there")
        )
    return tuple(Observation(name=name, value=value) for name, value in lines)
