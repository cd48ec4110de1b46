"""Plans: made from a request, stored with the requester's signature, shown as a card."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from actions import approval
from actions.approval import Act, Case, Code
from actions.contract import Action, Kinds, Plan, new_plan_id
from actions.errors import RefusedError, UserError
from actions.ports import Clock, Ports
from actions.site import Frozen
from bot.ports import Who
from bot.services.approvals import Approvals
from bot.services.cards import Demands, PlanCard, PlanState, SignerLine, StepLine, StepState
from bot.services.demands import demands
from bot.services.policy import stored
from bot.services.progress import expected_end
from bot.services.provenance import BREAK_GLASS, asked
from storage import incidents, outbox, plans, runs, timeline
from storage.session import Database
from storage.tables import JournalRow, PlanRow, RequestRow, RunRow


class Plans:
    """Makes plans and tells where they stand."""

    def __init__(self, database: Database, approvals: Approvals, kinds: Kinds, clock: Clock) -> None:
        self._database = database
        self._approvals = approvals
        self._kinds = kinds
        self._clock = clock

    async def propose(
        self, session: AsyncSession, request: RequestRow, action: Action[Any], params: Frozen, ports: Ports, who: Who
    ) -> PlanRow:
        """Plan, store, sign as the requester, show. Raises UserError when it cannot be planned or asked for."""
        plan = await action.plan(params, ports, new_plan_id())
        if plan.stopped:
            told = " ".join(f"{finding.detail} {finding.hint}".strip() for finding in plan.stopped)
            raise RefusedError(told, code=Code.STOPPED)
        row = self._row(request, plan)
        denied = await plans.denied(session, row, plan.target)
        row.overrules = "" if denied is None else denied.id
        added = {"asked": asked(row), "by_hand": plan.worded()}
        row.document = plan.model_copy(update=added).model_dump(mode="json")
        # Read as every worker will read it: a plan that was made out of one that was read leaves other fields out.
        plan = self._kinds.plan(row.document)
        row.digest = plan.digest
        await plans.add(session, row)
        key = request.source_key or ""
        refusal = await self._approvals.request(session, row, plan, who, request.typed, key=key)
        if refusal is not None:
            raise RequestRefusedError(row, refusal)
        await outbox.add(session, "plan", row.channel, ref=row.id)
        if row.incident_id is not None:
            await outbox.add(session, "incident", row.channel, ref=row.incident_id)
        return row

    def _row(self, request: RequestRow, plan: Plan) -> PlanRow:
        now = self._clock.now()
        return PlanRow(
            id=plan.id,
            action=plan.action,
            document=plan.model_dump(mode="json"),
            digest=plan.digest,
            risk=plan.risk,
            plan_schema=plan.plan_schema,
            requester=request.person,
            reason=request.reason,
            incident_id=request.incident_id,
            channel=request.channel,
            token=secrets.token_urlsafe(24),
            policy=stored(self._approvals.policy.version),
            break_glass=bool(request.reply.get(BREAK_GLASS)),
            created_at=now,
            expires_at=now + self._approvals.policy.approval_expiry(plan),
        )

    async def by_token(self, token: str) -> PlanRow:
        """Raises UserError when no plan has this token."""
        async with self._database.session() as session:
            row = await plans.by_token(session, token)
        if row is None:
            raise UserError("This button belongs to no plan the bot knows; ask for the plan again.")
        return row

    async def card(self, session: AsyncSession, row: PlanRow) -> PlanCard:
        """The plan, its signatures and its run, as of now."""
        plan = self._kinds.plan(row.document)
        run = await runs.get(session, row.id)
        journal = await runs.journal(session, row.id)
        incident = None if row.incident_id is None else await incidents.get(session, row.incident_id)
        started_at = None if run is None else run.started_at
        decision = await self._approvals.decision(session, row, self._clock.now(), started_at=started_at)
        signed = await plans.signatures(session, row.id)
        case = await self._approvals.case(session, row)
        name = self._approvals.policy.name
        return PlanCard(
            plan_id=row.id,
            token=row.token,
            action=row.action,
            summary=plan.summary,
            risk=plan.risk,
            target=plan.target,
            typed_target=case.typed_target,
            short_code=plan.short_code,
            digest=row.digest,
            requester=name(row.requester),
            state=_state(run, decision),
            signers=tuple(
                SignerLine(person=name(item.person), act=Act(item.act), at=item.at, reason=item.reason)
                for item in signed
            ),
            missing=decision.missing,
            steps=_steps(plan, run, journal),
            preconditions=tuple(item.summary for item in plan.preconditions),
            acts_on=tuple(dict.fromkeys(item.acts_on for item in plan.preconditions if item.acts_on)),
            findings=plan.findings,
            observations=plan.observations,
            alternatives=plan.alternatives,
            data_loss=plan.data_loss,
            estimate=plan.estimate,
            expires_at=row.expires_at,
            demands=await self._demands(session, row, case, decision),
            incident="" if incident is None else incident.title,
            rto_deadline=None if incident is None else incident.impact_started_at + timedelta(seconds=incident.rto_s),
            started_at=started_at,
            expected_at=measured_end(plan, run),
            ended_at=None if run is None else run.ended_at,
            message=(run.message if run is not None else "") or decision.reason,
        )

    async def _demands(
        self, session: AsyncSession, row: PlanRow, case: Case, decision: approval.Decision
    ) -> Demands | None:
        if not case.covering:
            return None
        replaced = await plans.signatures(session, row.overrules) if row.overrules else []
        denial = next((item for item in replaced if item.act == Act.DENY), None)
        return demands(self._approvals.policy, case, decision, overruled=denial, now=self._clock.now())


class RequestRefusedError(UserError):
    """The requester may not ask for this plan; the refusal is recorded by whoever catches this."""

    def __init__(self, row: PlanRow, refusal: approval.Refusal) -> None:
        super().__init__(refusal.text)
        self.row = row
        self.refusal = refusal


def _state(run: RunRow | None, decision: approval.Decision) -> PlanState:
    if run is not None and run.state != "awaiting":
        return PlanState(run.state)
    return PlanState(decision.state)


def measured_end(plan: Plan, run: RunRow | None) -> datetime | None:
    """The end as measured; None where nothing is measured now."""
    told = {} if run is None else run.progress
    if run is None or run.started_at is None or plan.estimate is None or "left_s" not in told:
        return None
    left, at = timedelta(seconds=float(told["left_s"])), datetime.fromisoformat(str(told["at"]))
    return expected_end(str(told["phase"]), left, at, plan.phases, run.started_at + plan.estimate)


def _steps(plan: Plan, run: RunRow | None, journal: Sequence[JournalRow]) -> tuple[StepLine, ...]:
    last = {item.step: item for item in journal}
    progress = run.progress if run is not None else {}
    current = progress.get("step")
    lines: list[StepLine] = []
    for index, (step, commands) in enumerate(zip(plan.steps, plan.commands, strict=True)):
        entry = last.get(index)
        state = StepState.WAITING if entry is None else _STEP_STATES[entry.state]
        if entry is None and current == index and run is not None and run.state == "running":
            state = StepState.RUNNING
        lines.append(
            StepLine(
                number=index + 1,
                summary=step.summary,
                before=step.before,
                after=step.after,
                by_hand=commands,
                optional=step.optional,
                state=state,
                elapsed=timedelta(milliseconds=entry.elapsed_ms) if entry is not None and entry.elapsed_ms else None,
                progress=str(progress.get("text", "")) if current == index and state is StepState.RUNNING else "",
                detail=entry.detail if entry is not None else "",
            )
        )
    return tuple(lines)


_STEP_STATES = {
    "applying": StepState.RUNNING,
    "verified": StepState.VERIFIED,
    "failed": StepState.FAILED,
    "asking": StepState.ASKING,
    "undoing": StepState.UNDOING,
    "undone": StepState.UNDONE,
    "happened": StepState.ANSWERED,
    "repeat": StepState.ANSWERED,
    "skipped": StepState.SKIPPED,
    "aborted": StepState.ABORTED,
    "left": StepState.ABORTED,
    "pre-empted": StepState.ABORTED,
}


async def note_plan(
    session: AsyncSession,
    row: PlanRow,
    *,
    kind: str,
    text: str,
    at: Any,
    data: dict[str, Any],
    actor: str = "drbot",
) -> None:
    """A line on the plan's incident, the bot's own unless somebody else acted, and both cards redrawn."""
    await timeline.add(
        session, incident_id=row.incident_id, kind=kind, actor=actor, occurred_at=at, text=text, data=data
    )
    await outbox.add(session, "plan", row.channel, ref=row.id)
    if row.incident_id is not None:
        await outbox.add(session, "incident", row.channel, ref=row.incident_id)
