"""What keeps signatures from counting: how they came, who gave them, and what has changed since."""

from __future__ import annotations

from datetime import timedelta
from itertools import permutations
from typing import Any

import pytest

from actions.approval import (
    Act,
    Case,
    Code,
    Method,
    PolicyVersion,
    Refusal,
    Rule,
    Signature,
    Slot,
    State,
    admit,
    decide,
)
from actions.contract import Risk
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
)


def told(case: Case, person: str | None = "dba", act: Act = Act.APPROVE, **changes: Any) -> Refusal | None:
    values = {"digest": case.plan.digest, "typed": "shop", "reason": "because", "now": NOW}
    return admit(case, person, act, **{**values, **changes})


def code(case: Case, person: str | None = "dba", act: Act = Act.APPROVE, **changes: Any) -> Code | None:
    refusal = told(case, person, act, **changes)
    return None if refusal is None else refusal.code


# ---------------------------------------------------------------- methods

HARMLESS = Rule(risk=Risk.REVERSIBLE, others=0)
SMALL = a_plan(risk=Risk.REVERSIBLE)


def from_a_shell(**changes: Any) -> Signature:
    return sign("oncall", Act.REQUEST, method=Method.HOST, digest=SMALL.digest, **changes)


def test_a_shell_asks_for_what_needs_nobody_else() -> None:
    assert decide(a_case(from_a_shell(), plan=SMALL, rule=HARMLESS), NOW).state is State.APPROVED
    assert code(a_case(plan=SMALL, rule=HARMLESS), "oncall", Act.REQUEST, method=Method.HOST) is None


def test_a_shell_asks_for_nothing_that_others_must_sign() -> None:
    raised = HARMLESS.model_copy(update={"others": 1})
    approval = sign("dba", digest=SMALL.digest)

    assert decide(a_case(from_a_shell(), approval, plan=SMALL, rule=raised), NOW).state is State.PENDING
    refusal = told(a_case(plan=SMALL, rule=raised), "oncall", Act.REQUEST, method=Method.HOST)
    assert refusal is not None
    assert refusal.code is Code.UNSIGNED
    assert refusal.text == (
        "A request of this risk is a signature, which the command line and the schedule cannot give by themselves; "
        "ask in Slack, or add `--sign KEY` with your key."
    )


def test_a_shell_approves_nothing_but_may_stop() -> None:
    case = a_case(REQUEST)

    assert decide(a_case(REQUEST, sign("dba", method=Method.HOST)), NOW).state is State.PENDING
    refusal = told(case, method=Method.HOST)
    assert refusal is not None
    assert (refusal.code, refusal.text) == (
        Code.UNSIGNED,
        "A shell signs for nobody; use `drbot sign` with a key of the roster.",
    )
    assert code(case, act=Act.DENY, method=Method.HOST) is None


def test_who_has_clicked_may_add_a_key_once() -> None:
    rule = a_rule(key_required=True)

    assert code(a_case(REQUEST, sign("dba"), rule=rule), method=Method.KEY) is None
    assert code(a_case(REQUEST, rule=rule), "oncall", Act.REQUEST, method=Method.KEY) is None
    assert code(a_case(REQUEST, sign("dba"), key("dba"), rule=rule), method=Method.KEY) is Code.ALREADY_SIGNED
    assert code(a_case(REQUEST, key("dba"), rule=rule)) is Code.ALREADY_SIGNED
    assert code(a_case(REQUEST, sign("dba"), rule=rule)) is Code.ALREADY_SIGNED


# ---------------------------------------------------------------- suspect Slack

SINCE = NOW + timedelta(seconds=10)


def test_while_slack_is_suspect_only_keys_count() -> None:
    slack = (REQUEST, sign("dba"))
    keys = (KEY_REQUEST, key("dba"))

    assert decide(a_case(*slack, slack_suspect_since=SINCE), NOW).signers == ()
    assert decide(a_case(*keys, slack_suspect_since=SINCE), NOW).state is State.APPROVED
    assert decide(a_case(*slack), NOW).state is State.APPROVED


