"""Signatures: who a Slack account is, what the policy asks, recording acts and refusals."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from actions import approval
from actions.approval import Act, Case, Code, Decision, Method, Person, Refusal, Signature
from actions.contract import Kinds, Plan
from actions.errors import UserError
from actions.ports import Clock
from bot.plan_file import DrPlan
from bot.plan_file.quorum import roster_of
from bot.ports import Who
from bot.services import provenance
from storage import outbox, plans, runs, timeline
from storage.session import Database
from storage.tables import PlanRow, RunRow, SignatureRow

SCHEDULE = "schedule"
"""The requester of what the plan's own schedule asks for. It stands on no roster and can only ask for plans that
need nobody else."""


class Policy:
    """The approval rules and the roster of the plan file, as `actions.approval` takes them."""

    def __init__(self, plan: DrPlan) -> None:
        self._plan = plan
        self.roster: Mapping[str, Person] = {person.id: person for person in roster_of(plan)}
        self.rules = tuple(rule.rule() for rule in plan.approval.rules)

    @property
    def audit_channel(self) -> str:
        """Where every signature and refusal is copied to."""
        return self._plan.channels.audit

    def person(self, who: Who) -> Person | None:
        """The person of the roster behind an account; None for strangers and other workspaces."""
        if who.source == "clock":
            return _SCHEDULE
        if who.source == "cli":
            return self.roster.get(who.person)
        if self._plan.workspace is not None and who.team and who.team != self._plan.workspace:
            return None
        found = self._plan.person(who.slack_user)
        return None if found is None else self.roster[found.id]

    def name(self, person: str) -> str:
        """The display name, or the id of somebody who is no longer on the roster."""
        return self.roster[person].name if person in self.roster else person

    def approval_expiry(self, plan: Plan) -> timedelta:
        """From the request to the last signature."""
        covering = [rule.approval_expiry for rule in self.rules if rule.covers(plan, "")]
        return min(covering, default=timedelta(0))


class Approvals:
    """Judges and records acts on plans. Both the click and the worker come through here."""

    def __init__(self, database: Database, policy: Policy, kinds: Kinds, clock: Clock) -> None:
        self._database = database
        self.policy = policy
        self._kinds = kinds
        self._clock = clock

    def case(self, row: PlanRow, plan: Plan, signatures: Sequence[SignatureRow], *, started: bool) -> Case:
        """All a decision rests on, with the policy and the roster in force now."""
        roster = dict(self.policy.roster)
        if row.requester == SCHEDULE:
            roster[SCHEDULE] = _SCHEDULE
        return Case(
            plan=plan,
            requester=row.requester,
            rules=self.policy.rules,
            roster=roster,
            signatures=tuple(
                Signature(
                    person=item.person,
                    act=Act(item.act),
                    digest=item.digest,
                    at=item.at,
                    typed=item.typed,
                    reason=item.reason,
                    method=METHODS[item.source],
                    account=item.account,
                )
                for item in signatures
            ),
            expires_at=row.expires_at,
            started=started,
        )

    async def decision(self, session: AsyncSession, row: PlanRow, now: datetime) -> Decision:
        """Where the plan stands, re-derived from the stored acts. A document that no longer has the digest it was
        stored under is VOID: somebody changed it behind our back."""
        plan = self._kinds.plan(row.document)
        if plan.digest != row.digest:
            return Decision(state=approval.State.VOID, reason="The stored plan does not match its digest.")
        signatures = await plans.signatures(session, row.id)
        flaw = await provenance.flaw(session, row, plan, signatures, self.policy.person)
        return flaw or approval.decide(self.case(row, plan, signatures, started=False), now)

    async def request(
        self, session: AsyncSession, row: PlanRow, plan: Plan, who: Who, typed: str, *, key: str
    ) -> Refusal | None:
        """Record the requester's own signature on a plan that was just stored. `key` is that of the stored command."""
        person = self.policy.person(who)
        case = self.case(row, plan, (), started=False)
        now = self._clock.now()
        reason = row.reason
        if approval.others_needed(case.covering, plan.risk) == 0 and not reason.strip():
            reason = provenance.ASKED_FOR
        refusal = approval.admit(
            case,
            person.id if person else None,
            Act.REQUEST,
            digest=row.digest,
            typed=typed,
            reason=reason,
            now=now,
            method=METHODS[who.source],
            account=who.slack_user,
        )
        if refusal is None and person is not None:
            await self._record(session, row, person.id, Act.REQUEST, who, typed=typed, reason=reason, at=now, key=key)
        return refusal

    async def sign(self, who: Who, row: PlanRow, act: Act, *, digest: str, typed: str, reason: str, key: str) -> str:
        """Record one act and return the sentence for the signer. `key` is that of the stored click.

        Raises UserError with the refusal, which is recorded.
        """
        person = self.policy.person(who)
        text = ""
        async with self._database.session() as session:
            await plans.hold(session, row.id)
            run = await runs.get(session, row.id)
            plan = self._kinds.plan(row.document)
            case = self.case(row, plan, await plans.signatures(session, row.id), started=_started(run))
            now = self._clock.now()
            refusal = approval.admit(
                case,
                person.id if person else None,
                act,
                digest=digest,
                typed=typed,
                reason=reason,
                now=now,
                method=METHODS[who.source],
                account=who.slack_user,
            )
            if refusal is None and person is not None:
                await self._record(session, row, person.id, act, who, typed=typed, reason=reason, at=now, key=key)
                text = await self._said(session, row, act, now)
            elif refusal is not None:
                await self.record_refusal(session, row, who, refusal)
        if refusal is not None:
            raise UserError(refusal.text)
        return text

    async def refuse(self, who: Who, row: PlanRow, refusal: Refusal) -> None:
        """Record a refusal that was decided outside (a guest, a deactivated account). Raises it as UserError."""
        async with self._database.session() as session:
            await self.record_refusal(session, row, who, refusal)
        raise UserError(refusal.text)

    async def record_refusal(self, session: AsyncSession, row: PlanRow, who: Who, refusal: Refusal) -> None:
        """An audit row for every refusal, and a line on the incident's timeline."""
        person = self.policy.person(who)
        account = who.slack_user or who.person
        await timeline.refuse(
            session,
            plan_id=row.id,
            account=account,
            person=person.id if person else "",
            code=refusal.code,
            text=refusal.text,
        )
        text = f"Signature of {person.name if person else account} on plan {row.id} refused: {refusal.code}"
        await timeline.add(
            session,
            incident_id=row.incident_id,
            kind="refusal",
            actor=person.name if person else account,
            occurred_at=self._clock.now(),
            text=text,
            data={"plan": row.id, "code": refusal.code},
        )
        await self._audit(session, row, text)

    async def _record(
        self,
        session: AsyncSession,
        row: PlanRow,
        person: str,
        act: Act,
        who: Who,
        *,
        typed: str,
        reason: str,
        at: datetime,
        key: str,
    ) -> None:
        await plans.sign(
            session,
            SignatureRow(
                plan_id=row.id,
                person=person,
                act=act,
                digest=row.digest,
                reason=reason,
                typed=typed,
                source=who.source,
                account=who.slack_user or who.person,
                inbox_key=key,
                at=at,
            ),
        )
        name = self.policy.name(person)
        verbs = {
            Act.REQUEST: "requested",
            Act.APPROVE: "approved",
            Act.DENY: "denied",
            Act.WITHDRAW: "withdrew from",
            Act.REVIEW: "reviewed",
        }
        text = f"{name} {verbs[act]} plan {row.id} ({row.digest[:8]}): {reason}"
        await timeline.add(
            session,
            incident_id=row.incident_id,
            kind="signature",
            actor=name,
            occurred_at=at,
            text=text,
            data={"plan": row.id, "act": act, "digest": row.digest, "source": who.source},
            source_key=f"signature:{uuid.uuid4()}",
        )
        await outbox.add(session, "plan", row.channel, ref=row.id)
        await self._audit(session, row, text)

    async def _audit(self, session: AsyncSession, row: PlanRow, text: str) -> None:
        """Copy to the audit channel, where it is another one than the plan's own."""
        if self.policy.audit_channel != row.channel:
            await outbox.add(session, "text", self.policy.audit_channel, payload={"text": text})

    async def _said(self, session: AsyncSession, row: PlanRow, act: Act, now: datetime) -> str:
        if act is Act.DENY:
            return "Your denial is recorded; this plan will not run. Ask for a new plan to overrule it."
        if act is Act.WITHDRAW:
            return "Your signature is withdrawn."
        decision = await self.decision(session, row, now)
        if decision.state is approval.State.APPROVED:
            return "Your signature is recorded; the signatures are complete and the run starts now."
        return f"Your signature is recorded; still missing: {', '.join(decision.missing)}."


def _started(run: RunRow | None) -> bool:
    return run is not None and run.state != "awaiting"


_SCHEDULE = Person(id=SCHEDULE, name="the schedule of the plan")

METHODS = {"slack": Method.SLACK, "key": Method.KEY, "cli": Method.HOST, "clock": Method.HOST}
"""What a signature from each source is worth."""

NOT_ON_ROSTER = Refusal(
    code=Code.NOT_ON_ROSTER,
    text="You are not on the roster of the plan file, so nothing was done. Ask a person who is.",
)
