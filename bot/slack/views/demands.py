"""What the policy asks of the signers of a plan, and the banners over it: break-glass, suspect Slack, an overruled
denial."""

from __future__ import annotations

from datetime import datetime

from bot.services.cards import Demands, GlassLine, PlanCard, PlanState
from bot.slack.views.blocks import Block, context, escape, minute, quiet, section, span


def banners(card: PlanCard, now: datetime) -> list[Block]:
    """What a signer must know before anything else."""
    asked = card.demands
    if asked is None:
        return []
    blocks: list[Block] = []
    if asked.glass is not None:
        blocks.append(section(f"*Break-glass:* {escape(_glass(asked.glass, card.state, now))}"))
    if asked.slack_suspect_since is not None:
        since = minute(asked.slack_suspect_since)
        text = f"Slack is under suspicion since {since}. The buttons below do not count; sign with"
        blocks.append(section(f"*{text}* `drbot sign {card.plan_id}`"))
    if asked.overrules:
        blocks.append(section(f"*{escape(asked.overrules)}*"))
        blocks += [quiet(f"Reason of the denial: {asked.overruled_reason}")] if asked.overruled_reason.strip() else []
    return blocks


def policy_lines(card: PlanCard) -> list[Block]:
    """Who must sign, who may, and until when."""
    asked = card.demands
    if asked is None or card.state not in (PlanState.PENDING, PlanState.APPROVED):
        return []
    who = [f"{asked.persons} person(s), the requester included"]
    who += [asked.slots] if asked.slots else []
    who += [f"one signature with a key: `drbot sign {card.plan_id}`"] if asked.key_required else []
    texts = [f"*Signatures needed:* {escape(' AND '.join(who))}"]
    texts += [f"*May sign* {escape(line)}" for line in asked.may_sign]
    texts.append(_deadlines(card, asked))
    if asked.freeze:
        texts.append(f"*Freeze:* {escape(asked.freeze)}. Nothing of this kind starts before.")
    return [context(*texts)]


def _deadlines(card: PlanCard, asked: Demands) -> str:
    if asked.start_by is not None:
        return f"*Starts* until {minute(asked.start_by)}, or not at all"
    return f"*Sign* until {minute(card.expires_at)}; *starts* within {span(asked.start_within)} of the last signature"


def _glass(glass: GlassLine, state: PlanState, now: datetime) -> str:
    text = f"{glass.person} starts this alone."
    if state is PlanState.PENDING and glass.ready_at is not None:
        rest = span(glass.ready_at - now) if glass.ready_at > now else "no time"
        return f"{text} It starts at {minute(glass.ready_at)}, in {rest}, unless anybody of the roster vetoes it."
    if state is PlanState.PENDING:
        return f"{text} It starts {span(glass.delay)} after the signature, unless anybody of the roster vetoes it."
    done = f" Reviewed by {', '.join(glass.reviewers)}." if glass.reviewers else ""
    left = glass.reviewers_needed - len(glass.reviewers)
    if left <= 0 or state in (PlanState.DENIED, PlanState.EXPIRED, PlanState.VOID):
        return f"{text}{done}"
    until = f" until {minute(glass.review_by)}" if glass.review_by is not None else ""
    return f"{text}{done} {left} other person(s) must review it{until}: `/dr review`."