@pytest.mark.parametrize(("at", "state"), [(9, State.DENIED), (10, State.APPROVED), (11, State.APPROVED)])
def test_a_denial_in_slack_counts_when_it_is_older_than_the_suspicion(at: int, state: State) -> None:
    denial = sign("security", Act.DENY, at=at)

    assert decide(a_case(KEY_REQUEST, key("dba"), denial, slack_suspect_since=SINCE), LATER).state is state


def test_a_denial_by_key_counts_always() -> None:
    assert decide(a_case(KEY_REQUEST, key("dba"), key("dba", Act.DENY), slack_suspect_since=SINCE), NOW).state is (
        State.DENIED
    )


def test_a_withdrawal_in_suspect_slack_takes_nothing_away() -> None:
    withdrawal = sign("dba", Act.WITHDRAW, at=5)

    assert decide(a_case(KEY_REQUEST, key("dba"), withdrawal, slack_suspect_since=SINCE), NOW).state is State.APPROVED
    mine = sign("oncall", Act.WITHDRAW, at=5)
    assert decide(a_case(key("dba"), mine, slack_suspect_since=SINCE), NOW).state is State.PENDING


@pytest.mark.parametrize("act", list(Act))
def test_suspect_slack_takes_no_act(act: Act) -> None:
    case = a_case(REQUEST, slack_suspect_since=SINCE)
    refusal = told(begun(case) if act is Act.REVIEW else case, act=act)

    assert refusal is not None
    assert (refusal.code, refusal.text) == (
        Code.SLACK_SUSPECT,
        "Slack is under suspicion, so signatures from it do not count; use `drbot sign`.",
    )


def test_who_clicked_before_the_suspicion_signs_again_by_key() -> None:
    case = a_case(REQUEST, sign("dba"), slack_suspect_since=SINCE)

    assert code(case, method=Method.KEY) is None
    assert code(case, "oncall", Act.REQUEST, method=Method.KEY) is None


def test_while_slack_is_suspect_two_must_have_keys() -> None:
    one_key = {name: ROSTER[name] for name in ("oncall", "dba2", "security")}

    def asked(**changes: Any) -> Code | None:
        return code(a_case(**changes), "oncall", Act.REQUEST, method=Method.KEY)

    assert asked(slack_suspect_since=SINCE) is None
    assert asked(slack_suspect_since=SINCE, roster=one_key) is Code.UNREACHABLE
    assert asked(roster=one_key) is None


# ---------------------------------------------------------------- accounts

BARRED = {"U0DBA": "This account is deactivated."}


def test_the_signature_of_a_barred_account_counts_no_more() -> None:
    case = a_case(REQUEST, sign("dba"), barred=BARRED)

    assert decide(case, NOW).missing == ("1 more person(s) besides the requester",)
    assert decide(a_case(REQUEST, sign("dba", account="U0SECOND"), barred=BARRED), NOW).state is State.APPROVED


def test_a_key_is_no_account_that_could_be_barred() -> None:
    barred = {"dba": "is called so by chance", **BARRED}

    assert decide(a_case(REQUEST, key("dba"), barred=barred), NOW).state is State.APPROVED
    assert code(a_case(REQUEST, barred=barred), method=Method.KEY, account="dba") is None


def test_a_barred_account_signs_nothing() -> None:
    refusal = told(a_case(REQUEST, barred=BARRED), account="U0DBA")

    assert refusal == Refusal(code=Code.DEACTIVATED, text="This account is deactivated.")
    assert code(a_case(REQUEST, barred=BARRED), account="U0SECOND") is None


def test_the_denial_of_somebody_deactivated_since_still_stands() -> None:
    assert decide(a_case(REQUEST, sign("security"), sign("dba", Act.DENY), barred=BARRED), NOW).state is State.DENIED


# ---------------------------------------------------------------- changes

