"""A new version of the plan file: who may sign what is under control itself."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from actions.contract import Action, Finding, Lock, Plan, Precondition, Risk, Step, Verdict
from actions.ports import Ports
from actions.site import Frozen
from actions.steps.plan_versions import ActivateVersion, VersionIs, short


class ActivateParams(Frozen):
    """The whole text of the new plan file."""

    document: str = Field(min_length=1, max_length=1_000_000)


class Activate(Action[ActivateParams]):
    """The plan file becomes what the signers saw, and nothing else does."""

    name: ClassVar[str] = "plan.activate"
    summary: ClassVar[str] = "Put a new version of the plan file in force"
    risk: ClassVar[Risk] = Risk.IRREVERSIBLE
    params = ActivateParams
    steps: ClassVar[tuple[type[Step], ...]] = (ActivateVersion,)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (VersionIs,)

    async def plan(self, params: ActivateParams, ports: Ports, plan_id: str) -> Plan:
        change = await ports.plan_versions.compare(params.document)
        step = ActivateVersion(
            plan_id=plan_id,
            document=params.document,
            sha256=change.sha256,
            sha256_before=change.before,
            changes=change.changes,
        )
        warnings = tuple(
            Finding(check="plan file", verdict=Verdict.WARN, detail=warning) for warning in change.warnings
        )
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Activate version {short(change.sha256)} of the plan file, {len(change.changes)} change(s)",
            risk=self.risk,
            target=f"plan-{short(change.sha256)}",
            params=params.model_dump(mode="json"),
            locks=(Lock(key="plan-file"),),
            steps=(step,),
            preconditions=(VersionIs(sha256=change.before),),
            made_at=ports.clock.now(),
            findings=warnings,
        )
