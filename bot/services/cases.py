"""What a decision on a plan rests on, read anew from the database each time: acts, accounts, the incident, denials."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from actions.approval import Act, BreakGlass, Case, Method, Person, Signature, Start
from actions.contract import Plan
from bot.services.keys import Claim, once
from bot.services.plan_versions import of_row
from bot.services.policy import METHODS, SCHEDULE, SCHEDULE_PERSON, Policy, read
from bot.services.suspicion import suspected_since
from storage import accounts, inbox, incidents, plan_versions, plans
from storage.tables import AccountRow, Incident, PlanRow, SignatureRow

log = structlog.get_logger()

COMMANDER_ROLE = "incident_commander"
"""The role of the roster that an incident's commander must hold to act alone: anybody may open an incident and name
himself its commander."""


ACTIVATION = "plan.activate"
"""The way to a plan file with a record, so it must not need one."""


class Cases:
    """Builds cases under one policy and its roster. `recoveries` are the actions that one person may start under
    break-glass."""

    def __init__(self, policy: Policy, recoveries: Collection[str]) -> None:
        self.policy = policy
        self._recoveries = frozenset(recoveries)
        self._earlier: dict[str, Cases] = {}

    async def then(self, session: AsyncSession, at: datetime) -> Cases:
        """Under the version of the plan file that was in force at a moment of the database's clock."""
        row = await plan_versions.newest(session, at=at)
        if row is None:
            return self  # nothing has been activated yet: the file alone says what holds
        if row.sha256 not in self._earlier:
            version = await asyncio.to_thread(of_row, row)
            self._earlier[row.sha256] = Cases(Policy(version.plan), self._recoveries)
        return self._earlier[row.sha256]

    async def case(
        self,
        session: AsyncSession,
        row: PlanRow,
        plan: Plan,
        signatures: Sequence[SignatureRow],
        *,
        started_at: datetime | None,
    ) -> Case:
        """All a decision rests on. Signatures by key whose proof does not hold are left out."""
        case = await self.unstarted(session, row, plan, signatures)
        if started_at is None:
            return case
        then = await self.then(session, started_at)
        before = await then.unstarted(session, row, plan, signatures, until=started_at)
        # Whether Slack may be believed is asked of the keys in force: who cleared it may have come since.
        before = before.model_copy(update={"slack_suspect_since": case.slack_suspect_since})
        return case.model_copy(update={"start": Start(at=started_at, case=before)})

    async def unstarted(
        self,
        session: AsyncSession,
        row: PlanRow,
        plan: Plan,
        signatures: Sequence[SignatureRow],
        *,
        until: datetime | None = None,
    ) -> Case:
        """The same without the start of its run, and without denials that came after `until`."""
        policy = self.policy
        known = await accounts.of(session, policy.accounts)
        incident = None if row.incident_id is None else await incidents.get(session, row.incident_id)
        denied = await plans.denied(session, row, plan.target, until=until)
        return Case(
            plan=plan,
            requester=row.requester,
            rules=policy.rules,
            roster=self._roster(row, known),
            signatures=tuple(self._read(row, signatures, await _looks(session, signatures, known))),
            expires_at=row.expires_at,
            service=policy.service(plan),
            channels=policy.places(row.channel, incident=incident is not None),
            unwitnessed=not policy.witnessed and plan.action != ACTIVATION,
            seen_within=policy.seen_within,
            slack_suspect_since=await suspected_since(session, policy.keys),
            policy_then=read(row.policy),
            policy_now=policy.version,
            break_glass=self._break_glass(row, incident),
            alone=row.break_glass,
            recovery=plan.action in self._recoveries,
            overrules=row.overrules,
            denied="" if denied is None else denied.id,
            barred={item.account: item.problem for item in known if item.problem},
            groups=_groups(known),
        )

    def bad_proof(self, row: SignatureRow) -> str | None:
        """Why a signature by key does not show its act; None when it does, and for other signatures. One that came in
        by no way there is shows nothing."""
        method = METHODS.get(row.source)
        if method is None:
            return f"nobody signs by {row.source}"
        if method is not Method.KEY:
            return None
        claim = Claim(
            act=row.act,
            subject=f"plan {row.plan_id}",
            digest=row.digest,
            person=row.person,
            target=row.typed,
            reason=row.reason,
            at=row.at,
        )
        return self.policy.keys.problem(claim, row.proof)

    def _read(
        self, row: PlanRow, signatures: Sequence[SignatureRow], looks: Mapping[int | None, datetime]
    ) -> list[Signature]:
        found: list[Signature] = []
        for item, first in zip(signatures, once([item.proof for item in signatures]), strict=True):
            problem = self.bad_proof(item) if first else "it is a copy"
            if problem is not None:
                log.warning("proof_refused", plan=row.id, signature=item.id, person=item.person, problem=problem)
                continue
            found.append(
                Signature(
                    person=item.person,
                    act=Act(item.act),
                    digest=item.digest,
                    at=item.at,
                    typed=item.typed,
                    reason=item.reason,
                    method=METHODS[item.source],
                    account=item.account,
                    looked_at=looks.get(item.id),
                )
            )
        return found

    def _roster(self, row: PlanRow, known: Sequence[AccountRow]) -> Mapping[str, Person]:
        """The roster, where a person all of whose Slack accounts are barred has a key to sign with or nothing."""
        barred = {item.account for item in known if item.problem}
        free = {person for account, person in self.policy.accounts.items() if account not in barred}
        roster = {
            name: person if name in free else person.model_copy(update={"means": person.means - {Method.SLACK}})
            for name, person in self.policy.roster.items()
        }
        return roster | {SCHEDULE: SCHEDULE_PERSON} if row.requester == SCHEDULE else roster

    def _break_glass(self, row: PlanRow, incident: Incident | None) -> BreakGlass | None:
        """None also when the plan file allows no break-glass: then the plan needs all signatures like any other."""
        allowed = self.policy.break_glass
        if not row.break_glass or allowed is None:
            return None
        commander = "" if incident is None else self.policy.accounts.get(incident.commander, incident.commander)
        person = self.policy.roster.get(commander)
        return BreakGlass(
            commander=commander if person is not None and COMMANDER_ROLE in person.roles else "",
            delay=allowed.delay,
            review_within=allowed.review_within,
            reviewers=allowed.reviewers,
        )


async def _looks(
    session: AsyncSession, signatures: Sequence[SignatureRow], known: Sequence[AccountRow]
) -> Mapping[int | None, datetime]:
    """When Slack last told of the account of each signature from Slack. Every click and command is looked up as it
    comes in; a worker that was away records a request later than that."""
    told = [item for item in signatures if METHODS.get(item.source) is Method.SLACK]
    arrived = {item.key: item.received_at for item in await inbox.get_all(session, [item.inbox_key for item in told])}
    noted = {item.account: item.seen_at for item in known}
    looks: dict[int | None, datetime] = {}
    for item in told:
        came, noticed = arrived.get(item.inbox_key), noted.get(item.account)
        first = item.at if came is None else min(item.at, came)
        looks[item.id] = first if noticed is None else max(first, noticed)
    return looks


def _groups(known: Sequence[AccountRow]) -> Mapping[str, frozenset[str]]:
    groups: dict[str, set[str]] = {}
    for item in known:
        for group in item.groups:
            groups.setdefault(group, set()).add(item.account)
    return {group: frozenset(members) for group, members in groups.items()}
