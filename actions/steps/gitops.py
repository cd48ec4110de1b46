"""Steps that keep a GitOps controller from undoing what a plan does."""

from __future__ import annotations

import json
import operator
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Literal, TypeVar

from pydantic import Field

from actions.contract import Finding, Lock, Probe, Step, Verdict
from actions.errors import PermanentError, TemporaryError, UnknownOutcomeError, UserError, VerificationError
from actions.ports import Ports, Progress, WorkloadFacts
from actions.runner import ATTEMPTS, LONGEST_PAUSE
from actions.site import Frozen, WorkloadRef
from actions.steps import byhand

T = TypeVar("T")

_RESOURCES = {
    "Application": "applications.argoproj.io",
    "Kustomization": "kustomizations.kustomize.toolkit.fluxcd.io",
    "HelmRelease": "helmreleases.helm.toolkit.fluxcd.io",
}


class Controller(Frozen):
    """A controller object, and the workload through which it was found."""

    ref: WorkloadRef
    tool: str
    kind: str
    namespace: str
    name: str
    # Left out where it is not known: a plan that was signed before it was read keeps its digest.
    automated: str = Field(default="", exclude_if=operator.not_)
    """What Argo CD did by itself (`prune`, `selfHeal`, ...), as JSON."""

    def __str__(self) -> str:
        return f"{self.kind} `{self.namespace}/{self.name}`"

    def patch(self, body: dict[str, Any]) -> str:
        """A kubectl line that changes this object."""
        resource = _RESOURCES.get(self.kind, self.kind.lower())
        return byhand.merge_patch(self.ref.cluster, self.namespace, f"{resource}/{self.name}", body)


class SuspendGitOps(Step):
    """No controller reconciles the workloads until it is resumed."""

    kind: Literal["suspend_gitops"] = "suspend_gitops"
    timeout: timedelta = timedelta(minutes=2)
    undo_on_failure: bool = True
    controllers: tuple[Controller, ...]
    mark: str

    @property
    def summary(self) -> str:
        return f"Suspend {', '.join(map(str, self.controllers))}, which would undo the next steps"

    @property
    def before(self) -> str:
        return "reconciling"

    @property
    def after(self) -> str:
        return "suspended by this plan"

    def by_hand(self) -> tuple[str, ...]:
        return tuple(
            item.patch({"spec": {"syncPolicy": {"automated": None}} if item.tool == "argocd" else {"suspend": True}})
            for item in self.controllers
        )

    async def probe(self, ports: Ports) -> Probe:
        return Probe.TODO if await _reconciling(ports, self.controllers) else Probe.DONE

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - seconds, without figures
        for controller in self.controllers:
            await ports.cluster.suspend_gitops(controller.ref, mark=self.mark)

    async def verify(self, ports: Ports) -> None:
        going_on = await _reconciling(ports, self.controllers)
        if going_on:
            raise VerificationError(f"{', '.join(map(str, going_on))} could not be suspended. Suspend it by hand.")

    async def undo(self, ports: Ports) -> None:
        for controller in self.controllers:
            await ports.cluster.resume_gitops(controller.ref, mark=self.mark)

    def undo_by_hand(self) -> tuple[str, ...]:
        return tuple(_resumed(item) for item in self.controllers)

    async def undone(self, ports: Ports) -> None:
        """Still suspended means that others suspended it too, and theirs is kept."""


