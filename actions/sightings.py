"""How old what Slack says of a signer's account may be when a plan starts. A worker never asks Slack: it reads when the
account was last looked at, and a signature by key needs no look at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from actions.case import Case, Signature
from actions.policy import Method

Counted = Mapping[str, tuple[Signature, ...]]


def looked_at(item: Signature) -> datetime:
    """When Slack last told of the account: at the signature itself, or since."""
    return item.at if item.looked_at is None else item.looked_at


def seen(case: Case, counted: Counted, now: datetime) -> Counted:
    """The signatures that count and whose accounts were looked at lately enough to start on them."""
    within = case.seen_within
    if within is None or case.started:
        return counted
    kept = {
        person: tuple(item for item in items if item.method is not Method.SLACK or now - looked_at(item) <= within)
        for person, items in counted.items()
    }
    return {person: items for person, items in kept.items() if items}


def asked_for(case: Case, persons: Sequence[str], counted: Counted) -> tuple[str, ...]:
    """What is missing while these persons' accounts were not looked at, for people."""
    return tuple(
        f"a fresh look at the Slack account of {case.roster[person].name} (last one "
        f"{max(map(looked_at, counted[person])):%Y-%m-%d %H:%M} UTC, and it may be {_span(case.seen_within)} old: the "
        f"bot's Slack process looks by itself; while it or Slack is away sign with a key, `drbot sign {case.plan.id}`)"
        for person in persons
    )


def _span(within: timedelta | None) -> str:
    return "" if within is None else f"{within.total_seconds() / 60:g} min"
