"""Signatures: who a Slack account is, what the policy asks, recording acts and refusals."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from actions import approval
from actions.approval import Act, Case, Code, Decision, Method, Refusal, State
from actions.contract import Kinds, Plan
from actions.errors import PermanentError
from actions.ports import Clock
from actions.site import Frozen
from bot.ports import Who
from bot.services import announcements, provenance
from bot.services.cases import Cases
from bot.services.declared import ActionOf, Declared
from bot.services.policy import METHODS, SCHEDULE, Policy
from bot.services.refusals import OnRecordError
from storage import outbox, plans, runs, timeline
from storage.session import Database
from storage.tables import PlanRow, RunRow, SignatureRow


class Approvals:
    """Judges and records acts on plans. Both the click and the worker come through here."""

    def __init__(
        self,
        database: Database,
        policy: Policy,
        kinds: Kinds,
        clock: Clock,
        *,
        action: ActionOf,
        recoveries: Collection[str] = (),
    ) -> None:
        """`recoveries` are the actions that one person may start under break-glass."""
        self._database = database
        self.policy = policy
        self._kinds = kinds
        self._clock = clock
        self._cases = Cases(policy, recoveries)
        self._declared = Declared(kinds, action)

    async def case(self, session: AsyncSession, row: PlanRow, *, started_at: datetime | None = None) -> Case:
        """All a decision rests on, as stored now."""
        plan, signatures = self._kinds.plan(row.document), await plans.signatures(session, row.id)
        return await self._cases.case(session, row, plan, signatures, started_at=started_at)

    async def decision(
        self, session: AsyncSession, row: PlanRow, now: datetime, *, started_at: datetime | None = None
    ) -> Decision:
        """Where the plan stands, re-derived from the stored acts. A document that no longer has the digest it was
        stored under is VOID: somebody changed it behind our back. With `started_at`, whether its run may go on."""
        plan = self._kinds.plan(row.document)
        signatures = await plans.signatures(session, row.id)
        flaw = await self._flaw(session, row, plan, signatures, started_at=started_at)
        # The very rows that were derived again: one that came in since is judged the next time.
        return flaw or approval.decide(
            await self._cases.case(session, row, plan, signatures, started_at=started_at), now
        )

    async def _flaw(
        self,
        session: AsyncSession,
        row: PlanRow,
        plan: Plan,
        signatures: Sequence[SignatureRow],
        *,
        started_at: datetime | None,
    ) -> Decision | None:
        """VOID with the reason when what is stored is not what the bot made and people did; no rule is asked."""
        if plan.digest != row.digest:
            reason = f"The stored plan does not match its digest. {provenance.WHO_WROTE}"
            return Decision(state=State.VOID, reason=reason, code=Code.BAD_PROOF)
        if started_at is None and plan.commands != plan.worded():
            return Decision(state=State.VOID, reason=WORDED_ELSEWHERE, code=Code.NOT_DECLARED)
        misfit = await self._declared.misfit(session, plan)
        if misfit is not None:
            reason = f"No action of this bot makes such a plan: {misfit}. {provenance.WHO_WROTE}"
            return Decision(state=State.VOID, reason=reason, code=Code.NOT_DECLARED)
        at_start = self._cases if started_at is None else await self._cases.then(session, started_at)
        return await provenance.astray(session, row, plan, signatures, at_start.policy) or await provenance.flaw(
            session, row, plan, signatures, self.policy.person
        )

    async def request(
        self, session: AsyncSession, row: PlanRow, plan: Plan, who: Who, typed: str, *, key: str
    ) -> Refusal | None:
        """Record the requester's own signature on a plan that was just stored. `key` is that of the stored command.
        Who asks by key signs afterwards, when the plan and its digest are known."""
        if row.break_glass and self.policy.break_glass is None:
            return NO_BREAK_GLASS
        if row.break_glass and not self.policy.pages:
            return UNANNOUNCED
        case = await self.case(session, row)
        reason = row.reason
        if approval.others_needed(case.covering, plan.risk) == 0 and not reason.strip():
            reason = provenance.ASKED_FOR
        new = New(who=who, act=Act.REQUEST, digest=row.digest, typed=typed, reason=reason, key=key)
        refusal = self._admit(case, new)
        if refusal is None and METHODS[who.source] is not Method.KEY:
            refusal = await self._record(session, row, new)
        return refusal

    async def sign(
        self,
        who: Who,
        row: PlanRow,
        act: Act,
        *,
        digest: str,
        typed: str,
        reason: str,
        key: str = "",
        proof: str = "",
    ) -> str:
        """Record one act and return the sentence for the signer. `key` is that of the stored click, `proof` what the
        signer's own key says of the act.

        Raises UserError with the refusal, which is recorded.
        """
        text = ""
        new = New(who=who, act=act, digest=digest, typed=typed, reason=reason, key=key, proof=proof)
        async with self._database.session() as session:
            await plans.hold(session, row.id)
            run = await runs.get(session, row.id)
            started_at = None if run is None else run.started_at
            refusal = self._admit(await self.case(session, row, started_at=started_at), new) or _closed(run)
            if refusal is None and act in (Act.REQUEST, Act.APPROVE):  # a denial is taken in doubt as well
                refusal = await self._refused_by_flaw(session, row)
            if refusal is None:
                refusal = await self._record(session, row, new)
            if refusal is None:
                text = await self._said(session, row, act, started_at=started_at)
            else:
                await self.record_refusal(session, row, who, refusal)
        if refusal is not None:
            raise OnRecordError(refusal.text)
        return text

    async def _refused_by_flaw(self, session: AsyncSession, row: PlanRow) -> Refusal | None:
        """Nobody signs in good faith what no worker would start; the rules alone do not see it."""
        plan, signatures = self._kinds.plan(row.document), await plans.signatures(session, row.id)
        flaw = await self._flaw(session, row, plan, signatures, started_at=None)
        if flaw is None or flaw.code is None:
            return None
        return Refusal(code=flaw.code, text=f"Your signature was not taken: this plan is void. {flaw.reason}")

    def _admit(self, case: Case, new: New) -> Refusal | None:
        person = self.policy.person(new.who)
        return approval.admit(
            case,
            None if person is None else person.id,
            new.act,
            digest=new.digest,
            typed=new.typed,
            reason=new.reason,
            now=self._clock.now(),
            method=METHODS[new.who.source],
            account=new.who.slack_user,
        )

    async def refuse(self, who: Who, row: PlanRow, refusal: Refusal) -> None:
        """Record a refusal that was decided outside (a guest, a deactivated account). Raises it as UserError."""
        async with self._database.session() as session:
            await self.record_refusal(session, row, who, refusal)
        raise OnRecordError(refusal.text)

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

    async def record_turned_down(self, session: AsyncSession, who: Who, code: str, text: str) -> None:
        """An audit row for a request that led to no plan."""
        person = self.policy.person(who)
        account = who.slack_user or who.person
        await timeline.refuse(
            session, plan_id=None, account=account, person=person.id if person else "", code=code, text=text
        )

    async def _record(self, session: AsyncSession, row: PlanRow, new: New) -> Refusal | None:
        """Store an act that was admitted; the refusal when its proof does not hold."""
        person = self.policy.person(new.who)
        if person is None:
            raise PermanentError("An act of nobody on the roster is never admitted.")
        now = self._clock.now()
        stored = SignatureRow(
            plan_id=row.id,
            person=person.id,
            act=new.act,
            digest=row.digest,
            reason=new.reason,
            typed=new.typed,
            source=new.who.source,
            account=new.who.slack_user or new.who.person,
            proof=new.proof,
            inbox_key=new.key,
            at=now,
        )
        problem = self._cases.bad_proof(stored)
        if problem is not None:
            text = f"This signature does not count: {problem}. It was not taken; sign again."
            return Refusal(code=Code.BAD_PROOF, text=text)
        await plans.sign(session, stored)
        done = f"{person.name} {_VERBS[new.act]} plan {row.id} ({row.digest[:8]}):"
        await timeline.add(
            session,
            incident_id=row.incident_id,
            kind="signature",
            actor=person.name,
            occurred_at=now,
            text=f"{done} {new.reason}",
            data={"plan": row.id, "act": new.act, "digest": row.digest, "source": new.who.source},
            source_key=f"signature:{uuid.uuid4()}",
        )
        await outbox.add(session, "plan", row.channel, ref=row.id)
        if row.break_glass:
            await announcements.told(session, row, stored, self.policy)
        await self._audit(session, row, done, new.reason)
        return None

    async def _audit(self, session: AsyncSession, row: PlanRow, text: str, said: str = "") -> None:
        """Copy to the audit channel, where it is another one than the plan's own."""
        if self.policy.audit_channel != row.channel:
            payload = {"text": text} | ({"said": said} if said else {})
            await outbox.add(session, "text", self.policy.audit_channel, payload=payload)

    async def _said(self, session: AsyncSession, row: PlanRow, act: Act, *, started_at: datetime | None) -> str:
        if act is Act.DENY:
            return "Your denial is recorded; this plan will not run. Ask for a new plan to overrule it."
        if act is Act.WITHDRAW:
            return "Your signature is withdrawn."
        decision = await self.decision(session, row, self._clock.now(), started_at=started_at)
        if act is Act.REVIEW:
            return "Your review is recorded."
        if decision.state is State.APPROVED:
            return "Your signature is recorded; the signatures are complete and the run starts now."
        return f"Your signature is recorded; still missing: {', '.join(decision.missing)}."


