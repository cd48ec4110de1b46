"""Acts by key: what the command line shows, has signed and hands in. It works without Slack and without a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from actions.approval import Act, Code, Refusal
from actions.errors import UserError
from actions.ports import Clock
from bot.ports import Who
from bot.services.approvals import NOT_ON_ROSTER, Approvals
from bot.services.cards import PlanCard
from bot.services.keys import SOURCE, Claim
from bot.services.plans import Plans
from bot.services.statements import Proof, Statement, statement
from storage import plans
from storage.session import Database
from storage.tables import PlanRow

PLAN = "plan "
"""How the subject of a statement on a plan begins."""


class Signing:
    """One person's acts on plans, proven by key. Every refusal is recorded and raised as UserError."""

    def __init__(
        self, database: Database, approvals: Approvals, all_plans: Plans, clock: Clock, *, person: str
    ) -> None:
        self._database = database
        self._approvals = approvals
        self._plans = all_plans
        self._clock = clock
        self.person = person
        self._who = Who(source=SOURCE, person=person)

    async def card(self, plan_id: str) -> PlanCard:
        """The plan as it stands now. Raises UserError when there is none."""
        row = await self._row(plan_id)
        async with self._database.session() as session:
            return await self._plans.card(session, row)

    async def act(self, plan_id: str, act: Act) -> Act:
        """What this act is on this plan: the requester signs the request. Raises UserError for who cannot sign."""
        row = await self._row(plan_id)
        if self._approvals.policy.person(self._who) is None:
            await self._approvals.refuse(self._who, row, NOT_ON_ROSTER)
        if not self._approvals.policy.keys.has(self.person):
            text = f"`{self.person}` has no key in the roster; add the line of a .pub file with `drbot plan activate`."
            await self._approvals.refuse(self._who, row, Refusal(code=Code.BAD_PROOF, text=text))
        return Act.REQUEST if act is Act.APPROVE and row.requester == self.person else act

    def statement(self, card: PlanCard, act: Act, *, target: str, reason: str) -> Statement:
        """What is to be signed: this plan as it was shown."""
        return statement(
            act=act,
            subject=f"{PLAN}{card.plan_id}",
            digest=card.digest,
            person=self.person,
            target=target,
            reason=reason,
            at=self._clock.now(),
        )

    async def hand_in(self, proof: Proof) -> str:
        """Record a signed statement; the sentence for the signer."""
        said = proof.statement
        if not said.subject.startswith(PLAN):
            await self._unknown("This statement is not about a plan; sign one with `drbot sign PLAN`.")
        row = await self._row(said.subject.removeprefix(PLAN))
        claim = Claim.model_validate(said.model_dump() | {"at": self._clock.now(), "person": self.person, "nonce": ""})
        problem = self._approvals.policy.keys.problem(claim, proof.text)
        if problem is None and said.act == Act.REQUEST and row.requester != self.person:
            problem = f"the plan was asked for by {row.requester}"
        if problem is not None:
            text = f"This signature does not count: {problem}."
            await self._approvals.refuse(self._who, row, Refusal(code=Code.BAD_PROOF, text=text))
        return await self._approvals.sign(
            self._who, row, Act(said.act), digest=said.digest, typed=said.target, reason=said.reason, proof=proof.text
        )

    async def proofs(self, plan_id: str) -> Sequence[str]:
        """The stored proofs of a plan, for an auditor."""
        async with self._database.session() as session:
            return [item.proof for item in await plans.signatures(session, plan_id) if item.proof]

    async def _row(self, plan_id: str) -> PlanRow:
        async with self._database.session() as session:
            row = await plans.get(session, plan_id.strip())
        if row is None:
            text = f"There is no plan `{plan_id.strip()[:40]}`; its message and `drbot status` name it."
            return await self._unknown(text)
        return row

    async def _unknown(self, text: str) -> NoReturn:
        """Record an act on what there is not, and raise it as UserError."""
        async with self._database.session() as session:
            await self._approvals.record_turned_down(session, self._who, Code.UNKNOWN_NAME, text)
        raise UserError(text)
