"""The one message of a plan: asks for signatures, follows the run, ends as its report."""

from __future__ import annotations

from datetime import datetime, timedelta

from actions.approval import Act
from actions.contract import Finding, Risk, Verdict
from actions.steps.phrases import counted
from bot.services.cards import PlanCard, PlanState, SignerLine, StepLine, StepState
from bot.slack.views import run_control
from bot.slack.views.blocks import (
    MESSAGE_CHARACTERS,
    Block,
    Message,
    actions,
    button,
    characters,
    context,
    cut_escaped,
    divider,
    escape,
    fields,
    header,
    message,
    minute,
    moment,
    quiet,
    section,
    span,
)
from bot.slack.views.demands import banners, policy_lines

APPROVE = "plan.approve"
DENY = "plan.deny"
WITHDRAW = "plan.withdraw"
DETAILS = "plan.details"
NOTICEABLE = timedelta(seconds=5)

STATE_WORDS = {
    PlanState.PENDING: "waits for signatures",
    PlanState.DENIED: "denied, will not run",
    PlanState.EXPIRED: "expired, will not run",
    PlanState.VOID: "cannot be signed",
    PlanState.APPROVED: "signed, about to start",
    PlanState.RUNNING: "running",
    PlanState.SUCCEEDED: "succeeded",
    PlanState.FAILED: "failed",
    PlanState.ASKING: "stopped, people must decide",
    PlanState.STALE: "stopped, the world has changed since it was signed",
    PlanState.PAUSED: "paused between two steps",
    PlanState.ABORTED: "aborted",
    PlanState.PREEMPTED: "ended, it gave way",
}

STEP_WORDS = {
    StepState.WAITING: "waiting",
    StepState.RUNNING: "running",
    StepState.VERIFIED: "done",
    StepState.FAILED: "failed",
    StepState.ASKING: "unclear, people must decide",
    StepState.UNDOING: "being undone",
    StepState.UNDONE: "undone",
    StepState.ANSWERED: "answered by people",
    StepState.SKIPPED: "skipped",
    StepState.ABORTED: "not carried out",
}

RISK_WORDS = {
    Risk.READ: "changes nothing",
    Risk.REVERSIBLE: "can be undone",
    Risk.DISRUPTIVE: "users will notice",
    Risk.DESTRUCTIVE: "data or credentials may be lost",
    Risk.IRREVERSIBLE: "cannot be taken back",
}

_ACT_WORDS = {
    Act.REQUEST: "requested and signed",
    Act.APPROVE: "approved",
    Act.DENY: "denied",
    Act.WITHDRAW: "withdrew",
    Act.REVIEW: "reviewed",
}

STEPS_SHOWN = 25
FINDINGS_SHOWN = 8

STEP_ROOM = 700
"""Characters of a step."""

LAST_ROOM = 2500
"""Characters of the last step that has something to tell: how it ended, and the commands that come next."""


def plan_message(card: PlanCard, *, now: datetime) -> Message:
    """The message in its present state. `now` is what deadlines count from."""
    if card.state in (PlanState.PENDING, PlanState.DENIED, PlanState.EXPIRED, PlanState.VOID):
        blocks = _asking(card, now)
    else:
        blocks = _following(card, now)
    more = f"Cut here. The rest: Details, or `drbot plan show {card.plan_id}`."
    return message(_headline(card), blocks, more=more)


def facts(card: PlanCard) -> Block:
    """What a signature covers, without a word of any person."""
    pairs = [
        ("Risk", f"{card.risk}: {RISK_WORDS[card.risk]}"),
        ("Target", card.target),
        ("Code", card.short_code),
        ("State", STATE_WORDS[card.state]),
    ]
    if card.acts_on:
        pairs.append(("Acts on", "\n".join(card.acts_on)))
    if card.estimate is not None:
        pairs.append(("Estimate", span(card.estimate)))
    if card.state is PlanState.PENDING:
        pairs.append(("Valid until", minute(card.expires_at)))
    return fields(pairs)


