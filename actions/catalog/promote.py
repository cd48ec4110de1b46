"""Make a scratch instance the new primary: applications pointed there, the old primary closed for good, shut down and
kept.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from actions.backup.physical import SCRATCH, Check, ScratchState
from actions.contract import Action, Finding, Lock, Observation, Plan, Precondition, Risk, Step, Verdict
from actions.ports import COMES_BACK, Ports, WorkloadFacts
from actions.site import DatabaseRef, Frozen
from actions.steps.application import CheckApplication, Repoint
from actions.steps.choice import SWITCH
from actions.steps.connected import SeeConnected
from actions.steps.facts import ConfigIs, ServerIs, WorkloadIs
from actions.steps.forecasts import rto_findings
from actions.steps.gitops import SuspendGitOps, controller_locks, controllers_of
from actions.steps.moments import exact
from actions.steps.old_primary import SHUTDOWN, StopPrimary
from actions.steps.old_primary_scene import stop_findings
from actions.steps.phrases import moment, names, span
from actions.steps.promotion import Fenced, FencePrimary, OpenScratch, PromoteScratch, StaysDead
from actions.steps.promotion_scene import PromotionScene, host_of, look
from actions.steps.scratch_facts import ScratchIs
from actions.steps.writers import StartWriters, StopWriters, Writer, writers_of

LOOPBACK = ("127.0.0.1", "localhost", "::1", "")


class PromoteParams(Frozen):
    """Which instance; the database that the plan is named after where it holds several of the plan file."""

    scratch: str = Field(min_length=1)
    database: str | None = None
    old_primary_is_dead: bool = False  # it does not answer, and somebody knows that it will not come back by itself


class Promote(Action[PromoteParams]):
    """The whole server as it was at the instance's moment, as the new primary."""

    name: ClassVar[str] = "restore.promote"
    summary: ClassVar[str] = "Promote a scratch instance as the new primary and point the application there"
    risk: ClassVar[Risk] = Risk.DESTRUCTIVE
    recovers: ClassVar[bool] = True
    recovery: ClassVar[bool] = True
    params = PromoteParams
    steps: ClassVar[tuple[type[Step], ...]] = (
        OpenScratch,
        SuspendGitOps,
        StopWriters,
        FencePrimary,
        PromoteScratch,
        Repoint,
        StartWriters,
        CheckApplication,
        SeeConnected,
        StopPrimary,
    )
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (ScratchIs, ServerIs, StaysDead, WorkloadIs, ConfigIs)

    async def plan(self, params: PromoteParams, ports: Ports, plan_id: str) -> Plan:
        scene = await look(ports, params.scratch, params.database, dead=params.old_primary_is_dead)
        facts, workloads, end = scene.facts, _held(scene), _stop(scene, plan_id)
        takes, rto = sum((SHUTDOWN for _ in end), SWITCH), ports.site.databases[scene.key].rto
        words = f"{span(takes)}, assumed: nothing is copied, and no promotion was measured; RTO {span(rto)}"
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Promote `{facts.name}` as the new primary of `{scene.key}`; applications go there: "
            + names(scene.services),
            risk=self.risk,
            target=scene.key,
            params=params.model_dump(mode="json"),
            locks=(
                Lock(key=f"scratch:{facts.id}"),
                *(Lock(key=f"database:{key}") for key in scene.keys),
                *(Lock(key=f"service:{name}") for name in scene.services),
                *controller_locks(workloads),
            ),
            steps=(*_steps(scene, plan_id), *end),
            preconditions=(
                ScratchIs.of(facts, promoted=True, sound=True),
                _home_is(scene),
                *(WorkloadIs.of(found) for found in workloads),
                *(
                    ConfigIs(
                        cluster=repoint.cluster,
                        namespace=repoint.namespace,
                        config_map=repoint.config_map,
                        key=repoint.key,
                        value=repoint.value_before,
                    )
                    for repoint in scene.repoints
                ),
            ),
            made_at=ports.clock.now(),
            findings=(*_findings(scene), *rto_findings(takes, rto, words, instead=_quicker(scene))),
            observations=(*_observations(scene), Observation(name="forecast", value=words)),
            estimate=takes,
            data_loss=_loss(scene, ports),
        )


