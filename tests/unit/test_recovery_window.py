"""The picture of a recovery window hides no gap, and what it says can be reached can be."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actions.backup.physical import Gap, Lsn, RecoveryWindow
from actions.backup.segments import Segment, Timelines
from actions.backup.segments import Stretch as OnTimeline
from actions.backup.wal import WalListing, WalStart, find_gaps
from actions.backup.windows import Stretch, a_moment, ends_of, reachable
from actions.ports import ObjectFacts
from actions.steps.alarms import alarms
from actions.steps.backup_words import CELLS, NOT_THERE, THERE, bar, window_words
from actions.steps.health import Archiver, Bases, Health
from actions.steps.postures import apart
from tests.fakes.physical_world import a_base, a_policy
from tests.fakes.world import START, a_world

minutes = st.integers(min_value=0, max_value=7 * 24 * 60)


def at(minute: int) -> datetime:
    return START + timedelta(minutes=minute)


def a_window(length: int, *gaps: tuple[int, int]) -> RecoveryWindow:
    return RecoveryWindow(
        server="primary",
        bucket="far",
        oldest=at(0),
        newest=at(length),
        gaps=tuple(
            Gap(timeline_id=1, first="0" * 24, last="1" * 24, after=at(first), before=at(last)) for first, last in gaps
        ),
    )


@st.composite
def windows(draw: st.DrawFn) -> tuple[RecoveryWindow, list[datetime]]:
    length = draw(st.integers(min_value=60, max_value=7 * 24 * 60))
    edges = sorted(draw(st.sets(st.integers(min_value=1, max_value=length - 1), max_size=6)))
    gaps = list(zip(edges[::2], edges[1::2], strict=False))
    bases = [at(minute) for minute in draw(st.lists(st.integers(min_value=0, max_value=length), max_size=6))]
    return a_window(length, *gaps), bases


@given(windows())
def test_nothing_within_a_gap_can_be_reached_nor_after_it_without_a_base(
    case: tuple[RecoveryWindow, list[datetime]],
) -> None:
    window, bases = case
    assert window.oldest is not None
    for stretch in reachable(window, bases):
        assert stretch.start <= stretch.end
        assert stretch.start in {window.oldest, *bases}
        for gap in window.gaps:
            assert gap.after is not None
            assert gap.before is not None
            assert stretch.end <= gap.after or stretch.start >= gap.before


def test_of_a_gap_that_begins_nobody_knows_where_nothing_is_promised_since_the_base_before_it() -> None:
    gap = Gap(timeline_id=2, first="0" * 24, last="1" * 24, before=at(130))
    window = a_window(600).model_copy(update={"gaps": (gap,)})
    found = [(each.start, each.end) for each in reachable(window, [at(60), at(120), at(300)])]
    assert found == [(at(0), at(120)), (at(300), at(600))]


def test_a_gap_at_the_beginning_of_a_timeline_is_dated_by_the_one_before_it() -> None:
    size = 16 << 20
    way = Timelines((OnTimeline(1, Lsn(0), Lsn(10 * size)), OnTimeline(2, Lsn(10 * size), None)))
    stored = [Segment(1, number) for number in range(5, 10)] + [Segment(2, number) for number in (11, 12)]
    facts = {str(each): ObjectFacts(key=str(each), bytes=1, modified_at=at(each.number), etag="") for each in stored}
    histories = {2: ObjectFacts(key="h", bytes=1, modified_at=at(10), etag="")}
    start = WalStart(system_id="7", timeline_id=1, lsn=Lsn(5 * size))
    [gap] = find_gaps(start, way, WalListing("far", facts, histories))
    assert (gap.first, gap.last) == (str(Segment(2, 10)), str(Segment(2, 10)))
    assert (gap.after, gap.before) == (at(9), at(11))


@given(windows())
def test_the_picture_is_full_exactly_where_all_of_a_cell_can_be_reached(
    case: tuple[RecoveryWindow, list[datetime]],
) -> None:
    window, bases = case
    stretches = reachable(window, bases)
    drawn = bar(stretches)

    assert len(drawn) == CELLS
    assert set(drawn) <= {THERE, NOT_THERE}
    assert (NOT_THERE in drawn) == (len(stretches) > 1)


@given(windows(), st.text(max_size=10))
def test_a_random_moment_can_be_reached_and_is_the_same_for_the_same_seed(
    case: tuple[RecoveryWindow, list[datetime]], seed: str
) -> None:
    stretches = reachable(*case)
    chosen = a_moment(stretches, seed)

    assert chosen is not None
    assert any(stretch.start <= chosen <= stretch.end for stretch in stretches)
    assert chosen == a_moment(stretches, seed)


def test_an_empty_window_is_drawn_empty() -> None:
    assert reachable(RecoveryWindow(server="primary", bucket="far"), [START]) == ()
    assert bar(()) == NOT_THERE * CELLS
    assert a_moment((), "x") is None


def test_the_words_name_the_loss_the_window_and_its_gap() -> None:
    bases = Bases(
        a_policy(),
        ("shop",),
        timedelta(minutes=15),
        entries=[a_base("one", at(0)), a_base("two", at(300)), a_base("old", at(-3000))],
        windows=[a_window(600, (100, 130))],
    )
    said = window_words(bases, at(600) + timedelta(seconds=41)).splitlines()

    assert said[0].startswith(
        "`shop` on `primary`: 41 s would be lost now (RPO 15 min: within), measured in bucket `far`"
    )
    assert said[1].count(NOT_THERE) == 14
    assert said[1].endswith("2026-11-23 10:12:00 UTC to 2026-11-23 20:12:00 UTC")
    assert "not from 2026-11-23 11:52:00 UTC to 2026-11-23 15:12:00 UTC (1 gap in the WAL)" in said[2]
    assert "1 older base backup can be restored as well, each to its own end alone" in said[2]


def test_the_words_say_that_a_gap_is_dated_by_what_may_be_later() -> None:
    window = a_window(600, (100, 130))
    bases = Bases(a_policy(), ("shop",), timedelta(minutes=15), entries=[a_base("two", at(300))], windows=[window])
    assert "by when segments were stored" not in window_words(bases, at(600))
    loose = window.model_copy(update={"gaps": (window.gaps[0].model_copy(update={"loose": True}),)})
    assert "(1 gap in the WAL), by when segments were stored" in window_words(replace(bases, windows=[loose]), at(600))


@pytest.mark.parametrize("rests", [False, True])
def test_what_lies_behind_a_gap_counts_as_lost_until_a_base_backup_leads_there(rests: bool) -> None:
    """Whatever the archiver has stored since, and whether or not the server has committed anything."""
    archiver = Archiver(said_at=at(600), covered_until=at(600))
    bases = Bases(
        a_policy(),
        ("shop",),
        timedelta(minutes=15),
        entries=[a_base("one", at(0))],
        windows=[a_window(600, (100, 130))],
        archiver=archiver,
        idle=rests,
    )
    assert bases.exposure(at(600)) == timedelta(minutes=500)
    assert "8 h 20 min would be lost now (RPO 15 min: beyond)" in window_words(bases, at(600))
    assert "wal-lag/server:primary" in {alarm.key for alarm in alarms(Health(at(600), bases=(bases,)))}

    after = replace(bases, entries=[*bases.entries, a_base("two", at(140))])
    assert after.exposure(at(600)) == timedelta(0)


def test_a_window_that_nobody_can_tell_is_no_empty_one() -> None:
    dark = RecoveryWindow(server="primary", bucket="far", problem="`2.history.sealed` was changed. Copy it.")
    bases = Bases(a_policy(), ("shop",), timedelta(minutes=15), entries=[a_base("one", at(0))], windows=[dark])

    assert window_words(bases, at(600)) == (
        "`shop` on `primary`: nobody can tell what bucket `far` would give back. "
        "`2.history.sealed` was changed. Copy it."
    )


def test_no_loss_is_promised_where_the_base_backups_do_not_outlive_the_region() -> None:
    good = Bases(a_policy(), ("shop",), timedelta(minutes=15), entries=[a_base("one", at(0))], windows=[a_window(600)])
    assert "would be lost now (RPO 15 min: within), measured in bucket `far`." in window_words(good, at(600))
    far = window_words(replace(good, apart=True), at(600))
    assert "measured in bucket `far`, which outlives the region." in far

    said = window_words(replace(good, left_behind="They are in `near` alone."), at(600)).splitlines()
    assert said[0] == "`shop` on `primary`: everything since the newest dump would be lost. They are in `near` alone."


def test_a_stretch_of_one_moment_is_drawn_full() -> None:
    assert bar((Stretch(START, START),)) == THERE * CELLS


def test_a_base_backup_that_is_in_the_other_region_alone_begins_no_stretch() -> None:
    gap = Gap(timeline_id=1, first="0" * 24, last="0" * 24, after=at(100), before=at(200))
    window = a_window(600).model_copy(update={"gaps": (gap,)})
    entries = [a_base("one", at(0)), a_base("two", at(300))]

    def drawn(shown: RecoveryWindow) -> list[tuple[datetime, datetime]]:
        return [(each.start, each.end) for each in reachable(shown, ends_of(entries, shown))]

    assert drawn(window) == [(at(0), at(100)), (at(300), at(600))]
    assert drawn(window.model_copy(update={"elsewhere": ("two",)})) == [(at(0), at(100))]


def test_only_two_regions_outlive_one() -> None:
    site = a_world().site
    far = a_policy().model_copy(update={"wal_buckets": ("backups", "uploads-copy")})
    near = a_policy().model_copy(update={"wal_buckets": ("backups", "uploads")})
    assert [apart(site, policy) for policy in (far, near, a_policy())] == [True, False, False]
