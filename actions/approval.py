"""Who must sign, purely: state in, decision out. No applicable rule means no.

A signature belongs to a person, not to an account, and fills at most one slot. The request is the requester's own
signature. `admit` judges one click, `decide` judges all signatures of a plan; the worker calls `decide` again before
it starts anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum

from actions.contract import Plan, Risk
from actions.site import Frozen


class Person(Frozen):
    """A human of the roster."""

    id: str
    name: str
    roles: frozenset[str] = frozenset()


class Slot(Frozen):
    """So many persons holding one of these roles."""

    roles: frozenset[str]
    count: int = 1


class Rule(Frozen):
    """What one risk needs. `others` counts the persons besides the requester."""

    risk: Risk
    others: int
    slots: tuple[Slot, ...] = ()
    typed_target: bool = False


class Act(StrEnum):
    REQUEST = "request"
    APPROVE = "approve"
    DENY = "deny"
    WITHDRAW = "withdraw"


class Signature(Frozen):
    """One recorded act of one person on one digest."""

    person: str
    act: Act
    digest: str
    at: datetime
    typed: str = ""
    reason: str = ""


class Code(StrEnum):
    """Reason codes of refusals, as they stand in the audit record."""

    SELF_APPROVAL = "self_approval"
    NOT_ON_ROSTER = "not_on_roster"
    NO_ROLE = "no_role"
    ALREADY_SIGNED = "already_signed"
    EXPIRED = "expired"
    STALE_REVISION = "stale_revision"
    ALREADY_STARTED = "already_started"
    DENIED = "denied"
    WRONG_TARGET = "wrong_target"
    NO_REASON = "no_reason"
    NO_RULE = "no_rule"
    STOPPED = "stopped"
    UNSIGNED = "unsigned"


class Refusal(Frozen):
    """Why a click changes nothing, and what to do next."""

    code: Code
    text: str


class State(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    VOID = "void"


class Decision(Frozen):
    """Where a plan stands. `missing` names what is still needed, for people."""

    state: State
    signers: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    reason: str = ""


class Case(Frozen):
    """All that a decision rests on."""

    plan: Plan
    requester: str
    rules: Mapping[Risk, Rule]
    roster: Mapping[str, Person]
    signatures: tuple[Signature, ...]
    expires_at: datetime
    execution_expiry: timedelta = timedelta(hours=1)  # from the last signature to the start
    started: bool = False

    @property
    def rule(self) -> Rule | None:
        return self.rules.get(self.plan.risk)


def minimum_others(risk: Risk) -> int:
    """The floor below which no policy may go."""
    return {Risk.READ: 0, Risk.REVERSIBLE: 0, Risk.DISRUPTIVE: 1, Risk.DESTRUCTIVE: 1, Risk.IRREVERSIBLE: 2}[risk]


_RANK = {Act.REQUEST: 0, Act.APPROVE: 1, Act.WITHDRAW: 2, Act.DENY: 3}
"""Which of two acts of one instant comes later: the one that permits less."""


def standing(signatures: Sequence[Signature], digest: str) -> dict[str, tuple[Signature, ...]]:
    """What every person holds up on this digest: a denial, or the signatures since the last withdrawal. A denial
    stays whatever the same person clicks later; a further signature never takes an earlier one away."""
    held: dict[str, tuple[Signature, ...]] = {}
    for signature in sorted(signatures, key=lambda item: (item.at, _RANK[item.act], item.person)):
        before = held.get(signature.person, ())
        if signature.digest != digest or any(item.act is Act.DENY for item in before):
            continue
        if signature.act is Act.WITHDRAW:
            held[signature.person] = ()
        elif signature.act is Act.DENY:
            held[signature.person] = (signature,)
        else:
            held[signature.person] = (*before, signature)
    return {person: items for person, items in held.items() if items}


def decide(case: Case, now: datetime) -> Decision:
    """Where the plan stands now. Deny wins over everything. There are two deadlines: one for the signatures, and, from
    the last of them, one for the start; a plan that waited too long for a lock is not started on old words."""
    rule = case.rule
    if rule is None:
        return Decision(state=State.VOID, reason=f"No approval rule covers {case.plan.risk}.")
    if case.plan.stopped:
        return Decision(state=State.VOID, reason=case.plan.stopped[0].detail)
    held = standing(case.signatures, case.plan.digest)
    denied = [item for items in held.values() for item in items if item.act is Act.DENY and item.person in case.roster]
    if denied:
        names = ", ".join(_name(case, item.person) for item in denied)
        return Decision(state=State.DENIED, reason=f"Denied by {names}: {denied[0].reason}")
    counted = _counted(case, rule, held)
    missing = _missing(case, rule, counted)
    if missing and now >= case.expires_at:
        return Decision(state=State.EXPIRED, reason="Nobody completed the signatures in time.")
    if missing:
        return Decision(state=State.PENDING, signers=tuple(sorted(counted)), missing=missing)
    complete = max(item.at for person in counted for item in held[person])
    if now >= complete + case.execution_expiry:
        return Decision(state=State.EXPIRED, reason="It was signed, but could not start in time; ask for it again.")
    return Decision(state=State.APPROVED, signers=tuple(sorted(counted)))


def _counted(case: Case, rule: Rule, held: Mapping[str, Sequence[Signature]]) -> set[str]:
    """Persons whose signature counts: on the roster, with the target typed where the rule asks."""
    return {
        person
        for person, items in held.items()
        for item in items
        if person in case.roster
        and item.at < case.expires_at
        and item.act in (Act.REQUEST, Act.APPROVE)
        and (item.act is Act.REQUEST) == (person == case.requester)
        and (not rule.typed_target or item.typed == case.plan.target)
    }


def _missing(case: Case, rule: Rule, counted: set[str]) -> tuple[str, ...]:
    missing: list[str] = []
    if case.requester not in counted:
        missing.append("the requester's own signature")
    others = counted - {case.requester}
    needed = max(rule.others, minimum_others(case.plan.risk))
    if len(others) < needed:
        missing.append(f"{needed - len(others)} more person(s) besides the requester")
    open_slots = unfilled(rule.slots, [case.roster[person] for person in sorted(counted)])
    missing += [f"{slot.count} of {' or '.join(sorted(slot.roles))}" for slot in open_slots]
    return tuple(missing)


def unfilled(slots: Sequence[Slot], persons: Sequence[Person]) -> tuple[Slot, ...]:
    """The seats nobody can take, each person taking at most one: a maximum matching, so order never matters."""
    seats = [slot for slot in slots for _ in range(slot.count)]
    taken: dict[int, int] = {}  # person -> seat

    def seat_found(seat: int, tried: set[int]) -> bool:
        for index, person in enumerate(persons):
            if index in tried or not person.roles & seats[seat].roles:
                continue
            tried.add(index)
            if index not in taken or seat_found(taken[index], tried):
                taken[index] = seat
                return True
        return False

    left = [seat for seat in range(len(seats)) if not seat_found(seat, set())]
    return tuple(Slot(roles=seats[seat].roles) for seat in left)


def admit(
    case: Case, person: str | None, act: Act, *, digest: str, typed: str, reason: str, now: datetime
) -> Refusal | None:
    """Whether this act may be recorded as a signature; the refusal says what to do next."""
    if person is None or person not in case.roster:
        return Refusal(
            code=Code.NOT_ON_ROSTER,
            text="You are not on the roster of the plan file, so your signature does not count. Ask a person who is.",
        )
    if case.started:
        return Refusal(
            code=Code.ALREADY_STARTED,
            text="The run has started, so signatures change nothing any more; follow it on its message.",
        )
    if case.rule is None:
        return Refusal(code=Code.NO_RULE, text=f"No approval rule covers {case.plan.risk}; change the plan file first.")
    if digest != case.plan.digest:
        return Refusal(code=Code.STALE_REVISION, text="This plan was replaced; sign the newest message instead.")
    over = _over(decide(case, now))
    if over is not None:
        return over
    if act in (Act.APPROVE, Act.REQUEST):
        return _admit_signature(case, case.rule, person, act, typed=typed, reason=reason)
    return None


def _over(decision: Decision) -> Refusal | None:
    """Why nobody can sign this plan any more."""
    if decision.state is State.VOID:
        return Refusal(code=Code.STOPPED, text=f"{decision.reason} Ask for a new plan once this is put right.")
    if decision.state is State.DENIED:
        return Refusal(code=Code.DENIED, text=f"{decision.reason} Only a new plan can overrule this.")
    if decision.state is State.EXPIRED:
        return Refusal(code=Code.EXPIRED, text="This plan has expired; ask for it again.")
    return None


def _admit_signature(case: Case, rule: Rule, person: str, act: Act, *, typed: str, reason: str) -> Refusal | None:
    if act is Act.APPROVE and person == case.requester:
        return Refusal(
            code=Code.SELF_APPROVAL,
            text="Your request is already your signature; one other person must approve.",
        )
    if person in standing(case.signatures, case.plan.digest):
        return Refusal(code=Code.ALREADY_SIGNED, text="Your signature is already recorded; nothing was added.")
    useful = frozenset[str]().union(*(slot.roles for slot in rule.slots)) if rule.slots else None
    if act is Act.APPROVE and useful is not None and not case.roster[person].roles & useful:
        wanted = " or ".join(sorted(useful))
        return Refusal(code=Code.NO_ROLE, text=f"This plan needs a signature of {wanted}; ask one of them.")
    if not reason.strip():
        return Refusal(code=Code.NO_REASON, text="A signature needs a reason; type one line and send it again.")
    if rule.typed_target and typed != case.plan.target:
        return Refusal(
            code=Code.WRONG_TARGET,
            text=f"The typed name does not match the target; type exactly `{case.plan.target}`.",
        )
    return None


def _name(case: Case, person: str) -> str:
    return case.roster[person].name if person in case.roster else person
