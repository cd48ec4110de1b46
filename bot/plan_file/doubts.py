"""What a valid plan still leaves open: entries to be filled in, promises that cannot be kept."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

from actions.contract import Risk
from actions.engines import engines
from actions.policy import shortfall
from bot.plan_file.document import DrPlan
from bot.plan_file.quorum import gaps, roster_of, together
from bot.plan_file.rules import Broken
from bot.plan_file.world import ObjectLock

_OPEN = "TBD"

_A_MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
"""Any week shows what a rota leaves open; the bot itself looks at the coming one."""


def doubts(plan: DrPlan, *, today: date | None) -> list[Broken]:
    """Every doubt about a valid plan. None of them stops the start."""
    return [
        *_open_contacts(plan),
        *_open_persons(plan),
        *_missing_rules(plan),
        *_too_few_signers(plan),
        *_lonely_hours(plan),
        *_idle_commander(plan),
        *_unkept_rpo(plan),
        *_unprotected(plan),
        *_points_without_images(plan),
        *_secrets_sealed_by_nothing(plan),
        *_unwitnessed(plan),
        *_unlocked_evidence(plan),
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
        if not person.slack_ids and not person.keys:
            wrong = f"`{person.id}` has no Slack account and no key, and cannot sign"
            yield Broken(("roster", index), wrong, "add `slack_ids` or `keys`")


def _missing_rules(plan: DrPlan) -> Iterator[Broken]:
    for risk in Risk:
        rules = [rule for rule in plan.approval.rules if rule.risk is risk]
        if all(rule.scoped for rule in rules):
            some = "only some plans of" if rules else "no rule covers"
            wrong = (
                f"{some} {risk}{' are covered' if rules else ''}, so its {'others' if rules else 'actions'} are refused"
            )
            yield Broken(("approval", "rules"), wrong, f"add a rule for {risk}")


def _too_few_signers(plan: DrPlan) -> Iterator[Broken]:
    roster = roster_of(plan)
    for index, part in enumerate(plan.approval.rules):
        if part.risk is Risk.READ:
            continue  # runs at once, without a signature
        lack = shortfall(together(plan, part), part.risk, roster)
        if lack:
            yield Broken(
                ("approval", "rules", index),
                f"{part.risk} cannot be signed yet: the roster lacks {'; '.join(lack)}",
                "add `slack_ids` or `keys` to the roster, or persons",
            )


def _lonely_hours(plan: DrPlan) -> Iterator[Broken]:
    """A rota that leaves hours in which something cannot be signed; without one, narrow rules that meet in a plan."""
    for gap in gaps(plan, _A_MONDAY):
        if plan.rota:
            yield Broken(("rota",), gap.sentence, "add persons to these hours")
        elif gap.narrow > 1:  # of one narrow rule is told where it stands
            yield Broken(("approval", "rules"), gap.sentence, "add persons to the roster, or lower what the rules ask")


def _idle_commander(plan: DrPlan) -> Iterator[Broken]:
    if plan.approval.break_glass is not None and not any(person.keys for person in plan.roster):
        wrong = "nobody has a key, so break-glass is open to the incident commander in Slack alone"
        yield Broken(("approval", "break_glass"), wrong, "add `keys` to the roster")


def _points_without_images(plan: DrPlan) -> Iterator[Broken]:
    points, images = plan.backups.recovery_points, plan.backups.images
    if points is None or images is None:
        return
    kept = points.retention or plan.backups.longest
    if kept > images.retention:
        wrong = f"recovery points are kept {kept.days} d, the images that they name {images.retention.days} d"
        hint = "let the registry and `backups.images.retention` keep images as long, or points shorter"
        yield Broken(("backups", "recovery_points", "retention"), wrong, hint)


def _secrets_sealed_by_nothing(plan: DrPlan) -> Iterator[Broken]:
    escrow = plan.backups.escrow
    if escrow is None or not escrow.secrets:
        return
    where = ("backups", "escrow", "secrets")
    if plan.backups.recovery_points is None:
        yield Broken(where, "Secrets are sealed with recovery points, and there are none", "add `recovery_points`")
    elif escrow.identity is None:
        wrong = "sealed Secrets are given back by custodians alone, since the bot cannot open them"
        yield Broken(where, wrong, "add `identity` to the escrow, or accept it")


def _unkept_rpo(plan: DrPlan) -> Iterator[Broken]:
    archived = {plan.database(backup.database).server for backup in plan.backups.databases if backup.wal is not None}
    for index, backup in enumerate(plan.backups.databases):
        archived_by_us = backup.base is not None and engines()[backup.base.engine].archived_by_us
        if archived_by_us and backup.wal is not None and backup.wal.open_store is None:
            yield Broken(
                ("backups", "databases", index, "wal"),
                "the newest changes wait on the archiver's disk until their WAL segment is full",
                "add `open_store`, or set `archive_timeout` on the server",
            )
        if plan.database(backup.database).server not in archived and plan.objectives.rpo < timedelta(days=1):
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


def _unwitnessed(plan: DrPlan) -> Iterator[Broken]:
    if plan.record is None:
        wrong = "nobody outside the bot's own database vouches for its record, so " + (
            "a rewritten one is not noticed, and `approval.unwitnessed` lets destructive plans run all the same"
            if plan.approval.unwitnessed
            else "DESTRUCTIVE and IRREVERSIBLE plans are refused"
        )
        yield Broken((), wrong, "add `record` with a signing key and witnesses")
    elif sum(bool(person.keys) for person in plan.roster) < 2:
        wrong = "fewer than two persons have keys, so nobody could go on after the bot's own database was restored"
        yield Broken(("record",), wrong, "add `keys` to the roster: `drbot record adopt` takes two")


def _unlocked_evidence(plan: DrPlan) -> Iterator[Broken]:
    if plan.evidence is not None and plan.bucket(plan.evidence.bucket).object_lock is ObjectLock.OFF:
        wrong = f"`{plan.evidence.bucket}` is not under Object Lock, so evidence in it could be deleted"
        yield Broken(("evidence", "bucket"), wrong, "name a bucket that has `object_lock: compliance`")


def _overdue(plan: DrPlan, today: date | None) -> Iterator[Broken]:
    document = plan.document
    if today is not None and document is not None and document.next_review < today:
        yield Broken(
            ("document", "next_review"),
            f"the review of {document.next_review} is overdue",
            "review the plan and set the next date",
        )