def _steps(scene: PromotionScene, plan_id: str) -> tuple[Step, ...]:
    facts, controllers, writers = scene.facts, controllers_of(_held(scene)), writers_of(scene.workloads)
    steps: list[Step] = [OpenScratch(scratch=facts.id, host=scene.host, port=scene.port)]
    if controllers:
        steps.append(SuspendGitOps(controllers=controllers, mark=plan_id))
    if writers:
        steps.append(StopWriters(writers=writers, mark=plan_id))
    steps += [
        FencePrimary(
            server=scene.server,
            scratch=facts.id,
            databases=tuple(
                Fenced(name=item.name, opened=scene.fence is None or item.name in scene.fence.open)
                for item in scene.databases
            ),
            home="" if scene.fence is None else scene.fence.home,
            limit=-1 if scene.fence is None else scene.fence.limit,
            dead=scene.home is None,
        ),
        PromoteScratch(
            scratch=facts.id,
            server=scene.server,
            timeline_id=0 if facts.restored is None else facts.restored.timeline_id,
            dead=scene.home is None,
            taken=scene.taken,
        ),
        *scene.repoints,
    ]
    if writers:
        steps.append(StartWriters(writers=writers, mark=plan_id, undo_on_failure=False))
    for item in scene.moved:
        service = item.application.service
        if service.database_dsn is not None or service.health_url is not None:
            steps.append(
                CheckApplication(
                    service=service.name,
                    target=DatabaseRef(facts.name, item.database.name),
                    system_id=facts.system_id,
                    old_oid=None,  # a physical copy has the oids of production
                    connection=service.database_dsn,
                    health_url=service.health_url,
                    address=scene.address,
                )
            )
        steps.append(
            SeeConnected(
                service=service.name,
                target=DatabaseRef(facts.name, item.database.name),
                address=scene.address,
                left=item.database.ref,
                connection=service.database_dsn,
                health_url=service.health_url,
                workloads=tuple(found.ref for found in item.application.workloads),
                optional=True,  # nothing is put back any more, and the application works by then
            )
        )
    return tuple(steps)


def _held(scene: PromotionScene) -> tuple[WorkloadFacts, ...]:
    """Every workload that is scaled, so that no controller of it may go on."""
    return scene.workloads if scene.stopped is None else (*scene.workloads, scene.stopped)


def _stop(scene: PromotionScene, plan_id: str) -> tuple[Step, ...]:
    """The end of the old primary, where it lives and can be ended from here."""
    if scene.home is None or scene.stop is None or scene.stop.refusal:
        return ()
    place = scene.stopped
    return (
        StopPrimary(
            server=scene.server,
            scratch=scene.facts.id,
            system_id=scene.home.system_id,
            timeline_id=scene.home.timeline_id,
            address=scene.home.address,
            directory=scene.stop.facts.directory,
            workload=None if place is None else Writer(ref=place.ref, replicas=place.replicas),
            mark=plan_id,
            optional=True,  # the application runs by then
        ),
    )


def _quicker(scene: PromotionScene) -> str:
    return (
        "Nothing quicker brings the whole server back. Single tables come back beside the running application: "
        f"`/dr-restore rescue {scene.facts.id} TABLE`."
    )


def _home_is(scene: PromotionScene) -> Precondition:
    if scene.home is None:
        return StaysDead(server=scene.server)
    return ServerIs.of(scene.home)


def _observations(scene: PromotionScene) -> tuple[Observation, ...]:
    shown = ", ".join(f"{name} {value}" for name, value in sorted(scene.serving.settings.items())[:12])
    access = "production's pg_hba.conf" if scene.serving.access else "passwords from the networks of this machine"
    return (
        Observation(name="address", value=scene.address),
        Observation(name="logins", value=access),
        Observation(name="configuration", value=shown or "PostgreSQL's own defaults"),
        *(() if scene.stop is None else (Observation(name="old primary", value=scene.stop.how),)),
        *(
            Observation(name=f"difference of {key}", value=_difference(scene.facts.checks.get(key)))
            for key in scene.keys
        ),
    )


def _difference(check: Check | None) -> str:
    """As it was seen when the instance was looked through: to count everything again would take the time of a copy."""
    if check is None:
        return "not looked through"
    said = check.compared or "Production could not be read, so nothing was compared."
    return f"{said} Seen {moment(check.at)}."


def _loss(scene: PromotionScene, ports: Ports) -> str:
    reached = None if scene.facts.restored is None else scene.facts.restored.reached_at
    databases = names(scene.keys)
    if reached is None:
        return f"Everything written to {databases} after the moment of `{scene.facts.name}` stays on the old primary."
    lost = span(ports.clock.now() - reached)
    return (
        f"{databases} as of {exact(reached)}: loses {lost}, of every database of the server. The old primary keeps "
        "what it has."
    )


def _findings(scene: PromotionScene) -> list[Finding]:
    return [*_of_the_old(scene), *_of_the_place(scene), *_of_the_applications(scene)]


