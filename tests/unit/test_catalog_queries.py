"""What the status queries answer, and what signers of a scaling are told."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from pydantic import ValidationError

from actions import registry
from actions.adapters.kubernetes import MARK, RECORD
from actions.catalog.application import ResumeParams, RolloutParams, ScaleParams
from actions.catalog.backup_status import BackupsParams
from actions.catalog.restore import RestoreParams
from actions.catalog.status import CatalogueParams, ClusterParams, DatabasesParams
from actions.contract import JournalState, Verdict
from actions.errors import UserError
from actions.runner import Outcome, Runner
from actions.site import DatabaseRef
from actions.steps.application import CheckApplication, Repoint
from actions.steps.databases import GiveName, SwapDatabases
from actions.steps.gitops import Controller, ResumeGitOps
from actions.steps.writers import StartWriters
from bot.services.answers import restore_offer
from tests.contract.kit import MemoryJournal
from tests.fakes.physical_world import with_bases
from tests.fakes.world import API, NIGHTLY, START, WEB, World, a_world


async def test_one_recommendation_and_the_others_behind_it() -> None:
    offer = await restore_offer(a_world(), "shop", before=None)

    assert offer.recommended is not None
    assert (offer.recommended.backup, offer.recommended.beyond_rpo) == ("b-new", True)
    assert offer.recommended.loss == timedelta(hours=8, minutes=12)
    assert [item.backup for item in offer.alternatives] == ["b-old"]
    assert offer.why == "the newest backup without a known problem"


async def test_a_dump_of_the_damage_is_not_recommended() -> None:
    offer = await restore_offer(a_world(), "shop", before=START.replace(hour=1, minute=50))

    assert offer.recommended is not None
    assert offer.recommended.backup == "b-old"
    assert offer.why.endswith("from before the impact, 2026-11-23 01:50 UTC")
    assert [(item.backup, item.note) for item in offer.alternatives] == [
        ("b-new", "taken after the impact began, not yet verified")
    ]


async def test_a_chosen_dump_of_the_damage_is_pointed_out() -> None:
    impact = START.replace(hour=1, minute=50)
    restore = registry.action("restore.dump")
    usual = await restore.plan(RestoreParams(database="shop", before=impact), a_world(), "abc")
    chosen = await restore.plan(RestoreParams(database="shop", before=impact, backup="b-new"), a_world(), "abd")

    assert [finding for finding in usual.findings if finding.check == "damage"] == []
    [told] = [finding for finding in chosen.findings if finding.check == "damage"]
    assert told.verdict is Verdict.WARN
    assert "`b-new` was taken at 2026-11-23 02:00 UTC, after the impact began at 2026-11-23 01:50 UTC" in told.detail


async def test_no_recommendation_says_what_to_do() -> None:
    offer = await restore_offer(a_world(), "shop", before=START.replace(year=2020))

    assert offer.recommended is None
    assert "backup.adopt" in offer.why


async def test_backups_beyond_the_rpo_are_a_finding() -> None:
    report = await registry.query("status.backups").read(BackupsParams(), a_world())

    assert report.lines == (
        "`shop`: 8 h 12 min would be lost now (RPO 15 min: beyond); it has dumps alone, so no point in time.",
    )
    assert report.rows[0][:4] == ("shop", "dump", "2026-11-23 02:00 UTC", "8 h 12 min")
    assert any("RPO 15 min: beyond" in finding.detail for finding in report.findings)
    assert any("b-bad" in finding.detail for finding in report.findings)


async def test_the_next_restore_test_is_that_of_the_drills() -> None:
    world = with_bases()

    async def following() -> str:
        rows = (await registry.query("status.backups").read(BackupsParams(), world)).rows
        [row] = [row for row in rows if row[1] == "restore test"]
        return row[-1]

    assert await following() == "in no drill"
    world.runs.next["backup.prove", "primary"] = START + timedelta(days=14)
    assert await following() == "12-07 10:12 UTC"
    world.clock.advance(timedelta(days=15))
    assert await following() == "due now"


async def test_a_database_without_backups_is_the_first_thing_said() -> None:
    world = a_world()
    world.backups.entries.clear()

    report = await registry.query("status.backups").read(BackupsParams(), world)

    assert report.findings[0].verdict is Verdict.STOP


async def test_the_catalogue_hides_nothing() -> None:
    report = await registry.query("status.catalogue").read(CatalogueParams(database="shop"), a_world())

    assert [row[0] for row in report.rows] == ["b-new", "b-old", "b-bad"]


async def test_sizes_are_shown_as_the_plan_asks_for_them() -> None:
    report = await registry.query("status.databases").read(DatabasesParams(), a_world())

    assert report.rows == (("primary", "shop", "2861 MB", "1", "open", ""),)


async def test_a_missing_database_and_a_silent_server_are_findings() -> None:
    missing = await registry.query("status.databases").read(DatabasesParams(), a_world(missing=True))
    world = a_world()
    world.postgres.servers["primary"].down = True
    silent = await registry.query("status.databases").read(DatabasesParams(), world)

    assert [finding.verdict for finding in (*missing.findings, *silent.findings)] == [Verdict.STOP, Verdict.STOP]


async def test_the_cluster_is_shown_with_what_is_not_ready() -> None:
    world = a_world()
    world.cluster.workloads[API].broken = True

    report = await registry.query("status.cluster").read(ClusterParams(), world)

    assert ("main/shop", "Deployment", "api", "0/3", "") in report.rows
    assert [finding.check for finding in report.findings] == [str(API)]  # a resting CronJob is no finding
    assert any(row[1] == "Pod" and "ErrImagePull" in row[4] for row in report.rows)


# ---------------------------------------------------------------- scaling


async def scaled(world: World, workload: str, replicas: int) -> dict[str, Verdict]:
    plan = await registry.action("application.scale").plan(
        ScaleParams(service="shop", workload=workload, replicas=replicas), world, "k7m2n3p4q5"
    )
    return {finding.check: finding.verdict for finding in plan.findings}


@pytest.mark.parametrize(
    ("replicas", "verdict"),
    [(0, Verdict.WARN), (1, Verdict.STOP), (2, Verdict.WARN), (5, Verdict.WARN), (6, Verdict.STOP)],
)
async def test_an_autoscaler_has_the_last_word(replicas: int, verdict: Verdict) -> None:
    assert (await scaled(a_world(), "web", replicas))["autoscaler"] is verdict


async def test_a_workload_that_another_plan_stopped_is_left_alone() -> None:
    world = a_world()
    await world.cluster.stop(WEB, mark="other")

    assert (await scaled(world, "web", 3))["stopped"] is Verdict.STOP


async def test_what_people_scaled_since_is_no_longer_stopped() -> None:
    """Run A stopped it and was left; people scaled it by hand, which leaves the annotation of run A."""
    world = a_world()
    count = world.cluster.workloads[WEB].replicas
    await world.cluster.stop(WEB, mark="other")
    world.cluster.workloads[WEB].replicas = count + 1

    assert (await scaled(world, "web", 3))["stopped"] is Verdict.WARN
    plan = await registry.action("restore.dump").plan(RestoreParams(database="shop"), world, "k7m2n3p4q5")
    [started] = [step for step in plan.steps if isinstance(step, StartWriters)]
    assert {writer.ref: writer.replicas for writer in started.writers}[WEB] == count + 1
    assert any("scaled by others since" in finding.detail for finding in plan.findings)
    lines = [line for line in started.by_hand() if "annotate" in line and "/web" in line]
    assert lines == [
        f"kubectl --context {WEB.cluster} -n {WEB.namespace} annotate deployment/web {RECORD}- {MARK}-",
    ]


async def test_gitops_is_suspended_first_and_said() -> None:
    world = a_world()
    plan = await registry.action("application.scale").plan(
        ScaleParams(service="shop", workload="api", replicas=5), world, "k7m2n3p4q5"
    )

    assert [step.kind for step in plan.steps] == ["suspend_gitops", "scale_workload"]
    assert (await scaled(world, "api", 5))["GitOps"] is Verdict.WARN


async def test_resuming_by_hand_gives_back_what_argo_cd_had() -> None:
    plan = await registry.action("restore.dump").plan(RestoreParams(database="shop"), a_world(), "k7m2n3p4q5")

    [line] = next(step for step in plan.steps if step.kind == "resume_gitops").by_hand()
    assert '{"spec":{"syncPolicy":{"automated":{"prune":true,"selfHeal":true}}}}' in line
    [undo] = next(step for step in plan.steps if step.kind == "suspend_gitops").undo_by_hand()
    assert undo == line


def test_a_controller_of_an_older_plan_keeps_its_digest() -> None:
    old = Controller(ref=API, tool="argocd", kind="Application", namespace="argocd", name="shop")

    assert "automated" not in old.model_dump()
    assert '{"automated":{}}' in ResumeGitOps(controllers=(old,), mark="x").by_hand()[0]


async def test_a_restart_suspends_gitops_meanwhile() -> None:
    world = a_world()
    plan = await registry.action("application.rollout").plan(RolloutParams(service="shop"), world, "k7m2n3p4q5")
    kinds = [step.kind for step in plan.steps]

    assert (kinds[0], kinds[-1], set(kinds[1:-1])) == ("suspend_gitops", "resume_gitops", {"restart_workload"})
    assert (await Runner(plan, world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED
    owner = world.cluster.workloads[API].gitops
    assert owner is not None
    assert not owner.suspended


async def test_what_a_scaling_left_suspended_is_shown_and_resumed() -> None:
    world = a_world()
    scale = await registry.action("application.scale").plan(
        ScaleParams(service="shop", workload="api", replicas=5), world, "k7m2n3p4q5"
    )
    await Runner(scale, world, MemoryJournal()).run()
    shown = await registry.query("status.cluster").read(ClusterParams(service="shop"), world)
    [held] = [finding for finding in shown.findings if finding.check == "GitOps of shop"]
    assert "suspended by plan `k7m2n3p4q5`" in held.detail
    assert "/dr app resume shop" in held.hint

    resume = await registry.action("application.resume").plan(ResumeParams(service="shop"), world, "k8m2n3p4q5")
    assert "`api` 5 replicas" in resume.findings[0].detail
    assert (await Runner(resume, world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED
    shown = await registry.query("status.cluster").read(ClusterParams(service="shop"), world)
    assert [finding for finding in shown.findings if finding.check == "GitOps of shop"] == []
    with pytest.raises(UserError, match="No plan left a GitOps controller"):
        await registry.action("application.resume").plan(ResumeParams(service="shop"), world, "k9m2n3p4q5")


async def test_gitops_is_not_resumed_in_the_middle_of_a_stop() -> None:
    world = a_world()
    await world.cluster.suspend_gitops(API, mark="k7m2n3p4q5")
    await world.cluster.stop(API, mark="k7m2n3p4q5")

    plan = await registry.action("application.resume").plan(ResumeParams(service="shop"), world, "k8m2n3p4q5")

    assert Verdict.STOP in [finding.verdict for finding in plan.findings]


async def test_the_workload_must_be_named_where_there_are_several() -> None:
    with pytest.raises(UserError, match="`api`, `web` and `worker`"):
        await registry.action("application.scale").plan(ScaleParams(service="shop", replicas=2), a_world(), "x")
    with pytest.raises(UserError, match="no workload `nightly`"):
        await registry.action("application.rollout").plan(
            RolloutParams(service="shop", workload=NIGHTLY.name), a_world(), "x"
        )


@pytest.mark.parametrize("replicas", [-1, 100_000])
def test_counts_nobody_means_are_refused(replicas: int) -> None:
    with pytest.raises(ValidationError):
        ScaleParams(service="shop", replicas=replicas)


# ---------------------------------------------------------------- restoring


async def test_a_missing_database_gets_its_name_an_existing_one_is_swapped() -> None:
    action, asked = registry.action("restore.dump"), RestoreParams(database="shop")
    swapped = await action.plan(asked, a_world(), "k7m2n3p4q5")
    named = await action.plan(asked, a_world(missing=True), "k7m2n3p4q5")

    assert [type(step) for step in swapped.steps if isinstance(step, SwapDatabases | GiveName)] == [SwapDatabases]
    assert [type(step) for step in named.steps if isinstance(step, SwapDatabases | GiveName)] == [GiveName]


async def test_the_order_of_a_restore() -> None:
    plan = await registry.action("restore.dump").plan(RestoreParams(database="shop"), a_world(), "k7m2n3p4q5")

    assert [step.kind for step in plan.steps] == [
        "load_dump",
        "compare_copy",
        "suspend_gitops",
        "stop_writers",
        "close_database",
        "swap_databases",
        "start_writers",
        "check_application",
        "resume_gitops",
    ]
    assert plan.alternatives[0].startswith("`b-old`")
    assert plan.target == "shop"


async def test_the_estimate_of_a_restore_says_what_it_goes_by() -> None:
    world = a_world()
    restore = registry.action("restore.dump")
    first = await restore.plan(RestoreParams(database="shop"), world, "k7m2n3p4q5")
    lines = [(0, JournalState.APPLYING), (0, JournalState.VERIFIED)]
    world.runs.add(first, "succeeded", *lines, took=timedelta(seconds=300), at=START)
    second = await restore.plan(RestoreParams(database="shop"), world, "k8m2n3p4q5")

    assert "no restore of this database was measured yet" in first.observations[-1].value
    assert second.observations[-1].value.endswith("MB/s of the restore of 2026-11-23")
    assert second.estimate == timedelta(seconds=330)


async def test_a_copy_on_a_spare_server_ends_as_live() -> None:
    world = a_world()
    plan = await registry.action("restore.dump").plan(
        RestoreParams(database="shop", instance_suspect=True), world, "k7m2n3p4q5"
    )
    kinds = [step.kind for step in plan.steps]
    assert kinds.index("compare_copy") < kinds.index("mark_live") < kinds.index("repoint")

    result = await Runner(plan, world, MemoryJournal()).run()

    assert result.outcome is Outcome.SUCCEEDED
    found = await world.postgres.database(DatabaseRef("spare", "shop"))
    assert found is not None
    assert found.mark == "drbot:live:k7m2n3p4q5"


def without_health_address() -> World:
    """The application has a connection alone."""
    world = a_world()
    service = world.site.services["shop"].model_copy(update={"health_url": None})
    return dataclasses.replace(world, site=world.site.model_copy(update={"services": {"shop": service}}))


@pytest.mark.parametrize("reached", ["spare", "primary"])
async def test_a_copy_on_a_spare_server_is_checked_through_the_application_s_connection(reached: str) -> None:
    world = without_health_address()
    plan = await registry.action("restore.dump").plan(
        RestoreParams(database="shop", instance_suspect=True), world, "k7m2n3p4q5"
    )
    [check] = [step for step in plan.steps if isinstance(step, CheckApplication)]
    assert (check.connection, check.health_url) == ("env:APPLICATION_DSN", None)
    [repoint] = [step for step in plan.steps if isinstance(step, Repoint)]
    assert check.address == repoint.value
    assert f"to {repoint.value}" in check.summary
    assert "check" not in [finding.check for finding in plan.findings]

    world.service.addresses[check.address] = reached
    result = await Runner(plan, world, MemoryJournal()).run()

    if reached == "spare":
        assert result.outcome is Outcome.SUCCEEDED
    else:
        assert (result.outcome, "does not work" in result.message) == (Outcome.FAILED, True)
        assert (await world.cluster.config("main", "shop", "shop-config"))["DATABASE_HOST"] == "primary"


async def test_a_silent_server_without_a_spare_is_refused_with_what_to_do() -> None:
    world = a_world(spare=False)
    world.postgres.servers["primary"].down = True

    with pytest.raises(UserError, match="spare_server"):
        await registry.action("restore.dump").plan(RestoreParams(database="shop"), world, "k7m2n3p4q5")


async def test_too_little_disk_without_a_spare_stops() -> None:
    world = a_world(spare=False)
    world.postgres.servers["primary"].free_bytes = 1

    plan = await registry.action("restore.dump").plan(RestoreParams(database="shop"), world, "k7m2n3p4q5")

    assert [finding.check for finding in plan.stopped] == ["disk"]


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"`restore\.dump`"):
        registry.action("restore.everything")
    with pytest.raises(UserError, match=r"`status\.backups`"):
        registry.query("status.everything")
