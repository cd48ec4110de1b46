"""Whether the roster, and who of it can be reached at a time, can sign what the policy asks for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations, product

from actions import policy
from actions.contract import Risk
from actions.policy import Method, Weekly, shortfall
from bot.plan_file.approval import ApprovalRule
from bot.plan_file.document import DrPlan
from bot.plan_file.people import Person

_WEEK = timedelta(days=7)
_HOUR = timedelta(hours=1)

Span = tuple[datetime, datetime]


@dataclass(frozen=True)
class QuorumGap:
    """Times of a week in which the plans under some rules cannot be signed."""

    risk: Risk
    cover: str
    """Which plans of the risk; empty for all."""
    lacks: str
    spans: tuple[Span, ...]
    """When; none when it is so at all times, for there is no rota."""
    narrow: int = 0
    """How many of the rules cover only some plans of the risk."""

    @property
    def hours(self) -> float:
        """How long in all."""
        return sum((end - begin for begin, end in self.spans), timedelta(0)) / _HOUR

    @property
    def sentence(self) -> str:
        """What is missing and when, for people."""
        what = f"{self.risk} plans{f' of {self.cover}' if self.cover else ''}"
        if not self.spans:
            return f"{what} cannot be signed by this roster: {self.lacks} is missing"
        times = ", ".join(map(_words, self.spans[:4]))
        hours = f"{self.hours:.2f}".rstrip("0").rstrip(".")
        return f"{what} cannot be signed in {hours} of {_WEEK / _HOUR:g} hours ({times} UTC): {self.lacks} is missing"


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
    """What cannot be signed in the week that begins at this instant, by the rules that cover a plan together. What
    fewer rules lack at the same times is not said again."""
    instants = _instants(plan, week)
    ends = [*instants[1:], week + _WEEK]
    persons = {at: reachable(plan, at) for at in instants}
    for risk in Risk:
        told: list[tuple[frozenset[int], Mapping[datetime, tuple[str, ...]]]] = []
        for indices in [] if risk is Risk.READ else covers(plan, risk):  # READ runs at once, without a signature
            parts = [plan.approval.rules[index] for index in sorted(indices)]
            rules = tuple(dict.fromkeys(part.rule() for part in parts))
            lacking = {at: lack for at in instants if (lack := shortfall(rules, risk, persons[at]))}
            narrow = [part for part in parts if part.scoped]
            if not lacking or (len(narrow) > 1 and any(known < indices and lacking == then for known, then in told)):
                continue
            told.append((indices, lacking))
            cover = " and ".join(", ".join((*part.actions, *part.targets, *part.services)) for part in narrow)
            empty = [(begin, end) for begin, end in zip(instants, ends, strict=True) if begin in lacking]
            lacks = "; ".join(next(iter(lacking.values())))
            yield QuorumGap(risk, cover, lacks, tuple(_joined(empty)) if plan.rota else (), len(narrow))


def covers(plan: DrPlan, risk: Risk) -> list[frozenset[int]]:
    """Every set of rules, by their places in the file, that can cover one plan of this risk, small ones first."""
    rules = {index: rule for index, rule in enumerate(plan.approval.rules) if rule.risk is risk}
    actions = sorted({name for rule in rules.values() for name in rule.actions})
    # One that decides about a run falls under the rules of that run's action too.
    done = [(), *((name,) for name in actions), *combinations(actions, 2)]
    targets = ["", *sorted({name for rule in rules.values() for name in rule.targets})]
    services = ["", *sorted({name for rule in rules.values() for name in rule.services})]
    known = {item.name: item.application or "" for item in plan.databases} | {
        item.name: item.name for item in plan.services
    }
    found = {
        frozenset(
            index
            for index, rule in rules.items()
            if (not rule.actions or set(rule.actions) & set(names))
            and (not rule.targets or target in rule.targets)
            and (not rule.services or service in rule.services)
        )
        for names, target in product(done, targets)
        for service in ((known[target],) if target in known else services)
    }
    return sorted((item for item in found if item), key=lambda item: (len(item), sorted(item)))


def _instants(plan: DrPlan, week: datetime) -> list[datetime]:
    """The beginning of the week, and every instant in it at which somebody comes or goes."""
    windows = [window for shift in plan.rota if isinstance(window := shift.window(), Weekly)]
    return sorted({week, *(edge for window in windows for edge in window.turns(week, week + _WEEK))})


def _words(span: Span) -> str:
    """`Mon 22:00-06:00`; with the day of its end where that is not plain."""
    begin, end = span
    return f"{begin:%a %H:%M}-" + (f"{end:%H:%M}" if end - begin < timedelta(days=1) else f"{end:%a %H:%M}")


def _joined(spans: list[Span]) -> list[Span]:
    """Those that follow each other, as one."""
    joined: list[Span] = []
    for begin, end in spans:
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined
