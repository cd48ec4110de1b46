"""Plans that go back to a moment, and what they say to people."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from actions.backup.pgbackrest_keys import PgBackRestKeys
from actions.backup.physical import BackupKind, Change, Check, DeadEnd, ScratchState
from actions.backup.proofs import Proofs
from actions.catalog.base import Base, BaseParams
from actions.catalog.point import FindMoment, FindParams, PointParams, RestorePoint
from actions.catalog.promote import Promote, PromoteParams
from actions.catalog.proof import Prove, ProveParams
from actions.catalog.rescue import Rescue, RescueParams
from actions.catalog.retention import Expire, ExpireParams
from actions.catalog.scratch import NoParams, ScratchDiscard, ScratchList, ScratchParams, ScratchStart
from actions.catalog.standby import Follow, FollowParams
from actions.catalog.swap import Swap, SwapParams
from actions.contract import Lock, Plan, Verdict
from actions.errors import UserError, VerificationError
from actions.ports import no_progress
from actions.runner import Outcome
from actions.site import DatabaseRef, Invariant, ScratchBudget
from actions.steps import byhand
from actions.steps.scratch import CheckScratch, RestoreScratch
from bot.doctor import Doctor
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.history import SCRATCH_ID, with_a_scratch, with_an_unseen_scratch, with_history
from tests.fakes.physical_world import with_old_backups
from tests.fakes.world import ADVERTISED, World

PRODUCTION, SHOWN = DatabaseRef("primary", "shop"), DatabaseRef(f"scratch-{SCRATCH_ID}", "shop")


async def point(world: World, **given: object) -> Plan:
    return await RestorePoint().plan(PointParams.model_validate({"database": "shop", **given}), world, PLAN_ID)


def seen(plan: Plan) -> dict[str, str]:
    return {item.name: item.value for item in plan.observations}


def check(plan: Plan, name: str) -> tuple[Verdict, str]:
    found = next(item for item in plan.findings if item.check == name)
    return found.verdict, f"{found.detail} {found.hint}".strip()


@pytest.mark.parametrize(
    "given", [{}, {"at": "10:00", "latest": True}, {"lsn": "0/1", "xid": 7}, {"before_drop": "a", "at": "10:00"}]
)
def test_exactly_one_moment_is_asked_for(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="give one moment"):
        PointParams.model_validate({"database": "shop", **given})


async def test_a_base_of_a_dead_branch_is_taken_only_by_name_and_the_plan_says_where_it_ends() -> None:
    world = with_history()
    end = DeadEnd(timeline_id=1, lsn="0/6000000", forked_at="0/3000090", living=2)
    world.physical.history["primary"].dead_ends["base-new"] = end

    plan = await point(world, latest=True)
    assert {step.backup for step in plan.steps if isinstance(step, RestoreScratch)} == {"base-old"}
    assert "timeline" not in {item.check for item in plan.findings}

    named = await point(world, latest=True, backup="base-new")
    verdict, said = check(named, "timeline")
    assert verdict is Verdict.WARN
    assert said == (
        "Base backup `base-new` ends on the dead branch of timeline 1, whose WAL ends at 0/6000000. The server went on "
        "with timeline 2 from 0/3000090: everything committed there since is not in this restore. Use base backup "
        "`base-old`: say it with `--from base-old`."
    )

    del world.physical.entries["primary", "base-old"]
    _, said = check(await point(world, latest=True), "timeline")
    assert "No other base backup leads to what is asked for" in said
    assert said.endswith("`/dr-backup base primary`.")


async def test_the_plan_recommends_one_moment_with_its_loss() -> None:
    plan = await point(with_history(), before_delete="users")

    assert plan.summary == (
        "Restore `primary` to just before the DELETE of `public.users` (transaction 812, committed 2026-11-23 "
        f"10:11:19 UTC) in scratch instance `scratch-{PLAN_ID}`"
    )
    assert seen(plan)["recommended"] == "10:11:19.0, loses 41 s and 1 transaction"
    assert seen(plan)["committed around it"] == (
        "before it transaction 811 at 10:11:17.0; DELETE (3 rows) by transaction 812 at 2026-11-23 10:11:19 UTC; after "
        "it the next commit at 10:11:20.0, 1 transaction up to now"
    )
    assert plan.data_loss.startswith("Nothing by this plan.")


async def test_by_hand_rows_are_counted_not_estimated() -> None:
    plan = await point(with_history(), latest=True)
    check = next(step for step in plan.steps if isinstance(step, CheckScratch))
    counts, *_ = check.by_hand()
    assert counts == byhand.exact_rows(f"scratch-{PLAN_ID}", "shop")
    assert "n_live_tup" not in "".join(check.by_hand())


async def test_the_plan_and_the_restore_test_print_the_whole_way_without_the_bot() -> None:
    world = with_history()
    old = world.physical.entries["primary", "base-old"].manifest
    new = world.physical.entries["primary", "base-new"]
    resting = new.manifest.model_copy(update={"kind": BackupKind.INCREMENTAL, "parent": "base-old"})
    world.physical.entries["primary", "base-new"] = new.model_copy(update={"manifest": resting})

    by_hand = (await point(world, before_delete="users")).steps[0].by_hand()
    assert [line.split(" ")[3] for line in by_hand if line.startswith("aws ")] == [
        f"s3://{old.stored.bucket}/{old.stored.key}",
        f"s3://{resting.stored.bucket}/{resting.stored.key}",
    ]
    [combine] = [line for line in by_hand if line.startswith("pg_combinebackup")]
    assert combine.endswith('--output "$PGDATA" "$PGDATA.0" "$PGDATA.1"')
    [settings] = [line for line in by_hand if "restore_command" in line]
    assert "/wal/primary/%f.sealed" in settings
    assert "recovery_target_action = pause" in settings
    tested = (await Prove().plan(ProveParams(server="primary"), world, PLAN_ID)).steps[0].by_hand()
    assert combine in tested
    assert 'touch "$PGDATA/standby.signal"' in tested


async def test_without_any_scratch_instance_people_are_told_how_to_make_one() -> None:
    with pytest.raises(UserError, match="There are none: make one with `/dr-restore DATABASE --at TIME`"):
        await ScratchDiscard().plan(ScratchParams(scratch="nothing"), with_history(), PLAN_ID)


async def test_a_restore_test_of_pgbackrest_prints_the_backup_by_its_label() -> None:
    world = with_history()
    policy = world.site.physical_of("primary").model_copy(
        update={"engine": "pgbackrest", "own": PgBackRestKeys(stanza="main")}
    )
    world = replace(world, site=world.site.model_copy(update={"physical": {"primary": policy}}))
    stored = world.physical.entries["primary", "base-new"].manifest.stored

    tested = (await Prove().plan(ProveParams(server="primary"), world, PLAN_ID)).steps[0].by_hand()
    assert tested[1].startswith("pgbackrest --stanza=main ")
    assert tested[1].endswith(f" --set={stored.key.rstrip('/').rpartition('/')[2]} --type=none restore")
    assert 'touch "$PGDATA/standby.signal"' in tested
    assert not any(line.startswith(("restore the newest", "aws ")) for line in tested)


async def test_the_report_shows_what_is_there_and_the_way_on() -> None:
    world = with_history()
    journal = MemoryJournal()
    await run(await point(world, before_delete="users"), world, journal)

    told = journal.lines[-1].detail
    assert "2 tables, 13 rows here. Invariants: users 3." in told
    assert "Different: `public.users` has 3 rows here and 0 in production; invariant `users` is 3 here and 0" in told
    # The table is there, so its old rows alone would only come beside it.
    assert f"Next: `/dr-restore rescue {PLAN_ID} public.users --missing-rows` brings its missing rows back" in told


async def test_an_rto_that_cannot_be_met_is_said_with_what_can() -> None:
    world = with_a_scratch()
    database = world.site.databases["shop"].model_copy(update={"rto": timedelta(seconds=20)})
    world = _with_site(world, databases={"shop": database})

    verdict, text = check(await point(world, latest=True), "RTO")

    assert verdict is Verdict.WARN
    assert "at measured rates, RTO 20 s" in text
    assert f"`scratch-{SCRATCH_ID}` is there already" in text


async def test_a_full_budget_stops_the_plan_and_names_the_oldest() -> None:
    world = _with_site(with_a_scratch(), scratch=ScratchBudget(instances=1))

    plan = await point(world, latest=True)

    assert plan.stopped
    assert f"Remove one, the oldest with `/dr-restore discard {SCRATCH_ID}`" in plan.stopped[0].detail


async def test_a_promoted_instance_takes_no_part_of_the_budget() -> None:
    world = _with_site(with_a_scratch(), scratch=ScratchBudget(instances=1))
    made = world.scratch.made[SCRATCH_ID]
    world.scratch.made[SCRATCH_ID] = made.model_copy(update={"state": ScratchState.PROMOTED})
    assert not (await point(world, latest=True)).stopped

    world.scratch.made["other"] = made.model_copy(update={"id": "other"})
    world.scratch.made["busy"] = made.model_copy(update={"id": "busy", "state": ScratchState.RESTORING})
    detail = (await point(world, latest=True)).stopped[0].detail
    assert "There are 2 scratch instances already" in detail
    assert "the oldest with `/dr-restore discard other`, or raise `backups.scratch.instances`" in detail


async def test_a_harm_that_is_not_archived_yet_is_told() -> None:
    with pytest.raises(UserError, match=r"The archived WAL holds no DROP of `public.users`. If it was just now"):
        await point(with_history(), before_drop="users")
    with pytest.raises(
        UserError, match=r"Transaction 7 is no DELETE of `public.users` that is archived. There are: 812"
    ):
        await point(with_history(), before_delete="users", xid=7)


async def test_the_finder_answers_with_the_command_for_it() -> None:
    report = await FindMoment().read(FindParams(database="shop", table="users", change=Change.DELETE), with_history())

    assert report.title.endswith("10:11:19.0, loses 41 s and 1 transaction")
    assert report.lines[1] == "`/dr-restore shop --before-delete public.users` shows it in a scratch instance."
    assert len(report.rows) == 1


async def rescue(world: World, **given: object) -> Plan:
    params = RescueParams.model_validate({"scratch": SCRATCH_ID, "table": "users", **given})
    return await Rescue().plan(params, world, PLAN_ID)


async def test_the_difference_is_shown_before_anybody_signs() -> None:
    world = with_a_scratch()
    world.tables.give(SHOWN, "users", {1: "ada", 2: "bob", 3: "cyd"})
    world.tables.give(PRODUCTION, "users", {2: "bob", 3: "changed", 9: "new"})

    plan = await rescue(world, missing_rows=True)

    assert seen(plan)["difference"] == "1 rows only there, 1 only in production, 1 different, 1 equal"
    assert plan.summary == "Insert 1 missing row of `public.users` as of 2026-11-23 10:11:17 UTC into `shop`"
    assert "1 row in production alone and 1 row with another content stay as they are now" in plan.data_loss


async def test_a_table_that_is_there_is_never_replaced() -> None:
    plan = await rescue(with_a_scratch())
    assert f"as `public.users_rescued_{PLAN_ID}`" in plan.summary
    gone = await rescue(with_a_scratch(dropped="public.users"))
    assert gone.summary.startswith("Bring `public.users` back into `shop` with 3 rows")


@pytest.mark.parametrize(
    ("given", "dropped", "said"),
    [
        ({"table": "nothing"}, "", "has no table `public.nothing` at its moment"),
        ({"missing_rows": True}, "public.users", "is gone in production. Leave `--missing-rows` out"),
        ({"missing_rows": True, "as_name": "x"}, "", "give either `--missing-rows` or `--as`"),
        ({"table": "orders", "missing_rows": True}, "", "No row of `public.orders` is missing"),
        ({"scratch": "nothing"}, "", f"There is no scratch instance `nothing` on `.*`. There are: `{SCRATCH_ID}`"),
    ],
)
async def test_what_cannot_be_rescued_is_told(given: dict[str, object], dropped: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        await rescue(with_a_scratch(dropped=dropped), **given)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (ScratchState.STOPPED, "Start it with `/dr-restore wake"),
        (ScratchState.PROMOTED, "was promoted: it no longer shows its moment"),
        (ScratchState.BROKEN, "did not end well"),
    ],
)
async def test_an_instance_that_shows_no_moment_is_refused(state: ScratchState, said: str) -> None:
    world = with_a_scratch()
    world.scratch.made[SCRATCH_ID] = world.scratch.made[SCRATCH_ID].model_copy(update={"state": state})
    with pytest.raises(UserError, match=said):
        await rescue(world)


async def test_one_that_did_not_pass_its_check_takes_nobodys_place() -> None:
    world = with_a_scratch()
    check = CheckScratch(
        scratch=SCRATCH_ID,
        database="shop",
        name="shop",
        production=DatabaseRef("primary", "shop"),
        invariants=(),
        table="public.nothing",
    )
    with pytest.raises(VerificationError):
        await check.apply(world, no_progress)
    refused = (
        "did not pass its check, so it takes nobody's place: .* has no table `public.nothing` .*/dr-restore discard"
    )
    with pytest.raises(UserError, match=refused):
        await Swap().plan(SwapParams(scratch=SCRATCH_ID), world, PLAN_ID)
    with pytest.raises(UserError, match=refused):
        await Promote().plan(PromoteParams(scratch=SCRATCH_ID), world, PLAN_ID)
    [warned] = [finding for finding in (await rescue(world)).findings if finding.check == "check"]
    assert (warned.verdict, "did not pass" in warned.detail) == (Verdict.WARN, True)

    await check.model_copy(update={"table": ""}).apply(world, no_progress)
    assert not (await Swap().plan(SwapParams(scratch=SCRATCH_ID), world, PLAN_ID)).stopped


def expecting(world: World, answer: str) -> World:
    invariant = Invariant(name="users", sql="SELECT count(*) FROM users", expect=answer)
    database = world.site.databases["shop"].model_copy(update={"invariants": (invariant,)})
    return _with_site(world, databases={"shop": database})


async def test_what_the_plan_file_expects_is_judged_and_looked_at_again_once_it_is_corrected() -> None:
    world = with_history()
    wrong = expecting(world, "4")
    result = await run(await point(wrong, before_delete="users"), wrong, MemoryJournal())
    assert result.outcome is Outcome.FAILED
    assert f"In `scratch-{PLAN_ID}/shop` invariant `users` is 3, the plan file expects 4." in result.message
    assert f"looked at again with `/dr-restore wake {PLAN_ID}`" in result.message
    for action in (Swap().plan(SwapParams(scratch=PLAN_ID), wrong, "n8"), Promote().plan(a_promotion(), wrong, "n8")):
        with pytest.raises(UserError, match=r"takes nobody's place: .* is 3, the plan file expects 4"):
            await action

    right = expecting(world, "3")
    again = await ScratchStart().plan(ScratchParams(scratch=PLAN_ID), right, "m9")
    assert again.summary.endswith("then look through it")
    assert [step.table for step in again.steps if isinstance(step, CheckScratch)] == ["public.users"]
    assert (await run(again, right, MemoryJournal())).outcome is Outcome.SUCCEEDED
    assert not (await Swap().plan(SwapParams(scratch=PLAN_ID), right, "n8")).stopped
    assert len((await ScratchStart().plan(ScratchParams(scratch=PLAN_ID), right, "m9")).steps) == 1


def a_promotion() -> PromoteParams:
    return PromoteParams(scratch=PLAN_ID)


async def test_an_invariant_without_an_answer_fails_the_check() -> None:
    world = with_history()
    database = world.site.databases["shop"].model_copy(
        update={"invariants": (Invariant(name="spent", sql="SELECT sum(total) FROM orders"),)}
    )
    world = _with_site(world, databases={"shop": database})
    result = await run(await point(world, before_delete="users"), world, MemoryJournal())
    assert "invariant `spent` has no answer" in result.message
    assert (await world.scratch.instances())[0].checks["shop"].problem in result.message


async def test_a_swap_of_a_database_that_nobody_has_looked_through_is_judged_as_it_is_planned() -> None:
    world = expecting(with_a_scratch(), "4")
    facts = world.scratch.made[SCRATCH_ID]
    world.scratch.made[SCRATCH_ID] = facts.model_copy(update={"checks": {"other": Check(at=facts.made_at)}})
    plan = await Swap().plan(SwapParams(scratch=SCRATCH_ID), world, PLAN_ID)
    [stopped] = plan.stopped
    assert (stopped.check, "is 3, the plan file expects 4" in stopped.detail) == ("invariants", True)


async def test_the_difference_from_production_is_shown_before_a_swap_and_a_promotion() -> None:
    world = with_history()
    await run(await point(world, before_delete="users"), world, MemoryJournal())
    invariant = "invariant `users` is 3 here and 0 in production"
    rows = "`public.users` has 3 rows here and 0 in production"
    said, harmed = f"{invariant}; {rows}", f"{rows}; {invariant}"
    assert seen(await Swap().plan(SwapParams(scratch=PLAN_ID), world, "n8"))["difference"] == said
    world.service.addresses[f"{ADVERTISED}:5432"] = f"scratch-{PLAN_ID}"
    plan = await Promote().plan(a_promotion(), world, "n8")
    assert seen(plan)["difference of shop"] == f"Different: {harmed}. Seen 2026-11-23 10:12 UTC."

    facts = world.scratch.made[PLAN_ID]
    world.scratch.made[PLAN_ID] = facts.model_copy(update={"checks": {"other": Check(at=facts.made_at)}})
    unseen = await Promote().plan(a_promotion(), world, "n8")
    assert seen(unseen)["difference of shop"] == "not looked through"
    assert check(unseen, "check")[0] is Verdict.WARN


async def test_an_instance_whose_restore_ended_before_its_check_takes_nobodys_place_until_it_was_looked_through() -> (
    None
):
    world = with_an_unseen_scratch()
    start = await ScratchStart().plan(ScratchParams(scratch=SCRATCH_ID), world, "m9")
    world.scratch.run(SCRATCH_ID)
    for action in (Swap().plan(SwapParams(scratch=SCRATCH_ID), world, "n8"), promoted(world)):
        with pytest.raises(UserError, match=f"never looked through.*`/dr-restore wake {SCRATCH_ID}` looks through it"):
            await action
    assert (await run(start, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
    assert not (await promoted(world)).stopped


async def promoted(world: World) -> Plan:
    return await Promote().plan(PromoteParams(scratch=SCRATCH_ID), world, "n8")


async def test_a_swap_says_what_comes_back_and_what_is_set_aside() -> None:
    plan = await Swap().plan(SwapParams(scratch=SCRATCH_ID), with_a_scratch(), PLAN_ID)

    assert seen(plan)["comes back"] == "`public.users`"
    assert plan.data_loss == (
        "Restores the state of 2026-11-23 10:11:17 UTC, loses 43 s (RPO 15 min: within); what is there now is kept in "
        "quarantine."
    )


async def test_instances_are_listed_and_a_promoted_one_is_never_removed() -> None:
    world = with_a_scratch()
    report = await ScratchList().read(NoParams(), world)
    assert report.rows[0][:4] == (SCRATCH_ID, "primary", "2026-11-23 10:11:17 UTC", "paused")
    await world.scratch.promote(SCRATCH_ID)
    report = await ScratchList().read(NoParams(), world)
    assert report.title.startswith("0 scratch instances of ")
    assert report.lines[0].endswith("Beside them 1 promoted one, which no budget counts.")
    assert report.rows[0][-1] == "for good, a server of its own"
    woken = await ScratchStart().plan(ScratchParams(scratch=SCRATCH_ID), world, PLAN_ID)
    assert [each.acts_on for each in woken.preconditions] == [""]
    with pytest.raises(UserError, match="it is a server of its own, which nothing here removes"):
        await ScratchDiscard().plan(ScratchParams(scratch=SCRATCH_ID), world, PLAN_ID)


def _with_site(world: World, **changes: object) -> World:
    parts = {name: getattr(world, name) for name in World.__dataclass_fields__}
    return World(**{**parts, "site": world.site.model_copy(update=changes)})


async def test_expiry_and_a_restore_that_reads_exclude_each_other() -> None:
    reads = {lock.key: lock.exclusive for lock in (await point(with_history(), latest=True)).locks}
    expire = await Expire().plan(ExpireParams(), with_old_backups(), PLAN_ID)

    assert reads["physical:primary"] is False
    assert Lock(key="physical:primary", exclusive=True) in expire.locks


async def test_indexes_are_checked_where_the_plan_file_says_so() -> None:
    world = with_history()
    policy = world.site.physical["primary"].model_copy(update={"amcheck": True})

    plan = await point(_with_site(world, physical={"primary": policy}), latest=True)

    assert "page checksums and indexes checked" in plan.steps[0].after
    assert "indexes" not in (await point(world, latest=True)).steps[0].after


async def test_a_server_without_page_checksums_is_restored_with_a_word_about_them() -> None:
    world = with_history()
    world.physical.bare = {"primary"}
    plan = await point(world, latest=True)
    result = await run(plan, world, MemoryJournal())
    assert result.outcome is Outcome.SUCCEEDED, result.message
    check_step = next(step for step in plan.steps if isinstance(step, CheckScratch))
    assert "`primary` has no page checksums. Turn them on there" in await check_step.outcome(world)


async def test_plans_say_whether_the_pages_can_be_checked() -> None:
    world = with_history()
    assert "page checksums" not in {item.check for item in (await point(world, latest=True)).findings}
    made = world.physical.entries["primary", "base-new"]
    for known, verdict, said in (
        (False, Verdict.WARN, "had no page checksums when `base-new` was made: its pages cannot be checked."),
        (None, Verdict.OK, "Nobody knows whether the pages of `base-new` bear checksums"),
    ):
        manifest = made.manifest.model_copy(update={"checksums": known})
        world.physical.entries["primary", "base-new"] = made.model_copy(update={"manifest": manifest})
        prove = await Prove().plan(ProveParams(server="primary"), world, PLAN_ID)
        follow = await Follow().plan(FollowParams(database="shop"), world, PLAN_ID)
        for plan in (await point(world, latest=True), prove, follow):
            assert check(plan, "page checksums")[0] is verdict
            assert said in check(plan, "page checksums")[1]

    assert "page checksums" not in {item.check for item in (await Base().plan(BaseParams(), world, PLAN_ID)).findings}
    world.postgres.servers["primary"].checksums = False
    bare = check(await Base().plan(BaseParams(), world, PLAN_ID), "page checksums")
    assert (bare[0], "`pg_checksums --enable`" in bare[1]) == (Verdict.WARN, True)
    nothing: Any = None
    told = [item for item in await Doctor(nothing, nothing, nothing, world)._servers() if item.verdict is Verdict.WARN]
    assert [(item.check, "has no page checksums" in item.detail) for item in told] == [("server primary", True)]


async def test_each_engine_says_what_it_compares() -> None:
    world = with_history()
    said = "signatures and hashes, page checksums checked, the target proven to be reached"
    for plan in (await point(world, latest=True), await Prove().plan(ProveParams(server="primary"), world, PLAN_ID)):
        assert plan.steps[0].after.startswith(said)

    policy = world.site.physical_of("primary").model_copy(
        update={"engine": "pgbackrest", "own": PgBackRestKeys(stanza="main")}
    )
    world = _with_site(world, physical={"primary": policy})
    prove = await Prove().plan(ProveParams(server="primary"), world, PLAN_ID)
    for plan in (await point(world, latest=True), prove):
        assert plan.steps[0].after.startswith("pgBackRest's SHA-1 of every file, page checksums checked")
    before = prove.steps[0].model_copy(update={"engine": ""})  # as a step of a plan from before it named its engine
    assert before.after == prove.steps[0].after

    await run(prove, world, MemoryJournal())
    [proof] = await Proofs(world.objects, world.secrets).newest(policy)
    assert proof.checks["members"] == "pgBackRest's SHA-1 of every file: `base-new` and all it rests on"


async def test_pages_that_nobody_looked_at_are_refused() -> None:
    world = with_history()
    world.physical.unseen = {"primary"}
    result = await run(await point(world, latest=True), world, MemoryJournal())
    assert result.outcome is not Outcome.SUCCEEDED
    assert f"The pages of `scratch-{PLAN_ID}` were not checked." in result.message
