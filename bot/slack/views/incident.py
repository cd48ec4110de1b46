"""The card of an incident, with its RTO clock."""

from __future__ import annotations

from datetime import datetime, timedelta

from bot.services.cards import IncidentCard
from bot.slack.views.blocks import Block, Message, context, escape, fields, header, message, moment, section, span
from bot.slack.views.plan import left

SUSPECT = "Its buttons and commands are no signatures; sign with `drbot sign PLAN` on the command line."


def incident_message(card: IncidentCard, *, now: datetime) -> Message:
    """Severity, commander, clock, what runs, what comes next. The title stands alone: it is a person's words."""
    state = "open" if card.open else "closed"
    pairs = [("Severity", card.severity), ("Commander", card.commander), ("State", state)]
    if card.scenario:
        pairs.append(("Scenario", card.scenario))
    pairs.append(("Impact since", moment(card.impact_started_at)))
    pairs.append(("RTO", _clock(card, now)))
    blocks: list[Block] = [header(f"Incident {card.number}: {card.title}"), fields(pairs)]
    if card.slack_suspect_since is not None:
        blocks.append(section(f"*Slack is under suspicion* since {moment(card.slack_suspect_since)}. {SUSPECT}"))
    running = "\n".join(f"• {escape(line)}" for line in card.running[:10])
    blocks.append(section(f"*Runs now*\n{running}" if running else "Nothing runs now."))
    if card.next_step and card.open:
        blocks.append(section(f"*Next:* {escape(card.next_step)}"))
    closed = "" if card.closed_at is None else f"Closed {moment(card.closed_at)}"
    blocks.append(context(f"Declared {moment(card.declared_at)}", closed, f"As of {moment(now)}"))
    text = escape(f"Incident {card.number} {state}: {card.title} ({card.severity}), {_clock(card, now)}")
    return message(text, blocks, more=f"Cut here. The rest: `/dr-incident show {card.number}`.")


def _clock(card: IncidentCard, now: datetime) -> str:
    achieved = card.achieved_rto
    if achieved is not None:
        spare = card.rto - achieved
        word = "within" if spare >= timedelta(0) else "beyond"
        return f"achieved {span(achieved)}, {word} the target of {span(card.rto)}"
    if not card.open:
        return f"not measured, target {span(card.rto)}"
    return f"{left(card.rto_deadline, now)} of {span(card.rto)}"
