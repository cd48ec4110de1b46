"""The commit, the sealing keys and the sealed secrets of a recovery point, brought back with the rest of it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from actions import registry
from actions.catalog.escrow import return_findings
from actions.catalog.manifests import push_findings
from actions.catalog.point_restore import RestorePointParams
from actions.contract import Plan, Verdict
from actions.errors import PermanentError, VerificationError
from actions.escrow import SealingKey
from actions.points import ManifestsPart
from actions.ports import no_progress
from actions.runner import Outcome
from actions.steps.commits import CommitManifests
from actions.steps.escrow_return import ReturnKeys
from actions.steps.point_commits import commits
from tests.contract.kit import PLAN_ID, MemoryJournal, run, secrets_in
from tests.fakes.history import POINT, SEALING, a_secret, with_a_point, with_a_point_in_git
from tests.fakes.world import API, APP_DIGEST, World, a_world

THEN, NOW = b"AgB-then", b"AgB-now"


async def planned(world: World) -> Plan:
    return await registry.action("restore.recovery_point").plan(RestorePointParams(point=POINT), world, PLAN_ID)


def by_hand(plan: Plan) -> dict[str, str]:
    return {
        finding.check.removeprefix("by hand: "): f"{finding.detail} {finding.hint}"
        for finding in plan.findings
        if finding.check.startswith("by hand: ")
    }


def commit_of(plan: Plan) -> CommitManifests:
    [step] = [step for step in plan.steps if isinstance(step, CommitManifests)]
    return step


def in_branch(world: World) -> dict[str, bytes]:
    return dict(world.git.trees[world.git.branches["main"]])


def _named_by_tag(world: World) -> None:
    """The commit of the point names the image by tag; by digest it is known from what ran."""
    head = world.git.branches["main"]
    then = world.git.parents[head]
    assert then is not None
    world.git.trees[then] = {
        path: body.replace(f"app@{APP_DIGEST}".encode(), b"app:1") for path, body in world.git.trees[then].items()
    }


async def test_commit_keys_and_sealed_secrets_come_back_with_databases_files_and_images() -> None:
    world, journal = with_a_point_in_git(), MemoryJournal()
    head = world.git.branches["main"]
    plan = await planned(world)

    result = await run(plan, world, journal)

    assert result.outcome is Outcome.SUCCEEDED, result.message
    kinds = [step.kind for step in plan.steps]
    order = ("return_keys", "suspend_gitops", "commit_manifests", "stop_writers", "set_images", "resume_gitops")
    assert sorted(order, key=kinds.index) == list(order)
    tree = in_branch(world)
    assert THEN in tree["production/secret.json"]
    assert tree["README.md"] == NOW  # outside of the plan's folder
    made = world.git.branches["main"]
    assert (world.git.parents[made], world.git.marks[made]) == (head, PLAN_ID)
    assert {key.name for key in await world.escrow.current("main")} == {"key-old", "key-new"}
    assert world.cluster.workloads[SEALING].restarts == 1
    api = world.cluster.workloads[API]
    assert api.gitops is not None
    assert (api.gitops.suspended, api.gitops.revision) == (False, made)
    assert api.images == (f"app@{APP_DIGEST}", "sidecar:1")
    assert "manifests of main" not in journal.lines[-1].detail
    assert "Secret main/shop/database" not in journal.lines[-1].detail
    assert secrets_in(f"{plan.model_dump_json()} {journal.lines}") == []


async def test_the_signers_see_what_goes_back_and_which_secret_comes_with_it() -> None:
    plan = await planned(with_a_point_in_git())

    shown = {line.name: line.value for line in plan.observations}
    assert shown["branch main of main"].startswith("2 files go back, of 1 later commit, which stay in its history;")
    assert shown["secrets that come with the commit"] == "`Secret main/shop/database`"
    assert shown["sealing keys of main that come back"] == "`key-old`, out of escrow `main-1`"
    assert "the point's commit does not write it anew, so its value is people's" in by_hand(plan)["secrets"]
    assert "Secret main/shop/mail" in by_hand(plan)["secrets"]
    lines = commit_of(plan).by_hand()
    assert lines[-1].startswith("git push --force-with-lease=main:")


BREACH = "Incident 7 `Security Breach` was declared 2026-11-23 10:12 UTC."


async def test_after_a_breach_no_commit_goes_back_that_would_write_a_secret_anew() -> None:
    world = with_a_point_in_git()
    world.runs.exposures.append((world.clock.now(), BREACH))

    plan = await planned(world)

    assert "commit_manifests" not in {step.kind for step in plan.steps}
    line = by_hand(plan)["manifests of main"]
    assert "That would write `SealedSecret shop/database` anew as at the point" in line
    assert BREACH in line
    assert "git checkout" in line
    [warning] = [finding.detail for finding in plan.findings if finding.check == "sealing keys"]
    assert BREACH in warning
    assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
    assert NOW in in_branch(world)["production/secret.json"]


async def test_a_breach_between_signing_and_start_keeps_the_commit_away_too() -> None:
    world = with_a_point_in_git()
    plan = await planned(world)
    world.runs.exposures.append((world.clock.now(), BREACH))

    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.STALE
    assert BREACH in result.message


async def test_without_the_right_to_push_the_commit_is_peoples_and_gitops_stays_suspended() -> None:
    world, journal = with_a_point_in_git(), MemoryJournal()
    world.git.closed = True
    plan = await planned(world)

    lines = by_hand(plan)
    assert "refuses: error 403" in lines["manifests of main"]
    assert "git checkout" in lines["manifests of main"]
    assert "it would put newer images back. Commit those of the point first" in lines["GitOps"]
    head = world.git.branches["main"]
    assert (await run(plan, world, journal)).outcome is Outcome.SUCCEEDED
    assert world.git.branches["main"] == head
    assert "manifests of main: argocd Application argocd/shop has applied" in journal.lines[-1].detail


async def test_a_push_since_the_signatures_asks_for_new_ones() -> None:
    world = with_a_point_in_git()
    plan = await planned(world)
    world.git.push({"production/app.yaml": "a: 1"})

    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.STALE
    assert "Branch `main` of manifests `main` is at" in result.message


async def test_a_push_in_the_middle_puts_all_back_and_is_not_pushed_over() -> None:
    world = with_a_point_in_git()
    plan = await planned(world)
    theirs: list[str] = []
    world.cluster.interfere = lambda: theirs.append(world.git.push({"production/app.yaml": "theirs: 1"}))

    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.FAILED
    assert f"not at `{commit_of(plan).head[:12]}` as planned" in result.message
    assert world.git.branches["main"] == theirs[0]


async def test_a_failure_later_puts_the_branch_back_by_a_commit_of_its_own() -> None:
    world = with_a_point_in_git(health="it answers 500")
    before = in_branch(world)
    plan = await planned(world)

    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.FAILED
    assert in_branch(world) == before
    made = world.git.branches["main"]
    back = world.git.parents[made]
    assert back is not None
    assert (world.git.marks[made], world.git.marks[back]) == (f"{PLAN_ID} put back", PLAN_ID)
    assert world.git.parents[back] == commit_of(plan).head


async def test_what_others_pushed_on_top_is_not_put_back() -> None:
    world = with_a_point_in_git()
    step = commit_of(await planned(world))
    await step.apply(world, no_progress)
    theirs = world.git.push({"production/app.yaml": "theirs: 1"})

    with pytest.raises(VerificationError, match="Ask who pushes"):
        await step.verify(world)
    with pytest.raises(PermanentError, match="Put back by hand"):
        await step.undo(world)

    assert world.git.branches["main"] == theirs


async def test_a_commit_that_was_pushed_over_comes_back_out_of_its_bundle() -> None:
    world = with_a_point_in_git()
    world.git.push({"production/app.yaml": "a: 1", "README.md": "new"}, onto="")
    world.git.mirrored.clear()  # a worker that was made anew
    plan = await planned(world)

    shown = {line.name: line.value for line in plan.observations}
    assert "that commit comes out of bundle" in shown["branch main of main"]
    assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
    assert THEN in in_branch(world)["production/secret.json"]


async def test_a_tag_in_git_that_may_have_moved_keeps_gitops_suspended() -> None:
    world = with_a_point_in_git()
    _named_by_tag(world)
    world.registry.add("mirror/app", f"sha256:{'b2' * 32}", tag="1")

    plan = await planned(world)

    assert "names `app:1` for `app`, which need not be" in by_hand(plan)["GitOps"]
    assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
    api = world.cluster.workloads[API]
    assert api.gitops is not None
    assert api.gitops.suspended
    assert api.images[0] == f"app@{APP_DIGEST}"


async def test_a_tag_in_git_that_leads_to_the_same_digest_lets_gitops_go_on() -> None:
    world = with_a_point_in_git()
    _named_by_tag(world)

    assert "GitOps" not in by_hand(await planned(world))


async def test_where_the_escrow_of_the_point_is_gone_keys_come_out_of_another_one_that_holds_them() -> None:
    world = with_a_point_in_git()
    await world.escrow.make("main-9", "main")  # the newest, of what the cluster has now
    both = world.sealing.held["main"]
    lost = _lost_key(world)
    world.sealing.held["main"] = [*both, lost]
    world.clock.advance(-timedelta(days=1))
    await world.escrow.make("main-5", "main")
    world.clock.advance(timedelta(days=1))
    world.sealing.held["main"] = both
    await world.escrow.remove("main", "main-1")

    plan = await planned(world)

    [step] = [step for step in plan.steps if isinstance(step, ReturnKeys)]
    assert (step.escrow, step.keys) == ("main-5", ("key-old",))


def _lost_key(world: World) -> tuple[SealingKey, str]:
    """That the cluster had at the point, as its tests make it."""
    other = a_world()
    return next(item for item in other.sealing.held["main"] if item[0].name == "key-old")


async def test_keys_that_the_bot_may_not_open_or_create_are_peoples() -> None:
    world = with_a_point_in_git()
    world.sealing.closed = True
    assert "no right to it" in by_hand(await planned(world))["sealing keys of main"]

    world.sealing.closed = False
    del world.escrow_secrets.values["env:CUSTODIAN"]
    plan = await planned(world)

    assert "env:CUSTODIAN" in by_hand(plan)["sealing keys of main"]
    assert not [step for step in plan.steps if isinstance(step, ReturnKeys)]


async def test_a_controller_that_cannot_be_told_is_restarted_by_people() -> None:
    world = with_a_point_in_git()
    del world.cluster.workloads[SEALING]

    plan = await planned(world)

    assert "delete pod -l name=sealed-secrets-controller" in by_hand(plan)["controller of SealedSecrets in main"]
    assert any(isinstance(step, ReturnKeys) for step in plan.steps)


async def test_an_escrow_that_was_changed_since_needs_new_signatures() -> None:
    world = with_a_point_in_git()
    plan = await planned(world)
    await world.objects.put("backups", "escrow/main/main-1/keys.age", b"age")

    result = await run(plan, world, MemoryJournal())

    assert result.outcome is Outcome.STALE
    assert "missing or changed" in result.message


async def test_a_secret_that_its_controller_did_not_write_is_named_at_the_end() -> None:
    world, journal = with_a_point_in_git(), MemoryJournal()
    plan = await planned(world)
    sealed = dict(world.live.held[0])
    world.live.held[0] = a_secret("database", version=int(sealed["metadata"]["resourceVersion"]), uid="uid-1")
    world.cluster.workloads[API].follows = None  # it does not look at its repository
    before = world.clock.now()

    result = await run(plan, world, journal)

    assert result.outcome is Outcome.SUCCEEDED, result.message
    assert world.clock.now() - before >= timedelta(minutes=5)
    assert "`Secret main/shop/database` was not written anew since" in journal.lines[-1].detail
    assert "The branch of `main` has it, so only applying it is left. `drbot drift main`" in journal.lines[-1].detail


async def test_the_doctor_tries_what_a_point_would_need() -> None:
    world = with_a_point_in_git()
    policy = world.site.manifests_of("main")
    head = world.git.branches["main"]

    [pushed], [opened] = await push_findings(policy, world), await return_findings("main", world)
    assert (pushed.verdict, opened.verdict) == (Verdict.OK, Verdict.OK)
    assert world.git.branches["main"] == head

    world.git.closed = world.sealing.closed = True
    [pushed], [opened] = await push_findings(policy, world), await return_findings("main", world)
    assert (pushed.verdict, "error 403" in pushed.detail) == (Verdict.WARN, True)
    assert (opened.verdict, "no right to it" in opened.detail) == (Verdict.WARN, True)


async def test_the_doctor_says_nothing_of_what_the_plan_leaves_to_people() -> None:
    world = with_a_point()

    assert await push_findings(world.site.manifests_of("main"), world) == []
    assert await return_findings("main", world) == []


async def test_controllers_of_commits_that_differ_are_left_to_people() -> None:
    world = with_a_point_in_git()
    point = (await world.points.entries())[0].point
    other = ManifestsPart(
        cluster="main", controller="flux Kustomization flux/web", revision=f"main@sha1:{world.git.branches['main']}"
    )
    both = point.model_copy(update={"manifests": (*point.manifests, other)})

    found = await commits(world, both, await world.points.gather(POINT), PLAN_ID)

    assert found.share.steps == ()
    assert found.covered == frozenset()
    assert any("2 commits of `main` that differ" in line.why for line in found.share.manual)


async def test_a_commit_of_another_repository_is_left_to_people_and_does_not_hold_up_this_one() -> None:
    world = with_a_point_in_git()
    point = (await world.points.entries())[0].point
    other = ManifestsPart(cluster="main", controller="flux Kustomization flux/web", revision="2" * 40)
    both = point.model_copy(update={"manifests": (*point.manifests, other)})

    found = await commits(world, both, await world.points.gather(POINT), PLAN_ID)

    assert [step.kind for step in found.share.steps] == ["commit_manifests"]
    assert found.covered == {("main", "argocd Application argocd/shop")}
    [line] = found.share.manual
    assert "flux Kustomization flux/web does not tell what it has applied" in line.why
