"""Whether the roster, and who of it can be reached at an hour, can sign what the policy asks for."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from actions import policy
from actions.contract import Risk
from actions.policy import Method, shortfall
from bot.plan_file.approval import ApprovalRule
from bot.plan_file.document import DrPlan
from bot.plan_file.people import Person

_HOURS = 7 * 24


@dataclass(frozen=True)
class QuorumGap:
    """Hours of a week in which the plans of a rule cannot be signed."""

    risk: Risk
    cover: str
    """Which plans of the risk; empty for all."""
    lacks: str
    hours: tuple[datetime, ...]
    """The beginnings of the hours; none when it is so at all hours, for there is no rota."""

    @property
    def sentence(self) -> str:
        """What is missing and when, for people."""
        what = f"{self.risk} plans{f' of {self.cover}' if self.cover else ''}"
        if not self.hours:
            return f"{what} cannot be signed by this roster: {self.lacks} is missing"
        times = ", ".join(_spans(self.hours)[:4])
        return f"{what} cannot be signed in {len(self.hours)} of {_HOURS} hours ({times} UTC): {self.lacks} is missing"


def signatory(person: Person) -> policy.Person:
    """The person as signatures are judged by: its roles, and what it can sign with."""
    means = [Method.SLACK] * bool(person.slack_ids) + [Method.KEY] * bool(person.keys)
    return policy.Person(id=person.id, name=person.name, roles=frozenset(person.roles), means=frozenset(means))


def roster_of(plan: DrPlan) -> list[policy.Person]:
    """Everybody of the roster."""
    return [signatory(person) for person in plan.roster]


def together(plan: DrPlan, part: ApprovalRule) -> tuple[policy.Rule, ...]:
    """A rule and those that cover all plans of its risk: they apply together."""
    general = [other for other in plan.approval.rules if other.risk is part.risk and not other.scoped]
    return tuple(dict.fromkeys(other.rule() for other in (*general, part)))


def reachable(plan: DrPlan, at: datetime) -> list[policy.Person]:
    """Who is there at an instant by the rota; without a rota, everybody."""
    if not plan.rota:
        return roster_of(plan)
    there = {person for shift in plan.rota if shift.window().ends(at) is not None for person in shift.persons}
    return [person for person in roster_of(plan) if person.id in there]


def gaps(plan: DrPlan, week: datetime) -> Iterator[QuorumGap]:
    """What cannot be signed in the week that begins with this hour, rule by rule."""
    instants = [week + timedelta(hours=hour) for hour in range(_HOURS)] if plan.rota else [week]
    persons = {at: reachable(plan, at) for at in instants}
    for part in plan.approval.rules:
        if part.risk is Risk.READ:
            continue  # runs at once, without a signature
        rules = together(plan, part)
        lacking = {at: shortfall(rules, part.risk, persons[at]) for at in instants}
        empty = [at for at in instants if lacking[at]]
        if empty:
            cover = ", ".join((*part.actions, *part.targets, *part.services))
            lacks = "; ".join(lacking[empty[0]])
            yield QuorumGap(part.risk, cover, lacks, tuple(empty) if plan.rota else ())


def _spans(hours: tuple[datetime, ...]) -> list[str]:
    """`Mon 22:00-06:00`, for hours in a row."""
    spans: list[tuple[datetime, datetime]] = []
    for hour in hours:
        if spans and spans[-1][1] == hour:
            spans[-1] = (spans[-1][0], hour + timedelta(hours=1))
        else:
            spans.append((hour, hour + timedelta(hours=1)))
    return [f"{begin:%a %H:%M}-{end:%H:%M}" for begin, end in spans]
