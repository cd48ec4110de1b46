"""Give back one database as a scratch instance has it: copied beside production, compared, then switched in by name."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from actions.contract import Action, Lock, Plan, Precondition, Risk, Step
from actions.ports import Ports
from actions.site import Frozen
from actions.steps.application import CheckApplication
from actions.steps.databases import CloseDatabase, GiveName, SwapDatabases
from actions.steps.facts import DatabaseIs, DiskFree, NamesFree, ServerIs, WorkloadIs
from actions.steps.gitops import ResumeGitOps, SuspendGitOps, controller_locks
from actions.steps.scratch_copies import CompareScratch, CopyDatabase
from actions.steps.scratch_facts import ScratchIs
from actions.steps.swap_scene import look_at, swap_findings, swap_loss, swap_observations
from actions.steps.writers import StartWriters, StopWriters


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
        scene = await look_at(ports, params.scratch, params.database)
        steps = (*scene.copied(plan_id, 1), *scene.switch(plan_id).beside())
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
                *controller_locks(scene.workloads),
            ),
            steps=steps,
            preconditions=(
                *scene.preconditions(plan_id),
                *(WorkloadIs.of(found) for found in scene.workloads),
            ),
            made_at=ports.clock.now(),
            findings=tuple(swap_findings(scene)),
            observations=swap_observations(scene),
            estimate=scene.takes,
            data_loss=swap_loss(scene, ports),
        )