class New(Frozen):
    """An act that somebody wants recorded. `key` is that of the stored click, `proof` what a key of his says of it."""

    who: Who
    act: Act
    digest: str
    typed: str
    reason: str
    key: str = ""
    proof: str = ""


def _closed(run: RunRow | None) -> Refusal | None:
    """Why a run that ended before its start takes no signature. What was recorded counts, whatever the clock says now:
    nothing that expired comes back."""
    codes = {"denied": Code.DENIED, "expired": Code.EXPIRED, "void": Code.STOPPED}
    if run is None or run.state not in codes:
        return None
    return Refusal(code=codes[run.state], text=f"{run.message} This plan will not run; ask for a new one.".strip())


_VERBS = {
    Act.REQUEST: "requested",
    Act.APPROVE: "approved",
    Act.DENY: "denied",
    Act.WITHDRAW: "withdrew from",
    Act.REVIEW: "reviewed",
}

NO_BREAK_GLASS = Refusal(
    code=Code.NO_RULE,
    text="The plan file has no `approval.break_glass`, so nobody may act alone; ask for it with all signatures.",
)

UNANNOUNCED = Refusal(
    code=Code.NO_PAGER,
    text=(
        "Break-glass must be announced outside Slack as well, and the plan file names no `pager`; ask for it with all "
        "signatures, and have a plan file with `pager` activated."
    ),
)

__all__ = ["NOT_ON_ROSTER", "SCHEDULE", "Approvals", "Policy"]

WORDED_ELSEWHERE = (
    "The commands by hand in this plan are not those that this version of the bot has for its steps, so its signatures "
    "do not count; ask for it again. Where no other version of the bot has run since it was made, have somebody find "
    "out who wrote into the bot's database."
)
"""Once it has started, a run goes on over a newer version; what its signers read is shown as they read it."""

NOT_ON_ROSTER = Refusal(
    code=Code.NOT_ON_ROSTER,
    text="You are not on the roster of the plan file, so nothing was done. Ask a person who is.",
)
