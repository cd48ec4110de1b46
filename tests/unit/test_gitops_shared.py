"""Two services under one GitOps controller: neither lets it go on while the other relies on its being suspended."""

from __future__ import annotations

from dataclasses import replace

from actions import registry
from actions.catalog.application import ResumeParams, RolloutParams
from actions.catalog.restore import RestoreParams
from actions.contract import Plan
from actions.runner import Outcome, Runner
from actions.site import Service, WorkloadKind, WorkloadRef
from tests.contract.kit import MemoryJournal
from tests.fakes.world import API, World, a_world

OTHER = WorkloadRef(API.cluster, API.namespace, WorkloadKind.DEPLOYMENT, "billing")


def shared() -> World:
    """Service `billing` runs under the controller of service `shop`."""
    world = a_world()
    world.cluster.add(OTHER, gitops=world.cluster.workloads[API].gitops)
    services = {**world.site.services, "billing": Service(name="billing", workloads=(OTHER,))}
    return replace(world, site=world.site.model_copy(update={"services": services}))


def exclusive(plan: Plan) -> set[str]:
    return {lock.key for lock in plan.locks if lock.exclusive}


async def test_plans_of_both_exclude_each_other() -> None:
    world = shared()
    restore = await registry.action("restore.dump").plan(RestoreParams(database="shop"), world, "k7m2n3p4q5")
    rollout = await registry.action("application.rollout").plan(RolloutParams(service="billing"), world, "b8m2n3p4q5")
    await world.cluster.suspend_gitops(OTHER, mark="b8m2n3p4q5")
    resume = await registry.action("application.resume").plan(ResumeParams(service="billing"), world, "c9m2n3p4q5")
    common = exclusive(restore) & exclusive(rollout) & exclusive(resume)
    assert [key for key in common if key.startswith("gitops:")]


async def test_what_another_plan_had_suspended_is_looked_at_again_before_the_start() -> None:
    world = shared()
    await world.cluster.suspend_gitops(API, mark="b8m2n3p4q5")
    plan = await registry.action("restore.dump").plan(RestoreParams(database="shop"), world, "k7m2n3p4q5")
    assert "suspend_gitops" not in {step.kind for step in plan.steps}
    await world.cluster.resume_gitops(API, mark="b8m2n3p4q5")
    result = await Runner(plan, world, MemoryJournal()).run()
    assert result.outcome is Outcome.STALE
    assert "GitOps of" in result.message
    assert "was resumed since" in result.message
