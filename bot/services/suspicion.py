"""Whether Slack itself is under suspicion, read from the record.

Anybody of the roster may say so in an incident, at once, and it holds everywhere: accounts in wrong hands can ask in
another channel as well. Trusting it again takes the keys of two persons. The record decides, not the columns of the
incident: a process that lost its head can change those, and only add to the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import NoReturn

from sqlalchemy.ext.asyncio import AsyncSession

from actions.approval import Code, Refusal
from actions.errors import UserError
from actions.ports import Clock
from bot.services.keys import Claim, Keys
from bot.services.paging import page
from bot.services.policy import Policy
from bot.services.statements import CLEAR, Proof, Statement, incident_digest, statement
from storage import incidents, outbox, plans, runs, timeline
from storage.session import Database, notify
from storage.tables import Incident, TimelineEntry

RAISED, CLEARED = "suspect_slack", "clear_suspect_slack"
"""Kinds of timeline entries."""

CLEARERS = 2
"""Persons whose keys end a suspicion."""

NOT_BY_SLACK = "Slack cannot clear itself: two persons run `drbot incident clear-suspect-slack` with their keys."

HOW_TO_CLEAR = "two persons each run `drbot incident clear-suspect-slack --incident {number}` with their keys"


async def suspected_since(session: AsyncSession, keys: Keys) -> datetime | None:
    """Since when nothing that came through Slack counts, in whichever incident that was said; None while Slack is
    trusted."""
    return min((await _suspicions(session, keys)).values(), default=None)


async def suspected_in(session: AsyncSession, incident_id: str, keys: Keys) -> datetime | None:
    """Since when the suspicion stands that was raised in this incident."""
    return (await _standing(session, incident_id, keys))[0]


async def _suspicions(session: AsyncSession, keys: Keys) -> Mapping[str, datetime]:
    """Every suspicion that stands, by incident, closed ones too: no column of an incident ends it."""
    found = {name: await suspected_in(session, name, keys) for name in await timeline.incidents_of(session, RAISED)}
    return {name: since for name, since in found.items() if since is not None}


async def _standing(session: AsyncSession, incident_id: str, keys: Keys) -> tuple[datetime | None, frozenset[str]]:
    """The suspicion, and who has signed that it is over."""
    since: datetime | None = None
    signed: frozenset[str] = frozenset()
    for entry in await timeline.of_kinds(session, incident_id, (RAISED, CLEARED)):
        if entry.kind == RAISED:
            if since is None:
                since, signed = entry.occurred_at, frozenset()
        elif since is not None and _problem(entry, incident_id, since, keys) is None:
            signed |= {str(entry.data["person"])}
            since = None if len(signed) >= CLEARERS else since
    return since, signed


def _problem(entry: TimelineEntry, incident_id: str, since: datetime, keys: Keys) -> str | None:
    recorded = entry.recorded_at or entry.occurred_at
    claim = _claim(
        incident_id, since, person=str(entry.data.get("person")), reason=str(entry.data.get("reason")), at=recorded
    )
    return keys.problem(claim, str(entry.data.get("proof")))


def _claim(incident_id: str, since: datetime, *, person: str, reason: str, at: datetime) -> Claim:
    return Claim(
        act=CLEAR,
        subject=f"incident {incident_id}",
        digest=incident_digest(incident_id, since),
        person=person,
        target="",
        reason=reason,
        at=at,
    )


class Suspicion:
    """Raises and clears it."""

    def __init__(self, database: Database, policy: Policy, clock: Clock, *, on_call: str) -> None:
        self._database = database
        self._policy = policy
        self._clock = clock
        self._on_call = on_call

    async def raise_(self, session: AsyncSession, row: Incident, person: str, why: str) -> None:
        """From now on Slack's signatures count nowhere. Raises UserError when it is so already."""
        already = await suspected_since(session, self._policy.keys)
        if already is not None:
            raise UserError(f"Slack is under suspicion since {already:%Y-%m-%d %H:%M:%S} UTC; nothing was changed.")
        now = self._clock.now()
        row.slack_suspect_since = now
        session.add(row)
        name = self._policy.name(person)
        text = (
            f"{name} says in incident {row.number} that Slack may be in wrong hands. Its buttons and commands are no "
            "signatures any more, in no incident and outside of them, earlier ones neither; sign with "
            "`drbot sign PLAN`. To trust Slack again, "
            f"{HOW_TO_CLEAR.format(number=row.number)}."
        )
        said = f"{text} Why: {why}" if why else text
        await timeline.add(session, incident_id=row.id, kind=RAISED, actor=name, occurred_at=now, text=said)
        await page(session, text, key=f"suspect-slack/{row.id}/{now.isoformat()}")
        await self._tell(session, row, text)

    async def statement(self, person: str, number: int | None, reason: str) -> Statement:
        """What this person signs to end the suspicion of an incident; without a number of the only one there is."""
        try:
            async with self._database.session() as session:
                row, since = await self._suspected(session, number)
        except UserError as error:
            await self._refuse(person, Refusal(code=Code.NOT_POSSIBLE, text=str(error)))
        return statement(
            act=CLEAR,
            subject=f"incident {row.id}",
            digest=incident_digest(row.id, since),
            person=person,
            reason=reason or f"Slack is trusted again in incident {row.number}",
            at=self._clock.now(),
        )

    async def hand_in(self, person: str, proof: Proof) -> str:
        """Record a signed statement; the second person's ends the suspicion. The sentence for the signer."""
        said, now = proof.statement, self._clock.now()
        async with self._database.session() as session:
            row = await incidents.get(session, said.subject.removeprefix("incident "))
        if row is None:
            text = "This statement is about no incident; run `drbot incident clear-suspect-slack` again."
            return await self._refuse(person, Refusal(code=Code.UNKNOWN_NAME, text=text))
        async with self._database.session() as session:
            await plans.hold(session, f"incident {row.id}")
            since, signed = await _standing(session, row.id, self._policy.keys)
            if since is None:
                text = f"Slack is not under suspicion in incident {row.number}; nothing was changed."
                refusal: Refusal | None = Refusal(code=Code.NOT_POSSIBLE, text=text)
            else:
                claim = _claim(row.id, since, person=person, reason=said.reason, at=now)
                refusal = self._refusal(claim, proof, signed)
            if refusal is None:
                return await self._record(session, row, person, proof, over=len(signed | {person}) >= CLEARERS)
        return await self._refuse(person, refusal)

    def _refusal(self, claim: Claim, proof: Proof, signed: frozenset[str]) -> Refusal | None:
        if claim.person not in self._policy.roster:
            text = f"`{claim.person}` is not on the roster, so nothing was done. Ask a person who is."
            return Refusal(code=Code.NOT_ON_ROSTER, text=text)
        if claim.person in signed:
            text = "Your signature is already recorded; a second person must sign with a key of their own."
            return Refusal(code=Code.ALREADY_SIGNED, text=text)
        wrong = self._policy.keys.problem(claim, proof.text)
        return Refusal(code=Code.BAD_PROOF, text=f"This signature does not count: {wrong}.") if wrong else None

    async def _refuse(self, person: str, refusal: Refusal) -> NoReturn:
        """Record it and raise it as UserError."""
        async with self._database.session() as session:
            await timeline.refuse(
                session, plan_id=None, account=person, person=person, code=refusal.code, text=refusal.text
            )
        raise UserError(refusal.text)

    async def _record(self, session: AsyncSession, row: Incident, person: str, proof: Proof, *, over: bool) -> str:
        name = self._policy.name(person)
        text = f"{name} has signed that Slack can be trusted again: {proof.statement.reason}"
        elsewhere = [other for other in await _suspicions(session, self._policy.keys) if other != row.id]
        counts = "Signatures from Slack count from now on."
        if elsewhere:
            counts = "Slack stays under suspicion in another incident, so its signatures do not count yet."
        if over:
            text += f". {counts}"
            row.slack_suspect_since = None
            session.add(row)
        await timeline.add(
            session,
            incident_id=row.id,
            kind=CLEARED,
            actor=name,
            occurred_at=self._clock.now(),
            text=text,
            data={"person": person, "reason": proof.statement.reason, "proof": proof.text},
        )
        await self._tell(session, row, text)
        if over:
            return f"The suspicion of incident {row.number} is over. {counts}"
        return "Your signature is recorded; Slack is trusted again once a second person has signed."

    async def _suspected(self, session: AsyncSession, number: int | None) -> tuple[Incident, datetime]:
        standing = await _suspicions(session, self._policy.keys)
        rows = [row for name in standing if (row := await incidents.get(session, name)) is not None]
        known = {row.number: row for row in rows if number in (None, row.number)}
        if len(known) == 1:
            [row] = known.values()
            return row, standing[row.id]
        where = ", ".join(f"`{row.number}`" for row in sorted(rows, key=lambda row: row.number or 0))
        if not rows:
            raise UserError("Slack is under suspicion in no incident; nothing was changed.")
        raise UserError(f"Slack is under suspicion in incident {where}; name one with `--incident NUMBER`.")

    async def since(self, session: AsyncSession) -> datetime | None:
        """Since when Slack is under suspicion."""
        return await suspected_since(session, self._policy.keys)

    async def here(self, session: AsyncSession, row: Incident) -> datetime | None:
        """Since when the suspicion stands that was raised in this incident."""
        return await suspected_in(session, row.id, self._policy.keys)

    async def _tell(self, session: AsyncSession, row: Incident, text: str) -> None:
        for channel in dict.fromkeys([row.channel, self._on_call]):
            if channel:
                await outbox.add(session, "text", channel, payload={"text": text})
        await outbox.add(session, "incident", row.channel, ref=row.id)
        for run in await runs.in_state(session, ("awaiting", *runs.HELD)):
            plan = await plans.get(session, run.id)
            if plan is not None:
                await outbox.add(session, "plan", plan.channel, ref=plan.id)
        # The workers look at every plan again: what Slack had signed may not start any more, or may again.
        await notify(session, "signature")
