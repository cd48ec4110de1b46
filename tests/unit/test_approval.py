"""The rules of signing: every refusal, and the laws that hold whatever people click and in whatever order."""

from __future__ import annotations

from datetime import timedelta
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actions.approval import Act, Case, Code, Rule, Signature, Slot, State, admit, decide, minimum_others, unfilled
from actions.contract import Risk
from tests.fakes.signatures import (
    DBA,
    LATER,
    NOW,
    REQUEST,
    ROSTER,
    SECURITY,
    a_case,
    a_plan,
    a_rule,
    begun,
    sign,
    signer,
)

# ---------------------------------------------------------------- decide


def test_the_request_alone_is_not_enough() -> None:
    decision = decide(a_case(REQUEST), NOW)

    assert decision.state is State.PENDING
    assert decision.missing == ("1 more person(s) besides the requester",)


def test_one_other_person_completes_it() -> None:
    assert decide(a_case(REQUEST, sign("dba")), NOW).state is State.APPROVED


def test_an_approval_without_the_request_is_not_enough() -> None:
    assert decide(a_case(sign("dba")), NOW).missing == ("the requester's own signature",)


def test_the_requester_counts_once_however_often_he_clicks() -> None:
    clicks = [sign("oncall", act, at=second) for second, act in enumerate([Act.REQUEST, Act.APPROVE, Act.APPROVE])]

    assert decide(a_case(*clicks), NOW).state is State.PENDING


@pytest.mark.parametrize("risk", [risk for risk in Risk if risk.level >= Risk.DISRUPTIVE.level])
def test_a_policy_cannot_go_below_two_persons(risk: Risk) -> None:
    plan = a_plan(risk=risk)
    request = sign("oncall", Act.REQUEST, digest=plan.digest)

    lax = a_case(request, plan=plan, rule=Rule(risk=risk, others=0))

    assert minimum_others(risk) >= 1
    assert decide(lax, NOW).state is State.PENDING


def test_irreversible_needs_two_others_whatever_the_policy_says() -> None:
    plan = a_plan(risk=Risk.IRREVERSIBLE)
    signed = [sign("oncall", Act.REQUEST, digest=plan.digest), sign("dba", digest=plan.digest)]

    case = a_case(*signed, plan=plan, rule=Rule(risk=Risk.IRREVERSIBLE, others=1))

    assert decide(case, NOW).state is State.PENDING


def test_no_rule_means_no() -> None:
    case = a_case(REQUEST, sign("dba")).model_copy(update={"rules": ()})

    assert decide(case, NOW).state is State.VOID


def test_a_stopped_plan_is_void() -> None:
    plan = a_plan(stopped=True)

    assert decide(a_case(REQUEST, sign("dba"), plan=plan), NOW).reason == (
        "The disk is full. Ask for a new plan once this is put right."
    )


def test_a_person_who_left_the_roster_counts_no_more() -> None:
    case = a_case(REQUEST, sign("dba"))

    left = case.model_copy(update={"roster": {key: person for key, person in ROSTER.items() if key != "dba"}})

    assert decide(left, NOW).state is State.PENDING


def test_a_signature_on_another_digest_counts_nothing() -> None:
    assert decide(a_case(REQUEST, sign("dba", digest="0" * 64)), NOW).state is State.PENDING


@pytest.mark.parametrize("typed", ["", "shoP", "shop ", "shоp"])  # the last one with a Cyrillic letter
def test_a_wrongly_typed_target_counts_nothing(typed: str) -> None:
    case = a_case(REQUEST, sign("dba", typed=typed), rule=a_rule(typed_target=True))

    assert decide(case, NOW).state is State.PENDING


@pytest.mark.parametrize(("seconds", "state"), [(-1, State.PENDING), (0, State.EXPIRED), (1, State.EXPIRED)])
def test_unsigned_it_expires_at_the_very_moment(seconds: int, state: State) -> None:
    assert decide(a_case(REQUEST), LATER + timedelta(seconds=seconds)).state is state


@pytest.mark.parametrize(("seconds", "state"), [(-1, State.APPROVED), (0, State.EXPIRED), (1, State.EXPIRED)])
def test_signed_it_must_start_before_the_signatures_grow_old(seconds: int, state: State) -> None:
    last = sign("dba", at=5)
    case = a_case(REQUEST, last)

    assert decide(case, last.at + case.execution_expiry + timedelta(seconds=seconds)).state is state