def loss(card: PlanCard) -> list[Block]:
    return [section(f"*Data loss:* {escape(card.data_loss)}")] if card.data_loss else []


def finding(item: Finding) -> Block:
    word = {Verdict.OK: "OK", Verdict.WARN: "WARNING", Verdict.STOP: "STOP"}[item.verdict]
    hint = f" {escape(item.hint)}" if item.hint else ""
    return context(f"*{word}* {escape(item.check)}: {escape(item.detail)}{hint}")


def signatures(card: PlanCard) -> list[Block]:
    """Who signed and who is missing; every reason stands alone."""
    blocks: list[Block] = []
    for line in card.signers:
        blocks.append(context(f"*{escape(line.person)}* {_ACT_WORDS[line.act]} at {moment(line.at)}"))
        blocks += _reason(line)
    if card.missing and card.state is PlanState.PENDING:
        blocks.append(section(f"*Still missing:* {escape('; '.join(card.missing))}"))
    return blocks


def step_line(step: StepLine, *, with_state: bool, room: int = STEP_ROOM) -> str:
    """One step in a line or two, as mrkdwn of at most `room` characters."""
    text = f"*{step.number}.* {escape(step.summary)}"
    if with_state:
        elapsed = f" in {span(step.elapsed)}" if step.elapsed is not None else ""
        text = f"*{step.number}. {STEP_WORDS[step.state]}{elapsed}:* {escape(step.summary)}"
        if step.progress and step.state is StepState.RUNNING:
            text += f"\n{escape(step.progress)}"
        if step.detail:
            text += f"\n{escape(step.detail)}"
    elif step.before or step.after:
        text += f"\n{escape(step.before or 'nothing')} → {escape(step.after or 'nothing')}"
    return cut_escaped(text, room)


def left(deadline: datetime, now: datetime, name: str = "RTO") -> str:
    """`RTO left 41 min`, or by how much it was missed."""
    rest = deadline - now
    if rest >= timedelta(0):
        return f"{name} left {span(rest)}"
    return f"{name} exceeded by {span(rest)}"


def _headline(card: PlanCard) -> str:
    text = f"{card.risk} plan {card.short_code} {STATE_WORDS[card.state]}: {card.summary}"
    return escape(text + (f" {card.message}" if card.message else ""))


def _asking(card: PlanCard, now: datetime) -> list[Block]:
    blocks = [header(f"{card.risk}: {card.action} {card.target}"), section(escape(card.summary)), facts(card)]
    blocks += banners(card, now)
    blocks += loss(card)
    if card.rto_deadline is not None:
        blocks.append(context(left(card.rto_deadline, now)))
    blocks += [section(step_line(step, with_state=False)) for step in card.steps[:STEPS_SHOWN]]
    blocks += _uncounted(card)
    blocks += findings(card, FINDINGS_SHOWN, doubts=True)
    read_again = f"{len(card.preconditions)} preconditions are read again right before the first step."
    seen = ", ".join(f"{escape(item.name)} {escape(item.value)}" for item in card.observations)
    blocks.append(context(read_again, f"Seen now: {seen}" if seen else ""))
    blocks += [divider(), *policy_lines(card), *signatures(card)]
    if card.message:
        blocks.append(section(escape(card.message)))
    # Buttons must survive the cut of a long plan: they come before what only informs.
    return _with_buttons(card, blocks)


def _with_buttons(card: PlanCard, blocks: list[Block]) -> list[Block]:
    """Buttons right after the facts when the message is long, else at its end, where the servers are named again:
    nobody should have to look up to see which one it is."""
    buttons = _buttons(card)
    servers = [f"Acts on {escape(item)}" for item in card.acts_on] if card.state is PlanState.PENDING else []
    whole = [*blocks, *([context(*servers)] if servers else [])]
    long = len(whole) > 45 or characters(whole) > MESSAGE_CHARACTERS - 500
    return [*blocks[:3], buttons, *blocks[3:]] if long else [*whole, buttons]