def _of_the_old(scene: PromotionScene) -> list[Finding]:
    server, check = scene.server, "old primary"
    if scene.home is None and not scene.dead:
        return [
            Finding(
                check=check,
                verdict=Verdict.STOP,
                detail=f"Server `{server}` does not answer, so nothing closes it; it may still take writes.",
                hint="Power it off or cut it from the network. When you know that it cannot come back by itself, ask "
                "again with `--old-primary-is-dead`.",
            )
        ]
    if scene.home is None and scene.lives:
        return [
            Finding(
                check=check,
                verdict=Verdict.STOP,
                detail=f"Server `{server}` is not dead: it is there and lets nobody in now (it starts, shuts down, has "
                "no free connection, is too busy, or its TLS is not what we ask for), so it may take writes.",
                hint="Ask again in a moment, so that it is closed first; or power it off. Is its certificate over "
                "or not the right one, correct that, or what its `admin_dsn` asks for.",
            )
        ]
    if scene.home is None:
        return [
            Finding(
                check=check,
                verdict=Verdict.WARN,
                detail=f"Server `{server}` does not answer and is said to be dead (`--old-primary-is-dead`). Nothing "
                "closes it: if it comes back, it takes writes beside the new primary.",
                hint="Sign only when you have seen yourself that it is off.",
            )
        ]
    if scene.dead:
        text = f"Server `{server}` answers, so it is not dead."
        return [Finding(check=check, verdict=Verdict.STOP, detail=text, hint="Leave `--old-primary-is-dead` out.")]
    if scene.home.in_recovery:
        text = f"Server `{server}` is a standby now, so closing it would not close the primary."
        hint = "Find the primary it follows and correct the plan file."
        return [Finding(check=check, verdict=Verdict.STOP, detail=text, hint=hint)]
    found = [] if scene.stop is None else stop_findings(scene.stop)
    if scene.fence is not None and scene.fence.workers:
        text = f"Nobody outside has opened {', '.join(scene.fence.workers)} of `{server}`: the fence may not hold."
        found.append(Finding(check="background workers", verdict=Verdict.WARN, detail=text, hint=COMES_BACK))
    return found


def _of_the_place(scene: PromotionScene) -> list[Finding]:
    found = []
    local = scene.host in LOOPBACK
    if local and not all(host_of(repoint.value_before) in LOOPBACK for repoint in scene.repoints):
        found.append(
            Finding(
                check="place",
                verdict=Verdict.STOP,
                detail=f"Applications elsewhere cannot reach {scene.address}: it is this machine's own.",
                hint="Name the host they reach the worker's machine by: `backups.scratch.advertised_host` in the plan "
                "file. Where the worker is a pod, that is a Service for its `backups.scratch.ports`, with a network "
                "policy that lets applications in (`docs/howto/kubernetes.md`).",
            )
        )
    found.append(
        Finding(
            check="archive",
            verdict=Verdict.WARN,
            detail=f"The new primary at {scene.address}, on the worker's machine, has no archive of its own at first.",
            hint="The end of the run says what to do: access, archiver, base backup.",
        )
    )
    if scene.serving.left:
        left = "; ".join(f"`{name}`: {why}" for name, why in sorted(scene.serving.left.items()))
        text = f"Not taken over from production's configuration: {left}."
        found.append(Finding(check="configuration", verdict=Verdict.WARN, detail=text))
    return found


def _of_the_applications(scene: PromotionScene) -> list[Finding]:
    found = []
    if unseen := [key for key in scene.keys if key not in scene.facts.checks]:
        text = (
            f"Nobody has looked through {names(unseen)} in `{scene.facts.name}`: whether it can be read is not known."
        )
        hint = f"Look at it as database of server `{scene.facts.name}` before you sign."
        found.append(Finding(check="check", verdict=Verdict.WARN, detail=text, hint=hint))
    if scene.stranded:
        found.append(
            Finding(
                check="applications",
                verdict=Verdict.STOP,
                detail=f"It is not known how {names(scene.stranded)} find their database, so they would be cut off.",
                hint="Name their `config_map` in the plan file, then ask again.",
            )
        )
    if scene.lost:
        text = f"`{scene.facts.name}` does not hold {names(scene.lost)}: whoever uses them is cut off."
        hint = f"Restore to a later moment, or give one back with `/dr-restore swap {scene.facts.id}`."
        found.append(Finding(check="databases", verdict=Verdict.STOP, detail=text, hint=hint))
    for repoint in scene.repoints:
        if repoint.value == repoint.value_before and scene.facts.state is not ScratchState.PROMOTED:
            text = f"ConfigMap `{repoint.config_map}` names `{repoint.value}` already."
            found.append(Finding(check="repoint", verdict=Verdict.STOP, detail=text, hint="Look who changed it."))
    if scene.facts.state is ScratchState.PROMOTED:
        text = f"`{scene.facts.name[len(SCRATCH) :]}` was promoted already; what is done is not done again."
        found.append(Finding(check="instance", verdict=Verdict.WARN, detail=text))
    return found
