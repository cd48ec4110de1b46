"""A plan, a roster, a rule and signatures, for tests of who must sign."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from actions.approval import Act, BreakGlass, Case, Method, Person, Rule, Signature, Signer, Slot, Start
from actions.contract import Finding, Plan, Risk, Verdict

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=30)
BOTH = frozenset({Method.SLACK, Method.KEY})

ROSTER = {
    person.id: person
    for person in (
        Person(id="oncall", name="Ona", roles=frozenset({"on_call", "operator"}), means=BOTH),
        Person(id="dba", name="Dan", roles=frozenset({"dba"}), means=BOTH),
        Person(id="dba2", name="Dora", roles=frozenset({"dba", "security"})),
        Person(id="security", name="Sam", roles=frozenset({"security"})),
        Person(id="guest", name="Gil"),
    )
}

DBA = Slot(roles=frozenset({"dba"}))
SECURITY = Slot(roles=frozenset({"security"}))
GLASS = BreakGlass(commander="oncall", delay=timedelta(minutes=5), review_within=timedelta(hours=24))


def a_plan(*, risk: Risk = Risk.DESTRUCTIVE, stopped: bool = False) -> Plan:
    stop = Finding(check="disk", verdict=Verdict.STOP, detail="The disk is full.")
    return Plan(
        id="abc",
        action="restore.dump",
        summary="Restore",
        risk=risk,
        target="shop",
        params={},
        steps=(),
        made_at=NOW,
        findings=(stop,) if stopped else (),
    )


def a_rule(**changes: Any) -> Rule:
    return Rule(risk=Risk.DESTRUCTIVE, others=1).model_copy(update=changes)


def a_case(*signatures: Signature, plan: Plan | None = None, rule: Rule | None = None, **changes: Any) -> Case:
    values: dict[str, Any] = {
        "plan": plan or a_plan(),
        "requester": "oncall",
        "rules": (rule or a_rule(),),
        "roster": ROSTER,
        "signatures": signatures,
        "expires_at": LATER,
    }
    return Case(**(values | changes))


def begun(case: Case, at: datetime = NOW, **then: Any) -> Case:
    """The same after a start, at which it was what it is now but for `then`."""
    return case.model_copy(update={"start": Start(at=at, case=case.model_copy(update=then))})


def sign(
    person: str, act: Act = Act.APPROVE, *, at: int = 0, typed: str = "shop", digest: str | None = None, **changes: Any
) -> Signature:
    """At so many seconds after NOW."""
    values: dict[str, Any] = {
        "person": person,
        "act": act,
        "digest": a_plan().digest if digest is None else digest,
        "at": NOW + timedelta(seconds=at),
        "typed": typed,
        "reason": "because",
        "account": f"U0{person.upper()}",
    }
    return Signature(**(values | changes))


def key(person: str, act: Act = Act.APPROVE, **changes: Any) -> Signature:
    """The same by key."""
    return sign(person, act, **{"method": Method.KEY, "account": person, **changes})


def signer(person: str, *methods: Method, groups: frozenset[str] = frozenset()) -> Signer:
    return Signer(person=ROSTER[person], methods=frozenset(methods), groups=groups)


REQUEST = sign("oncall", Act.REQUEST)
KEY_REQUEST = key("oncall", Act.REQUEST)