THEN = PolicyVersion(rules="r1", roster="p1")


@pytest.mark.parametrize(
    ("now", "what"),
    [
        (PolicyVersion(rules="r2", roster="p1"), "approval policy has"),
        (PolicyVersion(rules="r1", roster="p2"), "roster has"),
        (PolicyVersion(rules="r2", roster="p2"), "policy and the roster have"),
        (None, "policy and the roster have"),
    ],
)
def test_a_changed_policy_or_roster_voids_and_says_which(now: PolicyVersion | None, what: str) -> None:
    for then, later in ((THEN, now), (now, THEN)):
        case = a_case(REQUEST, sign("dba"), policy_then=then, policy_now=later)
        decision = decide(case, NOW)
        assert (decision.state, decision.code) == (State.VOID, Code.POLICY_CHANGED)
        assert decision.reason == (
            f"The {what} changed since this plan was asked for, so its signatures are void; ask for it again."
        )
        assert code(case) is Code.POLICY_CHANGED


def test_the_same_policy_voids_nothing_and_a_run_goes_on_under_a_new_one() -> None:
    assert decide(a_case(REQUEST, sign("dba"), policy_then=THEN, policy_now=THEN), NOW).state is State.APPROVED
    later = THEN.model_copy(update={"rules": "r2"})
    running = begun(a_case(REQUEST, sign("dba"), policy_then=THEN, policy_now=later), policy_now=THEN)
    assert decide(running, NOW).state is State.APPROVED


def test_a_run_needs_its_signatures_under_the_roster_in_force() -> None:
    left = {name: person for name, person in ROSTER.items() if name != "dba"}

    running = begun(a_case(REQUEST, sign("dba")))
    assert decide(running.model_copy(update={"roster": left}), LATER).state is State.PENDING
    assert decide(running.model_copy(update={"rules": ()}), LATER).code is Code.NO_RULE
    assert decide(running, LATER + timedelta(days=9)).state is State.APPROVED


def test_a_denial_of_the_same_elsewhere_voids_what_does_not_show_it() -> None:
    signed = (REQUEST, sign("dba"))

    decision = decide(a_case(*signed, denied="x1"), NOW)
    assert (decision.state, decision.code) == (State.VOID, Code.DENIED)
    assert decision.reason == ("Plan x1 for the same was denied meanwhile; ask for a new plan, which will show that.")
    assert decide(a_case(*signed, denied="x1", overrules="x1"), NOW).state is State.APPROVED
    assert decide(a_case(*signed, denied="x2", overrules="x1"), NOW).state is State.VOID
    assert decide(begun(a_case(*signed, denied="x1"), denied=""), NOW).state is State.APPROVED


@pytest.mark.parametrize(
    ("channels", "here", "fits"),
    [((), set(), True), (("incident",), {"C1", "incident"}, True), (("C2", "incident"), {"C1"}, False)],
)
def test_a_rule_may_name_the_channels(channels: tuple[str, ...], here: set[str], fits: bool) -> None:
    case = a_case(REQUEST, sign("dba"), rule=a_rule(channels=channels), channels=frozenset(here))

    decision = decide(case, NOW)
    assert (decision.state is State.APPROVED) is fits
    if not fits:
        assert (decision.code, decision.reason) == (
            Code.WRONG_CHANNEL,
            "This is not allowed in this channel; ask for it in C2 or incident.",
        )


def test_every_rule_s_channels_must_fit() -> None:
    rules = (a_rule(), a_rule(channels=("C1", "C3")), a_rule(channels=("C2",)))

    assert decide(a_case(REQUEST, sign("dba"), rules=rules, channels=frozenset({"C1"})), NOW).code is Code.WRONG_CHANNEL


# ---------------------------------------------------------------- withdrawals


