"""The seats that several rules ask for together: a signature fills at most one of them, and no order matters."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actions.approval import Act, Case, Code, Method, Person, Rule, Signature, Slot, State, admit, decide, joint
from actions.contract import Risk
from actions.policy import Signer, others_needed, seats, unfilled
from tests.fakes.signatures import DBA, NOW, REQUEST, ROSTER, SECURITY, a_case, a_rule, key, sign

GROUP = Slot(roles=frozenset({"dba"}), group="S0DBA")
ANY = Slot(roles=frozenset({"dba", "security"}))


def slots(role: str, count: int, group: str = "") -> Slot:
    return Slot(roles=frozenset({role}), count=count, group=group)


def asking(*slots: Slot, **changes: object) -> Rule:
    return a_rule(slots=slots, **changes)


def refused(case: Case, person: str, **changes: object) -> Code | None:
    values = {"digest": case.plan.digest, "typed": "shop", "reason": "because", "now": NOW, **changes}
    refusal = admit(case, person, Act.APPROVE, **values)  # type: ignore[arg-type]
    return None if refusal is None else refusal.code


# ---------------------------------------------------------------- what rules ask for together


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([], ""),
        ([asking()], ""),
        ([asking(DBA, SECURITY)], "1 of dba AND 1 of security"),
        ([asking(DBA), asking(SECURITY)], "1 of dba AND 1 of security"),
        ([asking(DBA), asking(DBA, SECURITY)], "1 of dba AND 1 of security"),  # sharpened, not doubled
        ([asking(DBA, DBA), asking(DBA)], "2 of dba"),
        ([asking(DBA), asking(slots("dba", 3))], "3 of dba"),
        ([asking(DBA), asking(ANY)], "1 of dba AND 1 of dba or security"),  # another seat
        ([asking(DBA), asking(GROUP)], "1 of dba (in S0DBA)"),
        ([asking(slots("dba", 2)), asking(GROUP)], "1 of dba (in S0DBA) AND 1 of dba"),
        ([asking(GROUP, DBA), asking(slots("dba", 2, "S0DBA"))], "2 of dba (in S0DBA)"),
        ([asking(GROUP, GROUP), asking(DBA)], "2 of dba (in S0DBA)"),
        ([asking(GROUP), asking(slots("dba", 1, "S0SRE"))], "1 of dba (in S0DBA) AND 1 of dba (in S0SRE)"),
    ],
)
def test_rules_ask_for_these_seats_together(rules: list[Rule], words: str) -> None:
    assert seats(joint(rules)) == words


@pytest.mark.parametrize(
    ("rules", "others"),
    [
        ([asking(DBA)], 1),
        ([asking(DBA), asking(SECURITY)], 1),
        ([asking(DBA), asking(SECURITY), asking(slots("on_call", 1))], 2),  # three persons, one of them the requester
        ([asking(DBA), asking(others=2)], 2),
        ([asking(slots("dba", 4))], 3),
    ],
)
def test_so_many_others_are_needed(rules: list[Rule], others: int) -> None:
    assert others_needed(rules, Risk.DESTRUCTIVE) == others


def test_one_person_sits_for_one_of_two_rules() -> None:
    rules = (asking(DBA), asking(SECURITY, targets=("shop",)))

    assert decide(a_case(REQUEST, sign("dba2"), rules=rules), NOW).state is State.PENDING
    for other in ("dba", "security"):
        assert decide(a_case(REQUEST, sign("dba2"), sign(other), rules=rules), NOW).state is State.APPROVED
    assert decide(a_case(REQUEST, sign("dba"), sign("security"), rules=rules), NOW).state is State.APPROVED


def test_a_rule_that_sharpens_another_asks_for_nobody_twice() -> None:
    rules = (asking(DBA), asking(DBA, SECURITY, targets=("shop",)))

    assert decide(a_case(REQUEST, sign("dba"), sign("security"), rules=rules), NOW).state is State.APPROVED


def test_the_requester_may_hold_a_seat_of_another_rule() -> None:
    rules = (asking(slots("on_call", 1)), asking(DBA))

    assert decide(a_case(REQUEST, sign("dba"), rules=rules), NOW).state is State.APPROVED


def test_what_one_person_of_two_roles_cannot_complete_is_refused_when_it_is_asked_for() -> None:
    rules = (asking(DBA), asking(SECURITY))
    roster = {name: ROSTER[name] for name in ("oncall", "dba2", "guest")}

    def asked(**roster: Person) -> Code | None:
        case = a_case(rules=rules, roster=roster)
        refusal = admit(case, "oncall", Act.REQUEST, digest=case.plan.digest, typed="shop", reason="because", now=NOW)
        return None if refusal is None else refusal.code

    assert asked(**roster) is Code.UNREACHABLE
    assert asked(**roster, dba=ROSTER["dba"]) is None


def test_who_brings_no_rule_nearer_is_told_whom_to_ask() -> None:
    rules = (asking(DBA), asking(SECURITY))

    assert refused(a_case(REQUEST, rules=rules), "guest") is Code.NO_ROLE
    assert refused(a_case(REQUEST, sign("dba"), rules=rules), "dba2") is None
    assert refused(a_case(REQUEST, sign("dba2"), rules=rules), "dba") is None
    assert refused(a_case(REQUEST, sign("dba2"), sign("dba"), rules=rules), "guest") is None  # complete


def test_who_has_clicked_adds_a_key_and_no_second_seat() -> None:
    for rules in ((asking(DBA, SECURITY),), (asking(DBA), asking(SECURITY))):
        case = a_case(REQUEST, sign("dba2"), rules=rules)
        assert refused(case, "dba2", method=Method.KEY) is None
        assert decide(a_case(REQUEST, sign("dba2"), key("dba2"), rules=rules), NOW).state is State.PENDING


# ---------------------------------------------------------------- whatever the rules

ROLES = ("dba", "security", "on_call")
A_SLOT = st.builds(
    Slot,
    roles=st.sets(st.sampled_from(ROLES), min_size=1, max_size=2).map(frozenset),
    count=st.integers(1, 2),
    group=st.sampled_from(["", "", "S0DBA"]),
)
RULES = st.lists(st.lists(A_SLOT, max_size=2).map(lambda slots: asking(*slots)), min_size=1, max_size=3)
PEOPLE = st.lists(st.tuples(st.sets(st.sampled_from(ROLES)).map(frozenset), st.booleans()), min_size=1, max_size=5)
"""Persons by roles, and whether they are in the Slack group."""


def of(people: list[tuple[frozenset[str], bool]], rules: list[Rule]) -> tuple[Case, list[Signature]]:
    """They have all signed in Slack, the first as the requester."""
    roster = {f"p{at}": Person(id=f"p{at}", name=f"P{at}", roles=roles) for at, (roles, _) in enumerate(people)}
    signed = [sign(name, Act.APPROVE if at else Act.REQUEST) for at, name in enumerate(roster)]
    inside = frozenset(act.account for act, (_, member) in zip(signed, people, strict=True) if member)
    case = a_case(rules=tuple(rules), roster=roster, requester="p0", groups={"S0DBA": inside})
    return case, signed


def decided(case: Case, signed: list[Signature]) -> tuple[State, tuple[str, ...]]:
    decision = decide(case.model_copy(update={"signatures": tuple(signed)}), NOW)
    return decision.state, decision.missing


def seated(slots: tuple[Slot, ...], signers: list[Signer]) -> bool:
    """Tried out: whether some way of sitting down leaves no seat empty and gives nobody two."""
    wanted = [slot for slot in slots for _ in range(slot.count)]
    return any(
        all(seat.fits(signer) for seat, signer in zip(wanted, row, strict=True))
        for row in permutations(signers, len(wanted))
    )


def signers_of(case: Case, people: list[tuple[frozenset[str], bool]]) -> list[Signer]:
    return [
        Signer(person=person, methods=frozenset({Method.SLACK}), groups=frozenset({"S0DBA"} if member else ()))
        for person, (_, member) in zip(case.roster.values(), people, strict=True)
    ]


@settings(max_examples=100)
@given(people=PEOPLE, rules=RULES, data=st.data())
def test_no_order_of_signatures_or_rules_matters(
    people: list[tuple[frozenset[str], bool]], rules: list[Rule], data: st.DataObject
) -> None:
    case, signed = of(people, rules)
    state, missing = decided(case, signed)

    assert decided(case, data.draw(st.permutations(signed))) == (state, missing)
    turned = case.model_copy(update={"rules": tuple(data.draw(st.permutations(rules)))})
    assert decided(turned, signed)[0] is state
    left = Counter(slot.words for slot in unfilled(joint(rules), signers_of(case, people)))
    mixed = data.draw(st.permutations(signers_of(case, people)))
    assert Counter(slot.words for slot in unfilled(joint(rules), mixed)) == left


@settings(max_examples=100)
@given(people=PEOPLE, rules=RULES)
def test_nobody_takes_two_seats_and_every_seat_that_can_be_is_taken(
    people: list[tuple[frozenset[str], bool]], rules: list[Rule]
) -> None:
    case, signed = of(people, rules)
    signers, wanted = signers_of(case, people), joint(rules)

    approved = decided(case, signed)[0] is State.APPROVED
    assert approved == (seated(wanted, signers) and len(people) > others_needed(rules, Risk.DESTRUCTIVE))
    if approved:
        assert all(seated(rule.slots, signers) for rule in rules)


@settings(max_examples=100)
@given(people=PEOPLE, rules=RULES, further=RULES)
def test_a_further_rule_can_only_ask_for_more(
    people: list[tuple[frozenset[str], bool]], rules: list[Rule], further: list[Rule]
) -> None:
    case, signed = of(people, [*rules, *further])

    if decided(case, signed)[0] is State.APPROVED:
        assert decided(case.model_copy(update={"rules": tuple(rules)}), signed)[0] is State.APPROVED