class ResumeGitOps(Step):
    """Controllers that this plan suspended reconcile again; a suspension by others is kept.

    When this fails people are asked, and nothing is put back: the work is done and checked by then, and undoing it for
    a controller that stays suspended would cost more than it saves.
    """

    kind: Literal["resume_gitops"] = "resume_gitops"
    timeout: timedelta = timedelta(minutes=2)
    controllers: tuple[Controller, ...]
    mark: str

    @property
    def summary(self) -> str:
        return f"Resume {', '.join(map(str, self.controllers))}"

    @property
    def before(self) -> str:
        return "suspended by this plan"

    @property
    def after(self) -> str:
        return "reconciling"

    def by_hand(self) -> tuple[str, ...]:
        return tuple(_resumed(item) for item in self.controllers)

    async def probe(self, ports: Ports) -> Probe:
        going_on = await self._or_ask(ports, lambda: _reconciling(ports, self.controllers))
        return Probe.DONE if len(going_on) == len(self.controllers) else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - seconds, without figures
        for controller in self.controllers:
            await self._or_ask(ports, partial(ports.cluster.resume_gitops, controller.ref, mark=self.mark))

    async def _or_ask(self, ports: Ports, work: Callable[[], Awaitable[T]]) -> T:
        """Try a few times. Raises nothing but UnknownOutcomeError, since any other error would put all back."""
        tried = 1
        while True:
            try:
                return await work()
            except (PermanentError, UserError, TemporaryError) as error:
                if tried < ATTEMPTS and isinstance(error, TemporaryError):
                    tried += 1
                    await ports.clock.sleep(min(error.retry_after, LONGEST_PAUSE))
                    continue
                raise UnknownOutcomeError(
                    f"Everything before this step is done and stays. {self.summary}: {error} "
                    "Resume by hand, then let the run go on."
                ) from error

    async def verify(self, ports: Ports) -> None:
        """Nothing to check: still suspended means that others suspended it too, and theirs is kept."""


def _resumed(item: Controller) -> str:
    if item.tool != "argocd":
        return item.patch({"spec": {"suspend": False}})
    return item.patch({"spec": {"syncPolicy": {"automated": json.loads(item.automated or "{}")}}})


def controllers_of(facts: Sequence[WorkloadFacts]) -> tuple[Controller, ...]:
    """The controllers that reconcile these workloads now, each once."""
    return _each_once([item for item in facts if item.gitops is not None and not item.gitops.suspended])


def controller_locks(facts: Sequence[WorkloadFacts]) -> tuple[Lock, ...]:
    """One for each controller of these workloads, whether it reconciles now or not: what one plan has suspended, or
    relies on being suspended, no other resumes in the middle."""
    return tuple(
        Lock(key=f"gitops:{item.ref.cluster}/{item.kind}/{item.namespace}/{item.name}")
        for item in _each_once([each for each in facts if each.gitops is not None])
    )


def suspended_by_plans(facts: Sequence[WorkloadFacts]) -> dict[str, tuple[Controller, ...]]:
    """By the plan that suspended them: the controllers of these workloads that wait to be resumed."""
    held = [item for item in facts if item.gitops is not None and item.gitops.mark]
    marks = sorted({item.gitops.mark for item in held if item.gitops is not None})
    return {
        mark: _each_once([item for item in held if item.gitops is not None and item.gitops.mark == mark])
        for mark in marks
    }


def suspended_findings(service: str, facts: Sequence[WorkloadFacts]) -> list[Finding]:
    """What plans left suspended of this service, and the command that resumes it."""
    return [
        Finding(
            check=f"GitOps of {service}",
            verdict=Verdict.WARN,
            detail=f"{controller} is suspended by plan `{mark}`: what is pushed to its repository is not applied.",
            hint=f'Once the repository says what must run, `/dr app resume {service} --reason "..."`.',
        )
        for mark, controllers in suspended_by_plans(facts).items()
        for controller in controllers
    ]


def _each_once(facts: Sequence[WorkloadFacts]) -> tuple[Controller, ...]:
    found: dict[tuple[str, str, str, str], Controller] = {}
    for item in facts:
        gitops = item.gitops
        if gitops is not None:
            key = (item.ref.cluster, gitops.kind, gitops.namespace, gitops.name)
            shared = gitops.model_dump(include={"tool", "kind", "namespace", "name", "automated"})
            found.setdefault(key, Controller(ref=item.ref, **shared))
    return tuple(found.values())


async def _reconciling(ports: Ports, controllers: Sequence[Controller]) -> list[Controller]:
    going_on = []
    for controller in controllers:
        facts = await ports.cluster.workload(controller.ref)
        if facts is not None and facts.gitops is not None and not facts.gitops.suspended:
            going_on.append(controller)
    return going_on
