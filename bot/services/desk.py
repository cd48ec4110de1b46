"""The desk: the one counter where Slack handlers and the command line hand things in."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from actions.approval import Act, Code, Refusal
from actions.contract import Report
from actions.errors import RefusedError, UserError
from actions.ports import Clock
from bot.ports import ReplyTo, Watched, Who
from bot.router import Command
from bot.services.approvals import NOT_ON_ROSTER, Approvals
from bot.services.cards import PlanCard
from bot.services.custody import QUERIES as CUSTODY_QUERIES
from bot.services.drills import Drills
from bot.services.evidence import Evidence
from bot.services.incidents import Incidents
from bot.services.plans import Plans
from bot.services.provenance import BREAK_GLASS, REVIEW
from bot.services.rate_limits import RateLimits, Wait
from bot.services.refusals import Door, Refusals
from storage import accounts, inbox, incidents, outbox, plans, requests, visits
from storage.session import Database
from storage.tables import PlanRow, RequestRow

FORGOTTEN = timedelta(minutes=15)
"""A click that is older than this when the bot is back is not carried out any more: people have moved on."""

LOOKED_AT = timedelta(seconds=30)
"""How long a look at the account of somebody lasts whose signature waits for the start."""

DRILL_ACTS = ("drill.done", "drill.postpone")
"""Commands that are an entry of the record, as those about incidents are."""

RESTORE_OFFER = "restore.offer"
"""The request that fills the open restore form."""


class Desk:
    """Takes clicks and commands; whoever carries out a command answers through the outbox."""

    def __init__(
        self,
        database: Database,
        approvals: Approvals,
        plans: Plans,
        incidents: Incidents,
        clock: Clock,
        *,
        drills: Drills,
        in_hand: timedelta = timedelta(seconds=15),
        limits: RateLimits | None = None,
    ) -> None:
        self._database = database
        self._approvals = approvals
        self._plans = plans
        self._incidents = incidents
        self._drills = drills
        self.evidence = Evidence(database, approvals.policy, incidents, clock)
        self._clock = clock
        self._in_hand = in_hand  # how long a click may take before it counts as left behind
        self._limits = limits or RateLimits()
        self.refusals = Refusals(database, approvals.policy, clock)

    async def store(self, key: str, kind: str, payload: Mapping[str, Any]) -> bool:
        """Keep what arrived; False when it arrived before."""
        async with self._database.session() as session:
            return await inbox.store(session, key, kind, payload)

    async def finish(self, key: str) -> None:
        """What was stored under this key is carried out."""
        async with self._database.session() as session:
            await inbox.finish(session, key)

    async def unfinished(self, kind: str) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Key and payload of what was stored and not finished when a process of the bot died, oldest first."""
        async with self._database.session() as session:
            rows = await inbox.unfinished(session, kind=kind, after=self._in_hand, within=FORGOTTEN)
            return [(row.key, row.payload) for row in rows]

    async def replayed(self, key: str) -> bool:
        """Remember a signed request; True when it was seen before, by whichever process, and answered. One that a
        process died over may come again: what it asks for carries a key of its own."""
        async with self._database.session() as session:
            return not await inbox.store(session, key, "http", {}) and await inbox.finished(session, key)

    async def take_turn(self, who: Who) -> None:
        """Count a command or a click of somebody. Raises UserError, after recording it, when there were too many."""
        person = self._approvals.policy.person(who)
        wait = self._limits.take(person.id if person else f"{who.team} {who.slack_user}", self._clock.now())
        if wait is None and person is not None:
            # Who is at a terminal is not proven, and must not use up the turns of somebody in Slack.
            wait = await self._everywhere(person.id if who.source == "slack" else f"{who.source} {person.id}")
        if wait is None:
            return
        text = (
            f"You have asked {self._limits.turns} times within {self._limits.within.total_seconds():.0f} s, so this "
            f"was not done. Try again at {wait.until.astimezone(UTC):%H:%M:%S} UTC; signatures are taken at any time."
        )
        await self.refusals.record(who, Door.RATE_LIMITED, text, told=wait.first)
        raise UserError(text)

    async def _everywhere(self, person: str) -> Wait | None:
        """Count it over all processes. What floods one of them was stopped in its memory and costs no statement."""
        limits = self._limits
        async with self._database.session() as session:
            if await visits.take(session, person, turns=limits.turns, within=limits.within):
                return None
            oldest, first = await visits.refuse(session, person, within=limits.within)
        return Wait(until=(oldest or self._clock.now()) + limits.within, first=first)

    async def turn_away(self, who: Who, code: str, text: str) -> NoReturn:
        """Record that something was refused before it reached a plan. Raises UserError with the text."""
        await self.refusals.turn_away(who, code, text)

    async def ask(self, who: Who, command: Command, *, reply: ReplyTo, key: str | None = None) -> int | None:
        """Take one command. What only writes the record is done here; the rest becomes a request, whose id is
        returned. Asking again under the same `key` changes nothing.
        Raises UserError for accounts the roster does not know, after recording it."""
        person = await self.admit(who, command)
        key = key or await self.keep(who, {"kind": "ask", "command": command.model_dump(mode="json")})
        async with self.refusals.on_record(who, command.name):
            if await self._done_here(who, person, command, reply, key=key):
                return None
        alone = {BREAK_GLASS: True} if command.break_glass else {}
        async with self._database.session() as session:
            incident = await incidents.open_in(session, who.channel) if who.channel else None
            return await requests.add(
                session,
                RequestRow(
                    kind="command",
                    name=command.name,
                    params=dict(command.params),
                    person=person,
                    slack_user=who.slack_user,
                    channel=who.channel,
                    reply=reply.model_dump(mode="json") | {"who": who.model_dump(mode="json")} | alone,
                    reason=command.reason,
                    typed=command.typed,
                    incident_id=None if incident is None else incident.id,
                    source_key=key,
                ),
            )

    async def read(self, who: Who, command: Command) -> Report | str:
        """The answer of a query about incidents, for a terminal. Raises UserError, as `ask` does, for strangers."""
        await self.admit(who, command)
        async with self.refusals.on_record(who, command.name):
            return await self._incidents.read(who, command)

    async def admit(self, who: Who, command: Command) -> str:
        """The person of the roster who asks. Raises UserError, after recording it, for strangers and for what cannot be
        stored as it was said."""
        person = self._approvals.policy.person(who)
        if person is None:
            await self.refusals.record(who, Code.NOT_ON_ROSTER, f"{command.name}: {NOT_ON_ROSTER.text}")
            raise UserError(NOT_ON_ROSTER.text)
        await self.refusals.check(who, [command.reason, command.typed, *_spoken(command)])
        return person.id

    async def _done_here(self, who: Who, person: str, command: Command, reply: ReplyTo, *, key: str) -> bool:
        """Carry out what needs no worker; False for everything else."""
        if command.name.startswith("incident."):
            await self._incidents.handle(who, person, command, reply, key=key)
        elif command.name in DRILL_ACTS:
            await self._drills.handle(person, command, key=key)
        elif command.name.startswith("evidence.") and command.name not in CUSTODY_QUERIES:
            await self.evidence.handle(who, person, command, key=key)
        elif command.name == REVIEW:
            await self._review(who, command, reply, key)
        else:
            return False
        return True

    async def _review(self, who: Who, command: Command, reply: ReplyTo, key: str) -> None:
        """Record that somebody has looked at a run that one person had started alone."""
        wanted = str(command.params["plan"])
        async with self._database.session() as session:
            row = await plans.get(session, wanted)
        if row is None:
            raise RefusedError(f"There is no plan `{wanted}`; its message names it.", code=Code.UNKNOWN_NAME)
        reason = str(command.params["text"])
        text = await self._approvals.sign(who, row, Act.REVIEW, digest=row.digest, typed="", reason=reason, key=key)
        async with self._database.session() as session:
            payload = {"text": text, "user": reply.user, "response_url": reply.response_url}
            await outbox.add(session, "ephemeral", reply.channel, payload=payload)

    async def keep(self, who: Who, payload: Mapping[str, Any]) -> str:
        """Store what was handed in here, unlike a click of Slack, which is stored before its ack. Returns its key."""
        key = f"desk:{uuid.uuid4()}"
        async with self._database.session() as session:
            kept = {**payload, "who": who.model_dump(mode="json")}
            await inbox.store(session, key, f"desk.{who.source}", kept)
            await inbox.finish(session, key)
        return key

    async def sign(
        self,
        who: Who,
        token: str,
        *,
        act: Act,
        digest: str,
        typed: str,
        reason: str,
        channel: str,
        ts: str,
        key: str | None = None,
    ) -> str:
        """Record an act on the plan of this button; the sentence for the clicker. `key` is that of the stored click.
        Raises UserError for refusals."""
        row = await self._plan(who, token)
        await self.refusals.check(who, [reason, typed])
        if channel:
            await self._belongs(who, row, channel, ts)
        said = {"token": token, "act": act, "digest": digest, "typed": typed, "reason": reason}
        key = key or await self.keep(who, {"kind": "sign", **said})
        return await self._approvals.sign(who, row, act, digest=digest, typed=typed, reason=reason, key=key)

    async def _belongs(self, who: Who, row: PlanRow, channel: str, ts: str) -> None:
        """A button counts only on the message that the bot posted for this plan, not on a copy of it."""
        async with self._database.session() as session:
            known = await outbox.message_ts(session, "plan", row.id, channel)
        if known is None or (ts and ts != known):
            text = "This button is not on the plan's own message; use the newest message of the plan."
            await self._approvals.refuse(who, row, Refusal(code=Code.STALE_REVISION, text=text))

    async def may_sign(self, who: Who, token: str) -> None:
        """Refuse (and record) a click before a modal is shown to somebody whose signature cannot count."""
        row = await self._plan(who, token)
        person = self._approvals.policy.person(who)
        if person is None:
            await self._approvals.refuse(who, row, NOT_ON_ROSTER)
        elif person.id == row.requester:
            text = "Your request is already your signature; one other person must approve."
            await self._approvals.refuse(who, row, Refusal(code=Code.SELF_APPROVAL, text=text))

    async def refuse_account(self, who: Who, token: str, refusal: Refusal) -> None:
        """Record that an account was turned away (guest, deactivated, foreign, bot). Raises UserError."""
        row = await self._plan(who, token)
        await self._approvals.refuse(who, row, refusal)

    async def watched(self) -> Watched:
        """The accounts and groups whose state decides about signatures."""
        policy = self._approvals.policy
        async with self._database.session() as session:
            waiting = set(await accounts.unseen_signers(session, within=LOOKED_AT))
        return Watched(
            accounts=tuple(sorted(policy.accounts)),
            waiting=tuple(sorted(waiting & policy.accounts.keys())),
            groups=tuple(sorted(policy.groups)),
        )

    async def note_account(self, account: str, *, problem: str, groups: Sequence[str]) -> None:
        """Keep what Slack says of an account for the workers, who do not ask Slack."""
        async with self._database.session() as session:
            await accounts.note(session, account, problem=problem, groups=groups)

    async def _plan(self, who: Who, token: str) -> PlanRow:
        """The plan of a button. Raises UserError, after recording it, for a token that no plan has."""
        try:
            return await self._plans.by_token(token)
        except UserError as error:
            await self.refusals.record(who, Door.UNKNOWN_BUTTON, str(error))
            raise

    async def plan_card(self, token: str, who: Who | None = None) -> PlanCard:
        """The plan behind a button, fresh from the database."""
        row = await (self._plans.by_token(token) if who is None else self._plan(who, token))
        async with self._database.session() as session:
            return await self._plans.card(session, row)

    async def pressed(self, who: Who, token: str, *, channel: str, ts: str) -> PlanCard:
        """The plan of a button of its run, fresh from the database. Raises UserError, after recording it, for a token
        that no plan has and for a button on another message than the plan's own."""
        row = await self._plan(who, token)
        await self._belongs(who, row, channel, ts)
        async with self._database.session() as session:
            return await self._plans.card(session, row)

    async def recommend(
        self, who: Who, database: str | None, view_id: str, *, alternatives: bool = False, before: str | None = None
    ) -> None:
        """Ask for the restore recommendation; it arrives in the open modal."""
        params: dict[str, Any] = {"alternatives": alternatives}
        if database is not None:
            params["database"] = database
        if before is not None:
            params["before"] = before
        reply = ReplyTo(channel=who.channel, user=who.slack_user, view_id=view_id)
        await self.ask(who, Command(name=RESTORE_OFFER, params=params), reply=reply)

    async def pin(
        self, who: Who, *, channel: str, ts: str, text: str, author: str, permalink: str | None, occurred_at: datetime
    ) -> None:
        """Put a message on the timeline of the channel's incident, once."""
        if self._approvals.policy.person(who) is None and await self._has_incident(channel):
            await self.refusals.record(who, Code.NOT_ON_ROSTER, f"pin: {NOT_ON_ROSTER.text}")
        await self._incidents.pin(
            who, channel=channel, ts=ts, text=text, author=author, permalink=permalink, occurred_at=occurred_at
        )

    async def _has_incident(self, channel: str) -> bool:
        async with self._database.session() as session:
            return await incidents.open_in(session, channel) is not None


def _spoken(command: Command) -> list[str]:
    """What a person has typed. A plan file is longer, and was checked as such."""
    return [
        str(value) for name, value in command.params.items() if (command.name, name) != ("plan.activate", "document")
    ]
