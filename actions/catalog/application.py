"""The application's workloads: another replica count, a restart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from actions.contract import Action, Finding, Lock, Observation, Plan, Precondition, Risk, Step, Verdict
from actions.errors import UserError
from actions.ports import Ports, WorkloadFacts
from actions.site import Frozen, WorkloadKind
from actions.steps import byhand
from actions.steps.facts import WorkloadIs
from actions.steps.gitops import ResumeGitOps, SuspendGitOps, controller_locks, controllers_of, suspended_by_plans
from actions.steps.phrases import names
from actions.steps.scene import Application, application_of
from actions.steps.workloads import RestartWorkload, ScaleWorkload

LARGEST = 1000
"""Replicas nobody means; a typing error otherwise takes the cluster down."""


class ScaleParams(Frozen):
    """Which workload of a service, and how many replicas. The workload may be left out where there is only one."""

    service: str = Field(min_length=1)
    replicas: int = Field(ge=0, le=LARGEST)
    workload: str | None = None


class Scale(Action[ScaleParams]):
    """A workload at another replica count."""

    name: ClassVar[str] = "application.scale"
    summary: ClassVar[str] = "Scale a workload of the application and wait for it"
    risk: ClassVar[Risk] = Risk.DISRUPTIVE
    recovery: ClassVar[bool] = True
    params = ScaleParams
    steps: ClassVar[tuple[type[Step], ...]] = (SuspendGitOps, ScaleWorkload)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (WorkloadIs,)

    async def plan(self, params: ScaleParams, ports: Ports, plan_id: str) -> Plan:
        application = await application_of(ports, params.service)
        facts = _one(application, params.workload)
        scale = ScaleWorkload(ref=facts.ref, replicas_before=facts.replicas, replicas=params.replicas)
        controllers = controllers_of([facts])
        suspend = (SuspendGitOps(controllers=controllers, mark=plan_id),) if controllers else ()
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Scale {facts.ref} from {facts.replicas} to {params.replicas}",
            risk=self.risk,
            target=facts.ref.name,
            params=params.model_dump(mode="json"),
            locks=(Lock(key=f"service:{params.service}"), *controller_locks([facts])),
            steps=(*suspend, scale),
            preconditions=(WorkloadIs.of(facts),),
            made_at=ports.clock.now(),
            findings=_scale_findings(params.service, facts, params.replicas),
            observations=_observations([facts]),
        )


def _scale_findings(service: str, facts: WorkloadFacts, replicas: int) -> tuple[Finding, ...]:
    found: list[Finding] = []
    if facts.recorded is not None and facts.replicas:
        found.append(
            Finding(
                check="stopped",
                verdict=Verdict.WARN,
                detail=f"{facts.ref} was stopped by plan `{facts.mark}` and scaled by others since.",
                hint=f"Remove what that plan has noted on it: `{byhand.unrecorded(facts.ref)}`.",
            )
        )
    elif facts.recorded is not None:
        found.append(
            Finding(
                check="stopped",
                verdict=Verdict.STOP,
                detail=f"{facts.ref} was stopped by plan `{facts.mark}` and gets {facts.recorded} replicas back.",
                hint="Let that run end or be put back, then ask again.",
            )
        )
    found += _autoscaler_findings(facts, replicas)
    if facts.gitops is not None:
        owner = f"{facts.gitops.kind} `{facts.gitops.namespace}/{facts.gitops.name}`"
        found.append(
            Finding(
                check="GitOps",
                verdict=Verdict.WARN,
                detail=f"{owner} would undo this; it stays suspended.",
                hint=f'Commit {replicas} replicas to the repository, then `/dr app resume {service} --reason "..."`.',
            )
        )
    if replicas == 0:
        found.append(
            Finding(check="outage", verdict=Verdict.WARN, detail=f"{facts.ref} serves nobody at 0 replicas.", hint="")
        )
    return tuple(found)


def _autoscaler_findings(facts: WorkloadFacts, replicas: int) -> list[Finding]:
    scaler = facts.autoscaler
    if scaler is None:
        return []
    bounds = f"`{scaler.name}` keeps {facts.ref} between {scaler.minimum} and {scaler.maximum}"
    if replicas == 0:
        # Kubernetes, "Horizontal Pod Autoscaling": at 0 replicas the autoscaler is switched off.
        detail, verdict, hint = f"{bounds}; at 0 it stops working until somebody scales up again.", Verdict.WARN, ""
    elif scaler.minimum <= replicas <= scaler.maximum:
        detail, verdict, hint = f"{bounds} and may choose another number at once.", Verdict.WARN, ""
    else:
        bound, word = (scaler.minimum, "minimum") if replicas < scaler.minimum else (scaler.maximum, "maximum")
        detail = f"{bounds}: {replicas} would be set back to {bound} at once."
        verdict, hint = Verdict.STOP, f"Change the {word} of the autoscaler to {replicas} first."
    return [Finding(check="autoscaler", verdict=verdict, detail=detail, hint=hint)]


class RolloutParams(Frozen):
    """Which service is restarted, or which one of its workloads."""

    service: str = Field(min_length=1)
    workload: str | None = None


class Rollout(Action[RolloutParams]):
    """New pods for the workloads of a service, one workload after the other."""

    name: ClassVar[str] = "application.rollout"
    summary: ClassVar[str] = "Restart the application's workloads and wait for the rollout"
    risk: ClassVar[Risk] = Risk.DISRUPTIVE
    recovery: ClassVar[bool] = True
    params = RolloutParams
    steps: ClassVar[tuple[type[Step], ...]] = (SuspendGitOps, RestartWorkload, ResumeGitOps)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (WorkloadIs,)

    async def plan(self, params: RolloutParams, ports: Ports, plan_id: str) -> Plan:
        application = await application_of(ports, params.service)
        chosen = _lasting(application) if params.workload is None else [_one(application, params.workload)]
        if not chosen:
            raise UserError(
                f"Service `{params.service}` has no Deployment or StatefulSet to restart. "
                "Name another service, or add the workload to it in the plan file."
            )
        # What is stopped first depends on what is stopped later, so the last one is restarted first.
        steps: list[Step] = [RestartWorkload(ref=facts.ref, mark=plan_id) for facts in reversed(chosen)]
        controllers = controllers_of(chosen)
        if controllers:
            # A restart is a note on the pods' template; a controller that heals drift may take it away in the middle.
            # Afterwards it may: the pods are new by then.
            steps.insert(0, SuspendGitOps(controllers=controllers, mark=plan_id))
            steps.append(ResumeGitOps(controllers=controllers, mark=plan_id, optional=True))
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Restart {names(facts.ref.name for facts in chosen)} of service `{params.service}`",
            risk=self.risk,
            target=params.service,
            params=params.model_dump(mode="json"),
            locks=(Lock(key=f"service:{params.service}"), *controller_locks(chosen)),
            steps=tuple(steps),
            preconditions=tuple(WorkloadIs.of(facts) for facts in chosen),
            made_at=ports.clock.now(),
            findings=_rollout_findings(application, chosen),
            observations=_observations(chosen),
        )


def _rollout_findings(application: Application, chosen: Sequence[WorkloadFacts]) -> tuple[Finding, ...]:
    found = [
        Finding(
            check="stopped",
            verdict=Verdict.WARN,
            detail=f"{facts.ref} has 0 replicas: it gets new pods only when it is scaled up.",
        )
        for facts in chosen
        if facts.replicas == 0
    ]
    found += [
        Finding(check="application", verdict=Verdict.WARN, detail=f"{ref} does not exist and is left out.")
        for ref in application.missing
    ]
    return tuple(found)


class ResumeParams(Frozen):
    """Whose controllers."""

    service: str = Field(min_length=1)


class Resume(Action[ResumeParams]):
    """GitOps again, where a plan of this product left it suspended."""

    name: ClassVar[str] = "application.resume"
    summary: ClassVar[str] = "Resume the GitOps controllers of a service that plans left suspended"
    risk: ClassVar[Risk] = Risk.DISRUPTIVE
    params = ResumeParams
    steps: ClassVar[tuple[type[Step], ...]] = (ResumeGitOps,)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (WorkloadIs,)

    async def plan(self, params: ResumeParams, ports: Ports, plan_id: str) -> Plan:
        application = await application_of(ports, params.service)
        held = suspended_by_plans(application.workloads)
        if not held:
            raise UserError(
                f"No plan left a GitOps controller of service `{params.service}` suspended. What people suspended they "
                "resume by hand."
            )
        every = [controller for controllers in held.values() for controller in controllers]
        through = [facts for facts in application.workloads if facts.ref in {controller.ref for controller in every}]
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Resume {', '.join(map(str, every))} of service `{params.service}`",
            risk=self.risk,
            target=params.service,
            params=params.model_dump(mode="json"),
            locks=(Lock(key=f"service:{params.service}"), *controller_locks(through)),
            steps=tuple(ResumeGitOps(controllers=controllers, mark=mark) for mark, controllers in held.items()),
            preconditions=tuple(WorkloadIs(ref=facts.ref, uid=facts.uid) for facts in through),
            made_at=ports.clock.now(),
            findings=_resume_findings(application, through),
            observations=_observations(through),
        )


def _resume_findings(application: Application, through: Sequence[WorkloadFacts]) -> tuple[Finding, ...]:
    stopped = tuple(
        Finding(
            check="stopped",
            verdict=Verdict.STOP,
            detail=f"{facts.ref} is stopped by plan `{facts.mark}`; its controller would start it in the middle.",
            hint="Let that run end or be put back, then ask again.",
        )
        for facts in application.workloads
        if facts.recorded is not None and not facts.replicas
    )
    repository = Finding(
        check="repository",
        verdict=Verdict.WARN,
        detail="What the repository says is applied at once: replica counts, images, the host of the database. Now: "
        f"{', '.join(f'`{facts.ref.name}` {facts.replicas} replicas' for facts in through)}.",
        hint="Commit what must stay as it is now, before you sign.",
    )
    return (*stopped, repository)


def _lasting(application: Application) -> list[WorkloadFacts]:
    """The workloads that have replicas: a CronJob has none to scale or restart."""
    return [facts for facts in application.workloads if facts.ref.kind is not WorkloadKind.CRON_JOB]


def _one(application: Application, name: str | None) -> WorkloadFacts:
    """The workload of this name, or the only one. Raises UserError with the names to choose from."""
    lasting = _lasting(application)
    fit = [facts for facts in lasting if name is None or facts.ref.name == name]
    if len(fit) == 1:
        return fit[0]
    known = names(sorted(facts.ref.name for facts in lasting)) or "none"
    if name is not None and not fit:
        raise UserError(f"Service `{application.service.name}` runs no workload `{name}`. It has: {known}.")
    raise UserError(f"Name the workload of service `{application.service.name}`: {known}.")


def _observations(chosen: Sequence[WorkloadFacts]) -> tuple[Observation, ...]:
    return tuple(Observation(name=facts.ref.name, value=f"{facts.ready} of {facts.replicas} ready") for facts in chosen)
