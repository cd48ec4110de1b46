"""Make a scratch instance the new primary: the application pointed there, the old database closed and kept."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from actions.backup.physical import ScratchFacts
from actions.contract import Action, Finding, Lock, Observation, Plan, Precondition, Risk, Step, Verdict
from actions.errors import PermanentError, TemporaryError, UserError
from actions.ports import DatabaseFacts, Ports, ServerFacts
from actions.site import Database, DatabaseRef, Frozen
from actions.steps.application import CheckApplication, Repoint
from actions.steps.choice import SWITCH
from actions.steps.databases import CloseDatabase
from actions.steps.facts import ConfigIs, DatabaseIs, WorkloadIs
from actions.steps.gitops import SuspendGitOps
from actions.steps.moments import exact
from actions.steps.phrases import names, span
from actions.steps.scene import Application, application_of, config_place, host_value
from actions.steps.scratch import PromoteScratch
from actions.steps.scratch_facts import ScratchIs
from actions.steps.standing import database_of, standing
from actions.steps.switch import Switch
from actions.steps.writers import StartWriters, StopWriters


class PromoteParams(Frozen):
    """Which instance; the database that the application uses where it holds several of the plan file."""

    scratch: str = Field(min_length=1)
    database: str | None = None


class Promote(Action[PromoteParams]):
    """The whole server as it was at the instance's moment, as the new primary."""

    name: ClassVar[str] = "restore.promote"
    summary: ClassVar[str] = "Promote a scratch instance as the new primary and point the application there"
    risk: ClassVar[Risk] = Risk.DESTRUCTIVE
    recovers: ClassVar[bool] = True
    recovery: ClassVar[bool] = True
    params = PromoteParams
    steps: ClassVar[tuple[type[Step], ...]] = (
        SuspendGitOps,
        StopWriters,
        CloseDatabase,
        PromoteScratch,
        Repoint,
        StartWriters,
        CheckApplication,
    )
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (ScratchIs, DatabaseIs, WorkloadIs, ConfigIs)

    async def plan(self, params: PromoteParams, ports: Ports, plan_id: str) -> Plan:
        scene = await _look(ports, params)
        facts, application = scene.facts, scene.application
        target = DatabaseRef(facts.name, scene.database.name)
        switch = Switch(
            plan_id=plan_id,
            home=scene.database.ref,
            production=scene.home,
            target=target,
            system_id=facts.system_id,
            copy_name=target.name,
            copy_mark="",
            aside="",
            owner=scene.database.owner,
            application=application,
            workloads=application.workloads,
            own_connection=False,  # it may hold a host of its own, so after repointing it proves nothing
        )
        timeline_id = 0 if facts.restored is None else facts.restored.timeline_id
        promote = PromoteScratch(scratch=facts.id, timeline_id=timeline_id)
        steps = (*switch.stop(), *switch.close(), promote, scene.repoint, *switch.start())
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Promote `{facts.name}` as the new primary of `{scene.key}`, application pointed there",
            risk=self.risk,
            target=scene.key,
            params=params.model_dump(mode="json"),
            locks=(
                Lock(key=f"scratch:{facts.id}"),
                *(Lock(key=f"database:{key}") for key in scene.keys),
                Lock(key=f"service:{scene.database.service}"),
            ),
            steps=steps,
            preconditions=(
                ScratchIs.of(facts, promoted=True),
                *_home_is(scene),
                *(WorkloadIs(ref=found.ref, uid=found.uid) for found in application.workloads),
                ConfigIs(
                    cluster=scene.repoint.cluster,
                    namespace=scene.repoint.namespace,
                    config_map=scene.repoint.config_map,
                    key=scene.repoint.key,
                    value=scene.repoint.value_before,
                ),
            ),
            made_at=ports.clock.now(),
            findings=tuple(_findings(scene)),
            observations=(Observation(name="address", value=facts.address or "unknown"),),
            estimate=SWITCH,
            data_loss=_loss(scene, ports),
        )


class _Scene(Frozen):
    facts: ScratchFacts
    server: ServerFacts
    key: str
    keys: tuple[str, ...]  # of every database of the plan file on that server
    database: Database
    application: Application
    home_answers: bool
    home: DatabaseFacts | None
    repoint: Repoint


