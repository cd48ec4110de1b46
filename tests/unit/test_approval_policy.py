"""Rules: which plans they cover, who can fill them, when nothing starts."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actions.approval import Act, Code, Method, Person, Rule, Slot, State, admit, decide
from actions.contract import Risk
from actions.policy import Once, Weekly, frozen, lacking, minimum_others, others_needed, seats, shortfall
from tests.fakes.signatures import (
    DBA,
    KEY_REQUEST,
    LATER,
    NOW,
    REQUEST,
    ROSTER,
    SECURITY,
    a_case,
    a_plan,
    a_rule,
    begun,
    key,
    sign,
    signer,
)

# ---------------------------------------------------------------- cover


@pytest.mark.parametrize(
    ("changes", "covers"),
    [
        ({}, True),
        ({"risk": Risk.DISRUPTIVE}, False),
        ({"actions": ("restore.dump", "x.y")}, True),
        ({"actions": ("x.y",)}, False),
        ({"targets": ("shop",)}, True),
        ({"targets": ("other",)}, False),
        ({"services": ("web",)}, True),
        ({"services": ("other",)}, False),
        ({"actions": ("restore.dump",), "targets": ("other",)}, False),
        ({"channels": ("C0ELSEWHERE",), "key_required": True}, True),
    ],
)
def test_a_rule_covers_what_it_names(changes: dict[str, object], covers: bool) -> None:
    assert a_rule(**changes).covers(a_plan(), "web") is covers


def test_all_rules_that_cover_a_plan_must_be_satisfied() -> None:
    rules = (a_rule(slots=(DBA,)), a_rule(others=2, targets=("shop",), slots=(SECURITY,), typed_target=True))
    case = a_case(REQUEST, sign("dba"), rules=rules)

    assert decide(case, NOW).missing == ("1 more person(s) besides the requester", "1 of security")
    assert case.typed_target
    assert decide(a_case(REQUEST, sign("dba"), sign("security"), rules=rules), NOW).state is State.APPROVED


def test_a_rule_that_does_not_cover_the_plan_asks_for_nothing() -> None:
    rules = (a_rule(), a_rule(others=2, targets=("other",), typed_target=True))

    assert decide(a_case(REQUEST, sign("dba", typed=""), rules=rules), NOW).state is State.APPROVED


def test_a_person_takes_one_seat_in_each_rule() -> None:
    rules = (a_rule(slots=(DBA,)), a_rule(targets=("shop",), slots=(DBA,)))

    assert decide(a_case(REQUEST, sign("dba"), rules=rules), NOW).state is State.APPROVED


def test_the_shortest_of_the_expiries_counts() -> None:
    hour, minute = timedelta(hours=1), timedelta(minutes=1)
    case = a_case(rules=(a_rule(execution_expiry=hour), a_rule(execution_expiry=minute, targets=("shop",))))

    assert case.execution_expiry == minute


@given(st.lists(st.integers(0, 3), max_size=3), st.sampled_from(list(Risk)))
def test_no_rule_goes_under_the_floor(others: list[int], risk: Risk) -> None:
    rules = [Rule(risk=risk, others=count) for count in others]

    assert others_needed(rules, risk) >= max([*others, {Risk.IRREVERSIBLE: 2}.get(risk, 0)])
    assert others_needed(rules, risk) >= (1 if risk.level >= Risk.DISRUPTIVE.level else 0)


# ---------------------------------------------------------------- groups and keys

IN_GROUP = Slot(roles=frozenset({"dba"}), group="S0DBA")
MEMBERS = {"S0DBA": frozenset({"U0DBA", "U0SECURITY"})}


def test_a_group_takes_the_right_away_from_those_outside() -> None:
    rule = a_rule(slots=(IN_GROUP,))
    signed = (REQUEST, sign("dba"))

    assert decide(a_case(*signed, rule=rule), NOW).missing == ("1 of dba (in S0DBA)",)
    assert decide(a_case(*signed, rule=rule, groups=MEMBERS), NOW).state is State.APPROVED


def test_a_group_gives_no_right_to_those_inside() -> None:
    case = a_case(REQUEST, sign("security"), rule=a_rule(slots=(IN_GROUP,)), groups=MEMBERS)

    assert decide(case, NOW).missing == ("1 of dba (in S0DBA)",)


def test_another_group_does_not_help() -> None:
    groups = {"S0SRE": frozenset({"U0DBA"}), "S0DBA": frozenset({"U0SECURITY"})}

    assert decide(a_case(REQUEST, sign("dba"), rule=a_rule(slots=(IN_GROUP,)), groups=groups), NOW).missing


def test_a_group_says_nothing_on_a_key() -> None:
    assert decide(a_case(REQUEST, key("dba"), rule=a_rule(slots=(IN_GROUP,))), NOW).state is State.APPROVED


def test_the_account_of_a_key_is_no_slack_account() -> None:
    # Somebody could be called like an account of the group.
    groups = {"S0DBA": frozenset({"dba"})}
    both = (sign("dba", account="U0DBA"), key("dba"))
    slack_only = a_case(REQUEST, both[0], rule=a_rule(slots=(IN_GROUP,)), groups=groups)

    assert decide(slack_only, NOW).state is State.PENDING


@pytest.mark.parametrize("signed", [(REQUEST, key("dba")), (KEY_REQUEST, sign("dba"))])
def test_one_signature_must_be_by_key_where_the_policy_asks(signed: tuple[object, ...]) -> None:
    rule = a_rule(key_required=True)

    assert decide(a_case(REQUEST, sign("dba"), rule=rule), NOW).missing == ("one signature with a key (`drbot sign`)",)
    assert decide(a_case(*signed, rule=rule), NOW).state is State.APPROVED  # type: ignore[arg-type]


def test_a_key_that_counts_for_nothing_does_not_count_as_the_key() -> None:
    late = key("dba", at=3600)

    assert decide(a_case(REQUEST, sign("security"), late, rule=a_rule(key_required=True)), NOW).state is State.PENDING


@pytest.mark.parametrize(
    ("risk", "others"),
    [(Risk.READ, 0), (Risk.REVERSIBLE, 0), (Risk.DISRUPTIVE, 1), (Risk.DESTRUCTIVE, 1), (Risk.IRREVERSIBLE, 2)],
)
def test_no_policy_goes_below_so_many_others(risk: Risk, others: int) -> None:
    assert minimum_others(risk) == others
    assert others_needed((), risk) == others


def test_slots_are_named_in_words() -> None:
    both = Slot(roles=frozenset({"sre", "dba"}), count=2)

    assert seats((both, IN_GROUP)) == "2 of dba or sre AND 1 of dba (in S0DBA)"
    assert seats(()) == ""


def test_open_seats_are_counted_together() -> None:
    rules = (a_rule(slots=(Slot(roles=frozenset({"dba"}), count=3),)), a_rule(targets=("shop",), slots=(DBA, SECURITY)))
    signers = [signer("oncall", Method.SLACK), signer("dba", Method.SLACK)]

    assert lacking(rules, Risk.DESTRUCTIVE, signers, others=3) == ("2 of dba", "1 of security")


# ---------------------------------------------------------------- whether anybody can


def persons(*names: str) -> list[Person]:
    return [ROSTER[name] for name in names]


@pytest.mark.parametrize(
    ("rule", "there", "lacks"),
    [
        (a_rule(), ["oncall", "guest"], ()),
        (a_rule(), ["oncall"], ("1 more person(s) besides the requester",)),
        (a_rule(others=2), [], ("2 more person(s) besides the requester",)),
        (a_rule(slots=(DBA, SECURITY)), ["oncall", "dba2"], ("1 of security",)),
        (a_rule(slots=(DBA, SECURITY)), ["dba", "dba2"], ()),
        (a_rule(key_required=True), ["dba2", "security"], ("one signature with a key (`drbot sign`)",)),
        (a_rule(key_required=True), ["dba", "security"], ()),
        (a_rule(slots=(IN_GROUP,)), ["dba2", "security"], ()),
    ],
)
def test_what_a_roster_lacks(rule: Rule, there: list[str], lacks: tuple[str, ...]) -> None:
    assert shortfall((rule,), Risk.DESTRUCTIVE, persons(*there)) == lacks


def test_a_person_without_account_and_key_helps_nobody() -> None:
    mute = Person(id="mute", name="Mo", roles=frozenset({"dba"}), means=frozenset())

    assert shortfall((a_rule(slots=(DBA,)),), Risk.DESTRUCTIVE, [*persons("oncall", "security"), mute]) == ("1 of dba",)


@settings(max_examples=200)
@given(
    others=st.integers(0, 3),
    slots=st.lists(st.sampled_from([DBA, SECURITY, Slot(roles=frozenset({"on_call"}))]), max_size=3).map(tuple),
    names=st.sets(st.sampled_from(list(ROSTER)), min_size=1),
)
def test_what_is_not_lacking_is_approved_when_all_sign_and_else_is_not(
    others: int, slots: tuple[Slot, ...], names: set[str]
) -> None:
    rule = a_rule(others=others, slots=slots)
    requester = sorted(names)[0]
    acts = [sign(name, Act.REQUEST if name == requester else Act.APPROVE) for name in names]
    case = a_case(*acts, rule=rule, requester=requester)

    reachable = not shortfall((rule,), Risk.DESTRUCTIVE, persons(*names))
    assert (decide(case, NOW).state is State.APPROVED) == reachable


# ---------------------------------------------------------------- windows

HOUR = timedelta(hours=1)


@pytest.mark.parametrize(("offset", "holds"), [(-1, False), (0, True), (1, True), (3599, True), (3600, False)])
def test_a_window_holds_from_its_beginning_until_before_its_end(offset: int, holds: bool) -> None:
    window = Once(since=NOW, until=NOW + HOUR)

    assert window.ends(NOW + timedelta(seconds=offset)) == (NOW + HOUR if holds else None)


def at(day: int, hour: int, minute: int = 0) -> datetime:
    """A time of the week of Monday, 2026-01-05."""
    return datetime(2026, 1, 5, hour, minute, tzinfo=UTC) + timedelta(days=day)


NIGHT = Weekly(days=frozenset({3, 4}), since=time(22), until=time(6))


@pytest.mark.parametrize(
    ("moment", "ends"),
    [
        (at(3, 21, 59), None),
        (at(3, 22), at(4, 6)),
        (at(4, 5, 59), at(4, 6)),
        (at(4, 6), None),
        (at(4, 22), at(5, 6)),
        (at(5, 3), at(5, 6)),
        (at(5, 22), None),
        (at(3, 3), None),  # the night before was no Thursday's
        (at(0, 0), None),
    ],
)
def test_a_weekly_night_ends_on_the_next_day(moment: datetime, ends: datetime | None) -> None:
    assert NIGHT.ends(moment) == ends


@pytest.mark.parametrize(
    ("moment", "ends"), [(at(1, 7, 59), None), (at(1, 8), at(1, 9)), (at(1, 9), None), (at(2, 8), None)]
)
def test_a_weekly_window_within_a_day(moment: datetime, ends: datetime | None) -> None:
    assert Weekly(days=frozenset({1}), since=time(8), until=time(9)).ends(moment) == ends


BERLIN = Weekly(days=frozenset({0, 6}), since=time(0, 30), until=time(23, 30), zone="Europe/Berlin")


def test_every_begin_and_end_between_two_instants_is_known() -> None:
    monday = [datetime(2026, 1, 4, 23, 30, tzinfo=UTC), datetime(2026, 1, 5, 22, 30, tzinfo=UTC)]
    sunday = [edge + timedelta(days=6) for edge in monday]

    def turns(since: datetime, until: datetime) -> list[datetime]:
        found = BERLIN.turns(since, until)
        assert all(edge.tzinfo is UTC for edge in found)
        return found

    assert turns(monday[0] - timedelta(days=1, seconds=1), monday[0] + timedelta(days=7)) == [
        monday[0] - timedelta(days=1),
        monday[0] - timedelta(hours=1),
        *monday,
        *sunday,
    ]
    assert turns(monday[0], monday[1]) == []  # those at the two instants are not between them
    assert turns(monday[0] - timedelta(seconds=1), monday[0] + timedelta(seconds=1)) == [monday[0]]
    assert turns(monday[1] - timedelta(seconds=1), monday[1] + timedelta(seconds=1)) == [monday[1]]
    assert len(turns(monday[0], monday[0] + timedelta(days=28))) == 15


def test_a_night_that_began_before_ends_between() -> None:
    assert NIGHT.turns(at(4, 1), at(4, 12)) == [at(4, 6)]
    assert NIGHT.turns(at(3, 12), at(3, 23)) == [at(3, 22)]


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12"])
def test_no_turn_is_missed_in_zones_a_day_away(zone: str) -> None:
    daily = Weekly(days=frozenset(range(7)), since=time(12), until=time(11), zone=zone)

    for hour in range(48):
        since = at(0, 0) + timedelta(hours=hour, minutes=-1)
        assert len(daily.turns(since, since + timedelta(days=1))) == 2


def test_a_whole_day_ends_where_it_began() -> None:
    assert Weekly(days=frozenset({5}), since=time(0), until=time(0)).ends(at(5, 12)) == at(6, 0)


@pytest.mark.parametrize(
    ("moment", "holds"),
    [
        (datetime(2026, 7, 6, 5, 30, tzinfo=UTC), False),  # 07:30 in Berlin's summer
        (datetime(2026, 7, 6, 6, 0, tzinfo=UTC), True),
        (datetime(2026, 1, 5, 6, 30, tzinfo=UTC), False),  # 07:30 in its winter
        (datetime(2026, 1, 5, 7, 0, tzinfo=UTC), True),
    ],
)
def test_a_zone_keeps_its_summer_time(moment: datetime, holds: bool) -> None:
    window = Weekly(days=frozenset({0}), since=time(8), until=time(9), zone="Europe/Berlin")

    assert (window.ends(moment) is not None) is holds


def test_the_night_the_clocks_change_has_its_own_length() -> None:
    night = Weekly(days=frozenset({5}), since=time(22), until=time(6), zone="Europe/Berlin")
    begin = datetime(2026, 3, 28, 21, 0, tzinfo=UTC)

    assert night.ends(begin) == begin + timedelta(hours=7)


def test_the_day_is_that_of_the_zone() -> None:
    monday_in_tokyo = datetime(2026, 1, 4, 15, 30, tzinfo=UTC)  # still Sunday in UTC

    assert Weekly(days=frozenset({0}), since=time(0), until=time(1), zone="Asia/Tokyo").ends(monday_in_tokyo)


# ---------------------------------------------------------------- freezes

FREEZE = Once(since=NOW, until=NOW + HOUR, reason="Black Friday")
LONGER = Once(since=NOW, until=NOW + 2 * HOUR, reason="Christmas")


def test_the_freeze_that_holds_longest_is_told() -> None:
    for order in permutations((a_rule(freezes=(FREEZE,)), a_rule(freezes=(LONGER,)), a_rule())):
        assert frozen(order, NOW) == (LONGER, NOW + 2 * HOUR)
    assert frozen((a_rule(freezes=(FREEZE,)),), NOW + HOUR) is None


def test_what_is_signed_does_not_start_in_a_freeze_and_starts_after_it() -> None:
    rule = a_rule(freezes=(FREEZE,), execution_expiry=timedelta(days=1))
    case = a_case(REQUEST, sign("dba"), rule=rule)

    held = decide(case, NOW)
    assert (held.state, held.signers) == (State.PENDING, ("dba", "oncall"))
    assert held.missing == ("the end of the freeze (Black Friday) at 2026-11-23 11:00 UTC",)
    assert held.start_by == NOW + timedelta(days=1)
    assert decide(case, NOW + HOUR).state is State.APPROVED


def test_a_freeze_without_a_reason_is_told_without_one() -> None:
    rule = a_rule(freezes=(Once(since=NOW, until=LATER),))

    assert decide(a_case(REQUEST, sign("dba"), rule=rule), NOW).missing == (
        "the end of the freeze at 2026-11-23 10:30 UTC",
    )


def test_a_freeze_does_not_stop_what_has_started() -> None:
    signed = (sign("oncall", Act.REQUEST, at=-60), sign("dba", at=-30))
    case = a_case(*signed, rule=a_rule(freezes=(FREEZE,)))

    assert decide(begun(case, FREEZE.since - timedelta(seconds=1)), NOW).state is State.APPROVED


def test_a_freeze_outlasts_old_signatures() -> None:
    rule = a_rule(freezes=(FREEZE,), execution_expiry=timedelta(minutes=10))

    assert decide(a_case(REQUEST, sign("dba"), rule=rule), NOW + timedelta(minutes=10)).state is State.EXPIRED


@pytest.mark.parametrize(("person", "act"), [("dba", Act.APPROVE), ("oncall", Act.REQUEST)])
def test_nothing_is_signed_in_a_freeze(person: str, act: Act) -> None:
    signed = () if act is Act.REQUEST else (REQUEST,)
    case = a_case(*signed, rule=a_rule(freezes=(FREEZE,)))

    refusal = admit(case, person, act, digest=case.plan.digest, typed="shop", reason="because", now=NOW)
    assert refusal is not None
    assert refusal.code is Code.FROZEN
    assert refusal.text == (
        "Nothing of this kind starts before the end of the freeze (Black Friday) at 2026-11-23 11:00 UTC; "
        "ask again then."
    )


def test_a_denial_is_taken_in_a_freeze() -> None:
    case = a_case(REQUEST, rule=a_rule(freezes=(FREEZE,)))

    assert admit(case, "dba", Act.DENY, digest=case.plan.digest, typed="", reason="no", now=LATER - HOUR / 4) is None
