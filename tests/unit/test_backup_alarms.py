"""What is alarmed of, decided purely from how the backups stand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actions import registry
from actions.backup.physical import (
    BackupKind,
    DeadEnd,
    Gap,
    PhysicalEntry,
    Proof,
    RecoveryTarget,
    RecoveryWindow,
    Uncopied,
)
from actions.backup.wal_status import BaseWanted, WalStatus
from actions.buckets import FilesCopyRequest
from actions.catalog.base import Base, BaseParams
from actions.catalog.files import CopyParams, RestoreParams
from actions.catalog.proof import ProveParams
from actions.errors import UserError
from actions.ports import no_progress
from actions.runner import Outcome
from actions.site import BackupPolicy, Database
from actions.steps.alarms import alarms, sizes, subjects
from actions.steps.backup_words import window_words
from actions.steps.health import Archiver, Bases, Dumps, Health, archiver_of, health
from actions.steps.upgrades import upgrades
from bot.services.backup_watch import BackupWatch, over
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.manifests import an_entry
from tests.fakes.physical_world import a_base, a_policy, with_bases
from tests.fakes.world import START, a_world

NOW = START
TODAY = NOW.replace(hour=2, minute=30)
numbers = itertools.count()


def a_proof(at: datetime, problem: str | None = None) -> Proof:
    return Proof(
        id=f"p{at:%d%H%M}",
        server="primary",
        target=RecoveryTarget(latest=True),
        backup="base-full",
        proven_at=at,
        rto=timedelta(minutes=2),
        rpo=timedelta(seconds=3),
        problem=problem,
    )


def fulls(*stored: int) -> list[PhysicalEntry]:
    """One full backup a day, the newest of today, each checked."""
    entries = []
    for days, size in enumerate(stored):
        entry = a_base(f"full-{days}", TODAY - timedelta(days=days))
        manifest = entry.manifest.model_copy(
            update={"stored": entry.manifest.stored.model_copy(update={"bytes": size})}
        )
        entries.append(entry.model_copy(update={"manifest": manifest, "verified_at": TODAY}))
    return entries


def good_bases() -> Bases:
    """A server of which nothing is wrong."""
    return Bases(
        a_policy(),
        ("shop",),
        timedelta(minutes=15),
        entries=[*fulls(100, 101, 99, 100), a_base("hour", NOW - timedelta(minutes=10), parent="full-0")],
        windows=[
            RecoveryWindow(
                server="primary",
                bucket="far",
                oldest=TODAY - timedelta(days=3),
                newest=NOW - timedelta(seconds=2),
            )
        ],
        proofs=[a_proof(NOW - timedelta(days=20))],
        archiver=Archiver(said_at=NOW - timedelta(seconds=5), covered_until=NOW - timedelta(seconds=2)),
    )


def good_dumps() -> Dumps:
    database = Database(name="shop", server="primary", owner="shop")
    policy = BackupPolicy(
        database="shop",
        bucket="backups",
        recipients=("age1example",),
        identity="env:IDENTITY",
        signing_key="env:SIGNING_KEY",
        trusted_signers=(),
    )
    taken = NOW.replace(hour=2, minute=0)
    entries = [
        an_entry(id=f"d{days}", snapshot_at=at, finished_at=at + timedelta(seconds=8), verified_at=taken)
        for days in range(4)
        for at in [taken - timedelta(days=days)]
    ]
    return Dumps("shop", database, policy, entries)


def keys(*, bases: Bases | None = None, dumps: Dumps | None = None, at: datetime = NOW) -> set[str]:
    seen = Health(at, (dumps or good_dumps(),), (bases or good_bases(),))
    return {alarm.key for alarm in alarms(seen)}


def test_nothing_is_wrong_where_nothing_is() -> None:
    assert keys() == set()


GAP = Gap(
    timeline_id=1,
    first="000000010000000000000006",
    last="000000010000000000000007",
    after=NOW - timedelta(hours=1),
    before=NOW - timedelta(minutes=50),
)
WITHOUT_HISTORY = Gap(timeline_id=3, first="00000003.history", last="000000030000000000000009")


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"entries": []}, "late-full"),
        ({"entries": fulls(100, 100)[1:]}, "late-full"),
        ({"entries": fulls(40, 100, 100, 100)}, "small-full"),
        ({"entries": fulls(100)}, "late-incremental"),
        ({"proofs": [a_proof(NOW, "page checksums"), a_proof(NOW - timedelta(days=1))]}, "failed-proof"),
        ({"proofs": [a_proof(NOW - timedelta(days=41))]}, "unproven"),
        ({"proofs": [a_proof(NOW - timedelta(days=13))], "test_every": timedelta(days=7)}, "unproven"),
        ({"proofs": [a_proof(NOW - timedelta(days=98))], "test_every": timedelta(days=92)}, "unproven"),
        ({"problem": "Bucket `backups` does not answer."}, "unreadable"),
        ({"archiver": Archiver(NOW - timedelta(minutes=3), NOW - timedelta(minutes=3))}, "archiver-silent"),
        ({"archiver": Archiver(NOW, NOW, wants_base="its disk was lost")}, "wal-gap"),
        ({"archiver": Archiver(NOW, NOW, trouble={"disk_low": "Its disk is 95 % full."})}, "archiver-disk-low"),
        ({"archiver": None, "archived": True}, "archiver-silent"),
        ({"windows": [RecoveryWindow(server="primary", bucket="far")]}, "no-window"),
        ({"left_behind": "They are in one region."}, "left-behind"),
        ({"archiver": None, "archived": True, "unheard": "It does not answer."}, "archiver-unheard"),
        ({"uncopied": Uncopied(silent={"far": "It does not answer."})}, "late-copy"),
        ({"uncopied": Uncopied(backups={"full-0": ("far",)})}, "late-copy"),
        ({"uncopied": Uncopied(spoiled={"full-0": {"far": "It was cut off."}})}, "spoiled-copy"),
    ],
)
def test_each_thing_that_can_be_wrong_of_a_server_is_told(changes: dict[str, object], wanted: str) -> None:
    assert f"{wanted}/server:primary" in keys(bases=replace(good_bases(), **changes))  # type: ignore[arg-type]


def windows_with(*, newest: datetime, gaps: Sequence[Gap] = ()) -> list[RecoveryWindow]:
    return [good_bases().windows[0].model_copy(update={"newest": newest, "gaps": tuple(gaps)})]


def test_wal_that_lags_is_told_unless_the_archiver_knows_that_nobody_writes() -> None:
    stale = windows_with(newest=NOW - timedelta(minutes=16))
    idle = Archiver(NOW, covered_until=NOW - timedelta(seconds=1))

    assert "wal-lag/server:primary" in keys(bases=replace(good_bases(), windows=stale, archiver=None))
    assert keys(bases=replace(good_bases(), windows=stale, archiver=idle)) == set()


def test_a_bucket_that_has_lost_all_of_its_wal_is_told_once_a_backup_could_have_had_its_own() -> None:
    lost = RecoveryWindow(server="primary", bucket="far")
    assert keys(bases=replace(good_bases(), windows=[lost])) == {"no-window/server:primary"}
    fresh = [a_base("full-0", NOW - timedelta(minutes=1))]
    assert keys(bases=replace(good_bases(), entries=fresh, windows=[lost])).isdisjoint({"no-window/server:primary"})
    # Base backups that are in the other region are told of by their own alarm.
    here = lost.model_copy(update={"elsewhere": ("hour", "full-0", "full-1", "full-2", "full-3")})
    assert keys(bases=replace(good_bases(), windows=[here])) == set()


def test_a_gap_wants_a_base_and_is_over_once_one_was_made_after_it() -> None:
    bases = replace(good_bases(), windows=windows_with(newest=NOW, gaps=[GAP]), entries=fulls(100, 100))
    found = [alarm for alarm in alarms(Health(NOW, (), (bases,))) if alarm.key.startswith("wal-gap")]
    assert [alarm.wants_base for alarm in found] == [True]
    for start, past in (("0/7FFFFFF", False), ("0/8000000", True)):
        later = replace(bases, entries=[*bases.entries, a_base_from(start)])
        assert ("wal-gap/server:primary" not in keys(bases=later)) is past


def a_base_from(start_lsn: str, *, timeline_id: int = 1, system_id: str = "7000000000000000001") -> PhysicalEntry:
    entry = a_base("after", NOW - timedelta(minutes=5))
    changes = {"start_lsn": start_lsn, "timeline_id": timeline_id, "system_id": system_id}
    return entry.model_copy(update={"manifest": entry.manifest.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("base", "past"),
    [
        (a_base_from("0/5000000", timeline_id=2), False),
        (a_base_from("0/5000000", timeline_id=3), True),  # it begins on that very timeline
        (a_base_from("0/5000000", timeline_id=4), True),  # the server has left it
        (a_base_from("0/A000000", timeline_id=2), True),  # or was never on it
        (a_base_from("0/9FFFFFF", timeline_id=2), False),
    ],
)
def test_a_timeline_without_its_history_asks_for_one_base_and_no_more_and_stays_in_the_window(
    base: PhysicalEntry, past: bool
) -> None:
    windows = windows_with(newest=NOW, gaps=[WITHOUT_HISTORY])
    before = replace(good_bases(), windows=windows)
    after = replace(before, entries=[*before.entries, base])
    assert [alarm.wants_base for alarm in alarms(Health(NOW, (), (before,))) if "gap" in alarm.key] == [True]
    assert ("wal-gap/server:primary" not in keys(bases=after)) is past
    assert "Of timeline id 3 WAL is archived without `00000003.history`" in window_words(after, NOW)


def test_a_base_of_another_cluster_ends_no_gap() -> None:
    """A server that was made anew has an older namesake, whose WAL was far ahead."""
    windows = windows_with(newest=NOW, gaps=[GAP])
    old = a_base_from("F/0", system_id="6").model_copy()
    old = old.model_copy(update={"manifest": old.manifest.model_copy(update={"finished_at": NOW - timedelta(days=9)})})
    bases = replace(good_bases(), windows=windows)
    assert "wal-gap/server:primary" in keys(bases=replace(bases, entries=[*bases.entries, old]))


def test_backups_of_a_branch_that_was_left_stand_in_for_none() -> None:
    end = DeadEnd(timeline_id=1, lsn="0/6000000", forked_at="0/3000090", living=2)

    def dead(*names: str) -> set[str]:
        window = good_bases().windows[0].model_copy(update={"dead_ends": dict.fromkeys(names, end)})
        return keys(bases=replace(good_bases(), windows=[window]))

    assert dead("full-3") == set()
    assert dead("full-0") == {"late-full/server:primary"}  # yesterday's is the newest that leads to now
    everything = [f"full-{number}" for number in range(4)] + ["hour"]
    assert "late-full/server:primary" in dead(*everything)
    health = Health(
        NOW,
        (),
        (
            replace(
                good_bases(),
                windows=[RecoveryWindow(server="primary", bucket="far", dead_ends=dict.fromkeys(everything, end))],
            ),
        ),
    )
    assert [alarm.wants_base for alarm in alarms(health) if alarm.key.startswith("late-full")] == [True]


def test_a_window_that_nobody_can_tell_is_told_and_ends_no_other_alarm() -> None:
    dark = RecoveryWindow(server="primary", bucket="far", problem="`2.history.sealed` was changed. Copy it.")
    seen = Health(NOW, (), (replace(good_bases(), windows=[dark]),))
    (found,) = alarms(seen)

    assert found.key == "unknown-window/server:primary"
    assert found.text == (
        "Nobody can tell what `far` would give back of `primary`: `2.history.sealed` was changed. Copy it."
    )
    assert not over("wal-gap/server:primary", {found.key}, seen)
    assert over("wal-gap/server:primary", (), Health(NOW, (), (good_bases(),)))


@pytest.mark.parametrize(
    ("changes", "answered"),
    [
        ({}, True),
        ({"start_lsn": "0/4FFFFFF"}, False),
        ({"kind": BackupKind.INCREMENTAL}, False),
        ({"timeline_id": 1}, False),
        ({"system_id": "8"}, False),
    ],
)
def test_a_wish_of_the_archiver_is_over_once_a_full_begins_behind_what_was_lost(
    changes: dict[str, object], answered: bool
) -> None:
    wanted = BaseWanted(after_lsn="0/5000000", since=NOW, reason="its disk was lost", timeline_id=2)
    entry = a_base("after", NOW)
    right = {"start_lsn": "0/5000000", "timeline_id": 2}
    entry = entry.model_copy(update={"manifest": entry.manifest.model_copy(update=right | changes)})

    assert wanted.answered_by([entry], "7000000000000000001") is answered
    assert not wanted.answered_by([entry.model_copy(update={"problem": "cut off"})], "7000000000000000001")


def test_what_the_archiver_still_says_wants_no_base_that_is_there() -> None:
    wanted = BaseWanted(after_lsn="0/3000000", since=NOW, reason="its disk was lost", timeline_id=1)
    said = WalStatus(server="primary", at=NOW, system_id="7000000000000000001", base_wanted=wanted)

    assert archiver_of(said, (), []).wants_base == "its disk was lost"
    assert archiver_of(said, (), [a_base("after", NOW)]).wants_base == ""


def test_a_segment_that_a_later_one_has_overtaken_is_no_gap_yet() -> None:
    young = GAP.model_copy(update={"after": NOW, "before": NOW - timedelta(minutes=4)})
    bases = replace(good_bases(), windows=windows_with(newest=NOW, gaps=[young]), entries=fulls(100, 100))

    assert "wal-gap/server:primary" not in keys(bases=bases)
    assert "wal-gap/server:primary" in keys(bases=bases, at=NOW + timedelta(minutes=1))
    # What waited for its bucket is older than its arrival.
    waited = GAP.model_copy(update={"seen_at": NOW - timedelta(minutes=4)})
    bases = replace(bases, windows=windows_with(newest=NOW, gaps=[waited]))
    assert "wal-gap/server:primary" not in keys(bases=bases)
    assert "wal-gap/server:primary" in keys(bases=bases, at=NOW + timedelta(minutes=1))


def test_a_dump_is_late_an_hour_after_its_instant_and_not_before() -> None:
    yesterday = replace(good_dumps(), entries=good_dumps().entries[1:])

    assert "late-dump/shop" not in keys(dumps=yesterday, at=NOW.replace(hour=2, minute=59))
    assert "late-dump/shop" in keys(dumps=yesterday, at=NOW.replace(hour=3, minute=1))
    assert "late-dump/shop" in keys(dumps=replace(good_dumps(), entries=[]))
    assert keys(dumps=replace(good_dumps(), problem="no answer")) == {"unreadable/shop"}


@pytest.mark.parametrize(("part", "told"), [(0.49, {"small-dump/shop"}), (0.51, set())])
def test_a_dump_of_less_than_half_the_usual_size_is_told(part: float, told: set[str]) -> None:
    newest, *before = good_dumps().entries
    usual = before[0].manifest.stored
    shrunk = newest.manifest.model_copy(
        update={"stored": usual.model_copy(update={"bytes": int(usual.bytes * part) + 1})}
    )
    entries = [newest.model_copy(update={"manifest": shrunk}), *before]
    assert keys(dumps=replace(good_dumps(), entries=entries)) == told


def test_an_adopted_dump_that_is_months_old_is_late() -> None:
    """Its manifest was signed when it was adopted, which says nothing of how long a dump takes."""
    [newest, *_] = good_dumps().entries
    old = newest.manifest.model_copy(update={"snapshot_at": NOW - timedelta(days=90), "finished_at": NOW})
    assert "late-dump/shop" in keys(dumps=replace(good_dumps(), entries=[newest.model_copy(update={"manifest": old})]))


def test_a_date_that_is_still_to_come_is_told_since_nothing_would_be_late_beside_it() -> None:
    [newest, *others] = good_dumps().entries
    for ahead, told in ((timedelta(minutes=1), False), (timedelta(days=300), True)):
        date = newest.manifest.model_copy(update={"snapshot_at": NOW + ahead})
        dumps = replace(good_dumps(), entries=[newest.model_copy(update={"manifest": date}), *others])
        assert ("future-dump/shop" in keys(dumps=dumps)) == told
        base = a_base("ahead", NOW + ahead).model_copy(update={"verified_at": TODAY})
        bases = replace(good_bases(), entries=[base, *good_bases().entries])
        assert ("future-base/server:primary" in keys(bases=bases)) == told


def test_what_must_not_be_used_is_told_as_long_as_it_is_there() -> None:
    bases = good_bases()
    spoiled = bases.entries[1].model_copy(update={"problem": "its object is missing."})
    seen = Health(NOW, (good_dumps(),), (replace(bases, entries=[*bases.entries, spoiled, spoiled]),))
    [alarm] = alarms(seen)
    assert alarm.key == "unusable-base/server:primary"
    assert "must not be used, `full-1`: its object is missing." in alarm.text

    dumps = good_dumps()
    bad = [dumps.entries[-1].model_copy(update={"problem": "It was forged."}), *dumps.entries[:-1]]
    assert keys(dumps=replace(dumps, entries=bad)) == {"unusable-dump/shop"}


def test_what_was_never_read_completely_is_told_after_a_week() -> None:
    unread = [entry.model_copy(update={"verified_at": None}) for entry in good_dumps().entries]

    assert keys(dumps=replace(good_dumps(), entries=unread)) == set()
    assert "unverified-dump/shop" in keys(dumps=replace(good_dumps(), entries=unread), at=NOW + timedelta(days=9))


@given(st.lists(st.integers(min_value=1, max_value=10**12), max_size=12))
def test_a_trend_needs_something_to_compare_with(stored: list[int]) -> None:
    found = sizes(stored)

    assert (found is None) == (len(stored) < 4)
    if found is not None and len(set(stored)) == 1:
        assert found == 1


@given(st.booleans(), st.booleans(), st.booleans())
def test_what_does_not_answer_ends_no_alarm(dumps_answer: bool, bases_answer: bool, wrong: bool) -> None:
    seen = Health(
        NOW,
        (replace(good_dumps(), problem="" if dumps_answer else "no answer"),),
        (replace(good_bases(), problem="" if bases_answer else "no answer"),),
    )
    key = "late-dump/shop"

    assert over(key, {key} if wrong else set(), seen) == (dumps_answer and not wrong)
    assert over("late-full/server:gone", set(), seen)
    assert ("server:primary" in subjects(seen)) == bases_answer


async def test_a_copy_of_files_and_an_escrow_that_were_not_made_are_told_until_they_are() -> None:
    world = a_world()

    async def told(*, beside: bool = True) -> set[str]:
        return {alarm.key for alarm in alarms(await health(world, beside=beside)) if ":" in alarm.key}

    assert {"late-files/files:uploads", "late-escrow/escrow:main"} <= await told()
    await world.files.copy(FilesCopyRequest(id="uploads-1", name="uploads"), no_progress)
    await world.escrow.make("escrow-1", "main")
    assert not {"late-files/files:uploads", "late-escrow/escrow:main"} & await told()

    world.clock.advance(timedelta(days=1))
    seen = await health(world)
    texts = {alarm.key: alarm.text for alarm in alarms(seen)}
    assert "due 2026-11-24 03:00 UTC is missing; the newest is of 2026-11-23" in texts["late-files/files:uploads"]
    assert "a new cluster could not decrypt" in texts["late-escrow/escrow:main"]
    # Nobody looks at them each minute: meanwhile nothing is raised, and nothing is over.
    between = await health(world, beside=False)
    assert not {"late-files/files:uploads"} & await told(beside=False)
    assert not over("late-files/files:uploads", set(), between)
    world.objects.down = True
    assert "unreadable/files:uploads" in await told()
    assert over("late-files/files:gone", set(), seen)


async def test_a_bucket_that_was_emptied_is_told_until_its_files_are_back() -> None:
    """Each night a whole copy of nothing: the last one that has the files stays, whatever its age."""
    world, key = a_world(files_damaged=False), "small-files/files:uploads"
    files = [facts.key for facts in await world.buckets.list("uploads", "")]

    async def nights(count: int) -> dict[str, str]:
        for _ in range(count):
            world.clock.advance(timedelta(days=1))
            name = f"k7m2n3p{next(numbers):03}"
            plan = await registry.action("files.copy").plan(CopyParams(name="uploads"), world, name)
            assert (await run(plan, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
        return {alarm.key: alarm.text for alarm in alarms(await health(world))}

    assert key not in await nights(4)
    for name in files:
        await world.buckets.delete("uploads", name)
    assert "holds 0 files (0 bytes)" in (await nights(1))[key]
    assert f"holds {len(files)} file" in (await nights(60))[key]
    [first, *_, last] = await world.files.copies("uploads")
    assert (first.manifest.objects, last.manifest.objects) == (0, len(files))
    restore = await registry.action("files.restore").plan(RestoreParams(name="uploads"), world, PLAN_ID)
    assert (await run(restore, world, MemoryJournal())).outcome is Outcome.SUCCEEDED
    assert key not in await nights(1)


async def test_a_late_recovery_point_is_told_until_there_is_one() -> None:
    world, key = a_world(), "late-point/points:site"

    async def told() -> dict[str, str]:
        return {alarm.key: alarm.text for alarm in alarms(await health(world))}

    assert "There is no usable recovery point" in (await told())[key]
    await world.points.record("point-1")
    assert key not in await told()
    world.clock.advance(timedelta(hours=2))
    assert key not in await told()
    world.clock.advance(timedelta(minutes=1))
    assert "is 2 h 1 min old (of 2026-11-23 10:12 UTC); one is due every 1 h" in (await told())[key]
    seen = await health(world, beside=False)
    assert not over(key, set(), seen)

    await world.points.record("point-2")
    seen = await health(world)
    assert key not in {alarm.key for alarm in alarms(seen)}
    assert over(key, set(), seen)
    world.objects.down = True
    assert "unreadable/points:site" in await told()


async def test_a_worker_reads_what_is_made_once_a_day_once_an_hour() -> None:
    world = a_world()
    nothing: Any = None
    watch = BackupWatch(nothing, world, on_call="C0ONCALL")

    async def looked() -> bool:
        return all(copies.looked for copies in (await watch.look()).beside)

    assert await looked()
    world.clock.advance(timedelta(minutes=59))
    assert not await looked()
    world.clock.advance(timedelta(minutes=1))
    assert await looked()


async def test_a_dump_whose_bucket_refuses_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    world = a_world()
    everything = {alarm.key for alarm in alarms(await health(world))}
    lost = sorted(world.site.backups)[0]
    read = world.backups.catalogue

    async def catalogue(database: str) -> Sequence[Any]:
        if database == lost:
            raise UserError("Bucket `gone` does not exist.")
        return await read(database)

    monkeypatch.setattr(world.backups, "catalogue", catalogue)
    seen = await health(world)
    told = {alarm.key: alarm.text for alarm in alarms(seen)}
    assert "Bucket `gone` does not exist." in told[f"unreadable/{lost}"]
    assert {key for key in everything if key.partition("/")[2] != lost} <= set(told)
    assert not over(f"late-dump/{lost}", set(told), seen)
    monkeypatch.undo()
    again = await health(world)
    assert over(f"unreadable/{lost}", {alarm.key for alarm in alarms(again)}, again)


async def test_that_nothing_can_be_read_is_an_alarm_and_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    world, key = a_world(), "unwatched/watch:backups"
    nothing: Any = None
    watch = BackupWatch(nothing, world, on_call="C0ONCALL")

    async def fails(*_: object, **__: object) -> Health:
        raise UserError("The plan file is at odds with itself.")

    monkeypatch.setattr("bot.services.backup_watch.health", fails)
    seen = await watch.look()
    [told] = alarms(seen)
    assert told.key == key
    assert "The plan file is at odds with itself." in told.text
    assert not over("late-dump/shop", {key}, seen)
    monkeypatch.undo()
    good = await watch.look()
    assert over(key, {alarm.key for alarm in alarms(good)}, good)


def test_no_incremental_is_missed_while_a_full_backup_works_that_keeps_it_away() -> None:
    late = replace(good_bases(), entries=fulls(100))
    assert keys(bases=late) == {"late-incremental/server:primary"}
    begun = late.entries[0].manifest.finished_at + late.policy.incremental_every  # type: ignore[operator]
    assert keys(bases=replace(late, full_since=begun)) == set()
    # One that came too late keeps nothing away.
    assert keys(bases=replace(late, full_since=NOW - timedelta(minutes=1))) == {"late-incremental/server:primary"}


async def test_a_full_backup_at_work_is_read_from_the_runs() -> None:
    world = with_bases()
    plan = await Base().plan(BaseParams(), world, "k7m2n3p4q5")
    assert (await health(world)).bases[0].full_since is None
    world.runs.add(plan, "running", at=NOW - timedelta(minutes=40))
    assert (await health(world)).bases[0].full_since == NOW - timedelta(minutes=40)


@pytest.mark.parametrize(
    ("days", "every", "wrong"),
    [(20, None, False), (39, None, False), (41, None, True), (11, 7, False), (13, 7, True), (96, 92, False)],
)
def test_a_test_that_is_missing_is_told_by_the_plans_own_rhythm(days: int, every: int | None, wrong: bool) -> None:
    rhythm = None if every is None else timedelta(days=every)
    proofs = [a_proof(NOW - timedelta(days=days))]
    assert ("unproven/server:primary" in keys(bases=replace(good_bases(), proofs=proofs, test_every=rhythm))) is wrong
    dumps = replace(good_dumps(), proofs=proofs, test_every=rhythm)
    assert ("unproven/shop" in keys(dumps=dumps)) is wrong


def test_dumps_that_were_never_tested_are_told_before_the_oldest_of_them_goes() -> None:
    """The oldest dump is never older than the policy lets it become, however long nothing was tested."""
    dumps = good_dumps()
    assert "unproven/shop" not in keys(dumps=dumps)
    old = NOW - timedelta(days=29, hours=8)
    entries = [*dumps.entries, an_entry(id="old", snapshot_at=old, finished_at=old, verified_at=NOW)]
    assert "unproven/shop" in keys(dumps=replace(dumps, entries=entries))


def test_a_failed_test_of_dumps_is_told_with_what_it_found() -> None:
    failed = a_proof(NOW - timedelta(hours=1), "table public.doc has 3 rows, the dump has 4.")
    seen = Health(NOW, (replace(good_dumps(), proofs=[failed, a_proof(NOW - timedelta(days=20))]),), (good_bases(),))
    [alarm] = alarms(seen)
    assert alarm.key == "failed-proof/shop"
    assert alarm.text.endswith("failed: table public.doc has 3 rows, the dump has 4.")
    assert alarm.hint == "Test one now: `/dr-backup prove shop --dump newest`."


def test_a_test_that_failed_after_an_upgrade_proves_nothing_of_it() -> None:
    passed = a_proof(NOW - timedelta(days=20)).model_copy(update={"known": {"pg_restore": "18.2"}})
    failed = a_proof(NOW, "It failed.").model_copy(update={"known": {"pg_restore": "18.3"}})
    assert upgrades([failed, passed], {"pg_restore": "18.3"}).found == {"pg_restore": ("18.2", "18.3")}
    assert upgrades([failed], {"pg_restore": "18.4"}).found == {}


async def test_an_upgrade_since_the_newest_proof_is_told_until_a_test_has_passed() -> None:
    world = with_bases()
    for number, params in enumerate((ProveParams(), ProveParams(server="shop", dump="newest"))):
        plan = await registry.action("backup.prove").plan(params, world, f"k7m2n3p4q{number}")
        assert (await run(plan, world, MemoryJournal())).message == ""
    assert not [alarm for alarm in alarms(await health(world)) if alarm.key.startswith("upgraded:")]

    world.physical.programs["pg_combinebackup"] = "18.3"
    world.backups.programs["pg_restore"] = "18.3"
    told = {alarm.key.partition("/")[2]: alarm for alarm in alarms(await health(world)) if "upgraded:" in alarm.key}
    assert told.keys() == {"server:primary", "shop"}
    assert "`primary`: pg_combinebackup 18.2 to 18.3" in told["server:primary"].text
    assert told["server:primary"].hint == "Test one now: `/dr-backup prove primary`."
    world.runs.next["backup.prove", "dump:shop"] = NOW + timedelta(days=9)
    [again] = [alarm for alarm in alarms(await health(world)) if alarm.key == told["shop"].key]
    assert again.hint.startswith("It is tested by itself at the time of day of the plan's own restore tests")

    plan = await registry.action("backup.prove").plan(ProveParams(), world, "k7m2n3p4q9")
    world.clock.advance(timedelta(minutes=1))
    assert (await run(plan, world, MemoryJournal())).message == ""
    left = [alarm.key for alarm in alarms(await health(world)) if "upgraded:" in alarm.key]
    assert left == [told["shop"].key]
    # A server that does not answer was not upgraded.
    world.postgres.servers["primary"].down = True
    seen = await health(world)
    assert [alarm.key for alarm in alarms(seen) if "upgraded:" in alarm.key] == left
    # Nor does it end an alarm that stands: a test alone does, since the next worker may have other tools.
    assert not over("upgraded:k7m2n3p4q9/server:primary", (), seen)
    world.postgres.servers["primary"].down = False
    seen = await health(world)
    assert not over("upgraded:k7m2n3p4q9/server:primary", (), seen)
    assert over("upgraded:k7m2n3p4q0/server:primary", (), seen)