def test_the_requester_s_withdrawal_ends_the_plan() -> None:
    taken = (REQUEST, sign("dba"), sign("oncall", Act.WITHDRAW, at=9))

    for order in permutations(taken):
        decision = decide(a_case(*order), NOW)
        assert (decision.state, decision.code) == (State.VOID, Code.WITHDRAWN)
        assert decision.reason == "Ona has withdrawn the request."
    assert decide(a_case(*taken, sign("oncall", Act.REQUEST, at=10)), NOW).state is State.APPROVED


@pytest.mark.parametrize(
    "withdrawal",
    [sign("dba", Act.WITHDRAW), sign("oncall", Act.WITHDRAW, digest="0" * 64)],
    ids=["another person", "another plan"],
)
def test_other_withdrawals_do_not_end_it(withdrawal: Signature) -> None:
    assert decide(a_case(withdrawal), NOW).state is State.PENDING


def test_only_who_holds_a_signature_can_withdraw_it() -> None:
    case = a_case(REQUEST, sign("dba"))

    assert code(case, "dba", Act.WITHDRAW, reason="", typed="") is None
    assert code(case, "oncall", Act.WITHDRAW) is None
    refusal = told(case, "security", Act.WITHDRAW)
    assert refusal is not None
    assert (refusal.code, refusal.text) == (
        Code.NOT_SIGNED,
        "You hold no signature on this plan, so there is none to withdraw.",
    )
    assert code(begun(a_case(REQUEST, sign("dba"))), "dba", Act.WITHDRAW) is Code.ALREADY_STARTED


def test_who_has_only_reviewed_has_withdrawn_nothing() -> None:
    assert decide(a_case(sign("oncall", Act.REVIEW)), NOW).state is State.PENDING


def test_whoever_has_left_the_roster_is_named_as_the_plan_does() -> None:
    case = a_case(sign("left", Act.REQUEST), sign("left", Act.WITHDRAW, at=9)).model_copy(update={"requester": "left"})

    assert decide(case, NOW).reason == "left has withdrawn the request."


# ---------------------------------------------------------------- who still helps


def slotted(*slots: Slot, others: int = 1) -> Rule:
    return a_rule(slots=slots, others=others)


@pytest.mark.parametrize(
    ("rule", "signed", "person", "expected"),
    [
        (slotted(DBA), (), "security", Code.NO_ROLE),
        (slotted(DBA), (), "dba", None),
        (slotted(DBA, others=2), (), "security", None),
        (slotted(DBA, others=2), ("security",), "guest", Code.NO_ROLE),
        (slotted(DBA, others=2), ("dba",), "guest", None),
        (slotted(DBA, SECURITY), (), "dba", None),
        (slotted(DBA, SECURITY), ("dba",), "dba2", None),
        (slotted(DBA, SECURITY), ("dba",), "guest", Code.NO_ROLE),
        (slotted(DBA), ("dba",), "guest", None),  # complete already; it adds nothing and harms nothing
        (slotted(Slot(roles=frozenset({"on_call"}))), (), "guest", None),
    ],
)
def test_an_approval_must_bring_the_plan_nearer(
    rule: Rule, signed: tuple[str, ...], person: str, expected: Code | None
) -> None:
    case = a_case(REQUEST, *(sign(name) for name in signed), rule=rule)

    assert code(case, person) is expected


def test_it_says_whose_signature_is_needed() -> None:
    refusal = told(a_case(REQUEST, rule=slotted(DBA, SECURITY)), "guest")

    assert refusal is not None
    assert refusal.text == "This plan needs a signature of dba and security; ask one of them."


def test_one_helpful_rule_is_enough() -> None:
    rules = (slotted(DBA), a_rule(targets=("shop",), slots=(SECURITY,)))

    assert code(a_case(REQUEST, rules=rules), "security") is None
    assert code(a_case(REQUEST, rules=rules), "guest") is Code.NO_ROLE
    assert code(a_case(REQUEST, rules=(slotted(DBA), a_rule(targets=("shop",)))), "guest") is Code.NO_ROLE


