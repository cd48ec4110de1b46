"""The policy in force: rules, roster and keys of the plan file, as `actions.approval` takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import timedelta

from actions.approval import Method, Person, PolicyVersion, Rule, Slot
from actions.contract import Plan, canonical
from bot.openssh import allowed_key
from bot.plan_file import Approval, BreakGlass, DrPlan
from bot.plan_file.quorum import roster_of
from bot.ports import Who
from bot.services.keys import Keys

SCHEDULE = "schedule"
"""The requester of what the plan's own schedule asks for. It stands on no roster and can only ask for plans that
need nobody else."""

INCIDENT, ON_CALL = "incident", "on_call"
"""Names of places in a rule's `channels`."""

METHODS = {"slack": Method.SLACK, "key": Method.KEY, "cli": Method.HOST, "clock": Method.HOST}
"""What a signature from each source is worth."""


class Policy:
    """The approval rules, the roster and its keys."""

    def __init__(self, plan: DrPlan) -> None:
        self._plan = plan
        self.roster: Mapping[str, Person] = {person.id: person for person in roster_of(plan)}
        self.rules: tuple[Rule, ...] = tuple(rule.rule() for rule in plan.approval.rules)
        self.keys = Keys({person.id: [allowed_key(line) for line in person.keys] for person in plan.roster})
        self.version = PolicyVersion(
            rules=_digest(_rules(plan)),
            roster=_digest(
                {
                    "workspace": plan.workspace,
                    # Names and addresses may be corrected without voiding anything.
                    "persons": [
                        person.model_dump(mode="json", include={"id", "roles", "slack_ids", "keys"})
                        for person in plan.roster
                    ],
                }
            ),
        )

    @property
    def audit_channel(self) -> str:
        """Where every signature and refusal is copied to."""
        return self._plan.channels.audit

    @property
    def on_call_channel(self) -> str:
        """Where reminders and warnings go."""
        return self._plan.channels.on_call

    @property
    def break_glass(self) -> BreakGlass | None:
        """What one person may do alone; None for nothing."""
        return self._plan.approval.break_glass

    @property
    def witnessed(self) -> bool:
        """Whether a witness sees the signatures before anything destructive, or the policy asks for none."""
        return self._plan.record is not None or self._plan.approval.unwitnessed

    @property
    def seen_within(self) -> timedelta:
        """How old Slack's word on a signer's account may be when a run starts."""
        return self._plan.approval.seen_within

    @property
    def pages(self) -> bool:
        """Whether anybody is told outside Slack."""
        return self._plan.pager is not None

    @property
    def accounts(self) -> Mapping[str, str]:
        """Every Slack account of the roster, with its person."""
        return {account: person.id for person in self._plan.roster for account in person.slack_ids}

    @property
    def groups(self) -> frozenset[str]:
        """The Slack groups that rules name."""
        return frozenset(slot.group for rule in self.rules for slot in rule.slots if slot.group)

    def person(self, who: Who) -> Person | None:
        """The person of the roster behind an account; None for strangers and other workspaces."""
        if who.source == "clock":
            return SCHEDULE_PERSON
        if who.source != "slack":
            return self.roster.get(who.person)
        if self._plan.workspace is not None and who.team and who.team != self._plan.workspace:
            return None
        found = self.accounts.get(who.slack_user)
        return None if found is None else self.roster[found]

    def name(self, person: str) -> str:
        """The display name, or the id of somebody who is no longer on the roster."""
        return self.roster[person].name if person in self.roster else person

    def service(self, plan: Plan) -> str:
        """The application a plan acts on, directly or through its database; empty when on none."""
        services = {service.name: service.name for service in self._plan.services}
        databases = {database.name: database.application or "" for database in self._plan.databases}
        known = databases | services
        named = (plan.params.get("service"), plan.params.get("database"), plan.target)
        return next((known[name] for name in named if isinstance(name, str) and name in known), "")

    def places(self, channel: str, *, incident: bool) -> frozenset[str]:
        """The names a channel has in rules."""
        on_call = {ON_CALL} if channel == self._plan.channels.on_call else set()
        return frozenset({channel} | on_call | ({INCIDENT} if incident else set()))

    def covering(self, plan: Plan) -> tuple[Rule, ...]:
        """The rules that speak of a plan."""
        service = self.service(plan)
        return tuple(rule for rule in self.rules if rule.covers(plan, service))

    def approval_expiry(self, plan: Plan) -> timedelta:
        """From the request to the last signature."""
        return min((rule.approval_expiry for rule in self.covering(plan)), default=timedelta(0))

    def who_may_sign(self, plan: Plan) -> Mapping[str, tuple[str, ...]]:
        """For every slot the names of those who may fill it."""
        slots: dict[str, Slot] = {slot.words: slot for rule in self.covering(plan) for slot in rule.slots}
        return {
            words: tuple(sorted(person.name for person in self.roster.values() if person.roles & slot.roles))
            for words, slot in slots.items()
        }


def stored(version: PolicyVersion) -> str:
    """As `PlanRow.policy` holds it."""
    return f"{version.rules}/{version.roster}"


def read(text: str) -> PolicyVersion:
    """What `stored` wrote; anything else is equal to no version."""
    rules, _, roster = text.partition("/")
    return PolicyVersion(rules=rules, roster=roster)


_UNSAID = {"unwitnessed": False, "seen_within": Approval.model_fields["seen_within"].default}
"""Keys that came later: an upgrade must not void what waits for signatures, nor stop what runs, under a file
that does not name them."""


def _rules(plan: DrPlan) -> dict[str, object]:
    unsaid = {key for key, default in _UNSAID.items() if getattr(plan.approval, key) == default}
    return plan.approval.model_dump(mode="json", exclude=unsaid)


def _digest(value: object) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


SCHEDULE_PERSON = Person(id=SCHEDULE, name="the schedule of the plan", means=frozenset({Method.HOST}))
