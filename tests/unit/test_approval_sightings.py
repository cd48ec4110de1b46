"""How old a look at a signer's Slack account may be when the run starts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from actions.approval import Case, Signature, State, decide
from tests.fakes.signatures import GLASS, KEY_REQUEST, NOW, REQUEST, a_case, begun, key, sign

WITHIN = timedelta(minutes=15)
OLD = NOW + WITHIN + timedelta(seconds=1)


def case(*signatures: Signature, **changes: Any) -> Case:
    return a_case(*signatures, seen_within=WITHIN, **changes)


def looked(signature: Signature, minutes: int) -> Signature:
    return signature.model_copy(update={"looked_at": NOW + timedelta(minutes=minutes)})


def test_the_click_itself_is_a_look() -> None:
    assert decide(case(REQUEST, sign("dba")), NOW + WITHIN).state is State.APPROVED


def test_an_old_look_starts_nothing_and_says_what_is_missing() -> None:
    decision = decide(case(REQUEST, sign("dba")), OLD)
    assert (decision.state, decision.code) == (State.PENDING, None)
    assert decision.unseen == ("dba", "oncall")
    first, second = decision.missing
    assert "the Slack account of Dan (last one 2026-11-23 10:00 UTC, and it may be 15 min old" in first
    assert "`drbot sign abc`" in first
    assert "Ona" in second
    assert decision.start_by == NOW + timedelta(hours=1)


def test_a_newer_look_at_every_signer_lets_it_start() -> None:
    one = case(looked(REQUEST, 10), sign("dba"))
    assert decide(one, OLD).unseen == ("dba",)
    both = case(looked(REQUEST, 10), looked(sign("dba"), 5))
    assert decide(both, OLD) == decide(case(REQUEST, sign("dba")), NOW).model_copy()


def test_whom_it_does_not_need_does_not_hold_it_up() -> None:
    others = case(looked(REQUEST, 10), sign("dba"), looked(sign("security"), 10))
    decision = decide(others, OLD)
    assert (decision.state, decision.unseen) == (State.APPROVED, ())


def test_keys_need_no_look() -> None:
    assert decide(case(KEY_REQUEST, key("dba")), OLD).state is State.APPROVED
    # Whoever has clicked signs with a key as well.
    late = case(REQUEST, sign("dba"), key("dba", at=60), key("oncall", act=REQUEST.act, at=90))
    assert decide(late, OLD).state is State.APPROVED


def test_a_run_that_has_started_never_waits_for_slack() -> None:
    assert decide(begun(case(REQUEST, sign("dba"))), OLD).state is State.APPROVED


def test_it_expires_with_the_reason() -> None:
    decision = decide(case(REQUEST, sign("dba")), NOW + timedelta(hours=1))
    assert decision.state is State.EXPIRED
    assert decision.reason == (
        "This plan has expired: it was signed, but could not start in time. Ask for it again. Nobody had looked at the "
        "Slack accounts of its signers: sign with keys while Slack is away."
    )


def test_without_a_limit_any_look_will_do() -> None:
    assert decide(a_case(REQUEST, sign("dba")), OLD).state is State.APPROVED


@pytest.mark.parametrize(("request_", "unseen"), [(REQUEST, ("oncall",)), (KEY_REQUEST, ())])
def test_under_break_glass_the_commander_is_looked_at_too(request_: Signature, unseen: tuple[str, ...]) -> None:
    alone = case(request_, break_glass=GLASS, recovery=True)
    early = decide(alone, NOW)
    assert (early.state, early.unseen) == (State.PENDING, ())
    seldom = case(request_.model_copy(update={"at": OLD, "looked_at": NOW}), break_glass=GLASS, recovery=True)
    waits = decide(seldom.model_copy(update={"expires_at": OLD + timedelta(hours=1)}), OLD)
    assert (waits.state, waits.unseen) == (State.PENDING, ())  # the veto first: by its end somebody may have looked
    decision = decide(alone, OLD)
    assert decision.unseen == unseen
    assert decision.state is (State.PENDING if unseen else State.APPROVED)
    assert decision.ready_at == NOW + GLASS.delay


def test_one_who_signs_along_holds_no_break_glass_up() -> None:
    both = case(KEY_REQUEST, sign("dba"), break_glass=GLASS, recovery=True)
    assert decide(both, OLD).state is State.APPROVED


def test_a_key_counts_beside_a_click_in_time_and_does_not_let_it_start_later() -> None:
    expires = NOW + timedelta(minutes=30)
    clicked = case(REQUEST, sign("dba"), expires_at=expires)
    late = [key("dba", at=31 * 60), key("oncall", act=REQUEST.act, at=32 * 60)]
    again = case(REQUEST, sign("dba"), *late, expires_at=expires)
    at = NOW + timedelta(minutes=33)
    assert decide(clicked, at).unseen == ("dba", "oncall")
    assert decide(again, at).state is State.APPROVED
    assert decide(again, at).start_by == decide(clicked, at).start_by
    # Who has not signed in time signs nothing any more.
    alone = case(REQUEST, late[0], expires_at=expires)
    assert decide(alone, at).state is State.EXPIRED
    # Nor who clicked at the very end, which is too late.
    late_click = case(REQUEST, sign("dba", at=30 * 60), late[0], expires_at=expires)
    assert decide(late_click, at).state is State.EXPIRED


def test_complete_signatures_that_nobody_looked_at_wait_for_a_look_also_where_glass_could_be_broken() -> None:
    """The requester is no commander and has no key, so nobody may act alone: it is not their signature that lacks."""
    other = GLASS.model_copy(update={"commander": "security"})
    decision = decide(case(REQUEST, sign("dba"), break_glass=other, recovery=True), OLD)
    assert (decision.state, decision.unseen) == (State.PENDING, ("dba", "oncall"))
