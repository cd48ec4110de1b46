"""A run goes on only where it could start when it did: to be marked as started in the bot's database is not enough."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actions.approval import Act, Case, Code, Once, PolicyVersion, State, decide
from tests.fakes.signatures import (
    GLASS,
    KEY_REQUEST,
    LATER,
    NOW,
    REQUEST,
    ROSTER,
    SECURITY,
    a_case,
    a_rule,
    begun,
    sign,
)

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
SIGNED = (REQUEST, sign("dba"))
FREEZE = Once(since=NOW + 600 * SECOND, until=LATER, reason="Black Friday")
SAME = PolicyVersion(rules="r1", roster="p1")


def told(case: Case) -> str:
    """Why the run may not go on, however late it is asked."""
    first, *rest = {decide(case, at) for at in (NOW - HOUR, NOW, LATER, LATER + HOUR)}
    assert rest == []
    assert (first.state, first.code) == (State.VOID, Code.UNDUE_START)
    return first.reason


def test_signed_and_expired_is_not_started_by_a_mark() -> None:
    case = a_case(*SIGNED)
    assert told(begun(case, NOW + HOUR)) == (
        "Its run is marked as started at 2026-11-23 11:00 UTC, when it could not start. This plan has expired: it was "
        "signed, but could not start in time. Ask for it again. Have somebody find out who wrote into the bot's "
        "database."
    )
    assert decide(begun(case, NOW + HOUR - SECOND), NOW + 9 * HOUR).state is State.APPROVED


def test_nor_in_a_freeze() -> None:
    case = a_case(*SIGNED, rule=a_rule(freezes=(FREEZE,)))
    assert "Missing was the end of the freeze (Black Friday) at 2026-11-23 10:30 UTC. Have" in told(
        begun(case, FREEZE.since)
    )
    for at in (FREEZE.since - SECOND, LATER):
        assert decide(begun(case, at), FREEZE.since + SECOND).state is State.APPROVED


def test_nor_before_the_end_of_a_veto_period() -> None:
    case = a_case(KEY_REQUEST, break_glass=GLASS, recovery=True)
    ready = NOW + GLASS.delay
    assert "Missing was the end of the veto period at 2026-11-23 10:05 UTC." in told(begun(case, ready - SECOND))
    assert decide(begun(case, ready), ready + HOUR).state is State.APPROVED


def test_nor_on_signers_whom_nobody_had_looked_at() -> None:
    case = a_case(*SIGNED, seen_within=timedelta(minutes=15))
    assert "a fresh look at the Slack account of Dan" in told(begun(case, NOW + timedelta(minutes=16)))


@pytest.mark.parametrize(
    ("then", "why"),
    [
        ({"policy_now": SAME.model_copy(update={"rules": "r2"})}, "The approval policy has changed"),
        ({"policy_now": SAME.model_copy(update={"roster": "p2"})}, "The roster has changed"),
        ({"unwitnessed": True}, "The plan file names no `record`"),
        ({"denied": "x1"}, "Plan x1 for the same was denied meanwhile"),
        ({"rules": (a_rule(channels=("C0ELSEWHERE",)),)}, "This is not allowed in this channel"),
        ({"rules": (a_rule(others=2),)}, "Missing was 1 more person(s)"),
        (
            {"rules": (a_rule(others=2, slots=(SECURITY,)),)},
            "Missing was 1 more person(s) besides the requester, 1 of security.",
        ),
        ({"roster": {name: item for name, item in ROSTER.items() if name != "dba"}}, "Missing was 1 more person(s)"),
    ],
)
def test_what_had_made_it_void_by_then_is_not_passed_over(then: dict[str, Any], why: str) -> None:
    case = a_case(*SIGNED, policy_then=SAME, policy_now=SAME)
    assert f"when it could not start. {why}" in told(begun(case, **then))


def test_what_comes_after_the_start_stops_nothing_but_signatures_that_no_longer_count() -> None:
    later = {
        "policy_now": SAME.model_copy(update={"rules": "r2"}),
        "unwitnessed": True,
        "denied": "x1",
        "rules": (a_rule(channels=("C0ELSEWHERE",), freezes=(FREEZE,), execution_expiry=SECOND),),
    }
    case = a_case(*SIGNED, policy_then=SAME, policy_now=SAME)
    running = begun(case).model_copy(update=later)
    assert decide(running, LATER).state is State.APPROVED
    gone = running.model_copy(update={"barred": {"U0DBA": "This account is deactivated."}})
    assert (decide(gone, LATER).state, decide(gone, LATER).code) == (State.PENDING, None)


# ---------------------------------------------------------------- laws

MOMENTS = st.integers(min_value=-600, max_value=7200).map(lambda seconds: NOW + timedelta(seconds=seconds))
ACTS = st.lists(
    st.builds(
        sign,
        st.sampled_from(["oncall", "dba", "security"]),
        st.sampled_from([Act.REQUEST, Act.APPROVE, Act.DENY, Act.WITHDRAW]),
        at=st.integers(min_value=0, max_value=2400),
    ),
    max_size=5,
)
CASES = st.builds(
    lambda acts, frozen, glass: a_case(
        REQUEST, *acts, rule=a_rule(freezes=(FREEZE,) if frozen else ()), break_glass=glass, recovery=True
    ),
    ACTS,
    st.booleans(),
    st.sampled_from([None, GLASS]),
)


@settings(max_examples=200)
@given(CASES, MOMENTS, MOMENTS)
def test_a_run_goes_on_whenever_it_could_start_when_it_did_and_never_else(case: Case, at: Any, now: Any) -> None:
    could = decide(case, at).state is State.APPROVED
    assert (decide(begun(case, at), now).state is State.APPROVED) == could