def test_signed_in_time_it_may_wait_for_a_lock_past_the_signing_deadline() -> None:
    case = a_case(REQUEST, sign("dba"), rule=a_rule(execution_expiry=timedelta(days=9999)))

    assert decide(case, LATER + timedelta(hours=1)).state is State.APPROVED


def test_a_signature_after_the_deadline_is_nothing() -> None:
    late = sign("dba").model_copy(update={"at": LATER})

    assert decide(a_case(REQUEST, late), LATER).state is State.EXPIRED


def test_a_denial_wins_over_expiry_and_over_approvals() -> None:
    denied = a_case(REQUEST, sign("dba"), sign("security", Act.DENY, at=9))

    assert decide(denied, LATER).state is State.DENIED
    assert "Sam" in decide(denied, NOW).reason


def test_a_denial_by_somebody_off_the_roster_is_nothing() -> None:
    assert decide(a_case(REQUEST, sign("dba"), sign("nobody", Act.DENY)), NOW).state is State.APPROVED


def test_a_withdrawn_approval_is_gone_and_may_come_back() -> None:
    withdrawn = (REQUEST, sign("dba", at=1), sign("dba", Act.WITHDRAW, at=2))

    assert decide(a_case(*withdrawn), NOW).state is State.PENDING
    assert decide(a_case(*withdrawn, sign("dba", at=3)), NOW).state is State.APPROVED


def test_of_two_clicks_in_one_instant_the_one_that_permits_less_counts() -> None:
    clicks = (REQUEST, sign("dba", Act.WITHDRAW), sign("dba"))

    assert {decide(a_case(*order), NOW).state for order in permutations(clicks)} == {State.PENDING}


# ---------------------------------------------------------------- slots


def test_one_person_fills_one_slot_only() -> None:
    both = a_rule(slots=(DBA, SECURITY))

    assert decide(a_case(REQUEST, sign("dba2"), rule=both), NOW).state is State.PENDING
    assert decide(a_case(REQUEST, sign("dba2"), sign("dba"), rule=both), NOW).state is State.APPROVED


@pytest.mark.parametrize("order", list(permutations(["dba", "dba2"])))
def test_the_order_of_persons_never_matters_to_slots(order: tuple[str, ...]) -> None:
    # Taken greedily, `dba2` would sit down as the DBA and leave `dba` without a seat.
    assert unfilled((DBA, SECURITY), [signer(person) for person in order]) == ()


def test_a_slot_of_two_needs_two_persons() -> None:
    assert unfilled((Slot(roles=frozenset({"dba"}), count=2),), [signer("dba")]) == (DBA,)


# ---------------------------------------------------------------- admit


def refused(case: Case, person: str | None, act: Act = Act.APPROVE, **changes: object) -> Code | None:
    arguments: dict[str, object] = {"digest": case.plan.digest, "typed": "shop", "reason": "because", "now": NOW}
    refusal = admit(case, person, act, **{**arguments, **changes})  # type: ignore[arg-type]
    if refusal is not None:
        assert refusal.text
        assert refusal.text.endswith(".")
    return None if refusal is None else refusal.code


PENDING = a_case(REQUEST)
TYPED = a_case(REQUEST, rule=a_rule(typed_target=True))
SLOTTED = a_case(REQUEST, rule=a_rule(slots=(DBA,)))

REFUSALS = {
    Code.SELF_APPROVAL: lambda: refused(PENDING, "oncall"),
    Code.NOT_ON_ROSTER: lambda: refused(PENDING, "nobody"),
    Code.NO_ROLE: lambda: refused(SLOTTED, "guest"),
    Code.ALREADY_SIGNED: lambda: refused(a_case(REQUEST, sign("dba")), "dba"),
    Code.EXPIRED: lambda: refused(PENDING, "dba", now=LATER),
    Code.STALE_REVISION: lambda: refused(PENDING, "dba", digest="0" * 64),
    Code.ALREADY_STARTED: lambda: refused(begun(a_case(REQUEST)), "dba"),
    Code.DENIED: lambda: refused(a_case(REQUEST, sign("security", Act.DENY)), "dba"),
    Code.WRONG_TARGET: lambda: refused(TYPED, "dba", typed="shopp"),
    Code.NO_REASON: lambda: refused(PENDING, "dba", reason=" \n"),
    Code.NO_RULE: lambda: refused(PENDING.model_copy(update={"rules": ()}), "dba"),
    Code.STOPPED: lambda: refused(a_case(plan=a_plan(stopped=True)), "dba"),
}


