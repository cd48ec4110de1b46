"""The command line's side of the desk: the same words as in Slack, answers as plain text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from actions.contract import Report
from actions.errors import UserError
from actions.steps.phrases import span
from bot.ports import ReplyTo, Who
from bot.router import Command, CommandKind, Router
from bot.services.cards import PlanCard, PlanState, StepState
from bot.services.deliveries import Deliveries
from bot.services.desk import Desk
from bot.visible import visible, visible_lines
from storage import outbox, plans, requests
from storage.session import Database
from storage.tables import RequestRow

ENDED = (
    PlanState.SUCCEEDED,
    PlanState.FAILED,
    PlanState.ASKING,
    PlanState.STALE,
    PlanState.PAUSED,
    PlanState.ABORTED,
    PlanState.PREEMPTED,
    PlanState.DENIED,
    PlanState.EXPIRED,
    PlanState.VOID,
)
PATIENCE = timedelta(seconds=60)
"""How long a worker may take to answer before the command line gives up waiting; the request stays."""

_UNANSWERED = (
    f"No worker answered within {PATIENCE.total_seconds():.0f} s; `drbot doctor` says whether one is alive. "
    "The request is kept, so do not ask again: its plan comes into the channel and into `drbot status`."
)


def unheard(line: str) -> None:
    """For those who want the answer alone."""


class Counter:
    """Asks for one person and prints what comes back."""

    def __init__(
        self,
        database: Database,
        desk: Desk,
        deliveries: Deliveries,
        *,
        person: str,
        channel: str,
        aside: Callable[[str], None] = unheard,
    ) -> None:
        """`aside` takes what is told while a run is under way, a line at a time."""
        self._database = database
        self._desk = desk
        self._deliveries = deliveries
        self._person = person
        self._channel = channel
        self._aside = aside

    async def ask(self, noun: str, words: Sequence[str]) -> tuple[str, bool]:
        """The answer and whether it is good news. Raises UserError like Slack would say it."""
        router = Router()
        command = router.parse_argv([noun, *words])
        entry = router.entry(command.name)
        if entry is None or entry.kind is CommandKind.LOCAL:
            return router.usage(noun), True
        # Plans and incidents are everybody's business, so their cards stand in the on-call channel.
        channel = "" if entry.kind is CommandKind.QUERY and not command.name.startswith("incident.") else self._channel
        who = Who(source="cli", person=self._person, channel=channel)
        if command.name != "incident.suspect_slack":  # the way out when somebody else uses up one's turns
            await self._desk.take_turn(who)
        if entry.kind is CommandKind.QUERY and command.name.startswith("incident."):
            answer = await self._desk.read(who, command)
            return answer if isinstance(answer, str) else report_text(answer), True
        request = await self._desk.ask(who, command, reply=ReplyTo(channel="", ephemeral=False))
        if request is None:
            return "Done; it is on the timeline.", True
        return await self._answer(request)

    async def ask_by_key(self, command: Command) -> str:
        """Have a plan made for a request that its requester signs afterwards, when it can be seen; the plan's id.
        Raises UserError when it cannot be made, or asked for. It is no turn: who floods in this person's name must not
        keep the owner of the key from asking."""
        who = Who(source="key", person=self._person, channel=self._channel)
        request = await self._desk.ask(who, command, reply=ReplyTo(channel="", ephemeral=False))
        if request is None:
            raise UserError(f"`{command.name}` needs no key; ask for it without `--sign`.")
        row = await self._made(request)
        if row.plan_id:
            return row.plan_id
        raise UserError(row.error or f"`{command.name}` needs no key; ask for it without `--sign`.")

    async def _made(self, request: int) -> RequestRow:
        """The request once a worker has answered it."""
        until = time.monotonic() + PATIENCE.total_seconds()
        while time.monotonic() <= until:
            async with self._database.session() as session:
                row = await requests.get(session, request)
            if row is not None and row.state != "new":
                return row
            await asyncio.sleep(0.2)
        raise UserError(_UNANSWERED)

    async def _answer(self, request: int) -> tuple[str, bool]:
        until = time.monotonic() + PATIENCE.total_seconds()
        while True:
            async with self._database.session() as session:
                # The answer first: a refusal is committed together with the row that says so, perhaps between the two.
                rows = await outbox.answers(session, request)
                row = await requests.get(session, request)
                for item in rows:
                    await outbox.settle(session, item.id or 0, state="sent")
            if row is not None and row.plan_id:
                return await self.follow(row.plan_id)
            if row is not None and row.state == "failed":
                return row.error, False
            if rows:
                return report_text(Report.model_validate(rows[-1].payload["report"])), True
            if time.monotonic() > until:
                raise UserError(_UNANSWERED)
            await asyncio.sleep(0.2)

    async def follow(self, plan_id: str) -> tuple[str, bool]:
        """The plan once it has ended or waits for others, and whether that is good news."""
        told: list[str] = []
        while True:
            async with self._database.session() as session:
                row = await plans.get(session, plan_id)
            if row is None:
                raise UserError(f"There is no plan `{plan_id}`; its message and `drbot status` name it.")
            card = await self._desk.plan_card(row.token)
            if card.state in ENDED or card.state is PlanState.PENDING:
                waits = card.state is PlanState.PENDING
                return plan_text(card, by_hand=waits), waits or card.state is PlanState.SUCCEEDED
            for line in _under_way(card):
                if line not in told:
                    told.append(line)
                    self._aside(visible(line))
            await asyncio.sleep(0.5)


def _under_way(card: PlanCard) -> list[str]:
    """What there is to say of a plan whose run has not ended: what it is, and each step that has begun."""
    estimate = f", estimated {span(card.estimate)}" if card.estimate is not None else ""
    about = f"Plan {card.plan_id} ({card.short_code}): {card.summary}{estimate}."
    steps = [step for step in card.steps if step.state is not StepState.WAITING]
    return [about, *(f"Step {step.number} of {len(card.steps)}: {step.summary}" for step in steps)]


def report_text(report: Report) -> str:
    """A report as aligned text."""
    lines = [report.title, *report.lines]
    if report.rows:
        table = [tuple(map(visible, row)) for row in (report.columns, *report.rows)]
        widths = [max(len(row[index]) for row in table) for index in range(len(report.columns))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
    for finding in report.findings:
        hint = f" Next: {finding.hint}" if finding.hint else ""
        lines.append(f"{finding.verdict.upper():5} {finding.check}: {finding.detail}{hint}")
    return "\n".join(map(_inside, lines))


def plan_text(card: PlanCard, *, by_hand: bool = True) -> str:
    """A plan whole: steps with before and after, the commands by hand, who signed what. Without the commands it says
    where they are: who looks at how a run has ended does not look for them."""
    lines = [
        f"Plan {card.plan_id} ({card.short_code}) {card.state}: {card.summary}",
        f"Risk {card.risk}, target `{card.target}`, asked for by {card.requester}",
    ]
    lines += [f"Acts on {item}" for item in card.acts_on]
    lines += [line for line in (card.data_loss, card.message) if line]
    if card.missing and card.state is PlanState.PENDING:
        until = f"before {card.expires_at:%H:%M:%S} UTC"
        lines.append(f"Still missing: {', '.join(card.missing)}; in Slack or by `drbot sign {card.plan_id}`, {until}")
    for step in card.steps:
        seconds = "" if step.elapsed is None else f" ({step.elapsed.total_seconds():.1f} s)"
        lines.append(f"{step.number:3}. [{step.state}] {step.summary}{seconds}")
        if step.before or step.after:
            lines.append(f"       {step.before} -> {step.after}")
        if by_hand:
            lines += [f"       $ {visible(command)}" for command in step.by_hand]
        if step.detail:
            lines.append(f"       {step.detail}")
    lines += [f"Holds: {item}" for item in card.preconditions]
    lines += [f"{item.verdict.upper()}: {item.detail} {item.hint}".rstrip() for item in card.findings]
    lines += [f"{item.name}: {item.value}" for item in card.observations]
    lines += [f"{item.at:%H:%M:%S} UTC {item.person}: {item.act} ({item.reason})" for item in card.signers]
    if not by_hand and any(step.by_hand for step in card.steps):
        lines.append(f"By hand: `drbot plan show {card.plan_id}` has the commands of every step.")
    return "\n".join(map(_inside, lines))


def _inside(line: str) -> str:
    """A line end within a text opens no line of its own, which could pass for the bot's."""
    return visible_lines(line).replace("\n", "\n      | ")
