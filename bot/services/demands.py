"""What the policy asks of a plan's signers, as the plan's message shows it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from actions.approval import Case, Decision, joint, others_needed, reviewers, seats
from actions.policy import frozen
from bot.services.cards import Demands, GlassLine
from bot.services.policy import Policy
from storage.tables import SignatureRow


def demands(
    policy: Policy, case: Case, decision: Decision, *, overruled: SignatureRow | None, now: datetime
) -> Demands:
    """The demands on a plan that some rule covers. `overruled` is the denial of the plan that this one replaces."""
    held = frozen(case.covering, now)
    return Demands(
        persons=others_needed(case.covering, case.plan.risk) + 1,
        slots=seats(joint(case.covering)),
        may_sign=tuple(f"{words}: {', '.join(names)}" for words, names in policy.who_may_sign(case.plan).items()),
        key_required=any(rule.key_required for rule in case.covering),
        freeze="" if held is None else f"{held[0].reason}, until {held[1].astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        start_within=case.execution_expiry if case.covering else timedelta(0),
        start_by=decision.start_by,
        overrules=""
        if overruled is None
        else f"Overrules the denial of plan {overruled.plan_id} by {policy.name(overruled.person)}",
        overruled_reason="" if overruled is None else overruled.reason,
        slack_suspect_since=case.slack_suspect_since,
        glass=_glass(policy, case, decision),
    )


def _glass(policy: Policy, case: Case, decision: Decision) -> GlassLine | None:
    if case.break_glass is None:
        return None
    return GlassLine(
        person=policy.name(case.requester),
        delay=case.break_glass.delay,
        ready_at=decision.ready_at,
        review_by=decision.review_by,
        reviewers=tuple(policy.name(person) for person in reviewers(case)),
        reviewers_needed=case.break_glass.reviewers,
    )