# The service says this one itself: it looks at how a request came in, before any rule.
@pytest.mark.parametrize("code", list(REFUSALS))
def test_every_refusal_has_its_code(code: Code) -> None:
    assert REFUSALS[code]() is code


def test_an_account_that_belongs_to_nobody_is_refused() -> None:
    assert refused(PENDING, None) is Code.NOT_ON_ROSTER


def test_a_good_approval_is_admitted() -> None:
    assert refused(PENDING, "dba") is None
    assert refused(TYPED, "dba") is None
    assert refused(SLOTTED, "dba2") is None


def test_a_denial_needs_no_role_and_no_target() -> None:
    assert refused(TYPED, "guest", Act.DENY, typed="") is None


def test_after_the_start_even_a_denial_is_too_late() -> None:
    assert refused(begun(a_case(REQUEST)), "dba", Act.DENY) is Code.ALREADY_STARTED


# ---------------------------------------------------------------- laws

PERSONS = st.sampled_from([*ROSTER, "nobody"])
SIGNATURES = st.builds(
    sign,
    PERSONS,
    st.sampled_from(list(Act)),
    at=st.integers(0, 5),
    typed=st.sampled_from(["shop", "other"]),
    digest=st.sampled_from([a_plan().digest, "0" * 64]),
)
RULES = st.builds(
    a_rule,
    others=st.integers(0, 2),
    slots=st.lists(st.sampled_from([DBA, SECURITY]), max_size=2).map(tuple),
    typed_target=st.booleans(),
)


@settings(max_examples=200)
@given(signatures=st.lists(SIGNATURES, max_size=7), rule=RULES, random=st.randoms(use_true_random=False))
def test_the_order_in_which_signatures_are_read_never_matters(
    signatures: list[Signature], rule: Rule, random: object
) -> None:
    shuffled = list(signatures)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (decide(a_case(*order, rule=rule), NOW) for order in (signatures, shuffled))

    assert (first.state, first.signers, first.missing) == (second.state, second.signers, second.missing)


@settings(max_examples=300)
@given(signatures=st.lists(SIGNATURES, max_size=6), further=SIGNATURES, rule=RULES)
def test_a_further_signature_never_takes_an_approval_away(
    signatures: list[Signature], further: Signature, rule: Rule
) -> None:
    if decide(a_case(*signatures, rule=rule), NOW).state is not State.APPROVED or further.act in (
        Act.DENY,
        Act.WITHDRAW,
    ):
        return

    assert decide(a_case(*signatures, further, rule=rule), NOW).state is State.APPROVED


@settings(max_examples=200)
@given(signatures=st.lists(SIGNATURES, max_size=6), person=st.sampled_from(list(ROSTER)), rule=RULES)
def test_a_denial_always_wins(signatures: list[Signature], person: str, rule: Rule) -> None:
    denial = sign(person, Act.DENY, at=3)

    for order in ((*signatures, denial), (denial, *signatures)):
        assert decide(a_case(*order, rule=rule), NOW).state is State.DENIED


@settings(max_examples=200)
@given(signatures=st.lists(SIGNATURES, max_size=8), rule=RULES)
def test_what_is_approved_has_two_persons_of_the_roster(signatures: list[Signature], rule: Rule) -> None:
    decision = decide(a_case(*signatures, rule=rule), NOW)

    if decision.state is State.APPROVED:
        assert "oncall" in decision.signers
        assert len(set(decision.signers) & set(ROSTER)) >= 2
        assert len(decision.signers) >= len(rule.slots)


@settings(max_examples=100)
@given(signatures=st.lists(SIGNATURES, max_size=6), rule=RULES, click=SIGNATURES)
def test_a_double_click_adds_nothing(signatures: list[Signature], rule: Rule, click: Signature) -> None:
    once = decide(a_case(*signatures, click, rule=rule), NOW)

    assert decide(a_case(*signatures, click, click, rule=rule), NOW) == once
