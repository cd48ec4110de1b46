"""The modals of a plan: approve, deny, details. What they hand back is in `Metadata`, never in what people typed."""

from __future__ import annotations

from datetime import datetime

from actions.site import Frozen
from bot.services.cards import PlanCard, PlanState
from bot.slack.views.blocks import Block, View, context, divider, escape, fenced, modal, section, text_input
from bot.slack.views.demands import banners, policy_lines
from bot.slack.views.plan import STATE_WORDS, facts, findings, loss, signatures, step_line

APPROVE = "sign.approve"
DENY = "sign.deny"
WITHDRAW = "sign.withdraw"
REASON = "reason"
TYPED = "typed"


class Metadata(Frozen):
    """Which plan, which revision of it, and which message the button stood on."""

    token: str
    digest: str
    channel: str
    ts: str
    target: str = ""

    @classmethod
    def of(cls, card: PlanCard, *, channel: str, ts: str, target: str = "") -> Metadata:
        return cls(token=card.token, digest=card.digest, channel=channel, ts=ts, target=target)


def approve_modal(card: PlanCard, *, channel: str, ts: str, now: datetime) -> View:
    """What is signed, freshly read, with the reason and, where needed, the typed target."""
    if card.state is not PlanState.PENDING:
        return closed_modal(card)
    blocks: list[Block] = [section(escape(card.summary)), facts(card), *banners(card, now), *loss(card)]
    blocks += [section(step_line(step, with_state=False)) for step in card.steps[:30]]
    blocks += findings(card, 20)
    blocks += [divider(), *policy_lines(card), *signatures(card)[:20]]
    blocks.append(text_input(REASON, "Why do you approve"))
    if card.typed_target:
        hint = f"Type exactly: {card.target}"
        blocks.append(text_input(TYPED, "Name of the target", hint=hint, limit=255))
    metadata = Metadata.of(card, channel=channel, ts=ts, target=card.target if card.typed_target else "")
    return modal(
        f"Approve {card.short_code}",
        blocks,
        callback=APPROVE,
        submit="Sign",
        close="Cancel",
        private=metadata.model_dump_json(),
    )


def deny_modal(card: PlanCard, *, channel: str, ts: str, now: datetime) -> View:
    """A denial needs a reason and is final."""
    told = "A denied plan never runs; only a new plan can overrule it."
    return _reason_modal(card, "Deny", DENY, told, Metadata.of(card, channel=channel, ts=ts), now)


def withdraw_modal(card: PlanCard, *, channel: str, ts: str, now: datetime) -> View:
    """A signature is taken back until the start; the requester's takes the plan with it."""
    told = "Your own signature is taken back. When the requester does this, the plan ends."
    return _reason_modal(card, "Withdraw", WITHDRAW, told, Metadata.of(card, channel=channel, ts=ts), now)


def _reason_modal(card: PlanCard, verb: str, callback: str, told: str, metadata: Metadata, now: datetime) -> View:
    if card.state not in (PlanState.PENDING, PlanState.APPROVED):
        return closed_modal(card)
    blocks = [
        section(escape(card.summary)),
        facts(card),
        *banners(card, now),
        context(told),
        text_input(REASON, f"Why do you {verb.lower()}"),
    ]
    return modal(
        f"{verb} {card.short_code}",
        blocks,
        callback=callback,
        submit=verb,
        close="Cancel",
        private=metadata.model_dump_json(),
    )


def details_modal(card: PlanCard, *, now: datetime) -> View:
    """Everything about the plan, and how to do each step without the bot."""
    blocks: list[Block] = [section(escape(card.summary)), facts(card), *banners(card, now), *policy_lines(card)]
    blocks += loss(card)
    blocks.append(context(f"Full digest `{card.digest}`", f"Plan `{card.plan_id}`"))
    room = (95 - len(blocks) - len(card.findings[:15])) // 2
    for step in card.steps[: min(room, 35)]:
        blocks.append(section(step_line(step, with_state=False)))
        if step.by_hand:
            blocks.append(fenced("\n".join(step.by_hand)))
    if card.preconditions:
        held = "\n".join(f"• {escape(text)}" for text in card.preconditions)
        blocks.append(section(f"*Preconditions*\n{held}"))
    if card.alternatives:
        other = "\n".join(f"• {escape(text)}" for text in card.alternatives)
        blocks.append(section(f"*Alternatives*\n{other}"))
    blocks += findings(card, 15)
    if len(card.steps) > min(room, 35):
        blocks.append(context(f"More steps: `drbot plan show {card.plan_id}`."))
    return modal(f"Plan {card.short_code}", blocks)


def closed_modal(card: PlanCard) -> View:
    """For a plan that takes no signature any more."""
    why = f"This plan is {STATE_WORDS[card.state]}." if card.state is not PlanState.PENDING else ""
    return modal(f"Plan {card.short_code}", [section(f"{why} {escape(card.message)}"), facts(card)])
