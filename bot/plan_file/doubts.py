"""What a valid plan still leaves open: entries to be filled in, promises that cannot be kept."""

from collections.abc import Iterator
from datetime import date, timedelta

from actions.contract import Risk
from bot.plan_file.document import DrPlan
from bot.plan_file.people import ApprovalRule, Person
from bot.plan_file.rules import Broken

_OPEN = "TBD"


def doubts(plan: DrPlan, *, today: date | None) -> list[Broken]:
    """Every doubt about a valid plan. None of them stops the start."""
    return [
        *_open_contacts(plan),
        *_open_persons(plan),
        *_missing_rules(plan),
        *_too_few_signers(plan),
        *_unkept_rpo(plan),
        *_unprotected(plan),
        *_overdue(plan, today),
    ]


def _open_contacts(plan: DrPlan) -> Iterator[Broken]:
    for index, contact in enumerate(plan.contacts):
        for key in ("name", "phone", "email"):
            if getattr(contact, key) == _OPEN:
                yield Broken(("contacts", index, key), f"the {key} of {contact.role} is still TBD", "fill it in")


def _open_persons(plan: DrPlan) -> Iterator[Broken]:
    for index, person in enumerate(plan.roster):
        if person.name == _OPEN:
            yield Broken(("roster", index, "name"), f"the name of `{person.id}` is still TBD", "fill it in")
        if not person.slack_ids:
            yield Broken(("roster", index), f"`{person.id}` has no Slack account and cannot sign", "add `slack_ids`")


def _missing_rules(plan: DrPlan) -> Iterator[Broken]:
    for risk in Risk:
        if plan.rule(risk) is None:
            yield Broken(
                ("approval", "rules"),
                f"no rule covers {risk}, so its actions are refused",
                f"add a rule for {risk}",
            )


def _too_few_signers(plan: DrPlan) -> Iterator[Broken]:
    able = [person for person in plan.roster if person.slack_ids]
    for index, rule in enumerate(plan.approval.rules):
        if rule.risk is Risk.READ:
            continue  # runs at once, without a signature
        lack = _lack(rule, able)
        if lack:
            yield Broken(
                ("approval", "rules", index),
                f"{rule.risk} cannot be signed yet: {lack}",
                "add `slack_ids` to the roster",
            )


def _lack(rule: ApprovalRule, able: list[Person]) -> str:
    needed = rule.persons_besides_requester + 1
    if len(able) < needed:
        return f"it needs {needed} persons with a Slack account, the roster has {len(able)}"
    for slot in rule.slots:
        holders = sum(slot.role in person.roles for person in able)
        if holders < slot.count:
            return f"it needs {slot.count} of `{slot.role}` with a Slack account, the roster has {holders}"
    return ""


def _unkept_rpo(plan: DrPlan) -> Iterator[Broken]:
    for index, backup in enumerate(plan.backups.databases):
        if backup.wal is None and plan.objectives.rpo < timedelta(days=1):
            yield Broken(
                ("backups", "databases", index),
                f"`{backup.database}` can lose up to a day: there is a dump a day and no WAL archive",
                "add `wal`, or accept it",
            )


def _unprotected(plan: DrPlan) -> Iterator[Broken]:
    covered = {backup.database for backup in plan.backups.databases}
    for index, database in enumerate(plan.databases):
        if database.name not in covered:
            yield Broken(("databases", index), f"`{database.name}` is not backed up", "add it to `backups.databases`")


def _overdue(plan: DrPlan, today: date | None) -> Iterator[Broken]:
    document = plan.document
    if today is not None and document is not None and document.next_review < today:
        yield Broken(
            ("document", "next_review"),
            f"the review of {document.next_review} is overdue",
            "review the plan and set the next date",
        )
