"""When a drill is due, and what is said of it, decided purely."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from actions.schedules import Schedule
from bot.plan_file import Drill
from bot.services.drill_dates import Act, Held, reminder, standing

FAILOVER = Drill(
    name="failover", title="Failover Test", frequency="Monthly", schedule="15 09:00 UTC", next=date(2026, 3, 15)
)
FIRST = datetime(2026, 3, 15, 9, tzinfo=UTC)


def done(at: datetime, due: datetime) -> Held:
    return Held(Act.DONE, at, due, by="Olivia", note="4 min")


def test_the_first_one_is_when_the_written_plan_says() -> None:
    found = standing(FAILOVER, [], FIRST - timedelta(days=20))

    assert (found.last, found.next) == (None, FIRST)


def test_one_held_early_counts_for_the_instant_it_was_held_for() -> None:
    found = standing(FAILOVER, [done(FIRST - timedelta(days=3), FIRST)], FIRST - timedelta(days=2))

    assert found.last == FIRST - timedelta(days=3)
    assert found.next == FIRST.replace(month=4)


def test_one_held_months_late_is_not_due_at_once_again() -> None:
    found = standing(FAILOVER, [done(FIRST.replace(month=6, day=20), FIRST)], FIRST.replace(month=6, day=21))

    assert found.next == FIRST.replace(month=7)


def test_a_postponed_one_is_due_where_it_was_put_until_it_was_held() -> None:
    to = FIRST + timedelta(days=9)
    moved = Held(Act.POSTPONED, FIRST - timedelta(days=1), FIRST, to=to, note="release week")

    assert standing(FAILOVER, [moved], FIRST).next == to
    assert standing(FAILOVER, [moved], FIRST).postponed
    assert standing(FAILOVER, [moved, done(to, to)], to).next == FIRST.replace(month=4)


def test_what_the_bot_failed_at_is_tried_again_at_the_next_of_its_kind() -> None:
    failed = Held(Act.FAILED, FIRST + timedelta(minutes=5), FIRST, note="page checksums")

    assert standing(FAILOVER, [failed], FIRST + timedelta(days=2)).failed == "page checksums"
    again = standing(FAILOVER, [failed], FIRST.replace(month=4))
    assert (again.next, again.failed) == (FIRST.replace(month=4), "")


@given(st.lists(st.tuples(st.integers(0, 60), st.sampled_from(list(Act)), st.integers(1, 100)), max_size=12))
def test_whatever_people_did_the_next_one_follows_the_last(acts: list[tuple[int, Act, int]]) -> None:
    now, held = FIRST - timedelta(days=30), list[Held]()
    for days, act, further in acts:
        now += timedelta(days=days)
        found = standing(FAILOVER, held, now)
        to = now + timedelta(days=further) if act is Act.POSTPONED else None
        held.append(Held(act, now, found.next, to=to))
        after = standing(FAILOVER, held, now)
        if act is Act.DONE:
            assert after.last == now
            assert after.next > max(now, found.next)
            assert Schedule(FAILOVER.schedule).until(after.next) == after.next
        elif to is not None:
            assert after.next == to


@given(st.integers(min_value=-20 * 24 * 60, max_value=60 * 24 * 60))
def test_a_reminder_a_week_and_a_day_before_at_the_start_and_while_overdue(minutes: int) -> None:
    now = FIRST + timedelta(minutes=minutes)
    said = reminder(standing(FAILOVER, [], now), now, by_itself=False)
    day = 24 * 60

    if minutes < -7 * day:
        assert said is None
        return
    assert said is not None
    wanted = "7d" if minutes < -day else "1d" if minutes < 0 else "start" if minutes < day else "overdue"
    assert said.stage.startswith(wanted)
    assert "`failover`" in said.text


def test_the_stages_between_two_instants_are_said_once_each() -> None:
    stages = []
    for minute in range(-8 * 24 * 60, 24 * 24 * 60, 7):
        now = FIRST + timedelta(minutes=minute)
        said = reminder(standing(FAILOVER, [], now), now, by_itself=False)
        if said is not None and said.stage not in stages:
            stages.append(said.stage)
    assert stages == ["7d", "1d", "start", "overdue-0", "overdue-1", "overdue-2", "overdue-3"]
