"""One person alone: who may, what for, how long others can stop it, and who looks at it afterwards."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actions.approval import Act, Case, Code, Method, Signature, State, admit, decide, reviewers
from actions.contract import Risk
from actions.policy import Once
from tests.fakes.signatures import (
    DBA,
    GLASS,
    KEY_REQUEST,
    LATER,
    NOW,
    REQUEST,
    ROSTER,
    a_case,
    a_plan,
    a_rule,
    begun,
    key,
    sign,
)

READY = NOW + GLASS.delay
NOBODY = GLASS.model_copy(update={"commander": ""})


def alone(*signatures: Signature, **changes: Any) -> Case:
    """A recovery that `oncall` wants to start alone."""
    return a_case(*signatures, **{"break_glass": GLASS, "recovery": True, **changes})


@pytest.mark.parametrize(("seconds", "state"), [(-1, State.PENDING), (0, State.APPROVED), (1, State.APPROVED)])
def test_one_signature_starts_it_after_the_delay(seconds: int, state: State) -> None:
    assert decide(alone(KEY_REQUEST), READY + timedelta(seconds=seconds)).state is state


def test_it_says_until_when_it_can_be_vetoed_started_and_reviewed() -> None:
    waiting = decide(alone(KEY_REQUEST), NOW)

    assert waiting.missing == ("the end of the veto period at 2026-11-23 10:05 UTC",)
    assert (waiting.signers, waiting.ready_at, waiting.review_by, waiting.start_by) == (
        ("oncall",),
        READY,
        READY + GLASS.review_within,
        None,
    )
    ready = decide(alone(KEY_REQUEST), READY)
    assert (ready.missing, ready.signers, ready.ready_at) == ((), ("oncall",), READY)
    assert (ready.start_by, ready.review_by) == (READY + timedelta(hours=1), READY + GLASS.review_within)


@pytest.mark.parametrize(
    ("request_", "glass", "may"),
    [
        (KEY_REQUEST, NOBODY, True),
        (REQUEST, GLASS, True),
        (REQUEST, NOBODY, False),
        (REQUEST, GLASS.model_copy(update={"commander": "dba"}), False),
        (REQUEST.model_copy(update={"method": Method.HOST}), GLASS, False),
        (KEY_REQUEST.model_copy(update={"reason": " "}), NOBODY, False),
        (REQUEST.model_copy(update={"reason": ""}), GLASS, False),
    ],
)
def test_only_a_key_or_the_commander_starts_alone_and_only_with_a_reason(
    request_: Signature, glass: Any, may: bool
) -> None:
    assert (decide(alone(request_, break_glass=glass), READY).state is State.APPROVED) is may


def test_where_a_rule_asks_for_a_key_the_commander_needs_one_as_well() -> None:
    rule = a_rule(key_required=True)
    in_slack = alone(REQUEST, rule=rule)

    assert decide(in_slack, READY).state is State.PENDING
    assert decide(in_slack, READY).missing == ("the requester's signature with a key",)
    assert decide(alone(KEY_REQUEST, rule=rule), READY).state is State.APPROVED
    assert decide(alone(REQUEST, KEY_REQUEST, rule=rule), READY).state is State.APPROVED
    asked: dict[str, Any] = {"digest": in_slack.plan.digest, "typed": "", "reason": "nobody answers", "now": NOW}
    refusal = admit(alone(rule=rule), "oncall", Act.REQUEST, **asked)
    assert refusal is not None
    assert refusal.code is Code.KEY_REQUIRED
    assert refusal.text == "Break-glass needs your key (`drbot break-glass`); a rule of this plan asks for one."
    assert admit(alone(rule=rule), "oncall", Act.REQUEST, **asked, method=Method.KEY) is None
    assert admit(alone(), "oncall", Act.REQUEST, **asked) is None


def test_without_a_signature_that_entitles_it_says_which_is_missing() -> None:
    decision = decide(alone(REQUEST, break_glass=NOBODY), READY)

    assert decision.missing == ("the requester's signature with a key, or as the incident commander",)
    assert decide(alone(break_glass=NOBODY), LATER).state is State.EXPIRED


def test_somebody_else_s_key_does_not_start_it() -> None:
    assert decide(alone(REQUEST, key("security"), rule=a_rule(slots=(DBA,)), break_glass=NOBODY), READY).state is (
        State.PENDING
    )


def test_the_first_signature_that_entitles_starts_the_clock() -> None:
    signed = (REQUEST, key("oncall", Act.REQUEST, at=60))

    assert decide(alone(*signed, break_glass=NOBODY), READY).ready_at == READY + timedelta(seconds=60)
    assert decide(alone(*signed), READY).ready_at == READY


@pytest.mark.parametrize("person", list(ROSTER))
@pytest.mark.parametrize("seconds", [0, 299, 300])
def test_anybody_of_the_roster_vetoes_it(person: str, seconds: int) -> None:
    denial = sign(person, Act.DENY, at=seconds)

    assert decide(alone(KEY_REQUEST, denial), READY).state is State.DENIED


@pytest.mark.parametrize(
    "changes", [{"recovery": False}, {"plan": a_plan(risk=Risk.IRREVERSIBLE)}], ids=["no recovery", "irreversible"]
)
def test_it_is_for_recovery_alone_and_never_for_what_cannot_be_taken_back(changes: dict[str, Any]) -> None:
    plan = changes.get("plan") or a_plan()
    rule = a_rule(risk=plan.risk)
    case = alone(key("oncall", Act.REQUEST, digest=plan.digest), rule=rule, **changes)

    decision = decide(case, READY)
    assert (decision.state, decision.code) == (State.VOID, Code.NOT_RECOVERY)
    assert decision.reason == (
        "Break-glass is for recovery alone, and `restore.dump` is none; ask for it with all signatures."
    )
    assert decide(case.model_copy(update={"started": True}), READY).state is State.VOID


def test_a_recovery_with_all_signatures_is_no_break_glass() -> None:
    decision = decide(a_case(REQUEST, sign("dba"), recovery=False), NOW)

    assert (decision.state, decision.review_by, decision.ready_at) == (State.APPROVED, None, None)


def test_without_any_rule_it_is_void_too() -> None:
    assert decide(alone(KEY_REQUEST, rules=()), READY).code is Code.NO_RULE


def test_all_signatures_start_it_before_the_delay_and_without_a_review() -> None:
    decision = decide(alone(KEY_REQUEST, sign("dba")), NOW)

    assert (decision.state, decision.review_by) == (State.APPROVED, None)


@pytest.mark.parametrize("signed", [(KEY_REQUEST,), (KEY_REQUEST, sign("dba"))])
def test_neither_a_freeze_nor_a_channel_holds_it_up(signed: tuple[Signature, ...]) -> None:
    rule = a_rule(freezes=(Once(since=NOW, until=NOW + timedelta(days=9)),), channels=("C0ELSEWHERE",))

    assert decide(alone(*signed, rule=rule), READY).state is State.APPROVED
    assert act(alone(rule=rule)) is None


@pytest.mark.parametrize(("seconds", "state"), [(-1, State.APPROVED), (0, State.EXPIRED)])
def test_it_too_must_start_in_time(seconds: int, state: State) -> None:
    over = READY + timedelta(hours=1)

    assert decide(alone(KEY_REQUEST), over + timedelta(seconds=seconds)).state is state
    assert decide(begun(alone(KEY_REQUEST), READY), over).state is State.APPROVED


def test_once_it_runs_the_delay_is_over_whatever_the_clock_says() -> None:
    decision = decide(begun(alone(KEY_REQUEST), READY), NOW - timedelta(hours=1))

    assert (decision.state, decision.review_by) == (State.APPROVED, READY + GLASS.review_within)


def test_slack_under_suspicion_leaves_the_key_alone() -> None:
    assert decide(alone(REQUEST, slack_suspect_since=NOW), READY).state is State.PENDING
    assert decide(alone(KEY_REQUEST, slack_suspect_since=NOW), READY).state is State.APPROVED


def test_the_target_is_typed_here_too() -> None:
    rule = a_rule(typed_target=True)

    assert decide(alone(key("oncall", Act.REQUEST, typed="shopp"), rule=rule), READY).state is State.PENDING
    assert decide(alone(KEY_REQUEST, rule=rule), READY).state is State.APPROVED


def test_the_requester_withdraws_it() -> None:
    assert decide(alone(KEY_REQUEST, key("oncall", Act.WITHDRAW, at=9)), READY).code is Code.WITHDRAWN


# ---------------------------------------------------------------- asking


def act(case: Case, what: Act = Act.REQUEST, person: str = "oncall", **changes: Any) -> Code | None:
    values = {"digest": case.plan.digest, "typed": "shop", "reason": "because", "now": NOW, "method": Method.KEY}
    refusal = admit(case, person, what, **{**values, **changes})
    return None if refusal is None else refusal.code


def test_asking_alone_needs_a_key_or_the_commander() -> None:
    assert act(alone()) is None
    assert act(alone(), method=Method.SLACK) is None
    assert act(alone(break_glass=NOBODY)) is None
    assert act(alone(break_glass=NOBODY), method=Method.SLACK) is Code.KEY_REQUIRED
    refusal = admit(
        alone(break_glass=NOBODY), "oncall", Act.REQUEST, digest=a_plan().digest, typed="", reason="x", now=NOW
    )
    assert refusal is not None
    assert refusal.text == "Break-glass needs your key (`drbot break-glass`), unless you are the incident commander."


def test_asking_alone_needs_a_reason() -> None:
    assert act(alone(), reason="\t") is Code.NO_REASON


def test_asking_alone_needs_nobody_who_could_sign() -> None:
    lonely = {"oncall": ROSTER["oncall"]}

    assert act(alone(roster=lonely)) is None
    assert act(a_case(roster=lonely)) is Code.UNREACHABLE


def test_what_is_no_recovery_cannot_be_asked_for_alone() -> None:
    assert act(alone(recovery=False)) is Code.NOT_RECOVERY


# ---------------------------------------------------------------- the review

RUNNING = begun(alone(KEY_REQUEST), READY)


def test_two_others_review_what_one_has_started() -> None:
    case = alone(
        KEY_REQUEST,
        sign("security", Act.REVIEW, at=9),
        key("dba", Act.REVIEW, at=10),
        sign("oncall", Act.REVIEW, at=10),
        sign("nobody", Act.REVIEW, at=10),
        sign("dba2", Act.REVIEW, digest="0" * 64),
        sign("guest", Act.REVIEW, method=Method.HOST),
        sign("guest", Act.APPROVE),
    )

    assert reviewers(case) == ("dba", "security")


def test_a_policy_that_drops_break_glass_drops_no_review() -> None:
    dropped = RUNNING.model_copy(update={"break_glass": None})

    assert admit_review(dropped) is Code.NOT_STARTED
    assert admit_review(dropped.model_copy(update={"alone": True})) is None
    assert admit_review(dropped.model_copy(update={"alone": True, "start": None})) is Code.NOT_STARTED


def admit_review(case: Case) -> Code | None:
    refusal = admit(case, "dba", Act.REVIEW, digest=case.plan.digest, typed="", reason="read it", now=NOW)
    return None if refusal is None else refusal.code


def test_suspect_slack_does_not_review() -> None:
    case = alone(sign("security", Act.REVIEW), key("dba", Act.REVIEW), slack_suspect_since=LATER)

    assert reviewers(case) == ("dba",)


def test_a_review_changes_no_decision() -> None:
    reviewed = alone(KEY_REQUEST, sign("security", Act.REVIEW), sign("dba", Act.REVIEW))

    assert decide(reviewed, NOW) == decide(alone(KEY_REQUEST), NOW)
    assert decide(a_case(REQUEST, sign("dba", Act.REVIEW)), NOW).state is State.PENDING


REVIEWED = begun(alone(KEY_REQUEST, sign("dba", Act.REVIEW)), READY)


@pytest.mark.parametrize(
    ("case", "person", "changes", "code", "text"),
    [
        (RUNNING, "dba", {}, None, ""),
        (RUNNING, "security", {"method": Method.SLACK}, None, ""),
        (RUNNING, "oncall", {}, Code.SELF_APPROVAL, "You started this run; two other persons must review it."),
        (RUNNING, "dba", {"reason": " "}, Code.NO_REASON, "type one line"),
        (RUNNING, "nobody", {}, Code.NOT_ON_ROSTER, "not on the roster"),
        (RUNNING, "dba", {"digest": "0"}, Code.STALE_REVISION, "replaced"),
        (RUNNING, "dba", {"method": Method.HOST}, Code.UNSIGNED, "A shell signs for nobody"),
        (REVIEWED, "dba", {}, Code.ALREADY_SIGNED, "Your review is already recorded; nothing was added."),
        (REVIEWED, "security", {}, None, ""),
        (
            alone(KEY_REQUEST),
            "dba",
            {},
            Code.NOT_STARTED,
            "Only a run that was started under break-glass is reviewed, once it has started.",
        ),
        (begun(a_case(REQUEST, sign("dba"))), "security", {}, Code.NOT_STARTED, "Only a run"),
    ],
)
def test_who_may_review(case: Case, person: str, changes: dict[str, Any], code: Code | None, text: str) -> None:
    values = {"digest": a_plan().digest, "typed": "", "reason": "looked at it", "now": NOW, "method": Method.KEY}
    refusal = admit(case, person, Act.REVIEW, **{**values, **changes})

    assert (None if refusal is None else refusal.code) is code
    assert refusal is None or text in refusal.text
    assert refusal is None or not text.endswith(".") or refusal.text == text


# ---------------------------------------------------------------- laws

SIGNED = st.builds(
    sign,
    st.sampled_from([*ROSTER, "nobody"]),
    st.sampled_from(list(Act)),
    at=st.integers(0, 400),
    method=st.sampled_from(list(Method)),
    digest=st.sampled_from([a_plan().digest, "0" * 64]),
)


@settings(max_examples=300)
@given(signatures=st.lists(SIGNED, max_size=7), seconds=st.integers(0, 400), random=st.randoms(use_true_random=False))
def test_the_order_never_matters(signatures: list[Signature], seconds: int, random: Any) -> None:
    shuffled = list(signatures)
    random.shuffle(shuffled)
    now = NOW + timedelta(seconds=seconds)

    assert decide(alone(*signatures), now).model_copy(update={"reason": ""}) == decide(
        alone(*shuffled), now
    ).model_copy(update={"reason": ""})


@settings(max_examples=300)
@given(signatures=st.lists(SIGNED, max_size=7), seconds=st.integers(0, 400))
def test_nobody_starts_alone_before_the_delay_and_never_against_a_veto(
    signatures: list[Signature], seconds: int
) -> None:
    now = NOW + timedelta(seconds=seconds)
    decision = decide(alone(*signatures, break_glass=NOBODY), now)

    if decision.state is State.APPROVED and decision.ready_at is not None:
        assert any(
            item.person == "oncall" and item.method is Method.KEY and item.act is Act.REQUEST for item in signatures
        )
        assert now >= decision.ready_at
        assert not any(
            item.act is Act.DENY and item.person in ROSTER and item.digest == a_plan().digest for item in signatures
        )