def test_a_missing_key_helps_without_a_role() -> None:
    rule = a_rule(slots=(SECURITY,), key_required=True)

    assert code(a_case(REQUEST, rule=rule), "dba", method=Method.KEY) is None
    assert code(a_case(REQUEST, rule=rule), "dba") is Code.NO_ROLE
    assert code(a_case(KEY_REQUEST, rule=rule), "dba", method=Method.KEY) is Code.NO_ROLE
    assert code(a_case(REQUEST, rule=a_rule(slots=(SECURITY,))), "dba", method=Method.KEY) is Code.NO_ROLE


def test_who_has_the_role_and_not_the_group_is_told_so() -> None:
    in_group = Slot(roles=frozenset({"dba"}), group="S0DBA")
    case = a_case(REQUEST, rule=slotted(in_group), groups={"S0DBA": frozenset({"U0OTHER"})})

    refusal = told(case, account="U0DBA")
    assert refusal is not None
    assert (refusal.code, refusal.text) == (
        Code.NOT_IN_GROUP,
        "Your account is not in the Slack group this needs: dba (in S0DBA). Sign with a key, or ask one of them.",
    )
    assert code(case, account="U0OTHER") is None
    assert code(case, method=Method.KEY, account="dba") is None
    assert code(case, "security", account="U0SECURITY") is Code.NO_ROLE


# ---------------------------------------------------------------- asking, and the words of refusals


def test_what_nobody_can_complete_is_refused_when_it_is_asked_for() -> None:
    roster = {name: ROSTER[name] for name in ("oncall", "security", "guest")}
    refusal = told(a_case(rule=slotted(DBA, others=3), roster=roster), "oncall", Act.REQUEST)

    assert refusal is not None
    assert refusal.code is Code.UNREACHABLE
    assert refusal.text == (
        "Nobody can complete these signatures; the roster lacks 1 more person(s) besides the requester; 1 of dba. "
        "Add persons to it, or lower what the rule asks."
    )
    assert code(a_case(rule=slotted(DBA, others=2)), "oncall", Act.REQUEST) is None


def test_the_requester_can_do_what_he_has_just_done() -> None:
    mute = {**ROSTER, "oncall": ROSTER["oncall"].model_copy(update={"means": frozenset()})}
    pair = {name: mute[name] for name in ("oncall", "dba2")}

    assert code(a_case(roster=pair), "oncall", Act.REQUEST) is None
    assert code(a_case(roster=pair, rule=a_rule(key_required=True)), "oncall", Act.REQUEST) is Code.UNREACHABLE
    asked = code(a_case(roster=pair, rule=a_rule(key_required=True)), "oncall", Act.REQUEST, method=Method.KEY)
    assert asked is None


STOPPED = a_plan(stopped=True)