async def _look(ports: Ports, params: PromoteParams) -> _Scene:
    facts = await standing(ports, params.scratch)
    key, database = database_of(ports, facts, params.database)
    if database.service is None:
        raise UserError(
            f"The plan file names no service for `{key}`, so nobody can be pointed at the new primary. Give the "
            f"database back with `/dr-restore swap {facts.id}`, or name its `service`."
        )
    application = await application_of(ports, database.service)
    server = await ports.postgres.server(facts.name)
    if await ports.postgres.database(DatabaseRef(facts.name, database.name)) is None:
        raise UserError(f"`{facts.name}` holds no database `{database.name}`. Restore to a later moment.")
    answers, home = await _home(ports, database.ref)
    return _Scene(
        facts=facts,
        server=server,
        key=key,
        keys=tuple(sorted(name for name, item in ports.site.databases.items() if item.server == database.server)),
        database=database,
        application=application,
        home_answers=answers,
        home=home,
        repoint=await _repoint(ports, application, facts),
    )


async def _home(ports: Ports, ref: DatabaseRef) -> tuple[bool, DatabaseFacts | None]:
    """Whether the old primary answers, and its database."""
    try:
        return True, await ports.postgres.database(ref)
    except (TemporaryError, PermanentError):
        return False, None


async def _repoint(ports: Ports, application: Application, facts: ScratchFacts) -> Repoint:
    place = config_place(application)
    if place is None or not facts.address:
        raise UserError(
            f"It is not known how `{application.service.name}` finds its database: name `config_map` of the service in "
            "the plan file, then ask again."
        )
    cluster, namespace, config_map = place
    key = application.service.config_key
    before = (await ports.cluster.config(cluster, namespace, config_map)).get(key)
    if before is None:
        raise UserError(f"ConfigMap `{config_map}` has no `{key}`. Correct `config_map` in the plan file.")
    return Repoint(
        cluster=cluster,
        namespace=namespace,
        config_map=config_map,
        key=key,
        value_before=before,
        value=host_value(facts.address, before),
    )


def _home_is(scene: _Scene) -> tuple[Precondition, ...]:
    if not scene.home_answers:
        return ()
    return (DatabaseIs(target=scene.database.ref, oid=None if scene.home is None else scene.home.oid),)


def _loss(scene: _Scene, ports: Ports) -> str:
    reached = None if scene.facts.restored is None else scene.facts.restored.reached_at
    databases = names(scene.keys)
    if reached is None:
        return f"Everything written to {databases} after the moment of `{scene.facts.name}` stays on the old primary."
    lost = span(ports.clock.now() - reached)
    return (
        f"{databases} as of {exact(reached)}: loses {lost}, of every database of the server. The old primary keeps "
        "what it has."
    )


def _findings(scene: _Scene) -> list[Finding]:
    found = []
    if not scene.home_answers:
        found.append(
            Finding(
                check="old primary",
                verdict=Verdict.WARN,
                detail=f"Server `{scene.database.server}` does not answer, so it cannot be closed.",
                hint="See that it cannot come back and take writes before you sign.",
            )
        )
    if len(scene.keys) > 1:
        found.append(
            Finding(
                check="databases",
                verdict=Verdict.WARN,
                detail=f"{names(scene.keys)} are on that server; only `{scene.key}` is closed and its service moved.",
                hint=f"To give back one database alone, use `/dr-restore swap {scene.facts.id}`.",
            )
        )
    found.append(
        Finding(
            check="place",
            verdict=Verdict.WARN,
            detail=f"The new primary is {scene.facts.address} on the worker's machine, without an archive of its own.",
            hint="See that the application reaches that address. Take a base backup of it next.",
        )
    )
    if scene.repoint.value == scene.repoint.value_before:
        text = f"ConfigMap `{scene.repoint.config_map}` names `{scene.repoint.value}` already."
        found.append(Finding(check="repoint", verdict=Verdict.STOP, detail=text, hint="Look who changed it."))
    return found
