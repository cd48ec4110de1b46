"""The approval policy, purely: what a rule asks for, which plans it covers, when nothing may start, who can fill it.

Several rules may cover one plan; all of them must be satisfied together, so a further rule can only ask for more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from actions.contract import Plan, Risk
from actions.site import Frozen


class Method(StrEnum):
    """How an act was made known. A further one, such as a passkey, is a further way to tell that it was this person."""

    SLACK = "slack"
    KEY = "key"  # an OpenSSH key of the roster
    HOST = "host"  # a shell on the bot's host, or its schedule: counts only where nobody else must sign


class Person(Frozen):
    """A human of the roster. `means` is what this person can sign with."""

    id: str
    name: str
    roles: frozenset[str] = frozenset()
    means: frozenset[Method] = frozenset({Method.SLACK})


class Signer(Frozen):
    """A person and the ways in which he has signed, or could. `groups` are the Slack groups he is in."""

    person: Person
    methods: frozenset[Method]
    groups: frozenset[str] = frozenset()


class Slot(Frozen):
    """So many persons holding one of these roles. With `group`, a signature from Slack must also come from a member of
    that Slack group: the group only takes rights away. A key is no Slack account, so the group says nothing on it."""

    roles: frozenset[str]
    count: int = 1
    group: str = ""

    def fits(self, signer: Signer) -> bool:
        """Whether this signer may take a seat of the slot."""
        member = not self.group or self.group in signer.groups or Method.KEY in signer.methods
        return bool(self.roles & signer.person.roles) and member

    @property
    def words(self) -> str:
        """`dba`, `dba or sre`, `dba (in S0DBA)`."""
        return " or ".join(sorted(self.roles)) + (f" (in {self.group})" if self.group else "")


class Once(Frozen):
    """From one instant until before another."""

    since: datetime
    until: datetime
    reason: str = ""

    def ends(self, now: datetime) -> datetime | None:
        """When it is over; None while it does not hold."""
        return self.until if self.since <= now < self.until else None


class Weekly(Frozen):
    """Every week on these days (0 is Monday) from one time of day until another, on the clocks of a zone. An `until`
    not after `since` is on the next day."""

    days: frozenset[int]
    since: time
    until: time
    zone: str = "UTC"
    reason: str = ""

    def ends(self, now: datetime) -> datetime | None:
        """When it is over; None while it does not hold."""
        today = now.astimezone(ZoneInfo(self.zone)).date()
        for day in (today, today - timedelta(days=1)):
            begin, end = self.on(day)
            if day.weekday() in self.days and begin <= now < end:
                return end
        return None

    def on(self, day: date) -> tuple[datetime, datetime]:
        """When it begins and ends if it begins on this day."""
        zone = ZoneInfo(self.zone)
        last = day if self.until > self.since else day + timedelta(days=1)
        # In UTC, because two times of one zone are compared by their clocks, which jump twice a year.
        return (
            datetime.combine(day, self.since, tzinfo=zone).astimezone(UTC),
            datetime.combine(last, self.until, tzinfo=zone).astimezone(UTC),
        )

    def turns(self, since: datetime, until: datetime) -> list[datetime]:
        """Every instant between the two at which it begins or ends."""
        first = since.astimezone(ZoneInfo(self.zone)).date() - timedelta(days=2)
        days = (first + timedelta(days=number) for number in range((until - since).days + 5))
        edges = {edge for day in days if day.weekday() in self.days for edge in self.on(day)}
        return sorted(edge for edge in edges if since < edge < until)


Window = Once | Weekly


class Rule(Frozen):
    """What plans of one risk need. `others` counts the persons besides the requester. Empty `actions`, `targets` and
    `services` cover every one; empty `channels` allow every place to ask in."""

    risk: Risk
    others: int
    slots: tuple[Slot, ...] = ()
    typed_target: bool = False
    actions: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    key_required: bool = False  # one of the signatures must be Method.KEY
    freezes: tuple[Window, ...] = ()
    approval_expiry: timedelta = timedelta(minutes=30)
    execution_expiry: timedelta = timedelta(hours=1)

    def covers(self, plan: Plan, service: str) -> bool:
        """Whether the rule speaks of this plan. One that decides about a run falls under the rules of that run too."""
        if self.actions and plan.action not in self.actions and plan.about not in self.actions:
            return False
        named = ((self.targets, plan.target), (self.services, service))
        return self.risk is plan.risk and all(not names or name in names for names, name in named)


def minimum_others(risk: Risk) -> int:
    """The floor below which no policy may go."""
    return {Risk.READ: 0, Risk.REVERSIBLE: 0, Risk.DISRUPTIVE: 1, Risk.DESTRUCTIVE: 1, Risk.IRREVERSIBLE: 2}[risk]


def others_needed(rules: Sequence[Rule], risk: Risk) -> int:
    """How many persons besides the requester at the least, whatever the rules say; he may hold one of their seats."""
    return max([minimum_others(risk), sum(slot.count for slot in joint(rules)) - 1, *(rule.others for rule in rules)])


def joint(rules: Iterable[Rule]) -> tuple[Slot, ...]:
    """The seats of a plan that all of these rules cover. Those of different roles stand beside each other, whichever
    rules name them: a signature fills at most one. Of the same role there are as many as the rule asks that asks for
    most, so that a rule can sharpen another without doubling it; the same of each group."""
    persons: Counter[frozenset[str]] = Counter()
    members: Counter[tuple[frozenset[str], str]] = Counter()
    for rule in rules:
        of_rule: Counter[frozenset[str]] = Counter()
        in_groups: Counter[tuple[frozenset[str], str]] = Counter()
        for slot in rule.slots:
            of_rule[slot.roles] += slot.count
            in_groups[slot.roles, slot.group] += slot.count if slot.group else 0
        persons |= of_rule
        members |= in_groups
    found: list[Slot] = []
    for roles, count in persons.items():
        grouped = [Slot(roles=roles, count=n, group=group) for (of, group), n in members.items() if of == roles]
        anyone = count - sum(slot.count for slot in grouped)
        found += [*grouped, *([Slot(roles=roles, count=anyone)] if anyone > 0 else [])]
    return tuple(found)


def frozen(rules: Iterable[Rule], now: datetime) -> tuple[Window, datetime] | None:
    """The freeze that holds longest, and when it is over."""
    held = [(freeze, end) for rule in rules for freeze in rule.freezes if (end := freeze.ends(now)) is not None]
    return max(held, key=lambda pair: pair[1], default=None)


def seats(slots: Iterable[Slot]) -> str:
    """`1 of dba AND 2 of sre`; empty without slots."""
    return " AND ".join(f"{slot.count} of {slot.words}" for slot in slots)


def lacking(rules: Sequence[Rule], risk: Risk, signers: Sequence[Signer], *, others: int) -> tuple[str, ...]:
    """What these signers, `others` of them besides the requester, leave open; for people."""
    missing: list[str] = []
    if others < (needed := others_needed(rules, risk)):
        missing.append(f"{needed - others} more person(s) besides the requester")
    open_seats = Counter(slot.words for slot in unfilled(joint(rules), signers))
    missing += [f"{count} of {words}" for words, count in sorted(open_seats.items())]
    if any(rule.key_required for rule in rules) and not any(Method.KEY in signer.methods for signer in signers):
        missing.append("one signature with a key (`drbot sign`)")
    return tuple(missing)


def shortfall(rules: Sequence[Rule], risk: Risk, persons: Iterable[Person]) -> tuple[str, ...]:
    """What is still missing when all of these persons sign with all they have, one of them as the requester. Groups are
    taken as given: Slack is asked when somebody signs."""
    groups = frozenset(slot.group for slot in joint(rules))
    able = [Signer(person=person, methods=person.means, groups=groups) for person in persons if person.means]
    return lacking(rules, risk, able, others=max(0, len(able) - 1))


def unfilled(slots: Sequence[Slot], signers: Sequence[Signer]) -> tuple[Slot, ...]:
    """The seats nobody can take, each signer taking at most one: a maximum matching, so order never matters."""
    wanted = [slot for slot in slots for _ in range(slot.count)]
    taken: dict[int, int] = {}  # signer -> seat

    def seat_found(seat: int, tried: set[int]) -> bool:
        for index, signer in enumerate(signers):
            if index in tried or not wanted[seat].fits(signer):
                continue
            tried.add(index)
            if index not in taken or seat_found(taken[index], tried):
                taken[index] = seat
                return True
        return False

    return tuple(
        slot.model_copy(update={"count": 1}) for seat, slot in enumerate(wanted) if not seat_found(seat, set())
    )
