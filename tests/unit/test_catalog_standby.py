"""Instances that follow the archive: what their plans say, what is refused, how they are judged and tended."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from actions.backup.physical import Following, Lsn, NamedPoint, RecoveryTarget, ScratchState, Waiting
from actions.catalog.point import PointParams, RestorePoint
from actions.catalog.rescue import Rescue, RescueParams
from actions.catalog.scratch import NoParams, ScratchList, ScratchParams, ScratchStart
from actions.catalog.standby import Follow, FollowParams, Halt, HaltParams
from actions.contract import Plan, Verdict
from actions.errors import UserError
from actions.runner import Outcome, Runner
from actions.site import DatabaseRef
from actions.steps.recovery import START as START_OF_SERVER
from actions.steps.scratch import RestoreScratch
from actions.steps.scratch_facts import ScratchRoom
from actions.steps.standby import HaltScratch, standby_finding
from tests.contract.kit import MemoryJournal
from tests.fakes.history import HARMED_AT, SCRATCH_ID, with_a_scratch, with_a_standby, with_history
from tests.fakes.world import START, World

PLAN_ID = "k7m2n3p4q5"


async def follow(world: World, delay: str | None = None) -> Plan:
    return await Follow().plan(FollowParams(database="shop", delay=delay), world, PLAN_ID)


async def halt(world: World, **given: object) -> Plan:
    return await Halt().plan(HaltParams.model_validate({"scratch": SCRATCH_ID, **given}), world, PLAN_ID)


def seen(plan: Plan) -> dict[str, str]:
    return {item.name: item.value for item in plan.observations}


def begins(plan: Plan) -> RecoveryTarget:
    step = plan.steps[0]
    assert isinstance(step, RestoreScratch)
    return step.target


def begins_from(plan: Plan) -> str:
    step = plan.steps[0]
    assert isinstance(step, RestoreScratch)
    return step.backup


async def test_it_begins_so_far_behind_that_it_holds_nothing_younger() -> None:
    assert begins(await follow(with_history())).latest
    assert begins(await follow(with_history(), "30m")).time == START - timedelta(minutes=30)
    assert begins(await follow(with_history(), "10s")).latest  # nothing that young is archived
    plan = await follow(with_history(), "90m")
    assert plan.summary == f"Keep `scratch-{PLAN_ID}` as a standby of `primary`, 1 h 30 min behind, out of the archive"
    with pytest.raises(UserError, match="is no delay"):
        await follow(with_history(), "soon")
    with pytest.raises(UserError, match="is more than 7 d"):
        await follow(with_history(), "8d")


async def test_the_wal_of_its_delay_is_part_of_the_room_it_asks_for() -> None:
    world = with_history()
    [window, *_] = await world.physical.windows("primary")
    assert window.newest is not None

    def room(plan: Plan) -> int:
        [wanted] = [each for each in plan.preconditions if isinstance(each, ScratchRoom)]
        return wanted.at_least

    at_once = room(await follow(world))
    name = begins_from(await follow(world, "90m"))
    [base] = [each.manifest for each in await world.physical.catalogue("primary") if each.manifest.id == name]
    written = Lsn.parse(window.newest_lsn) - Lsn.parse(base.start_lsn)
    share = timedelta(minutes=90) / (window.newest - base.started_at)
    assert written > 0
    assert room(await follow(world, "90m")) - at_once == round(written * share)

    budget = world.site.scratch.model_copy(update={"disk": at_once})
    tight = replace(world, site=world.site.model_copy(update={"scratch": budget}))
    assert "room" not in {each.check for each in (await follow(tight)).findings}
    assert "room" in {each.check for each in (await follow(tight, "90m")).findings}


async def test_what_follows_afterwards_offers_nothing_to_bring_back_yet() -> None:
    world = with_history()
    plan = await follow(world)
    result = await Runner(plan, world, journal := MemoryJournal()).run()
    assert result.outcome is Outcome.SUCCEEDED
    told = " ".join(str(line.detail) for line in journal.lines)
    assert "/dr-restore swap" not in told
    assert "/dr-restore halt" in told


async def instead(world: World) -> Plan:
    return await Follow().plan(FollowParams(database="shop", instead_of=SCRATCH_ID), world, PLAN_ID)


async def test_one_that_is_stranded_is_made_anew_and_goes_once_the_new_one_follows() -> None:
    world = with_a_standby()
    told = _told(world, problem="The archive has gone on with timeline id 2.", stranded=True)
    finding = standby_finding(world.scratch.made[SCRATCH_ID], told, START)
    assert finding.hint.startswith(f"`/dr-restore follow DATABASE --instead-of {SCRATCH_ID}` makes it anew")

    plan = await instead(world)
    assert plan.summary.endswith(f"30 min behind, out of the archive, in the place of `scratch-{SCRATCH_ID}`")
    assert (await Runner(plan, world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED
    assert list(world.scratch.made) == [PLAN_ID]
    assert world.scratch.made[PLAN_ID].following is not None


async def test_the_old_one_is_kept_where_the_new_one_is_stranded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_a_standby()
    feed = world.physical.feed

    async def beside(server: str, scratch: str) -> None:
        await feed(server, scratch)
        facts = world.scratch.made[scratch]
        assert facts.following is not None
        told = facts.following.model_copy(update={"problem": "The archive has gone on.", "stranded": True})
        world.scratch.made[scratch] = facts.model_copy(update={"following": told})

    monkeypatch.setattr(world.physical, "feed", beside)
    result = await Runner(await instead(world), world, MemoryJournal()).run()
    assert result.outcome is not Outcome.SUCCEEDED
    assert "The archive has gone on. Look at the archive" in result.message
    assert "`/dr-backup base primary full`" in result.message
    assert world.scratch.made[SCRATCH_ID].following is not None


async def test_an_archive_that_is_away_for_a_moment_does_not_end_what_took_hours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = with_a_standby()
    feed, times = world.physical.feed, []

    async def at_first_away(server: str, scratch: str) -> None:
        await feed(server, scratch)
        times.append(scratch)
        facts = world.scratch.made[scratch]
        assert facts.following is not None
        told = facts.following.model_copy(update={"problem": "S3 is away." if len(times) == 1 else ""})
        world.scratch.made[scratch] = facts.model_copy(update={"following": told})

    monkeypatch.setattr(world.physical, "feed", at_first_away)
    assert (await Runner(await instead(world), world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED
    assert times == [PLAN_ID, PLAN_ID]
    assert list(world.scratch.made) == [PLAN_ID]


async def test_one_that_was_stopped_at_a_moment_meanwhile_is_kept() -> None:
    world = with_a_standby()
    plan = await instead(world)
    await world.physical.feed("primary", SCRATCH_ID)
    await world.scratch.halt(SCRATCH_ID, RecoveryTarget(latest=True))
    result = await Runner(plan, world, MemoryJournal()).run()
    assert result.outcome is not Outcome.SUCCEEDED
    assert "was stopped at a moment, so it is kept" in result.message
    assert SCRATCH_ID in world.scratch.made
    with pytest.raises(UserError, match="does not follow, so nothing takes its place"):
        await instead(world)


async def test_before_a_delete_it_is_stopped_at_the_commit_and_is_the_restore_then() -> None:
    world = with_a_standby()
    plan = await halt(world, before_delete="users")

    step = plan.steps[0]
    assert isinstance(step, HaltScratch)
    assert step.target == RecoveryTarget(lsn="0/4000200", inclusive=False, timeline_id=1)
    assert seen(plan)["replayed"] == "up to 2026-11-23 09:12:00 UTC (0/4000000)"
    assert (await Runner(plan, world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED
    facts = world.scratch.made[SCRATCH_ID]
    assert facts.state is ScratchState.PAUSED
    rescue = await Rescue().plan(RescueParams(scratch=SCRATCH_ID, table="users"), world, "k8m2n3p4q5")
    assert "as of 2026-11-23 10:11:17 UTC" in rescue.summary or "`public.users_rescued_" in rescue.summary


def named(lsn: str, **known: object) -> NamedPoint:
    return NamedPoint.model_validate({"name": "before-migration", "lsn": lsn, "timeline_id": 1, **known})


async def test_it_is_stopped_at_a_named_restore_point_that_it_has_not_replayed() -> None:
    world = with_a_standby()
    world.physical.history["primary"].points = [named("0/4000280", before_at=HARMED_AT), named("0/3000000")]
    plan = await halt(world, name="before-migration")

    step = plan.steps[0]
    assert isinstance(step, HaltScratch)
    assert step.target == RecoveryTarget(lsn="0/4000280", timeline_id=1)
    assert "at restore point `before-migration` (LSN 0/4000280)" in plan.summary
    assert (await Runner(plan, world, MemoryJournal()).run()).outcome is Outcome.SUCCEEDED
    assert world.scratch.made[SCRATCH_ID].state is ScratchState.PAUSED


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([], "is not in the WAL that it has to replay. If it was made just now"),
        ([named("0/3000000")], "was replayed already. .* restore from a base backup"),
        (
            [named("0/4000290"), named("0/4000280", before_at=HARMED_AT)],
            r"2 restore points are called .* Choose one: `--lsn 0/4000290`; `--lsn 0/4000280` \(after the commit of",
        ),
    ],
)
async def test_a_named_restore_point_that_is_not_one_ahead_is_told(points: list[NamedPoint], said: str) -> None:
    world = with_a_standby()
    world.physical.history["primary"].points = points
    with pytest.raises(UserError, match=said):
        await halt(world, name="before-migration")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"at": "09:00"}, r"has replayed up to 2026-11-23 09:12:00 UTC .*, beyond .* never goes back"),
        ({"lsn": "0/3000000"}, "never goes back. Restore from a base backup"),
        ({"xid": 811}, "A replay is stopped at `--at`"),
        ({"scratch": "nothing", "latest": True}, "There is no scratch instance `nothing`"),
    ],
)
async def test_what_cannot_be_stopped_is_told(given: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        await halt(with_a_standby(), **given)


async def test_one_that_does_not_follow_cannot_be_stopped_and_one_that_does_shows_no_moment() -> None:
    with pytest.raises(UserError, match="does not follow, so it stands at its moment"):
        await halt(with_a_scratch(), latest=True)
    with pytest.raises(UserError, match=f"follows the archive.*`/dr-restore halt {SCRATCH_ID} --at TIME`"):
        await Rescue().plan(RescueParams(scratch=SCRATCH_ID, table="users"), with_a_standby(), PLAN_ID)


async def test_a_moment_that_was_replayed_meanwhile_stops_the_run() -> None:
    world = with_a_standby()
    plan = await halt(world, before_delete="users")
    _told(world, replayed_lsn="0/4000300")
    (condition,) = plan.preconditions
    assert "has replayed up to" in str(await condition.violation(world))


async def test_a_restore_that_misses_the_rto_offers_the_one_that_follows() -> None:
    assert "`/dr-restore follow shop --delay 4h`" in await _hint(with_history(), at="09:30")
    offered = f"`scratch-{SCRATCH_ID}` follows and is before it: `/dr-restore halt {SCRATCH_ID}` takes 58 s"
    assert offered in await _hint(with_a_standby(), at="09:30")
    world = with_a_standby()
    _told(world, replayed_at=HARMED_AT, replayed_lsn="0/4000200")
    assert "halt" not in await _hint(world, at="09:30")


async def _hint(world: World, **given: object) -> str:
    shop = world.site.database("shop").model_copy(update={"rto": timedelta(seconds=1)})
    site = world.site.model_copy(update={"databases": {**world.site.databases, "shop": shop}, "backups": {}})
    parts = {name: getattr(world, name) for name in World.__dataclass_fields__}
    params = PointParams.model_validate({"database": "shop", **given})
    plan = await RestorePoint().plan(params, World(**{**parts, "site": site}), PLAN_ID)
    return next(finding.hint for finding in plan.findings if finding.check == "RTO")


def _told(world: World, **changes: object) -> Following:
    facts = world.scratch.made[SCRATCH_ID]
    assert facts.following is not None
    told = facts.following.model_copy(update=changes)
    world.scratch.made[SCRATCH_ID] = facts.model_copy(update={"following": told})
    return told


async def test_the_list_shows_how_far_it_is() -> None:
    report = await ScratchList().read(NoParams(), with_a_standby())
    shows, state, _, until = report.rows[0][2:]
    assert shows == "replayed up to 2026-11-23 09:12:00 UTC (0/4000000)"
    assert (state, until) == ("following, 30 min behind", "discarded")
    assert [finding.verdict for finding in report.findings] == [Verdict.OK]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"problem": "the bucket does not answer"}, "was not brought all there is: the bucket does not answer"),
        ({"fed_at": START - timedelta(minutes=6)}, "was brought no WAL for more than 5 min"),
        ({"waits": Waiting.WAL, "fed_lsn": "0/9000000"}, "80 MB of WAL that it does not replay"),
        ({"waits": None, "fed_lsn": "0/9000000"}, "is 1 h behind, 80 MB of WAL; it was told 30 min"),
        ({"halting": RecoveryTarget(latest=True)}, "is being stopped at the end of the archive"),
    ],
)
async def test_the_doctor_warns_of_one_that_does_not_do_what_it_is_kept_for(
    changes: dict[str, object], said: str
) -> None:
    world = with_a_standby()
    told = _told(world, **changes)
    finding = standby_finding(world.scratch.made[SCRATCH_ID], told, START)
    assert finding.verdict is Verdict.WARN
    assert said in finding.detail
    assert finding.hint


async def test_one_that_follows_is_not_woken_by_people() -> None:
    with pytest.raises(UserError, match="its worker starts it by itself"):
        await ScratchStart().plan(ScratchParams(scratch=SCRATCH_ID), with_a_standby(), PLAN_ID)


async def test_the_time_of_a_halt_counts_its_pages_and_rows_in() -> None:
    """Of a server that is too large for its RTO these take longer than what it lacks of WAL."""
    world = with_a_standby()
    large = 1_200_000_000_000
    world.postgres.database_behind(DatabaseRef(f"scratch-{SCRATCH_ID}", "shop")).bytes = large
    plan = await halt(world, before_delete="public.users")
    # 1 GB/s of pages by the last restore of it; 200 MB/s of rows, and half a minute to compare
    pages, rows = timedelta(minutes=20), timedelta(minutes=100, seconds=30)
    assert plan.estimate == START_OF_SERVER + pages + rows
    words = "2 h, RTO 1 h; of it 20 min to read its pages, 1 h 40 min to count rows, at an assumed rate"
    assert seen(plan)["forecast"] == words
    assert "RTO" in {finding.check for finding in plan.findings}
    steps = {step.kind: step.timeout for step in plan.steps}
    assert steps["check_scratch"] >= 3 * rows
    bare = world.scratch.made[SCRATCH_ID]
    assert bare.restored is not None
    changes = {"restored": bare.restored.model_copy(update={"without_checksums": True})}
    world.scratch.made[SCRATCH_ID] = bare.model_copy(update=changes)
    assert (await halt(world, before_delete="public.users")).estimate == START_OF_SERVER + rows


async def test_the_plan_says_when_the_moment_will_have_been_replayed() -> None:
    def said(plan: Plan) -> list[str]:
        return [finding.detail for finding in plan.findings if finding.check == "time left"]

    assert said(await halt(with_a_standby(delay=timedelta(hours=4)), before_delete="public.users")) == []
    [detail] = said(await halt(with_a_standby(delay=timedelta(minutes=10)), before_delete="public.users"))
    assert detail.startswith("It is due to replay beyond that moment in 9 min 19 s, at 2026-11-23 10:")
    assert said(await halt(with_a_standby(delay=timedelta(0)), before_delete="public.users")) == []
