"""What the plan's schedule asks for, decided purely: whatever was missed, whoever looks, the newest due once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from actions.schedules import Schedule, every
from bot.services.schedules import KEY, Again, Past, Recurring, again_after, due, recurring, second_at
from tests.fixtures.office import shipped_plan

NOW = datetime(2026, 11, 23, 10, 12, tzinfo=UTC)
moments = st.datetimes(
    min_value=datetime(2026, 1, 1),  # noqa: DTZ001 - the zone comes from `timezones`
    max_value=datetime(2030, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)
texts = st.sampled_from(
    [
        "02:00 UTC",
        "mon 09:00 UTC",
        "1st mon 09:00 UTC",
        "1 of jan,apr,jul,oct 09:00 UTC",
        "last 23:59 UTC",
        "31 00:00 UTC",
    ]
)
rhythms = st.sampled_from([timedelta(minutes=15), timedelta(hours=1), timedelta(minutes=7)])
QUARTERS = Recurring("x", ("x",), "backup.base", {}, partial(every, timedelta(minutes=15)))


@given(texts, moments)
def test_the_last_and_the_next_instant_enclose_the_moment(text: str, moment: datetime) -> None:
    schedule = Schedule(text)
    last, following = schedule.until(moment), schedule.after(moment)

    assert last is not None
    assert last <= moment < following
    assert list(schedule.between(last, following)) == [following]
    assert schedule.until(following) == following


@given(rhythms, moments)
def test_a_rhythm_starts_anew_at_midnight(rhythm: timedelta, moment: datetime) -> None:
    last = every(rhythm, moment)

    assert last <= moment < last + rhythm
    assert every(rhythm, last) == last
    assert every(rhythm, moment.replace(hour=0, minute=0, second=0, microsecond=0)).hour == 0


def test_the_shipped_plan_asks_for_what_its_table_says() -> None:
    lines = {line.name: line for line in recurring(shipped_plan())}
    server = shipped_plan().database("superprismora").server

    assert lines["dump/superprismora"].until(NOW) == NOW.replace(hour=2, minute=0)
    assert lines[f"full/{server}"].until(NOW) == NOW.replace(hour=2, minute=30)
    assert lines[f"incremental/{server}"].until(NOW) == NOW.replace(minute=0)
    assert lines["files/minio-data"].until(NOW) == NOW.replace(hour=3, minute=0)
    assert lines["escrow/production"].until(NOW) == NOW.replace(hour=4, minute=0)
    assert lines["dump/superprismora"].key(NOW) == "schedule/dump/superprismora/2026-11-23T10:12Z"
    assert not any(name.startswith("base-wanted") for name in lines)
    wanted = recurring(shipped_plan(), [server, "unknown"])
    assert [line.name for line in wanted if line.name.startswith("base-wanted")] == [f"base-wanted/{server}"]


@given(moments, st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=9)))
def test_of_missed_instants_the_newest_alone_is_asked_for_once(now: datetime, away: timedelta) -> None:
    newest = every(timedelta(minutes=15), now - away)
    found = due(QUARTERS, Past(newest), now)

    if found is None:
        assert newest == every(timedelta(minutes=15), now)
    else:
        assert found.asks
        assert found.instant == every(timedelta(minutes=15), now)
        assert due(QUARTERS, Past(found.instant), now) is None


@given(st.lists(st.tuples(st.timedeltas(timedelta(0), timedelta(hours=2)), st.booleans()), max_size=40))
def test_however_often_it_looks_no_instant_is_asked_for_twice_and_none_while_one_is_open(
    looks: list[tuple[timedelta, bool]],
) -> None:
    now, past, asked = NOW, Past(), list[datetime]()
    for step, opened in looks:
        now += step
        found = due(QUARTERS, Past(past.newest, open=opened), now)
        if found is not None:
            assert found.instant not in asked
            assert not (found.asks and opened)
            past = Past(found.instant)
            asked.append(found.instant)
    assert asked == sorted(asked)


def test_a_new_plan_begins_with_its_next_instant_but_a_wanted_base_at_once() -> None:
    first = due(QUARTERS, Past(), NOW)
    wanted = due(
        Recurring("x", ("x",), "backup.base", {}, partial(every, timedelta(hours=1)), from_now=False), Past(), NOW
    )

    assert first is not None
    assert not first.asks
    assert wanted is not None
    assert wanted.asks


@given(moments)
def test_keys_sort_as_their_instants(moment: datetime) -> None:
    assert moment.strftime(KEY) < (moment + timedelta(minutes=1)).strftime(KEY)


@given(rhythms, moments, st.timedeltas(timedelta(0), timedelta(days=1)))
def test_a_second_try_is_never_later_than_its_next_instant(
    rhythm: timedelta, failed_at: datetime, ran: timedelta
) -> None:
    after = again_after(rhythm)
    instant = every(rhythm, failed_at - ran)
    if after is None:
        assert rhythm < timedelta(minutes=20)
        return
    line = Recurring("x", ("x",), "point.record", {}, partial(every, rhythm), again=Again(after, "point", "record"))

    second = second_at(line, instant, failed_at)

    assert second is None or (failed_at < second < instant + rhythm)
    assert (
        second is not None
        or failed_at + after >= every(rhythm, failed_at) + rhythm
        or every(rhythm, failed_at) > (instant)
    )


def test_what_is_made_once_a_day_is_asked_for_again_after_an_hour_and_checks_are_not() -> None:
    lines = {line.name: line.again for line in recurring(shipped_plan())}
    server = shipped_plan().database("superprismora").server

    for name in ("dump/superprismora", f"full/{server}", "files/minio-data", "escrow/production", f"expire/{server}"):
        again = lines[name]
        assert again is not None
        assert (again.after, again.tells) == (timedelta(hours=1), True)
    point = lines["recovery-point"]
    assert point is not None
    assert (point.after, point.tells) == (timedelta(minutes=15), False)  # an alarm tells of a late one
    assert lines[f"incremental/{server}"] is None
    assert lines["check-dump/superprismora"] is None