@pytest.mark.parametrize(
    ("case", "changes", "code_", "text"),
    [
        (
            a_case(REQUEST),
            {"person": "nobody"},
            Code.NOT_ON_ROSTER,
            "You are not on the roster of the plan file, so your signature does not count. Ask a person who is.",
        ),
        (
            a_case(REQUEST),
            {"digest": "0" * 64},
            Code.STALE_REVISION,
            "This plan was replaced; sign the newest message instead.",
        ),
        (
            begun(a_case(REQUEST)),
            {},
            Code.ALREADY_STARTED,
            "The run has started, so signatures change nothing any more; follow it on its message.",
        ),
        (
            a_case(REQUEST, rules=()),
            {},
            Code.NO_RULE,
            "No approval rule covers DESTRUCTIVE; change the plan file first.",
        ),
        (
            a_case(plan=STOPPED),
            {},
            Code.STOPPED,
            "The disk is full. Ask for a new plan once this is put right.",
        ),
        (
            a_case(REQUEST, sign("security", Act.DENY), sign("dba2", Act.DENY)),
            {},
            Code.DENIED,
            "Denied by Dora, Sam: because. Only a new plan can overrule this.",
        ),
        (
            a_case(REQUEST, sign("security", Act.DENY, reason="")),
            {},
            Code.DENIED,
            "Denied by Sam: no reason. Only a new plan can overrule this.",
        ),
        (
            a_case(REQUEST),
            {"now": LATER},
            Code.EXPIRED,
            "This plan has expired: nobody completed the signatures in time. Ask for it again.",
        ),
        (
            a_case(REQUEST, sign("security")),
            {"now": NOW + timedelta(hours=1)},
            Code.EXPIRED,
            "This plan has expired: it was signed, but could not start in time. Ask for it again.",
        ),
        (
            a_case(REQUEST),
            {"person": "oncall"},
            Code.SELF_APPROVAL,
            "Your request is already your signature; one other person must approve.",
        ),
        (
            a_case(REQUEST, sign("dba")),
            {},
            Code.ALREADY_SIGNED,
            "Your signature is already recorded; nothing was added.",
        ),
        (
            a_case(REQUEST),
            {"reason": "\n"},
            Code.NO_REASON,
            "A signature needs a reason; type one line and send it again.",
        ),
        (
            a_case(REQUEST, rule=a_rule(typed_target=True)),
            {"typed": "Shop"},
            Code.WRONG_TARGET,
            "The typed name does not match the target; type exactly `shop`.",
        ),
        (
            a_case(REQUEST, rule=a_rule(typed_target=True)),
            {"typed": ""},
            Code.WRONG_TARGET,
            "The name of the target was not typed; add `--target shop` to the command, or type `shop`.",
        ),
        (
            a_case(rule=a_rule(typed_target=True)),
            {"person": "oncall", "act": Act.REQUEST, "reason": "", "typed": ""},
            Code.NO_REASON,
            'A signature needs a reason. Send it again with `--reason "WHY" --target shop` at its end.',
        ),
    ],
)
def test_a_refusal_says_what_to_do_next(case: Case, changes: dict[str, Any], code_: Code, text: str) -> None:
    assert told(case, **changes) == Refusal(code=code_, text=text)


def test_an_unfinished_plan_says_who_has_signed() -> None:
    decision = decide(a_case(REQUEST, sign("dba"), rule=a_rule(others=2)), NOW)

    assert (decision.signers, decision.code, decision.start_by) == (("dba", "oncall"), None, None)


def test_a_complete_plan_says_until_when_it_may_start() -> None:
    decision = decide(a_case(REQUEST, sign("dba", at=7)), NOW)

    assert (decision.signers, decision.start_by) == (("dba", "oncall"), NOW + timedelta(seconds=7, hours=1))
    assert (decision.reason, decision.code, decision.missing) == ("", None, ())


# ---------------------------------------------------------------- witnesses


@pytest.mark.parametrize(
    ("risk", "state"),
    [(Risk.DISRUPTIVE, State.APPROVED), (Risk.DESTRUCTIVE, State.VOID), (Risk.IRREVERSIBLE, State.VOID)],
)
def test_what_destroys_needs_somebody_outside_who_vouches_for_it(risk: Risk, state: State) -> None:
    plan = a_plan(risk=risk)
    given = [sign(person, digest=plan.digest) for person in ("dba", "security")]
    asked = sign("oncall", Act.REQUEST, digest=plan.digest)
    case = a_case(asked, *given, plan=plan, rule=a_rule(risk=risk, others=2), unwitnessed=True)
    decision = decide(case, NOW)
    assert decision.state is state
    assert decision.code is (Code.UNWITNESSED if state is State.VOID else None)
    assert decision.reason == (
        f"The plan file names no `record`, so no witness would vouch for the signatures of a {risk} plan. Have a plan "
        "file with `record` activated (`drbot plan activate`), then ask for this again."
        if state is State.VOID
        else ""
    )
    assert decide(case.model_copy(update={"unwitnessed": False}), NOW).state is State.APPROVED
    assert decide(begun(case, unwitnessed=False), NOW).state is State.APPROVED