def _buttons(card: PlanCard) -> Block:
    details = button("Details", DETAILS, card.token)
    if card.state not in (PlanState.PENDING, PlanState.APPROVED):
        return actions("plan", *run_control.buttons(card), details)
    alone = card.demands is not None and card.demands.glass is not None
    approve = button("Approve", APPROVE, card.token, style="primary")
    return actions(
        "plan",
        *([approve] if card.state is PlanState.PENDING else []),
        button("Veto" if alone else "Deny", DENY, card.token, style="danger"),
        button("Withdraw", WITHDRAW, card.token),
        details,
    )


def _following(card: PlanCard, now: datetime) -> list[Block]:
    blocks = [header(f"{STATE_WORDS[card.state].capitalize()}: {card.action} {card.target}")]
    blocks.append(section(escape(card.summary)))
    blocks.append(_clock(card, now))
    blocks += banners(card, now)
    if card.message:
        blocks.append(section(escape(card.message)))
    told = max((step.number for step in card.steps if step.detail), default=0)
    blocks += [
        section(step_line(step, with_state=True, room=LAST_ROOM if step.number == told else STEP_ROOM))
        for step in card.steps[:STEPS_SHOWN]
    ]
    blocks += _uncounted(card)
    blocks += [divider(), *policy_lines(card), *signatures(card)]
    return _with_buttons(card, blocks)


def _clock(card: PlanCard, now: datetime) -> Block:
    texts = [f"Code {card.short_code}"]
    if card.started_at is not None:
        end = card.ended_at or now
        word = "took" if card.ended_at else "running for"
        texts.append(f"Started {moment(card.started_at)}, {word} {span(end - card.started_at)}")
        if card.state is PlanState.RUNNING and card.estimate is not None:
            texts.append(_expected(card.started_at + card.estimate, card, now))
    done = sum(step.state is StepState.VERIFIED for step in card.steps)
    texts.append(f"{done} of {len(card.steps)} steps done")
    if card.rto_deadline is not None and card.ended_at is None:
        texts.append(left(card.rto_deadline, now))
    elif card.rto_deadline is not None and card.ended_at is not None:
        spare = card.rto_deadline - card.ended_at
        word = "within the RTO, spare" if spare >= timedelta(0) else "beyond the RTO by"
        texts.append(f"Ended {word} {span(spare)}")
    return context(*texts)


def _expected(end: datetime, card: PlanCard, now: datetime) -> str:
    """When it ends by what was forecast before anybody signed; a run that is late says so, and by how much."""
    estimate, measured = end, card.expected_at
    if measured is not None and measured > now:
        end = measured
    elif end < now:
        return f"{span(now - end)} beyond its estimate"
    late = card.rto_deadline is not None and end > card.rto_deadline
    beyond = f", {span(end - card.rto_deadline)} beyond the RTO" if late and card.rto_deadline is not None else ""
    if end == measured:
        moved = f", {span(end - estimate)} later than its estimate" if end - estimate >= NOTICEABLE else ""
        return f"At its measured pace done at {moment(end)}, in {span(end - now)}{moved}{beyond}"
    return f"By its estimate done at {moment(end)}, in {span(end - now)}{beyond}"


def _uncounted(card: PlanCard) -> list[Block]:
    more = len(card.steps) - STEPS_SHOWN
    return [context(f"{more} more steps: Details, or `drbot plan show {card.plan_id}`.")] if more > 0 else []


def findings(card: PlanCard, room: int, *, doubts: bool = False) -> list[Block]:
    """What signers should know, the worst first, and how much more of it there is. `doubts`: without what is well."""
    order = (Verdict.STOP, Verdict.WARN) if doubts else (Verdict.STOP, Verdict.WARN, Verdict.OK)
    told = [item for verdict in order for item in card.findings if item.verdict is verdict]
    more = f"{counted(len(told) - room, 'more finding')}: `drbot plan show {card.plan_id}`."
    return [*(finding(item) for item in told[:room]), *([context(more)] if len(told) > room else [])]


def _reason(line: SignerLine) -> list[Block]:
    return [quiet(f"Reason: {line.reason}")] if line.reason.strip() else []
